"""Files of an index: atomic Parquet and Arrow IPC writes, memory-mapped reads and checksums. Nothing else opens them.

A file appears under its name only when it is complete: it is written beside itself and renamed. Parquet holds what
people query; the uncompressed IPC files have one record batch with one column, which a memory map views without a copy.
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import xxhash

from arrowds.arrays import arrow_view
from arrowds.errors import IndexCorruptError, StorageError
from arrowds.schema import mapped_type, numpy_dtype

logger = logging.getLogger(__name__)

TEMPORARY = ".tmp"
_COMPRESSION = {"compression": "zstd", "compression_level": 1}
_BLOCK = 1 << 24
_SMALLEST_HOLE = 1 << 20
_LARGEST_FRAME = 1 << 16


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What the manifest keeps of a file: its size in bytes and the xxh3-128 digest of its bytes."""

    bytes: int
    xxh3: str


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write; rename it to ``path`` on success, remove it on failure.

    Raises:
        StorageError: when the file can't be written (disk full, file-size limit, permission), naming what is missing.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):  # what went wrong above may go wrong here too, and says more
            temporary.unlink()
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            raise StorageError(error.errno, f"{path} could not be written: {explained(error)}") from error
        raise


def explained(error: OSError) -> str:
    """Say in words why a file could not be written, and what to do about it."""
    reasons = {
        errno.ENOSPC: "the disk is full; free space or choose another path, then run again: finished parts are kept",
        errno.EDQUOT: "the disk quota is used up; free space or choose another path, then run again",
        errno.EFBIG: "the file-size limit of this process (ulimit -f) is too small; raise it, then run again",
        errno.EACCES: "permission denied",
        errno.EROFS: "the file system is read-only",
    }
    return reasons.get(error.errno or 0, str(error))


def remove_temporaries(folder: Path) -> None:
    """Remove what killed runs left half-written below ``folder``."""
    for path in folder.rglob(f".*{TEMPORARY}"):
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically and durably."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def write_parquet(path: Path, table: pa.Table, *, metadata: Mapping[str, str] | None = None) -> None:
    """Write ``table`` as one Parquet file, atomically; equal tables give equal bytes.

    Integers are delta-encoded, floats split into byte streams, and zstd compresses the pages.
    """
    if metadata:
        table = table.replace_schema_metadata({**(table.schema.metadata or {}), **metadata})
    with replacing(path) as temporary:
        pq.write_table(table.combine_chunks(), temporary, **_COMPRESSION, **_encodings(table.schema))


@contextmanager
def parquet_stream(path: Path, schema: pa.Schema) -> Iterator[pq.ParquetWriter]:
    """Give a writer for a Parquet file that is written table by table; the file takes its name when the block ends."""
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, schema, **_COMPRESSION, **_encodings(schema)) as writer,
    ):
        yield writer


def _encodings(schema: pa.Schema) -> dict[str, object]:
    """Choose an encoding per column: faster than dictionaries, and smaller for ids, lengths and losses."""
    chosen = {}
    for field in schema:
        if pa.types.is_integer(field.type):
            chosen[field.name] = "DELTA_BINARY_PACKED"
        elif pa.types.is_floating(field.type):
            chosen[field.name] = "BYTE_STREAM_SPLIT"
    return {"use_dictionary": False, "column_encoding": chosen or None}


def read_parquet(path: Path, *, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet file of the index into memory.

    Raises:
        IndexCorruptError: when it is missing, truncated or not Parquet.
    """
    try:
        with pq.ParquetFile(path) as file:
            return file.read(columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise IndexCorruptError(f"{path} can't be read: {error}") from error


@dataclass(frozen=True, slots=True)
class ColumnRange:
    """Type of a Parquet column and, for integers and bools, its least and greatest value (None when all are null)."""

    kind: pa.DataType
    low: int | None
    high: int | None


def parquet_range(path: Path, column: str) -> ColumnRange:
    """Return the range of a column from the statistics in the footer of a Parquet file.

    Raises:
        IndexCorruptError: when the file is missing, truncated or not Parquet.
    """
    try:
        file = pq.ParquetFile(path)
        with file:
            kind = file.schema_arrow.field(column).type
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            number = file.schema_arrow.get_field_index(column)
            statistics = [group.column(number).statistics for group in groups]
    except (OSError, KeyError, pa.ArrowException) as error:
        raise IndexCorruptError(f"{path} can't be read: {error}") from error
    known = [found for found in statistics if found is not None and found.has_min_max]
    if pa.types.is_floating(kind) or not known:
        return ColumnRange(kind, None, None)
    return ColumnRange(kind, min(found.min for found in known), max(found.max for found in known))


def read_parquet_metadata(path: Path) -> dict[str, str]:
    """Return the key-value metadata in the footer of a Parquet file, without reading its columns.

    Raises:
        IndexCorruptError: when the file is missing, truncated or not Parquet.
    """
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, pa.ArrowException) as error:
        raise IndexCorruptError(f"{path} can't be read: {error}") from error
    return {key.decode(): value.decode() for key, value in metadata.items()}


@contextmanager
def allocated_map(path: Path, kind: pa.DataType, length: int, *, name: str) -> Iterator[np.ndarray]:
    """Give the column of a new IPC file as a writable array; the file takes its name when the block ends.

    A large array is a shared memory map of the file itself, so a column larger than memory can be filled in any order.
    Its blocks are reserved first: a full disk is an error here, not a crash at a later write.

    Args:
        path: the file.
        kind: Arrow type of the column; bool is stored as bytes.
        length: number of rows.
        name: name of the column.

    Raises:
        StorageError: when there is no room for the file.
    """
    kind = mapped_type(kind)
    dtype = numpy_dtype(kind)
    nbytes = length * dtype.itemsize
    with replacing(path) as temporary:
        if nbytes < _SMALLEST_HOLE:
            array = np.zeros(length, dtype)
            yield array
            with temporary.open("wb") as file:
                _write_batch(file, arrow_view(array), name)
            return
        with temporary.open("w+b") as file:
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


@contextmanager
def scratch_array(folder: Path, dtype: np.dtype[np.generic], length: int) -> Iterator[np.ndarray]:
    """Give an array in a nameless file of ``folder``, for what memory should not hold; it is gone after the block.

    Raises:
        StorageError: when there is no room for it.
    """
    nbytes = max(1, length * dtype.itemsize)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.truncate(nbytes)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, nbytes)
            buffer = mmap.mmap(file.fileno(), 0)
    except OSError as error:
        raise StorageError(error.errno, f"no room for {nbytes} bytes in {folder}: {explained(error)}") from error
    yield np.frombuffer(buffer, dtype, count=length)


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
    """Write an array as the only column of an IPC file, atomically."""
    with replacing(path) as temporary, temporary.open("wb") as file:
        _write_batch(file, column, name)


def read_map(path: Path) -> pa.Array:
    """Map the only column of an IPC file into memory, without a copy.

    Raises:
        IndexCorruptError: when the file is missing, truncated or not Arrow IPC.
    """
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        return reader.get_batch(0).column(0)
    except (OSError, IndexError, ValueError, pa.ArrowException) as error:
        raise IndexCorruptError(f"{path} can't be mapped: {error}") from error


def write_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Write record batches as an uncompressed IPC file, atomically."""
    with replacing(path) as temporary, pa.ipc.new_file(temporary, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def read_batches(path: Path) -> pa.Table:
    """Map an IPC file into memory as a table, without a copy.

    Raises:
        IndexCorruptError: when the file is missing, truncated or not Arrow IPC.
    """
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowException) as error:
        raise IndexCorruptError(f"{path} can't be mapped: {error}") from error


def record(path: Path) -> FileRecord:
    """Return the size and the digest of a file."""
    digest = xxhash.xxh3_128()
    size = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return FileRecord(bytes=size, xxh3=digest.hexdigest())
