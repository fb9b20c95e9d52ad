"""Files appear whole or not at all, are the same for the same content, and are refused when damaged."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import given, settings
from index_files import contents
from strategies import value_columns

from arrowds.errors import IndexCorruptError, StorageError
from arrowds.index import files as storage
from arrowds.schema import VALUE_TYPES, mapped_type


def begin_and_end(context) -> None:
    with context:
        pass


@contextmanager
def file_size_limit(nbytes: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@given(column=value_columns(nulls=True, min_size=0))
@settings(max_examples=60, deadline=None)
def test_parquet_and_maps_give_back_what_was_written(tmp_path_factory, column):
    folder = tmp_path_factory.mktemp("files")
    table = pa.table({"value": column})
    storage.write_parquet(folder / "a.parquet", table, metadata={"key": "ü"})
    assert str(storage.read_parquet(folder / "a.parquet")["value"].to_pylist()) == str(column.to_pylist())
    assert storage.read_parquet_metadata(folder / "a.parquet")["key"] == "ü"
    storage.write_parquet(folder / "b.parquet", pa.table({"value": pa.chunked_array([column[:1], column[1:]])}))
    storage.write_parquet(folder / "c.parquet", table)
    assert (folder / "b.parquet").read_bytes() == (folder / "c.parquet").read_bytes()
    mapped = column.cast(mapped_type(column.type))
    storage.write_map(folder / "a.arrow", mapped, name="value")
    assert str(storage.read_map(folder / "a.arrow").to_pylist()) == str(mapped.to_pylist())


@given(column=value_columns(nulls=True))
@settings(max_examples=60, deadline=None)
def test_the_footer_tells_the_range_of_integers_and_bools(tmp_path_factory, column):
    path = tmp_path_factory.mktemp("files") / "a.parquet"
    storage.write_parquet(path, pa.table({"value": column}))
    found = storage.parquet_range(path, "value")
    there = [value for value in column.to_pylist() if value is not None]
    assert found.kind == column.type
    if there and not pa.types.is_floating(column.type):
        assert (found.low, found.high) == (min(there), max(there))
    else:
        assert (found.low, found.high) == (None, None)


@pytest.mark.parametrize("kind", VALUE_TYPES, ids=str)
@pytest.mark.parametrize("hole", [1, 1 << 20])
def test_an_allocated_map_is_an_ordinary_ipc_file(tmp_path, monkeypatch, kind, hole):
    """Whether its content is reserved as a hole of the file or lies in memory."""
    monkeypatch.setattr(storage, "_SMALLEST_HOLE", max(hole, 1 << 12))
    length = 10_007
    with storage.allocated_map(tmp_path / "a.arrow", kind, length, name="value") as array:
        assert not (tmp_path / "a.arrow").exists()
        array[:] = np.arange(length) % 2
        assert not array[1:2].flags.owndata
    found = storage.read_map(tmp_path / "a.arrow")
    assert found.type == mapped_type(kind)
    assert found.to_numpy().tolist() == [i % 2 for i in range(length)]
    assert storage.read_map(tmp_path / "a.arrow").buffers()[1].is_cpu
    assert sorted(contents(tmp_path)) == ["a.arrow"]
    for empty in (0, 1):
        with storage.allocated_map(tmp_path / "b.arrow", kind, empty, name="value"):
            pass
        assert len(storage.read_map(tmp_path / "b.arrow")) == empty


def test_a_map_is_no_copy(tmp_path):
    storage.write_map(tmp_path / "a.arrow", pa.array(np.arange(100_000)), name="value")
    before = pa.total_allocated_bytes()
    column = storage.read_map(tmp_path / "a.arrow")
    assert pa.total_allocated_bytes() - before < 100_000
    assert column[77_777].as_py() == 77_777


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    storage.write_text(path, "old")

    def failing_writes():
        with storage.replacing(path) as temporary:
            temporary.write_text("half")
            yield
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(failing_writes())
    with pytest.raises(RuntimeError), storage.allocated_map(path, pa.int64(), 1 << 18, name="v") as array:
        array[:] = 1
        raise RuntimeError
    with pytest.raises(RuntimeError), storage.parquet_stream(path, pa.schema({"v": pa.int64()})):
        raise RuntimeError
    assert contents(tmp_path) == {"a.txt": b"old"}


@pytest.mark.parametrize(
    "write",
    [
        lambda path: storage.write_text(path, "x" * 10_000),
        lambda path: storage.write_parquet(path, pa.table({"v": np.random.default_rng(0).random(10_000)})),
        lambda path: storage.write_map(path, pa.array(np.arange(10_000)), name="v"),
        lambda path: begin_and_end(storage.allocated_map(path, pa.int64(), 10_000, name="v")),
        lambda path: begin_and_end(storage.allocated_map(path, pa.int64(), 1 << 20, name="v")),
        lambda path: begin_and_end(storage.scratch_array(path.parent, np.dtype(np.int64), 10_000)),
    ],
    ids=["text", "parquet", "map", "small allocated", "large allocated", "scratch"],
)
def test_a_file_size_limit_says_what_to_do(tmp_path, write):
    (tmp_path / "file").write_text("old")
    with (
        file_size_limit(4096),
        pytest.raises(StorageError, match=r"file-size limit .* \(ulimit -f\) .* raise it") as caught,
    ):
        write(tmp_path / "file")
    assert caught.value.errno == errno.EFBIG
    assert contents(tmp_path) == {"file": b"old"}


def test_a_path_below_a_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file/sub/a\.parquet could not be written"):
        storage.write_parquet(tmp_path / "file/sub/a.parquet", pa.table({"v": [1]}))


def test_a_full_disk_says_so(tmp_path):
    """Through a link to the kernel's device that is always full."""
    with (
        pytest.raises(
            StorageError, match="the disk is full; free space or choose another path, then run again"
        ) as caught,
        storage.replacing(tmp_path / "a") as temporary,
    ):
        temporary.symlink_to("/dev/full")
        with temporary.open("w") as file:
            file.write("x" * 10_000)
    assert caught.value.errno == errno.ENOSPC
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("cut", [0, 1, 8, 100, -1, -8, -100])
def test_truncated_files_are_corrupt(tmp_path, cut):
    column = pa.array(np.arange(1000))
    storage.write_parquet(tmp_path / "a.parquet", pa.table({"v": column}))
    storage.write_map(tmp_path / "a.arrow", column, name="v")
    readers = {
        "a.parquet": [
            storage.read_parquet,
            storage.read_parquet_metadata,
            lambda path: storage.parquet_range(path, "v"),
        ],
        "a.arrow": [storage.read_map],
    }
    for name, reading in readers.items():
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:cut])
        for read in reading:
            with pytest.raises(IndexCorruptError, match=name):
                read(path)
        path.unlink()
        for read in reading:
            with pytest.raises(IndexCorruptError, match=name):
                read(path)


def test_half_written_files_of_killed_runs_are_swept(tmp_path):
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom arrowds.index import files as storage\n"
        "with storage.replacing(Path(sys.argv[1]) / 'deep' / 'a.txt') as temporary:\n"
        "    temporary.write_text('half')\n    os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path], check=False)
    (tmp_path / "deep" / "other.tmp").write_text("of somebody else")
    assert len(contents(tmp_path)) == 2
    storage.remove_temporaries(tmp_path)
    assert list(contents(tmp_path)) == ["deep/other.tmp"]


def test_the_record_of_a_file_is_its_size_and_digest(tmp_path):
    content = np.random.default_rng(0).bytes(1 << 20)
    (tmp_path / "a").write_bytes(content)
    assert storage.record(tmp_path / "a") == storage.FileRecord(1 << 20, xxhash.xxh3_128_hexdigest(content))


def test_streams_of_parquet_take_their_name_when_they_are_complete(tmp_path):
    schema = pa.schema({"v": pa.int64()})
    with storage.parquet_stream(tmp_path / "a.parquet", schema) as writer:
        writer.write_table(pa.table({"v": [1]}))
        writer.write_table(pa.table({"v": [2]}))
        assert not (tmp_path / "a.parquet").exists()
    assert pq.read_table(tmp_path / "a.parquet")["v"].to_pylist() == [1, 2]
