"""Parquet and Arrow IPC over a store: how the files of an index are encoded, written and read.

Parquet holds what people query. Uncompressed IPC holds what is mapped into memory: the sorted runs of a build, and the
columns of a view, which are one record batch each, so that NumPy sees one array.
"""

from __future__ import annotations

import io
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from arrowds.arrays import arrow_view
from arrowds.errors import IndexCorruptError
from arrowds.schema import SAMPLE_ID, mapped_type, numpy_dtype
from arrowds.store import FileRecord, LocalStore, Store, replacing

ROWS_PER_GROUP = 1 << 17
"""Rows of a Parquet row group: what a filter on values skips or reads."""

_SMALLEST_HOLE = 1 << 20
_LARGEST_FRAME = 1 << 16


def write_parquet(store: Store, name: str, table: pa.Table) -> FileRecord:
    """Write a table as one Parquet file; equal tables give equal bytes.

    Integers are delta-encoded; floats are split into byte streams, which zstd compresses: smaller than dictionaries for
    ids, lengths and losses.
    """
    with (
        store.writing(name) as draft,
        pq.ParquetWriter(draft.path, table.schema, **_encodings(table.schema)) as writer,
    ):
        writer.write_table(table.combine_chunks(), row_group_size=ROWS_PER_GROUP)
    written: FileRecord = draft.written
    return written


def _encodings(schema: pa.Schema) -> dict[str, object]:
    """How each column is stored: what is delta-encoded gains nothing from compression; ids are never filtered by."""
    integers = [field.name for field in schema if pa.types.is_integer(field.type)]
    floats = [field.name for field in schema if pa.types.is_floating(field.type)]
    encodings = {**dict.fromkeys(integers, "DELTA_BINARY_PACKED"), **dict.fromkeys(floats, "BYTE_STREAM_SPLIT")}
    return {
        "use_dictionary": False,
        "column_encoding": encodings or None,
        "compression": {name: "none" if name in integers else "zstd" for name in schema.names},
        "compression_level": {name: 1 for name in schema.names if name not in integers} or None,
        "write_statistics": [name for name in schema.names if name != SAMPLE_ID],
    }


def read_parquet(store: Store, name: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read columns of a Parquet file into memory; one request to an object store.

    Raises:
        IndexCorruptError: when it is missing, truncated or not Parquet.
    """
    with naming(store, name), pq.ParquetFile(pa.BufferReader(store.read(name))) as file:
        return file.read(None if columns is None else list(columns), use_threads=False)


def write_ipc(
    store: Store, name: str, table: pa.Table, *, rows_per_batch: int, metadata: Mapping[bytes, bytes]
) -> FileRecord:
    """Write an uncompressed IPC file whose record batches have ``rows_per_batch`` rows, the last one the rest."""
    schema = table.schema.with_metadata(dict(metadata))
    with store.writing(name) as draft, pa.ipc.new_file(str(draft.path), schema) as writer:
        for batch in table.combine_chunks().to_batches(max_chunksize=rows_per_batch):
            writer.write_batch(pa.RecordBatch.from_arrays(batch.columns, schema=schema))
    written: FileRecord = draft.written
    return written


def open_ipc(store: Store, name: str) -> pa.ipc.RecordBatchFileReader:
    """Open an IPC file without reading its batches: mapped from a local disk, by ranges from an object store.

    Raises:
        IndexCorruptError: when it is missing, truncated or not Arrow IPC.
    """
    with naming(store, name):
        path = store.path(name)
        if path is not None:
            return pa.ipc.open_file(pa.memory_map(str(path)))
        return pa.ipc.open_file(pa.PythonFile(io.BufferedReader(_Ranges(store, name), 1 << 16), mode="r"))


class _Ranges(io.RawIOBase):
    """An object as a file whose reads are range requests; the first one, at the end, brings the footer."""

    def __init__(self, store: Store, name: str) -> None:
        size = store.size(name)
        if size is None:
            raise FileNotFoundError(name)
        self._store, self._name, self._size, self._at = store, name, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]  # a writable buffer
        stop = min(self._at + len(view), self._size)
        if stop <= self._at:
            return 0
        data = self._store.read_range(self._name, self._at, stop)  # type: ignore[attr-defined]  # only object stores come here
        view[: len(data)] = memoryview(data)
        self._at += len(data)
        return len(data)


@contextmanager
def naming(store: Store, name: str) -> Iterator[None]:
    """Turn what Arrow raises about a damaged file into an IndexCorruptError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise IndexCorruptError(f"{store.url}/{name} is missing; restore it, or run the analysis again") from error
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        if isinstance(error, OSError) and type(error).__module__.startswith("arrowds"):
            raise
        raise IndexCorruptError(f"{store.url}/{name} can't be read: {error}") from error


@contextmanager
def allocated_map(path: Path, kind: pa.DataType, length: int, *, name: str) -> Iterator[np.ndarray]:
    """Give the column of a new IPC file as a writable array; the file is complete when the block ends.

    A large array is a shared memory map of the file itself, so a column larger than memory can be filled in any order.
    Its blocks are reserved first: a full disk is an error here, not a crash at a later write.

    Args:
        path: the file, which nobody reads yet.
        kind: Arrow type of the column; bool is stored as bytes.
        length: number of rows.
        name: name of the column.

    Raises:
        OSError: when there is no room for the file.
    """
    kind = mapped_type(kind)
    dtype = numpy_dtype(kind)
    nbytes = length * dtype.itemsize
    if nbytes < _SMALLEST_HOLE:
        array = np.zeros(length, dtype)
        yield array
        write_map(path, arrow_view(array), name=name)
        return
    with path.open("w+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, nbytes + _LARGEST_FRAME)
        hole = _HoleSink(file, nbytes)
        zeros = pa.py_buffer(mmap.mmap(-1, nbytes))  # never touched, so it takes no memory
        _write_batch(hole, pa.Array.from_buffers(kind, length, [None, zeros], null_count=0), name)
        file.truncate()
        file.flush()
        buffer = mmap.mmap(file.fileno(), 0)
    yield np.frombuffer(buffer, dtype, count=length, offset=hole.offset)
    # The map is closed with the last array that views it; until then the kernel keeps it and the file the same.


class _HoleSink:
    """A file to which Arrow writes a message, but whose body of a known size is skipped and left as a hole."""

    def __init__(self, file: BinaryIO, nbytes: int) -> None:
        self._file = file
        self._nbytes = nbytes
        self.offset = 0
        self.closed = False

    def write(self, data: memoryview) -> int:
        size = memoryview(data).nbytes
        if size == self._nbytes:
            self.offset = self._file.tell()
            self._file.seek(size, os.SEEK_CUR)
        else:
            self._file.write(data)
        return size

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self.closed = True


def _write_batch(file: object, column: pa.Array, name: str) -> None:
    batch = pa.record_batch([column], names=[name])
    with pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def write_map(path: Path, column: pa.Array, *, name: str) -> None:
    """Write an array as the only column of a new IPC file, which nobody reads yet."""
    with path.open("wb") as file:
        _write_batch(file, column, name)


@dataclass(frozen=True, slots=True)
class MappedColumn:
    """What a mapped column must look like: a type, and a number of rows."""

    kind: pa.DataType
    length: int


def read_map(path: Path, expected: MappedColumn) -> pa.Array:
    """Map the only column of an IPC file into memory, without a copy.

    Raises:
        IndexCorruptError: when the file is missing, truncated, not Arrow IPC, or not the column that is expected.
    """
    with naming(LocalStore(path.parent), path.name):
        column = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0).column(0)
    if column.type != expected.kind or len(column) != expected.length or not _fits(column):
        raise IndexCorruptError(
            f"{path} holds {len(column)} x {column.type}, the manifest says {expected.length} x {expected.kind}; "
            "delete it, and it is made again from the Parquet files"
        )
    return column


def _fits(column: pa.Array) -> bool:
    """Tell whether the buffers of a mapped column hold all its rows."""
    bitmap, data = column.buffers()
    bytes_needed = len(column) * numpy_dtype(column.type).itemsize
    return (bitmap is None or bitmap.size * 8 >= len(column)) and (data.size if data else 0) >= bytes_needed


def write_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write record batches as an uncompressed IPC file of their own, outside any index."""
    with replacing(path) as draft, pa.ipc.new_file(str(draft.path), schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def read_batches(path: Path) -> pa.Table:
    """Map an IPC file of any number of batches into memory as a table, without a copy.

    Raises:
        IndexCorruptError: when the file is missing, truncated or not Arrow IPC.
    """
    with naming(LocalStore(path.parent), path.name):
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
