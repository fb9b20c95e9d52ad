"""Parquet and IPC files give back what was written, are the same for the same content, and are refused when damaged."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from index_files import contents, memory_folder
from strategies import value_columns
from thresholds import small_thresholds

from arrowds.errors import IndexCorruptError
from arrowds.index import files
from arrowds.index.files import MappedColumn
from arrowds.schema import VALUE_TYPES, mapped_type
from arrowds.store import LocalStore


@given(column=value_columns(nulls=True, min_size=0))
@settings(max_examples=40, deadline=None)
def test_parquet_and_maps_give_back_what_was_written(column):
    with memory_folder() as folder:
        store = LocalStore(folder)
        table = pa.table({"value": column})
        files.write_parquet(store, "a.parquet", table)
        assert str(files.read_parquet(store, "a.parquet")["value"].to_pylist()) == str(column.to_pylist())
        assert str(pq.read_table(folder / "a.parquet")["value"].to_pylist()) == str(column.to_pylist())
        files.write_parquet(store, "b.parquet", pa.table({"value": pa.chunked_array([column[:1], column[1:]])}))
        assert (folder / "a.parquet").read_bytes() == (folder / "b.parquet").read_bytes()
        mapped = column.cast(mapped_type(column.type))
        files.write_map(folder / "a.arrow", mapped, name="value")
        found = files.read_map(folder / "a.arrow", MappedColumn(mapped.type, len(mapped)))
        assert str(found.to_pylist()) == str(mapped.to_pylist())


def test_row_groups_say_which_values_they_hold_so_that_a_filter_skips_the_others(tmp_path):
    table = pa.table({"value": [1.5, 2.5, 4.5, 8.5], "sample_id": pa.array([3, 1, 0, 2], pa.uint32())})
    with small_thresholds(group=2):
        files.write_parquet(LocalStore(tmp_path), "a.parquet", table)
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    values = [metadata.row_group(number).column(0).statistics for number in range(metadata.num_row_groups)]
    assert [(each.min, each.max) for each in values] == [(1.5, 2.5), (4.5, 8.5)]
    assert metadata.row_group(0).column(1).statistics is None  # nobody filters by it


@pytest.mark.parametrize("kind", VALUE_TYPES, ids=str)
@pytest.mark.parametrize("hole", [1 << 12, 1 << 20])
def test_an_allocated_map_is_an_ordinary_ipc_file(tmp_path, kind, hole):
    """Whether its content is reserved as a hole of the file or lies in memory."""
    length = 10_007
    with small_thresholds(hole=hole):
        with files.allocated_map(tmp_path / "a.arrow", kind, length, name="value") as array:
            array[:] = np.arange(length) % 2
        found = files.read_map(tmp_path / "a.arrow", MappedColumn(mapped_type(kind), length))
        assert found.to_numpy().tolist() == [i % 2 for i in range(length)]
        assert sorted(contents(tmp_path)) == ["a.arrow"]
        files.write_map(tmp_path / "b.arrow", pa.array(np.arange(length) % 2).cast(mapped_type(kind)), name="value")
        left, right = (pa.ipc.open_file(tmp_path / name).read_all() for name in ("a.arrow", "b.arrow"))
        assert left.equals(right)
        for few in (0, 1):
            with files.allocated_map(tmp_path / "c.arrow", kind, few, name="value"):
                pass
            assert len(files.read_map(tmp_path / "c.arrow", MappedColumn(mapped_type(kind), few))) == few


def test_a_map_is_no_copy(tmp_path):
    files.write_map(tmp_path / "a.arrow", pa.array(np.arange(100_000)), name="value")
    before = pa.total_allocated_bytes()
    column = files.read_map(tmp_path / "a.arrow", MappedColumn(pa.int64(), 100_000))
    assert pa.total_allocated_bytes() - before < 100_000
    assert column[77_777].as_py() == 77_777


@pytest.mark.parametrize(("kind", "length"), [(pa.int32(), 5), (pa.int64(), 4), (pa.uint64(), 5)])
def test_a_map_of_another_column_is_refused(tmp_path, kind, length):
    files.write_map(tmp_path / "a.arrow", pa.array(np.arange(5)), name="value")
    with pytest.raises(IndexCorruptError, match=r"a\.arrow holds 5 x int64, the manifest says"):
        files.read_map(tmp_path / "a.arrow", MappedColumn(kind, length))


@pytest.mark.parametrize("cut", [None, 0, 1, 8, 100, -1, -8, -100])
def test_files_that_are_missing_or_cut_short_are_corrupt(tmp_path, cut):
    store = LocalStore(tmp_path)
    column = pa.array(np.arange(1000))
    files.write_parquet(store, "a.parquet", pa.table({"v": column}))
    files.write_ipc(store, "b.arrow", pa.table({"v": column}), rows_per_batch=100, metadata={})
    files.write_map(tmp_path / "c.arrow", column, name="v")
    readers = {
        "a.parquet": lambda: files.read_parquet(store, "a.parquet"),
        "b.arrow": lambda: files.open_ipc(store, "b.arrow"),
        "c.arrow": lambda: files.read_map(tmp_path / "c.arrow", MappedColumn(pa.int64(), 1000)),
    }
    for name, read in readers.items():
        read()
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).unlink()
        if cut is not None:
            (tmp_path / name).write_bytes(whole[:cut])
        with pytest.raises(IndexCorruptError, match=name):
            read()


def test_batches_of_a_file_of_ones_own(tmp_path):
    schema = pa.schema({"v": pa.int64()})
    batches = [pa.record_batch([pa.array(part)], schema=schema) for part in ([1, 2], [3])]
    files.write_batches(tmp_path / "a.arrow", schema, iter(batches))
    assert files.read_batches(tmp_path / "a.arrow")["v"].to_pylist() == [1, 2, 3]
    (tmp_path / "a.arrow").write_bytes(b"ARROW1")
    with pytest.raises(IndexCorruptError, match=r"a\.arrow"):
        files.read_batches(tmp_path / "a.arrow")
