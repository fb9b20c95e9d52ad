"""Finished parts of an interrupted build are kept where data, metric and bytes are the same, and only there."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from index_files import assert_same, digests, leftovers

import arrowds
from arrowds.build import shards
from arrowds.errors import IndexCorruptError, IndexExistsError, MetricFailedError
from arrowds.store import LocalStore

ROWS = 5000
PARTS = [0, 1024, 2048, 3072, 4096]


class Counted:
    """A metric that fails on one sample, if asked to, and notes the first row of every batch it measured."""

    def __init__(self, *, fail_at: int | None = None) -> None:
        self.fail_at, self.seen = fail_at, []

    def metric(self, name: str = "m", by: int = 2):
        # Neither the notes nor the failure belong to what the metric means.
        return arrowds.metrics.function(name, lambda batch: self.measured(batch, by), version=f"by {by}")

    def measured(self, batch, by):
        first = batch["x"][0].as_py()
        if self.fail_at is not None and first <= self.fail_at < first + len(batch):
            raise ValueError("broken on purpose")
        self.seen.append(first)
        return batch["x"].to_numpy() * by


def table(n: int = ROWS, *, add: int = 0) -> pa.Table:
    return pa.table({"x": np.arange(n) + add})


def interrupted(path, *, data=None, by: int = 2, overwrite: bool = False) -> None:
    """Leave the first two parts finished."""
    metric = Counted(fail_at=2100).metric(by=by)
    with pytest.raises(MetricFailedError, match=r"'m' raised ValueError on samples? "):
        arrowds.analyze(data or table(), metric, path, workers=1, overwrite=overwrite, progress=False)


def finish(path, counted: Counted, *, data=None, by: int = 2, **options) -> arrowds.Index:
    return arrowds.analyze(data or table(), counted.metric(by=by), path, workers=1, progress=False, **options)


def test_finished_parts_are_not_computed_again(tmp_path):
    interrupted(tmp_path / "index")
    counted = Counted()
    index = finish(tmp_path / "index", counted)
    assert counted.seen == [2048, 3072, 4096]
    assert index["m"].values.tolist() == (np.arange(ROWS) * 2).tolist()
    finish(tmp_path / "index", again := Counted())
    assert again.seen == []  # a finished index is opened
    finish(tmp_path / "whole", Counted())["m"].order  # noqa: B018  # the views, too
    assert_same(tmp_path / "index", tmp_path / "whole")


def test_a_finished_index_of_which_a_file_was_cut_short_is_not_taken_for_whole(tmp_path):
    index = finish(tmp_path / "index", Counted())
    values = next(path for path in (tmp_path / "index/metrics").rglob("*.parquet") if path.parts[-3] == "values")
    values.write_bytes(values.read_bytes()[:-1])
    with pytest.raises(IndexCorruptError, match=f"{values.relative_to(index.path)}: .* bytes instead of"):
        finish(tmp_path / "index", Counted())


def test_without_resume_everything_is_computed_again(tmp_path):
    interrupted(tmp_path / "index")
    finish(tmp_path / "index", counted := Counted(), resume=False)
    assert counted.seen == PARTS


@pytest.mark.parametrize(("data", "by"), [(table(), 3), (table(add=1), 2), (table(ROWS + 1), 2)])
def test_parts_of_another_definition_or_other_data_are_not_kept(tmp_path, data, by):
    interrupted(tmp_path / "index")
    index = finish(tmp_path / "index", counted := Counted(), data=data, by=by)
    assert counted.seen == [first + data["x"][0].as_py() for first in PARTS]
    assert index["m"].values.tolist() == (data["x"].to_numpy() * by).tolist()


@pytest.mark.parametrize("overwrite", [False, True])
def test_metrics_that_a_later_run_leaves_out_leave_no_file(tmp_path, overwrite):
    if overwrite:
        arrowds.analyze(table(10), Counted().metric("old"), tmp_path / "index", workers=1, progress=False)
    failing = [Counted().metric("left_out"), Counted(fail_at=2100).metric()]
    total = arrowds.metrics.function("left_total", lambda batch: 1, kind="total")
    with pytest.raises(MetricFailedError):
        arrowds.analyze(table(), [*failing, total], tmp_path / "index", workers=1, overwrite=overwrite, progress=False)
    finish(tmp_path / "index", counted := Counted(), overwrite=overwrite)
    assert counted.seen == [2048, 3072, 4096]
    arrowds.vacuum(tmp_path / "index")
    assert leftovers(tmp_path / "index") == []
    assert not list(tmp_path.glob("**/*left*"))


@pytest.mark.parametrize("kind", ["runs", "values"])
@pytest.mark.parametrize("damage", ["empty", "short", "hole", "gone", "other"])
def test_a_damaged_part_is_computed_again(tmp_path, kind, damage):
    interrupted(tmp_path / "index")
    (part,) = (tmp_path / "index").glob(f"builds/*/{kind}/m/00001.arrow")
    (other,) = (tmp_path / "index").glob(f"builds/*/{kind}/m/00000.arrow")
    whole = part.read_bytes()
    middle = len(whole) // 2  # among the rows: the schema is at both ends
    changed = {"empty": b"", "short": whole[:-1], "hole": whole[:middle] + bytes(64) + whole[middle + 64 :]}
    changed["other"] = other.read_bytes()
    part.unlink() if damage == "gone" else part.write_bytes(changed[damage])
    finish(tmp_path / "index", counted := Counted())
    assert counted.seen == [1024, 2048, 3072, 4096]
    assert digests(arrowds.open_index(tmp_path / "index")) == digests(finish(tmp_path / "whole", Counted()))


def test_sums_of_floats_do_not_depend_on_which_metrics_were_finished(tmp_path):
    """A source whose batches depend on the columns it is asked for, as those of Parquet files do."""

    class Wide(arrowds.sources.Source):
        def __len__(self):
            return 2048

        @property
        def schema(self):
            return pa.schema({"x": pa.float64(), "y": pa.float64()})

        description = "wide"

        def fingerprint(self):
            return "0" * 32

        def read(self, start, stop, columns=None):
            names = columns or ["x", "y"]
            values = np.random.default_rng(0).random(2048)[start:stop] * 1e9
            step = 100 // len(names)
            for low in range(0, stop - start, step):
                yield pa.record_batch(dict.fromkeys(names, values[low : low + step]))

    total = arrowds.metrics.function(
        "x", lambda batch: np.sum(batch["x"].to_numpy()), kind="total", columns=["x"], version="1"
    )
    other = arrowds.metrics.function("y", lambda batch: batch["y"], columns=["y"], version="1")
    whole = arrowds.analyze(Wide(), [other, total], tmp_path / "whole", workers=1, progress=False)

    def failing(batch):
        raise ValueError

    after = arrowds.metrics.function("z", failing, columns=[], version="1")
    with pytest.raises(MetricFailedError):  # the parts of "y" are not even begun
        arrowds.analyze(Wide(), [other, total, after], tmp_path / "index", workers=1, progress=False)
    index = arrowds.analyze(Wide(), [other, total], tmp_path / "index", workers=1, progress=False)
    assert digests(index) == digests(whole)


def test_opening_the_old_index_again_does_not_harm_a_run_that_overwrites_it(tmp_path):
    """The same analyze as the first, while another is writing the next snapshot."""
    path = tmp_path / "index"
    finish(path, Counted())
    seen = []

    def measured(batch):
        index = finish(path, Counted())
        seen.append((index.version, len(list(path.glob("builds/*/runs/m/*.arrow")))))
        return batch["x"].to_numpy() * 5

    metric = arrowds.metrics.function("m", measured, version="5")
    new = arrowds.analyze(table(), metric, path, workers=1, overwrite=True, progress=False)
    assert [version for version, _ in seen] == [1] * 5
    # A part is written while the next one is measured.
    assert all(number - 1 <= parts <= number for number, (_, parts) in enumerate(seen))
    assert new["m"].values.tolist() == (np.arange(ROWS) * 5).tolist()


def test_an_interrupted_overwrite_resumes_where_it_stopped(tmp_path):
    path = tmp_path / "index"
    finish(path, Counted(), by=7)
    interrupted(path, overwrite=True)
    assert finish(path, Counted(), by=7)["m"][1] == 7  # the old one is whole, and opening it loses nothing
    finish(path, counted := Counted(), overwrite=True)
    assert counted.seen == [2048, 3072, 4096]
    assert arrowds.open_index(path, verify=True)["m"][1] == 2
    arrowds.vacuum(path)
    assert leftovers(path) == []


def test_an_interrupted_append_resumes_also_when_another_was_committed_meanwhile(tmp_path):
    path = tmp_path / "index"
    finish(path, Counted(), data=table(10))
    more, failing = table(add=100), Counted(fail_at=2200)
    with pytest.raises(MetricFailedError):
        arrowds.append(more, path, metrics=failing.metric(), workers=1, progress=False)
    arrowds.append(table(3, add=7), path, metrics=Counted().metric(), workers=1, progress=False)
    counted = Counted()
    index = arrowds.append(more, path, metrics=counted.metric(), workers=1, progress=False)
    assert counted.seen == [2148, 3172, 4196]
    expected = [*range(10), 7, 8, 9, *range(100, 100 + ROWS)]
    assert index["m"].values.tolist() == [2 * x for x in expected]
    arrowds.vacuum(path)
    assert leftovers(path) == []


def test_what_a_killed_run_left_after_its_commit_is_cleared_when_the_index_is_opened_again(tmp_path):
    path = tmp_path / "index"
    index = finish(path, Counted())
    key = index.manifest.segments[0].columns["m"].key.split(".")[0]
    index.store.write(f"builds/{key}/plan.json", b"{}")
    index.store.write(f"builds/{key}/runs/m/00000.arrow", b"half")
    finish(path, Counted())
    assert leftovers(path) == []


def test_a_build_left_after_its_commit_does_not_swallow_the_next_overwrite(tmp_path):
    """Same data, other metrics: the key of the build is taken up again, what it measures is not lost."""
    path = tmp_path / "index"
    index = finish(path, Counted())
    key = index.manifest.segments[0].columns["m"].key.split(".")[0]
    index.store.write(f"builds/{key}/plan.json", b"{}")
    other = arrowds.analyze(table(), Counted().metric("other"), path, workers=1, overwrite=True, progress=False)
    assert (other.version, other.metrics) == (2, ["other"])
    assert arrowds.open_index(path, version=1, verify=True).metrics == ["m"]


def test_an_index_of_something_else_is_not_replaced(tmp_path):
    path = tmp_path / "index"
    finish(path, Counted())
    with pytest.raises(IndexExistsError, match=r"an index of other data: .*, 5000 samples \(this is .*, 10 samples\)"):
        finish(path, Counted(), data=table(10))
    with pytest.raises(IndexExistsError, match=r"with the metrics \['m'\], of which \['m'\] were defined otherwise"):
        finish(path, Counted(), by=9)
    with pytest.raises(
        IndexExistsError, match=r"with the metrics \['m'\]; choose another path, or pass overwrite=True"
    ):
        arrowds.analyze(table(), Counted().metric("other"), path, progress=False)


@pytest.fixture
def mapped(tmp_path):
    """A planned build all of whose parts are measured, and an index of the same data."""
    metric = arrowds.metrics.expr("m", pl.col("x") * 2)
    pq.write_table(table(), tmp_path / "data.parquet", row_group_size=1024)
    whole = arrowds.analyze(tmp_path / "data.parquet", metric, tmp_path / "whole", progress=False)
    shards.plan_build(tmp_path / "data.parquet", metric, tmp_path / "index")
    shards.map_shard(tmp_path / "index", 1, 1, progress=False)
    return tmp_path / "index", whole


@pytest.mark.parametrize("kind", ["runs", "values"])
def test_a_run_that_was_damaged_after_the_map_is_not_reduced(mapped, kind):
    path, whole = mapped
    (part,) = path.glob(f"builds/*/{kind}/m/00001.arrow")
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1  # among the rows
    part.write_bytes(data)
    with pytest.raises(IndexCorruptError, match=r"00001\.arrow is damaged; run the map again"):
        shards.reduce_build(path)
    shards.map_shard(path, 1, 1, progress=False)
    assert_same(shards.reduce_build(path).path, whole.path)


def test_a_report_that_was_damaged_is_not_believed(mapped):
    path, whole = mapped
    with patch("arrowds.build.shards.commit", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        shards.reduce_build(path)
    (report,) = path.glob("builds/*/reduced/m/*-bucket-00000.json")
    report.write_text(report.read_text().replace(f'"rows": {ROWS}', f'"rows": {ROWS - 1}'))
    assert_same(shards.reduce_build(path).path, whole.path)


def test_the_files_of_a_share_are_on_disk_when_it_ends(mapped, monkeypatch):
    path, _ = mapped
    synced = []
    sync = LocalStore.sync
    monkeypatch.setattr(
        LocalStore, "sync", lambda self, names: (synced.extend(names := list(names)), sync(self, names))
    )
    assert shards.reduce_build(path, 1, 2) is None
    written = {str(file.relative_to(path)) for file in path.glob("metrics/**/*.parquet")}
    assert written and written == set(synced)
