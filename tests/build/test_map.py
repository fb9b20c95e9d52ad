"""One part on its own: what it writes, when it is finished, and that it needs no other."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from index_files import contents

from arrowds import metrics
from arrowds.build.map import columns_of, is_finished, map_part, read_sum
from arrowds.build.plan import make_plan
from arrowds.index.paths import Layout
from arrowds.sources import Source, TorchSource, open_source

TABLE = pa.table({"x": np.arange(2500), "y": [[n % 5] * (n % 3) for n in range(2500)]})


def planned(folder, chosen, source=TABLE):
    plan = make_plan(open_source(source), chosen, Layout(folder))
    return plan, plan.task(plan.metrics, {})


def test_a_part_is_a_parquet_file_of_ids_and_values(tmp_path):
    metric = metrics.expr("m", pl.col("x") * 2)
    plan, task = planned(tmp_path, metric)
    map_part(task, plan.parts[1])
    assert list(contents(tmp_path)) == ["metrics/m/parts/part-00001.parquet"]
    found = pq.read_table(tmp_path / "metrics/m/parts/part-00001.parquet")
    assert found["sample_id"].to_pylist() == list(range(1024, 2048))
    assert found["value"].to_pylist() == list(range(2048, 4096, 2))
    assert found.schema.field("sample_id").type == pa.uint32()


SUMS = {"0-d": 3, "1-d": [1, 2], "2-d": [[1.5, 2], [3, 4]], "empty": np.zeros((0, 2))}


@pytest.mark.parametrize("result", SUMS.values(), ids=SUMS)
def test_a_sum_keeps_its_shape(tmp_path, result):
    metric = metrics.function("t", lambda batch: result, kind="total")
    plan, task = planned(tmp_path, metric)
    map_part(task, plan.parts[0])
    found = read_sum(task, metric, plan.parts[0])
    assert found.shape == np.shape(result)
    assert found.tolist() == np.asarray(result).tolist()


def test_only_what_is_missing_is_computed(tmp_path):
    seen = []

    def noted(name):
        return metrics.Function(name=name, fn=lambda batch: seen.append(name) or batch["x"], digest=name)

    plan, task = planned(tmp_path, [noted("a"), noted("b")])
    part = plan.parts[0]
    assert not is_finished(task, plan.metrics[0], part)
    map_part(task, part)
    assert all(is_finished(task, metric, part) for metric in plan.metrics)
    assert not is_finished(task, plan.metrics[0], plan.parts[1])
    Layout(tmp_path).part("a", 0).unlink()
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
    assert pq.read_table(Layout(tmp_path).part("m", 0))["value"].to_pylist() == list(range(0, 2000, 2))


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
    assert pq.read_table(Layout(tmp_path).part("m", 0))["value"].to_pylist() == [1.0, 2.0, 1.0]
