"""Arrow IPC files, also known as Feather, in the file and the stream format; memory-mapped where they are local."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from arrowds.errors import UnreadableFileError
from arrowds.sources.base import MAX_BATCH_ROWS, plain_schema
from arrowds.sources.files import DataFile, ReadOptions, slice_rows
from arrowds.sources.objects import ObjectFile, ObjectPath
from arrowds.sources.records import FileStamp

_FILE_MAGIC = b"ARROW1"
_FEATHER_1_MAGIC = b"FEA1"
_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"


@dataclass(frozen=True, kw_only=True)
class IpcFile(DataFile):
    """One Arrow IPC file; `cuts` are its record batches. Batches of uncompressed files are views of the map."""

    format: ClassVar[str] = "arrow"

    stream: bool

    @classmethod
    def _open(cls, stamp: FileStamp, options: ReadOptions) -> IpcFile:
        """Read the lengths of all record batches."""
        stream = _is_stream(stamp.path)
        with _opened(stamp.path) as source:
            reader = _reader(source, stream, [])
            fields = [] if (mapped := _is_uncompressed(source, stream)) else _cheapest_field(reader.schema)
            rows = [batch.num_rows for batch in _record_batches(_reader(source, stream, fields), 0)]
        return cls(
            stamp=stamp,
            schema=plain_schema(reader.schema),
            cuts=np.concatenate([[0], np.cumsum(rows, dtype=np.int64)]),
            splittable=mapped,
            stream=stream,
        )

    def batches(self, start: int, stop: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """The rows from the record batches they lie in; a stream is walked from its beginning."""
        first = 0 if self.stream else int(np.searchsorted(self.cuts, start, side="right")) - 1
        with _opened(self.path) as source:
            names = _reader(source, self.stream, []).schema.names
            # Selecting fields makes pyarrow copy what it could map, so it is for compressed files alone.
            fields = [] if self.splittable else [names.index(name) for name in columns]
            decoded = map(_consistent, _record_batches(_reader(source, self.stream, fields), first))
            yield from slice_rows(decoded, int(self.cuts[first]), start, stop, MAX_BATCH_ROWS)


def _opened(path: Path | ObjectPath) -> pa.NativeFile:
    """Map a file into memory, or open an object, which is read by ranges."""
    return pa.memory_map(str(path)) if isinstance(path, Path) else pa.PythonFile(ObjectFile(path), mode="r")


def _is_stream(path: Path | ObjectPath) -> bool:
    """Tell the two formats apart by the first bytes; refuse what is neither."""
    with path.open("rb") as file:
        head = file.read(len(_FILE_MAGIC))
        size = file.seek(0, 2)
        file.seek(max(size - len(_END_OF_STREAM), 0))
        tail = file.read()
    if not head:
        raise UnreadableFileError(f"{path} is empty; even an Arrow file without rows holds a schema")
    if head.startswith(_FEATHER_1_MAGIC):
        raise UnreadableFileError(f"{path} is a Feather file of version 1; write it again as version 2 (Arrow IPC)")
    if head == _FILE_MAGIC:
        return False
    if not head.startswith(_END_OF_STREAM[:4]):
        raise UnreadableFileError(f"{path} is not an Arrow IPC file: it starts with {head!r}")
    if tail != _END_OF_STREAM:
        raise UnreadableFileError(f"{path} is truncated: it ends without the mark that ends an Arrow IPC stream")
    return True


def _reader(source: pa.NativeFile, stream: bool, fields: list[int]) -> Any:
    """A reader of all fields, or of those with these numbers."""
    source.seek(0)
    options = pa.ipc.IpcReadOptions(included_fields=fields)
    return pa.ipc.open_stream(source, options=options) if stream else pa.ipc.open_file(source, options=options)


def _record_batches(reader: Any, first: int) -> Iterator[pa.RecordBatch]:
    """The record batches from number `first` on; only the file format can skip."""
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        return (reader.get_batch(i) for i in range(first, reader.num_record_batches))
    return iter(reader)


def _consistent(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch, whose columns are as long as it says; what they hold is checked where it is sliced."""
    batch.validate()
    return batch


def _is_uncompressed(source: pa.NativeFile, stream: bool) -> bool:
    """Whether the first record batch is a view of the map; not so where there is no map."""
    if not isinstance(source, pa.MemoryMappedFile):
        return False
    batch = next(_record_batches(_reader(source, stream, []), 0), None)
    if batch is None:
        return True
    source.seek(0)
    whole = source.read_buffer()
    end = whole.address + whole.size
    buffers = [buffer for column in batch.columns for buffer in column.buffers() if buffer is not None and buffer.size]
    return all(whole.address <= buffer.address < end for buffer in buffers)


def _cheapest_field(schema: pa.Schema) -> list[int]:
    """The number of a field that is quick to decompress, to learn the length of a record batch."""
    fixed = [i for i, field in enumerate(schema) if pa.types.is_primitive(field.type)]
    return fixed[:1] or list(range(len(schema)))[:1]
