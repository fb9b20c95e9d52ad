"""Parquet and Arrow IPC over a store: how the files of an index are encoded, written and read.

Parquet holds what people query. Uncompressed IPC holds what is mapped into memory: the sorted runs of a build, and the
columns of a view, which are one record batch each, so that NumPy sees one array.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import xxhash

from arrowds.arrays import arrow_view
from arrowds.errors import IndexCorruptError
from arrowds.schema import SAMPLE_ID, mapped_type, numpy_dtype
from arrowds.store import FileRecord, LocalStore, ObjectStore, Store, replacing

ROWS_PER_GROUP = 1 << 17
"""Rows of a Parquet row group: what a filter on values skips or reads."""

_BATCH_BYTES = b"arrowds.batch_bytes"
_MAGIC_BYTES = 16
"""What an IPC file has before the schema: its name, padded to 8 bytes, a mark, and the length of the schema."""
_HEAD_BYTES = 1 << 17

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


class Recorded(Protocol):
    """What a manifest says of a file."""

    @property
    def bytes(self) -> int:
        """Its size."""

    @property
    def xxh3(self) -> str:
        """Its digest."""


def content(store: Store, name: str, recorded: Recorded | None = None) -> pa.Buffer:
    """Return what a file holds, compared with the manifest; what an object store sent otherwise is read again.

    Raises:
        IndexCorruptError: when it is missing, or differs.
    """
    with naming(store, name):
        data = store.read(name)
        if recorded is None:
            return data
        if isinstance(store, ObjectStore) and not _is_as_recorded(data, recorded):
            data = store.read(name)
        if _is_as_recorded(data, recorded):
            return data
        raise ValueError(f"it has changed since it was written ({data.size} bytes, {recorded.bytes} were written)")


def _is_as_recorded(data: pa.Buffer, recorded: Recorded) -> bool:
    return data.size == recorded.bytes and xxhash.xxh3_128_hexdigest(memoryview(data)) == recorded.xxh3


def read_parquet(
    store: Store, name: str, columns: Sequence[str] | None = None, recorded: Recorded | None = None
) -> pa.Table:
    """Read columns of a Parquet file into memory; one request to an object store.

    Raises:
        IndexCorruptError: when it is missing, truncated or not Parquet, or not the file that was ``recorded``.
    """
    data = content(store, name, recorded)
    with naming(store, name), pq.ParquetFile(pa.BufferReader(data)) as file:
        return file.read(None if columns is None else list(columns), use_threads=False)


def write_ipc(
    store: Store, name: str, table: pa.Table, *, rows_per_batch: int, metadata: Mapping[bytes, bytes]
) -> FileRecord:
    """Write an uncompressed IPC file whose record batches have ``rows_per_batch`` rows, the last one the rest.

    Where there are several batches, columns must have types of a fixed width and no nulls: then they are equally long.
    """
    table = table.combine_chunks()
    batches = table.to_batches(max_chunksize=rows_per_batch)
    nbytes = pa.ipc.get_record_batch_size(batches[0]) if batches else 0
    table = table.replace_schema_metadata({**metadata, _BATCH_BYTES: str(nbytes).encode()})
    with store.writing(name) as draft, pa.ipc.new_file(str(draft.path), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows_per_batch)  # at once, as each call leaves the interpreter lock
    written: FileRecord = draft.written
    return written


class Batches(Protocol):
    """The record batches of an IPC file, by number."""

    schema: pa.Schema

    def read(self, start: int, stop: int) -> list[pa.RecordBatch]:
        """Return the batches [start, stop); they are there."""


def open_ipc(store: Store, name: str) -> Batches:
    """Open a file of :func:`write_ipc` without reading its batches: mapped from a disk, by ranges from an object store.

    Raises:
        IndexCorruptError: when it is missing, truncated or not Arrow IPC.
    """
    with naming(store, name):
        return _RangedBatches(store, name) if isinstance(store, ObjectStore) else _MappedBatches(store, name)


class _MappedBatches:
    """Views of a memory map."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._reader = pa.ipc.open_file(pa.memory_map(str(store.path(name))))
        self.schema: pa.Schema = self._reader.schema

    def read(self, start: int, stop: int) -> list[pa.RecordBatch]:
        with naming(self._store, self._name):
            return [self._reader.get_batch(number) for number in range(start, stop)]


class _RangedBatches:
    """Ranges of an object: one request for the schema, and one for each range of batches.

    All batches but the last take equally many bytes, one after the other behind the schema.
    """

    def __init__(self, store: ObjectStore, name: str) -> None:
        self._store, self._name = store, name
        head, self._size = store.read_start(name, _HEAD_BYTES)
        self._first = _MAGIC_BYTES + int.from_bytes(head[_MAGIC_BYTES - 4 : _MAGIC_BYTES], "little")
        if len(head) < self._first:
            head = store.read_range(name, 0, self._first)
        self._head = head
        self.schema: pa.Schema = pa.ipc.read_schema(head.slice(8, self._first - 8))
        self._bytes = int((self.schema.metadata or {})[_BATCH_BYTES])

    def read(self, start: int, stop: int) -> list[pa.RecordBatch]:
        if start >= stop:
            return []
        low, high = (min(self._first + number * self._bytes, self._size) for number in (start, stop))
        with naming(self._store, self._name):
            held = high <= len(self._head)
            data = self._head.slice(low, high - low) if held else self._store.read_range(self._name, low, high)
            stream = pa.BufferReader(data)
            messages = (pa.ipc.read_message(stream) for _ in range(start, stop))
            return [pa.ipc.read_record_batch(message, self.schema) for message in messages]


@contextmanager
def naming(store: Store, name: str) -> Iterator[None]:
    """Turn what Arrow raises about a damaged file into an IndexCorruptError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise IndexCorruptError(
            f"{store.url}/{name} is missing; if this version of the index was vacuumed, open the index again, else "
            "restore the file, or run the analysis again"
        ) from error
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
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
        zeros = pa.py_buffer(mmap.mmap(-1, nbytes))  # never touched, so it takes no memory
        hole = _HoleSink(file, zeros)
        _write_batch(hole, pa.Array.from_buffers(kind, length, [None, zeros], null_count=0), name)
        file.truncate()
        file.flush()
        buffer = mmap.mmap(file.fileno(), 0)
    yield np.frombuffer(buffer, dtype, count=length, offset=hole.offset)
    # The map is closed with the last array that views it; until then the kernel keeps it and the file the same.


class _HoleSink:
    """A file to which Arrow writes a message, but whose body, one given buffer, is skipped and left as a hole."""

    def __init__(self, file: BinaryIO, body: pa.Buffer) -> None:
        self._file = file
        self._body = body
        self.offset = 0
        self.closed = False

    def write(self, data: memoryview) -> int:
        written = pa.py_buffer(data)
        if written.address == self._body.address:
            self.offset = self._file.tell()
            self._file.seek(written.size, os.SEEK_CUR)
        else:
            self._file.write(data)
        return int(written.size)

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
