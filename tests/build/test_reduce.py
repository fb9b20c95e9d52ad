"""The files of a column, as other programs read them: types, buckets, values; and what must not change them."""

from __future__ import annotations

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from index_files import contents, digests, memory_folder
from strategies import value_columns
from thresholds import SIZES, small_thresholds

import arrowds
from arrowds.errors import IndexNotFoundError, MetricValueError
from arrowds.schema import VALUE_TYPES


def indexed(column, folder, *, nulls="refuse", workers=1) -> arrowds.Index:
    metric = arrowds.metrics.expr("m", pl.col("m"), nulls=nulls)
    return arrowds.analyze(pa.table({"m": column}), metric, folder, workers=workers, progress=False)


@given(column=value_columns(), sizes=SIZES)
@settings(max_examples=15, deadline=None)
def test_every_program_reads_the_partition_in_order_and_each_value_in_one_bucket(column, sizes):
    values = np.array(column.to_pylist(), column.type.to_pandas_dtype())
    order = np.argsort(values, kind="stable")
    with memory_folder() as folder, small_thresholds(**{**sizes, "segment": 1 << 32}):
        indexed(column, folder)
        glob = f"{folder}/metrics/m/buckets/*/*/*.parquet"
        with duckdb.connect() as connection:
            read = f"read_parquet('{glob}', hive_partitioning=true)"
            found = connection.execute(
                f"select value, sample_id from {read} order by bucket, value, sample_id"
            ).fetchall()
            split = connection.execute(f"select value from {read} group by value having count(distinct bucket) > 1")
            assert split.fetchall() == []
        assert [value for value, _ in found] == values[order].tolist()
        assert [sample for _, sample in found] == order.tolist()
        frame = pl.scan_parquet(glob, hive_partitioning=True).collect()
        assert frame["sample_id"].to_list() == order.tolist()  # files by name are already in order
        assert max(pq.read_metadata(path).num_rows for path in folder.glob("metrics/m/buckets/*/*/*")) <= sizes["file"]
        stored = pl.read_parquet(f"{folder}/metrics/m/values/*/*.parquet", hive_partitioning=False)
        assert stored["value"].to_list() == column.to_pylist()


@pytest.mark.parametrize("kind", VALUE_TYPES, ids=str)
def test_a_bucket_holds_no_more_than_its_share_or_one_value(tmp_path, kind):
    random = np.random.default_rng(1)
    values = random.integers(0, 2 if pa.types.is_boolean(kind) else 100, 600)
    values[random.permutation(600)[:300]] = 1
    with small_thresholds(part=50, bucket=40, file=7, sample=1000):
        indexed(pa.array(values).cast(kind), tmp_path)
    frame = pl.scan_parquet(f"{tmp_path}/metrics/m/buckets/*/*/*.parquet", hive_partitioning=True)
    sizes = frame.group_by("bucket").agg(pl.len(), pl.col("value").n_unique().alias("distinct")).collect()
    assert ((sizes["len"] <= 40) | (sizes["distinct"] == 1)).all()
    assert len(sizes) > 1


@given(column=value_columns(nulls=True, max_size=40), one=SIZES, other=SIZES)
@settings(max_examples=15, deadline=None)
def test_the_size_of_parts_and_batches_does_not_change_a_byte(column, one, other):
    """They belong to the build; what the format has, the sizes of files and groups, stays."""
    of_build = {name: other[name] for name in ("part", "batch", "run", "hole", "inserted")}
    found = []
    for sizes in (one, {**one, **of_build}):
        with memory_folder() as folder, small_thresholds(**{**sizes, "segment": 1 << 32}):
            found.append(digests(indexed(column, folder, nulls="keep")))
    assert found[0] == found[1]


@pytest.mark.parametrize("workers", [2, 4])
def test_any_number_of_threads_gives_the_same_bytes(tmp_path, workers):
    random = np.random.default_rng(5)
    column = pa.array(random.integers(0, 50, 4000))
    with small_thresholds(part=64, bucket=300, file=100):
        one = indexed(column, tmp_path / "1")
        many = indexed(column, tmp_path / "many", workers=workers)
    assert contents(one.path) == contents(many.path)


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        ([0, 255], "uint8"),
        ([0, 256], "uint16"),
        ([0, 65_536], "uint32"),
        ([0, 1 << 32], "uint64"),
        ([-1, 127], "int8"),
        ([-1, 128], "int16"),
        ([-(1 << 15) - 1, 0], "int32"),
        ([-1, (1 << 63) - 1], "int64"),
        ([(1 << 63) - 2, (1 << 63) - 1], "uint64"),
    ],
)
def test_integers_are_stored_in_the_smallest_type(tmp_path, values, stored):
    index = indexed(pa.array(values, pa.int64()), tmp_path)
    assert index.manifest.metrics["m"].logical_type == "int64"
    assert index.manifest.segments[0].columns["m"].stored_type == stored
    assert index["m"].values.dtype == stored
    assert index["m"].values.tolist() == values


def test_segments_of_different_ranges_are_widened_together(tmp_path):
    index = indexed(pa.array([5, 300], pa.int64()), tmp_path)
    assert index["m"].values.dtype == np.uint16
    index = arrowds.append(pa.table({"m": [-1, 5]}), tmp_path, workers=1, progress=False)
    assert [segment.columns["m"].stored_type for segment in index.manifest.segments] == ["uint16", "int8"]
    assert index["m"].values.dtype == np.int16
    assert index["m"].order.tolist() == [2, 0, 3, 1]


def test_nothing_depends_on_what_lies_under_a_null(tmp_path):
    mask = np.array([False, True, False])
    columns = [pa.array(np.array(values), mask=mask) for values in ([1, 7, 3], [1, -9, 3])]
    assert digests(indexed(columns[0], tmp_path / "0", nulls="keep")) == digests(
        indexed(columns[1], tmp_path / "1", nulls="keep")
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_of_two_zeros_the_one_of_the_first_sample_is_counted(tmp_path, dtype):
    """They are equal, so a sort may leave either in front, as the processor's vectors have it."""
    random = np.random.default_rng(4)
    for first in (0.0, -0.0):
        values = np.concatenate([[first], random.choice([0.0, -0.0, 1.0, 2.0], 3000)]).astype(dtype)
        index = indexed(pa.array(values), tmp_path / str(first))
        assert index["m"].order.tolist() == np.argsort(values, kind="stable").tolist()
        for path in (*index.path.glob("metrics/m/distribution/*/*"), *index.path.glob("metrics/m/buckets/*/*/*")):
            assert np.signbit(pq.read_table(path, partitioning=None)["value"][0].as_py()) == np.signbit(first)


def test_parts_of_different_types_are_named(tmp_path):
    def drifting(batch):
        first = batch["x"][0].as_py()
        return np.zeros(len(batch), np.int64 if first < 2048 else np.float64)

    table = pa.table({"x": np.arange(3000)})
    metric = arrowds.metrics.function("drift", drifting)
    with pytest.raises(
        MetricValueError, match="'drift' gave int64 for some samples but double for others; declare its"
    ):
        arrowds.analyze(table, metric, tmp_path / "index", workers=1, progress=False)
    declared = arrowds.metrics.function("drift", drifting, dtype="int64")
    index = arrowds.analyze(table, declared, tmp_path / "index", workers=1, progress=False)
    assert index["drift"].values.tolist() == [0] * 3000


def test_what_is_not_reduced_is_named_and_not_committed(tmp_path, monkeypatch):
    """An engine that forgets a task."""

    class Forgetful(arrowds.build.engines.LocalEngine):
        def run(self, work, items):
            yield from super().run(work, items[:-1] if work.name == "bucket" else items)

    table = pa.table({"m": np.arange(50)})
    with (
        small_thresholds(bucket=20, file=10),
        pytest.raises(
            IndexNotFoundError, match=r"bucket \d of metric 'm' is not reduced yet; run the reduce to its end"
        ),
    ):
        arrowds.analyze(table, arrowds.metrics.expr("m", pl.col("m")), tmp_path, engine=Forgetful(1), progress=False)
    with pytest.raises(IndexNotFoundError, match="unfinished"):
        arrowds.open_index(tmp_path)
