"""One part on its own: what it writes, when it is finished, and that it needs no other."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from index_files import contents

from arrowds import metrics
from arrowds.build.map import is_finished, map_part, run_of, sum_of_parts
from arrowds.build.operations import plan_analysis
from arrowds.build.plan import columns_of
from arrowds.errors import MetricFailedError
from arrowds.sources import Source, TorchSource, open_source
from arrowds.store import LocalStore

TABLE = pa.table({"x": np.arange(2500), "y": [[n % 5] * (n % 3) for n in range(2500)]})


def planned(folder, chosen, source=TABLE):
    plan = plan_analysis(LocalStore(folder), open_source(source), chosen, overwrite=False)
    return plan, plan.task(plan.metrics, {})


def rows_of(task, metric, part):
    """(value, id) of a run, in its order."""
    (table,) = run_of(task, metric, part).between(None, None)
    return list(zip(table["value"].to_pylist(), table["sample_id"].to_pylist(), strict=True))


def values_of(task, metric, part):
    """The values of a part in the order of its rows, as the reduce takes them."""
    run = run_of(task, metric, part)
    values = np.zeros(len(part), run.kind.to_pandas_dtype())
    run.scatter(values, None, run.first_id)
    return values.tolist()


def test_a_part_is_a_sorted_run_and_its_values(tmp_path):
    metric = metrics.expr("m", -pl.col("x"))
    plan, task = planned(tmp_path, metric)
    map_part(task, plan.parts[1])
    assert sorted(contents(tmp_path)) == [f"builds/{plan.key}/{kind}/m/00001.arrow" for kind in ("runs", "values")]
    assert rows_of(task, metric, plan.parts[1]) == [(-n, n) for n in range(2047, 1023, -1)]
    assert values_of(task, metric, plan.parts[1]) == list(range(-1024, -2048, -1))


def test_integers_take_the_smallest_type_that_holds_those_of_the_part(tmp_path):
    x = np.concatenate([np.arange(1024) % 200, np.arange(1024) - 300, np.full(452, 1 << 40)])
    metric = metrics.expr("m", pl.when(pl.col("x") == 5).then(None).otherwise(pl.col("x")), nulls="keep")
    plan, task = planned(tmp_path, metric, pa.table({"x": x}))
    for part in plan.parts:
        map_part(task, part)
        rows = enumerate(x[part.start : part.stop].tolist(), part.start)
        expected = sorted((value, n) for n, value in rows if value != 5)
        assert rows_of(task, metric, part) == expected
        assert values_of(task, metric, part) == np.where(x == 5, 0, x)[part.start : part.stop].tolist()
    runs = [run_of(task, metric, part) for part in plan.parts]
    kinds = [next(run.between(None, None)).schema.field("value").type for run in runs]
    assert kinds == [pa.uint8(), pa.int16(), pa.uint64()]
    assert {run.kind for run in runs} == {pa.int64()}


SUMS = {"0-d": 3, "1-d": [1, 2], "2-d": [[1.5, 2], [3, 4]], "empty": np.zeros((0, 2))}


@pytest.mark.parametrize("result", SUMS.values(), ids=SUMS)
def test_a_sum_keeps_its_shape(tmp_path, result):
    metric = metrics.function("t", lambda batch: result, kind="total")
    plan, task = planned(tmp_path, metric)
    map_part(task, plan.parts[0])
    found = sum_of_parts(task, metric, plan.parts[:1])
    assert found.shape == np.shape(result)
    assert found.tolist() == np.asarray(result).tolist()


def test_only_what_is_missing_is_computed(tmp_path):
    seen = []

    def noted(name):
        return metrics.function(name, lambda batch: seen.append(name) or batch["x"], version="1")

    plan, task = planned(tmp_path, [noted("a"), noted("b")])
    part = plan.parts[0]
    assert not is_finished(task, plan.metrics[0], part)
    map_part(task, part)
    assert all(is_finished(task, metric, part) for metric in plan.metrics)
    assert not is_finished(task, plan.metrics[0], plan.parts[1])
    for damaged in ("runs/a", "values/a"):
        (tmp_path / f"builds/{plan.key}/{damaged}/00000.arrow").unlink()
        seen.clear()
        map_part(task, part)
        map_part(task, part)
        assert seen == ["a"]


def test_a_failing_metric_leaves_no_file_of_its_part(tmp_path):
    def fails_later(batch):
        raise ValueError("late")

    plan, task = planned(tmp_path, [metrics.expr("ok", pl.col("x")), metrics.function("bad", fails_later)])
    with pytest.raises(ValueError, match="late"):
        map_part(task, plan.parts[0])
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("failing", [{0}, {1}, {1023}, {0, 700}, {500, 501}, {1024}, {2499}])
def test_the_first_sample_on_which_a_metric_fails_is_named(tmp_path, failing):
    def fails(batch):
        if failing.intersection(batch["x"].to_pylist()):
            raise ValueError("on purpose")
        return batch["x"]

    plan, task = planned(tmp_path, metrics.function("m", fails))
    part = next(part for part in plan.parts if part.start <= min(failing) < part.stop)
    with pytest.raises(MetricFailedError, match=f"raised ValueError on sample {min(failing)}: on purpose"):
        map_part(task, part)


def test_where_no_sample_fails_on_its_own_those_of_the_batch_are_named(tmp_path):
    def fails_on_many(batch):
        if batch.num_rows > 1:
            raise ValueError("too many")
        return batch["x"]

    plan, task = planned(tmp_path, metrics.function("m", fails_on_many))
    with pytest.raises(MetricFailedError, match="on samples 1024 to 2047: too many"):
        map_part(task, plan.parts[1])


def test_only_the_columns_that_are_needed_are_read():
    both = [metrics.seqlen("b"), metrics.expr("m", pl.col("a") + pl.col("b"))]
    assert columns_of(both) == ["b", "a"]
    assert columns_of([*both, metrics.function("f", len)]) is None
    assert columns_of([metrics.function("f", len, columns=["c"])]) == ["c"]


def test_a_metric_may_fill_one_array_again_and_again(tmp_path):
    buffer = np.empty(100)

    def doubled(batch):
        return np.multiply(np.asarray(batch), 2, out=buffer)

    metric = metrics.function("m", doubled)
    plan, task = planned(tmp_path, metric, TorchSource(range(1000), batch_size=100))
    map_part(task, plan.parts[0])
    assert values_of(task, metric, plan.parts[0]) == list(range(0, 2000, 2))


def test_batches_without_rows_are_not_measured(tmp_path):
    class Gaps(Source):
        description = "gaps"

        def __len__(self):
            return 3

        def fingerprint(self):
            return "0" * 32

        def read(self, start, stop, columns=None):
            for values in ([], [1, 2], [], [3], []):
                yield pa.record_batch({"x": pa.array(values, pa.int64())})

    metric = metrics.function("m", lambda batch: batch["x"].to_numpy() / batch["x"][0].as_py())
    plan, task = planned(tmp_path, metric, Gaps())
    map_part(task, plan.parts[0])
    assert values_of(task, metric, plan.parts[0]) == [1.0, 2.0, 1.0]
