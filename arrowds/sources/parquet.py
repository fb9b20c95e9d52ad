"""Parquet files as a source: cut at row groups, read a few columns at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arrowds.sources.base import MAX_BATCH_ROWS, plain_schema
from arrowds.sources.files import DataFile, ReadOptions, slice_rows
from arrowds.sources.records import FileStamp

_BATCH_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class ParquetFile(DataFile):
    """One Parquet file; `cuts` are its row groups."""

    format: ClassVar[str] = "parquet"

    @classmethod
    def _open(cls, stamp: FileStamp, options: ReadOptions) -> ParquetFile:
        """Read the footer."""
        with pq.ParquetFile(stamp.path) as file:
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
        # Pages that carry a checksum are checked.
        with pq.ParquetFile(self.path, page_checksum_verification=True) as file:
            batch_rows = _batch_rows(file.metadata, first, last, columns)
            decoded = file.iter_batches(batch_rows, row_groups=list(range(first, last)), columns=columns)
            yield from slice_rows(decoded, int(self.cuts[first]), start, stop, batch_rows)


def _batch_rows(metadata: pq.FileMetaData, first: int, last: int, columns: list[str]) -> int:
    """How many rows of these columns make about `_BATCH_BYTES`, by the row groups' own sizes. Pure."""
    rows = num_bytes = 0
    for group in map(metadata.row_group, range(first, last)):
        rows += group.num_rows
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema.split(".")[0] in columns or column.path_in_schema in columns:
                num_bytes += column.total_uncompressed_size
    return max(min(MAX_BATCH_ROWS, rows * _BATCH_BYTES // max(num_bytes, 1)), 1)
