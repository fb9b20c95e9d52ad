"""Parquet files as a source: cut at row groups, read a few columns at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arrowds.sources.base import MAX_BATCH_ROWS, plain_schema
from arrowds.sources.files import DataFile, ReadOptions, slice_rows
from arrowds.sources.objects import ObjectFile, ObjectPath
from arrowds.sources.records import FileStamp

_BATCH_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class ParquetFile(DataFile):
    """One Parquet file; `cuts` are its row groups."""

    format: ClassVar[str] = "parquet"

    @classmethod
    def _open(cls, stamp: FileStamp, options: ReadOptions) -> ParquetFile:
        """Read the footer."""
        with _opened(stamp.path) as file:
            rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            return cls(
                stamp=stamp,
                schema=plain_schema(file.schema_arrow),
                cuts=np.concatenate([[0], np.cumsum(rows, dtype=np.int64)]),
                splittable=False,
            )

    def batches(self, start: int, stop: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """The rows from the row groups they lie in, in batches that get shorter where rows are wide."""
        first, last = (np.searchsorted(self.cuts, [start + 1, stop], side="left") - [1, 0]).tolist()
        with _opened(self.path, first, last, columns) as file:
            batch_rows = _batch_rows(file.metadata, first, last)
            decoded = file.iter_batches(batch_rows, row_groups=list(range(first, last)), columns=columns)
            sliced = slice_rows(decoded, int(self.cuts[first]), start, stop, batch_rows)
            yield from sliced if batch_rows == MAX_BATCH_ROWS else _joined(sliced)


def _opened(path: Path | ObjectPath, first: int = 0, last: int = 0, columns: Sequence[str] = ()) -> pq.ParquetFile:
    """Open a file of which columns of the row groups [first, last) will be read; checksums of pages are compared."""
    if isinstance(path, Path):
        return pq.ParquetFile(path, page_checksum_verification=True)
    metadata = _metadata(path)
    groups = [_ranges(metadata.row_group(group), columns) for group in range(first, last)]
    return pq.ParquetFile(ObjectFile(path, groups), metadata=metadata, page_checksum_verification=True)


@lru_cache(maxsize=256)
def _metadata(path: ObjectPath) -> pq.FileMetaData:
    """The footer of an object, which every part of it needs."""
    return pq.read_metadata(ObjectFile(path))


def _ranges(group: pq.RowGroupMetaData, columns: Sequence[str]) -> list[tuple[int, int]]:
    """Where the columns of a row group lie."""
    ranges = []
    for column in map(group.column, range(group.num_columns)):
        if column.path_in_schema.split(".")[0] in columns or column.path_in_schema in columns:
            offsets = (column.dictionary_page_offset, column.data_page_offset)
            start = min(offset for offset in offsets if offset is not None)
            ranges.append((start, start + column.total_compressed_size))
    return ranges


def _batch_rows(metadata: pq.FileMetaData, first: int, last: int) -> int:
    """How many whole rows make about `_BATCH_BYTES`, by the row groups' own sizes.

    Not by those of the columns: pyarrow ends the process where their metadata are damaged.
    """
    groups = [metadata.row_group(number) for number in range(first, last)]
    rows: int = sum(group.num_rows for group in groups)
    num_bytes: int = sum(group.total_byte_size for group in groups)
    return max(min(MAX_BATCH_ROWS, rows * _BATCH_BYTES // max(num_bytes, 1)), 1)


def _joined(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows in larger batches, where wide rows made them short, but the columns asked for are small."""
    waiting: list[pa.RecordBatch] = []
    rows = num_bytes = 0
    for batch in batches:
        rows, num_bytes = rows + batch.num_rows, num_bytes + batch.nbytes
        if waiting and (rows > MAX_BATCH_ROWS or num_bytes > _BATCH_BYTES):
            yield pa.concat_batches(waiting)
            waiting, rows, num_bytes = [], batch.num_rows, batch.nbytes
        waiting.append(batch)
    if waiting:
        yield pa.concat_batches(waiting)
