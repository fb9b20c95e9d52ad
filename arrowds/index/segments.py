"""The rows of a segment's column, by ranges of values and by ranges of ids, from its Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arrowds.arrays import arrow_view, numpy_view
from arrowds.index import files, paths
from arrowds.index.manifest import Bucket, Column
from arrowds.index.ranges import ROWS_PER_FILE, Cut, rows_up_to
from arrowds.parallel import ordered_map
from arrowds.schema import SAMPLE_ID, VALUE, mapped_type, type_named
from arrowds.store import Store

_FILES_AHEAD = 2
"""Files of an object store that are read at once for one segment, while others are read."""


@dataclass(frozen=True, slots=True)
class SegmentColumn:
    """One metric of one segment, whose samples have the ids [first_id, first_id + num_samples).

    ``codes`` gives the code in the index of each of the segment's codes, where the metric is categorical and the index
    has more names than the segment.
    """

    store: Store
    metric: str
    column: Column
    first_id: int
    num_samples: int
    codes: np.ndarray | None = field(default=None, compare=False)

    @property
    def names(self) -> list[str]:
        """The names of a categorical metric, in the order of the segment's codes."""
        name = paths.names(self.metric, self.column.key)
        found: list[str] = files.read_parquet(self.store, name, recorded=self.column.names).column(0).to_pylist()
        return found

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """The buckets, whose ends are the codes of the index."""
        codes = self.codes
        if codes is None:
            return self.column.buckets
        return tuple(
            bucket.model_copy(update={"low": int(codes[int(bucket.low)]), "high": int(codes[int(bucket.high)])})
            for bucket in self.column.buckets
        )

    def recoded(self, values: pa.Array) -> pa.Array:
        """Values from the files as the index has them."""
        if self.codes is None:
            return values
        missing = numpy_view(values.is_null()) if values.null_count else None
        return arrow_view(self.codes[numpy_view(values.fill_null(0))], missing=missing)

    def between(self, after: Cut | None, up_to: Cut | None, id_type: pa.DataType | None = None) -> Iterator[pa.Table]:
        """Yield the rows whose values lie after one cut and up to another, in order, as tables of bounded size.

        They have the stored type (bool as uint8) and ids of type ``id_type`` (uint32), counted from ``first_id``.
        """
        chosen = [
            (bucket, number)
            for bucket in self.buckets
            if _overlaps(bucket, after, up_to)
            for number in range(len(bucket.files))
        ]

        def rows(file: tuple[Bucket, int]) -> pa.Table:
            return self._rows(*file, after, up_to, id_type or pa.uint32())

        yield from ordered_map(rows, chosen, threads=min(self.store.files_at_once or 1, _FILES_AHEAD), ahead=0)

    def _rows(
        self, bucket: Bucket, number: int, after: Cut | None, up_to: Cut | None, id_type: pa.DataType
    ) -> pa.Table:
        name = paths.bucket(self.metric, self.column.key, bucket.number, number)
        data = files.content(self.store, name, bucket.files[number])
        with files.naming(self.store, name), pq.ParquetFile(pa.BufferReader(data)) as file:
            groups = range(file.num_row_groups)
            chosen = [group for group in groups if self._group_overlaps(file, group, after, up_to)]
            table = file.read_row_groups(chosen, [VALUE, SAMPLE_ID], use_threads=False)
        values = self.recoded(table.column(VALUE).combine_chunks())
        values = values.cast(mapped_type(values.type))
        start = 0 if after is None else rows_up_to(numpy_view(values), after)
        stop = len(values) if up_to is None else rows_up_to(numpy_view(values), up_to)
        ids = numpy_view(table.column(SAMPLE_ID).combine_chunks())[start:stop]
        moved = np.add(ids, self.first_id, dtype=id_type.to_pandas_dtype())
        return pa.table({VALUE: values[start:stop], SAMPLE_ID: arrow_view(moved)})

    def ids(self, bucket: Bucket, number: int) -> np.ndarray:
        """The ids of one file of a bucket, in order, counted from the segment's first sample (uint32)."""
        name = paths.bucket(self.metric, self.column.key, bucket.number, number)
        return numpy_view(
            files.read_parquet(self.store, name, [SAMPLE_ID], bucket.files[number]).column(0).combine_chunks()
        )

    def sorted_values(self, bucket: Bucket, number: int) -> np.ndarray:
        """The values of one file of a bucket, ascending, in the stored type (bool as uint8)."""
        name = paths.bucket(self.metric, self.column.key, bucket.number, number)
        found = files.read_parquet(self.store, name, [VALUE], bucket.files[number]).column(0).combine_chunks()
        values = self.recoded(found)
        return numpy_view(values.cast(mapped_type(values.type)))

    def chunk(self, number: int) -> pa.Array:
        """The values of the ids from ``number * ROWS_PER_FILE`` on, in the stored type, null where there is none."""
        name = paths.values(self.metric, self.column.key, number)
        table = files.read_parquet(self.store, name, [VALUE], self.column.values[number])
        return self.recoded(table.column(0).combine_chunks())

    def scatter(self, values: np.ndarray, present: np.ndarray | None, start: int) -> None:
        """Write the values of the ids [start, start + len(values)) into their rows, and mark them as present.

        Values have the dtype of ``values``; rows of other segments are left alone.
        """
        for number in range(len(self.column.values)):
            first = self.first_id + number * ROWS_PER_FILE
            if first >= start + len(values) or first + ROWS_PER_FILE <= start:
                continue
            column = self.chunk(number)
            low, high = max(start - first, 0), min(start + len(values) - first, len(column))
            if low < high:
                found = column[low:high]
                rows = slice(first + low - start, first + high - start)
                values[rows] = numpy_view(found.cast(mapped_type(found.type)))
                if present is not None:
                    present[rows] = numpy_view(found.is_valid())

    def _group_overlaps(self, file: pq.ParquetFile, group: int, after: Cut | None, up_to: Cut | None) -> bool:
        """Tell by its statistics whether a row group may have rows of a range; without them it may."""
        statistics = file.metadata.row_group(group).column(file.schema_arrow.get_field_index(VALUE)).statistics
        if statistics is None or not statistics.has_min_max:
            return True
        low, high = statistics.min, statistics.max
        if self.codes is not None:
            low, high = self.codes[[low, high]].tolist()
        return _reaches(low, high, after, up_to)

    @property
    def stored_type(self) -> pa.DataType:
        """The type of the values in the files."""
        return type_named(self.column.stored_type)


def _overlaps(bucket: Bucket, after: Cut | None, up_to: Cut | None) -> bool:
    return _reaches(bucket.low, bucket.high, after, up_to)


def _reaches(low: float, high: float, after: Cut | None, up_to: Cut | None) -> bool:
    above = after is None or (high > after.value if after.inclusive else high >= after.value)
    below = up_to is None or (low <= up_to.value if up_to.inclusive else low < up_to.value)
    return bool(above and below)
