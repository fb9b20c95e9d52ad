"""Every file of a metric against brute force: NumPy's lexsort and unique, DuckDB and Polars reading the buckets."""

from __future__ import annotations

import math
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import value_columns

import arrowds
from arrowds.build import buckets, plan, reduce
from arrowds.index import files as storage
from arrowds.schema import VALUE_TYPES


@contextmanager
def small_constants(*, part: int, bucket: int, file: int, sample: int, coded: int, hole: int = 1 << 20):
    """Make a handful of rows exercise what otherwise takes millions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "_FEWEST_ROWS", part)
        patch.setattr(plan, "_MOST_ROWS", part)
        patch.setattr(buckets, "_FEWEST_ROWS", bucket)
        patch.setattr(buckets, "_MOST_ROWS", bucket)
        patch.setattr(reduce, "_ROWS_PER_FILE", file)
        patch.setattr(reduce, "_SAMPLE_SIZE", sample)
        patch.setattr(reduce, "CODED_RANGE", coded)
        patch.setattr(storage, "_SMALLEST_HOLE", hole)
        yield


CONSTANTS = st.fixed_dictionaries(
    {
        "part": st.sampled_from([1, 3, 8, 64]),
        "bucket": st.sampled_from([1, 4, 16, 1000]),
        "file": st.sampled_from([1, 5, 1000]),
        "sample": st.sampled_from([1, 7, 1000]),
        "coded": st.sampled_from([1, 4, 1 << 8, 1 << 16]),
    }
)


def indexed(column: pa.Array, folder: str | Path, *, nulls: str = "keep") -> arrowds.Index:
    metric = arrowds.metrics.expr("m", pl.col("m"), nulls=nulls)
    return arrowds.analyze(pa.table({"m": column}), metric, folder, workers=1, progress=False)


def is_there(value: object) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def valid_rows(column: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The values that are neither null nor NaN, and their rows."""
    rows = [row for row, value in enumerate(column.to_pylist()) if is_there(value)]
    values = np.array([column[row].as_py() for row in rows], dtype=column.type.to_pandas_dtype())
    return values, np.array(rows, dtype=np.int64)


def check_against_brute_force(column: pa.Array, index: arrowds.Index) -> None:
    metric = index["m"]
    values, rows = valid_rows(column)
    order = rows[np.lexsort((rows, values))]
    assert metric.order.tolist() == order.tolist()
    assert metric.order.dtype == np.uint32
    check_values(column, metric)
    distinct, counts = np.unique(values, return_counts=True)
    found = pq.read_table(index.manifest.layout(index.path).distribution("m"))
    assert found["value"].to_numpy(zero_copy_only=False).tolist() == distinct.tolist()
    assert found["count"].to_pylist() == counts.tolist()
    assert found["cumulative_count"].to_pylist() == np.cumsum(counts).tolist()
    entry = index.manifest.metrics["m"]
    assert (entry.num_valid, entry.num_distinct, entry.logical_type) == (len(rows), len(distinct), str(column.type))
    index.verify()


def check_values(column: pa.Array, metric) -> None:
    filled = metric.values.filled(0) if isinstance(metric.values, np.ma.MaskedArray) else metric.values
    for row, value in enumerate(column.to_pylist()):
        if value is None and not pa.types.is_floating(column.type):
            assert metric.values.mask[row]
        elif not is_there(value):
            assert np.isnan(filled[row])
        else:
            assert filled[row] == value
            assert np.signbit(filled[row]) == np.signbit(value) if isinstance(value, float) else True


def check_buckets(column: pa.Array, index: arrowds.Index, *, file: int = 1 << 22) -> None:
    """All rows, in order, each value in one bucket, whatever program reads them."""
    values, rows = valid_rows(column)
    folder = index.manifest.layout(index.path).buckets("m")
    entry = index.manifest.metrics["m"]
    assert len(list(folder.glob("bucket=*"))) == entry.num_buckets
    if len(rows) == 0:
        return
    order = np.lexsort((rows, values))
    glob = f"{folder}/*/*.parquet"
    with duckdb.connect() as connection:
        found = connection.execute(
            f"select value, sample_id, bucket::int from read_parquet('{glob}', hive_partitioning=true) "
            "order by bucket, value, sample_id"
        ).fetchall()
        split = connection.execute(
            f"select value from read_parquet('{glob}', hive_partitioning=true) group by value "
            "having count(distinct bucket) > 1"
        ).fetchall()
    assert [value for value, _, _ in found] == values[order].tolist()
    assert [sample for _, sample, _ in found] == rows[order].tolist()
    assert split == []
    assert sorted({bucket for _, _, bucket in found}) == list(range(entry.num_buckets))
    frame = pl.scan_parquet(glob, hive_partitioning=True).collect()
    assert frame["sample_id"].to_list() == rows[order].tolist()  # files by name are already in order
    assert frame["value"].to_list() == values[order].tolist()
    assert all(pq.read_metadata(path).num_rows <= file for path in folder.glob("*/*.parquet"))


@given(column=value_columns(nulls=True), constants=CONSTANTS)
@settings(max_examples=50, deadline=None)
def test_every_file_is_what_brute_force_gives(column, constants):
    with TemporaryDirectory() as folder, small_constants(**constants):
        index = indexed(column, folder)
        check_against_brute_force(column, index)
        check_buckets(column, index, file=constants["file"])


@given(column=value_columns(), constants=CONSTANTS, others=CONSTANTS)
@settings(max_examples=15, deadline=None)
def test_buckets_and_samples_do_not_change_the_order(column, constants, others):
    """However the sort is cut, and whichever path it takes, the maps have the same bytes."""
    maps = []
    for chosen in (constants, others):
        with TemporaryDirectory() as folder, small_constants(**chosen):
            index = indexed(column, folder, nulls="refuse")
            layout = index.manifest.layout(index.path)
            maps.append([path.read_bytes() for path in (layout.values("m"), layout.order("m"))])
    assert maps[0] == maps[1]


@pytest.mark.parametrize("kind", VALUE_TYPES, ids=str)
def test_a_bucket_holds_no_more_than_its_share_or_one_value(tmp_path, kind):
    random = np.random.default_rng(1)
    values = random.integers(0, 2 if pa.types.is_boolean(kind) else 100, 600)
    values[random.permutation(600)[:300]] = 1
    column = pa.array(values).cast(kind)
    for coded in (1, 1 << 16):
        with small_constants(part=50, bucket=40, file=7, sample=1000, coded=coded):
            index = indexed(column, tmp_path / str(coded), nulls="refuse")
            check_against_brute_force(column, index)
            check_buckets(column, index, file=7)
        frame = pl.scan_parquet(f"{tmp_path}/{coded}/metrics/m/buckets/*/*.parquet", hive_partitioning=True)
        sizes = frame.group_by("bucket").agg(pl.len(), pl.col("value").n_unique().alias("distinct")).collect()
        assert ((sizes["len"] <= 40) | (sizes["distinct"] == 1)).all()
        assert len(sizes) == (2 if pa.types.is_boolean(kind) else len(sizes))
        assert len(sizes) > 1


@pytest.mark.parametrize("dtype", ["uint16", "int64", "float64"])
def test_large_columns_are_filled_through_a_map_of_the_file(tmp_path, dtype):
    """The file reserved as a hole has the bytes of the file that Arrow writes from memory."""
    values = np.random.default_rng(2).integers(0, 1 << 15, 40_000).astype(dtype)
    with small_constants(part=9_000, bucket=3_000, file=2_000, sample=500, coded=1 << 16, hole=1 << 12):
        index = indexed(pa.array(values), tmp_path / "hole", nulls="refuse")
        check_against_brute_force(pa.array(values), index)
    with small_constants(part=9_000, bucket=3_000, file=2_000, sample=500, coded=1 << 16, hole=1 << 30):
        plain = indexed(pa.array(values), tmp_path / "plain", nulls="refuse")
    for name in ("values.arrow", "order.arrow"):
        left, right = (pa.ipc.open_file(pa.memory_map(str(each.path / "metrics/m" / name))) for each in (index, plain))
        assert left.read_all().equals(right.read_all())
    assert index.fingerprint is not None


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
    entry = index.manifest.metrics["m"]
    assert (entry.logical_type, entry.stored_type) == ("int64", stored)
    assert index["m"].values.dtype == stored
    assert index["m"].values.tolist() == values


def test_nothing_depends_on_what_lies_under_a_null(tmp_path):
    mask = np.array([False, True, False])
    columns = [pa.array(np.array(values), mask=mask) for values in ([1, 7, 3], [1, -9, 3])]
    files = [
        index.manifest.layout(index.path).values("m").read_bytes()
        for number, column in enumerate(columns)
        for index in [indexed(column, tmp_path / str(number))]
    ]
    assert files[0] == files[1]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_of_two_zeros_the_one_of_the_first_sample_is_written(tmp_path, dtype):
    """They are equal, so a sort may leave either in front, as the processor's vectors have it."""
    random = np.random.default_rng(4)
    for first in (0.0, -0.0):
        values = np.concatenate([[first], random.choice([0.0, -0.0, 1.0, 2.0], 3000)]).astype(dtype)
        index = indexed(pa.array(values), tmp_path / str(first), nulls="refuse")
        check_against_brute_force(pa.array(values), index)
        layout = index.manifest.layout(index.path)
        for path in (layout.distribution("m"), layout.bucket("m", 0, 0)):
            assert np.signbit(pq.read_table(path)["value"][0].as_py()) == np.signbit(first)


def test_values_are_views_of_the_file(tmp_path):
    for name, column in {"u": pa.array([3, 1, 2]), "b": pa.array([True, False]), "f": pa.array([0.5, 1.5])}.items():
        metric = indexed(column, tmp_path / name, nulls="refuse")["m"]
        start = metric.column.buffers()[1].address
        assert metric.values.__array_interface__["data"][0] == start
        assert not metric.values.flags.writeable


def test_parts_of_different_types_are_named(tmp_path):
    def drifting(batch):
        first = batch["x"][0].as_py()
        return np.zeros(len(batch), np.int64 if first < 2048 else np.float64)

    table = pa.table({"x": np.arange(3000)})
    metric = arrowds.metrics.function("drift", drifting)
    with pytest.raises(
        arrowds.errors.MetricValueError, match=r"'drift' gave int64 for sample 0 but double for sample 2048"
    ):
        arrowds.analyze(table, metric, tmp_path / "index", workers=1, progress=False)
    declared = arrowds.metrics.function("drift", drifting, dtype="int64")
    index = arrowds.analyze(table, declared, tmp_path / "index", workers=1, progress=False)
    assert index["drift"].values.tolist() == [0] * 3000
