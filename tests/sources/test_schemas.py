"""Files of one dataset with other types: read where nothing is lost, named where something would be."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_contract import check_columnar, rows

import arrowds
from arrowds.errors import MissingColumnError, SourceError, UnreadableFileError
from arrowds.sources import open_source
from arrowds.sources.schemas import common_type


def write_arrow(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


WRITE: dict[str, Callable[[pa.Table, Path], None]] = {".parquet": pq.write_table, ".arrow": write_arrow}
LOSSLESS = [
    (pa.string(), pa.large_string(), pa.large_string(), ["a", None]),
    (pa.string(), pa.string_view(), pa.large_string(), ["a", "long enough to lie outside of the view"]),
    (pa.string(), pa.dictionary(pa.int32(), pa.string()), pa.string(), ["a", "a"]),
    (pa.binary(), pa.large_binary(), pa.large_binary(), [b"a"]),
    (pa.int32(), pa.int64(), pa.int64(), [1, None]),
    (pa.uint8(), pa.int8(), pa.int16(), [1]),
    (pa.uint32(), pa.int8(), pa.int64(), [1]),
    (pa.float32(), pa.float64(), pa.float64(), [1.5]),
    (pa.int32(), pa.float64(), pa.float64(), [3]),
    (pa.int16(), pa.float32(), pa.float32(), [3]),
    (pa.int32(), pa.float32(), pa.float64(), [3]),
    (pa.null(), pa.int64(), pa.int64(), [None]),
    (pa.list_(pa.int32()), pa.large_list(pa.int64()), pa.large_list(pa.int64()), [[1, 2], None]),
    (pa.list_(pa.int32(), 2), pa.list_(pa.int32()), pa.list_(pa.int32()), [[1, 2]]),
    (pa.timestamp("s"), pa.timestamp("us"), pa.timestamp("us"), [None]),
    (
        pa.struct({"a": pa.string()}),
        pa.struct({"a": pa.large_string()}),
        pa.struct({"a": pa.large_string()}),
        [{"a": "x"}],
    ),
]
LOSSY = [
    (pa.int64(), pa.float64()),
    (pa.uint64(), pa.int64()),
    (pa.string(), pa.binary()),
    (pa.int32(), pa.bool_()),
    (pa.timestamp("s"), pa.timestamp("s", "UTC")),
    (pa.struct({"a": pa.int8()}), pa.struct({"b": pa.int8()})),
    (pa.list_(pa.int64()), pa.list_(pa.float64())),
    (pa.date32(), pa.string()),
]


@pytest.mark.parametrize("suffix", WRITE)
@pytest.mark.parametrize("case", LOSSLESS, ids=str)
def test_types_that_lose_nothing_are_read_as_one(
    tmp_path: Path, suffix: str, case: tuple[pa.DataType, pa.DataType, pa.DataType, list[object]]
) -> None:
    first, second, expected, values = case
    assert common_type(first, second) == common_type(second, first) == expected
    n = len(values)
    for name, kind in (("a", first), ("b", second)):
        column = pa.array(values).cast(kind) if pa.types.is_dictionary(kind) else pa.array(values, kind)
        WRITE[suffix](pa.table({"n": range(n), "x": column}), tmp_path / f"{name}{suffix}")
    table = pa.table({"n": [*range(n), *range(n)], "x": pa.array(values + values, expected)})
    source = open_source(tmp_path)
    assert source.schema == table.schema
    check_columnar(source, table)


@pytest.mark.parametrize(("first", "second"), LOSSY, ids=str)
def test_types_that_would_lose_something_have_nothing_in_common(first: pa.DataType, second: pa.DataType) -> None:
    assert common_type(first, second) is None
    assert common_type(second, first) is None


def test_third_file_widens_further(tmp_path: Path) -> None:
    for name, kind in (("a", pa.int8()), ("b", pa.int64()), ("c", pa.int16())):
        pq.write_table(pa.table({"x": pa.array([1], kind)}), tmp_path / f"{name}.parquet")
    source = open_source(tmp_path)
    assert source.schema == pa.schema({"x": pa.int64()})
    assert [row["x"] for row in rows(source, 0, 3)] == [1, 1, 1]


def test_columns_that_no_metric_reads_may_differ(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pq.write_table(pa.table({"x": [1], "extra": ["a"], "meta": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"meta": ["m"], "x": pa.array([2], pa.int32())}), tmp_path / "b.parquet")
    with caplog.at_level(logging.WARNING):
        index = arrowds.analyze(tmp_path, arrowds.metrics.expr("m", pl.col("x")), tmp_path / "index")
    assert index["m"].values.tolist() == [1, 2]
    assert [message.split(": ")[-1] for message in caplog.messages] == [
        "column 'extra' is missing",
        "column 'meta' is string instead of int64",
    ]
    for name, problem in (("extra", "column 'extra' is missing"), ("meta", "column 'meta' is string instead of int64")):
        metric = arrowds.metrics.function("m", len, columns=[name], dtype="int64")
        with pytest.raises(MissingColumnError, match=rf"b\.parquet does not fit .*a\.parquet: {problem}"):
            arrowds.analyze(tmp_path, metric, tmp_path / "other")


def test_given_types_are_read_where_values_allow(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [1, 300]}), path)
    source = open_source(path, schema={"x": "int16"})
    assert source.schema == pa.schema({"x": pa.int16()})
    assert rows(source, 0, 2) == [{"x": 1}, {"x": 300}]
    with pytest.raises(UnreadableFileError, match=r"a\.parquet: Integer value 300 not in range"):
        rows(open_source(path, schema={"x": "int8"}), 0, 2)
    with pytest.raises(
        SourceError, match=r"a\.parquet does not fit the expected columns: column 'x' is int64 instead of"
    ):
        open_source(path, schema={"x": "string"})
    with pytest.raises(SourceError, match=r"a\.parquet does not fit the expected columns: column 'y' is missing"):
        open_source(path, schema={"y": "string"})
