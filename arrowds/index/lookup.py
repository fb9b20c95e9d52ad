"""The order of a metric as three questions: a value's rank, the values at positions, the ids at positions.

:class:`MappedOrder` answers from the memory maps, by binary search. :class:`BucketOrder` answers from the Parquet files
of an index in an object store, before this host has maps of it: it reads the few buckets that a question touches.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import chain
from typing import Literal, Protocol

import numpy as np
import polars as pl
import pyarrow as pa

from arrowds.errors import IndexCorruptError
from arrowds.index import files, paths
from arrowds.index.manifest import Bucket
from arrowds.index.ranges import ROWS_PER_FILE, Cut, merged
from arrowds.index.segments import SegmentColumn
from arrowds.index.view import ViewSpec
from arrowds.parallel import computed_once, ordered_map
from arrowds.schema import COUNT, CUMULATIVE_COUNT, SAMPLE_ID, VALUE, mapped_type, numpy_dtype

Side = Literal["left", "right"]

_BUCKETS_KEPT = 4


class Lookup(Protocol):
    """What lookups ask of the order of a metric."""

    def rank(self, value: float, side: Side) -> int:
        """How many samples have a value below ``value``, or up to it with "right"."""

    def values_at(self, positions: np.ndarray) -> np.ndarray:
        """The values at positions of the order, in the stored type, bool as uint8."""

    def ids(self, start: int, stop: int) -> np.ndarray:
        """The sample ids at the positions [start, stop) of the order."""


class MappedOrder:
    """Binary searches and slices of the two maps of a view."""

    def __init__(self, order: np.ndarray, values: np.ndarray, metric: str) -> None:
        self._order = order
        self._values = values
        self._metric = metric
        # Items of memory views are Python numbers, which compare exactly.
        self._ids = memoryview(order.data)
        self._value_of = memoryview(values.data).__getitem__

    def rank(self, value: float, side: Side) -> int:
        bisect = bisect_right if side == "right" else bisect_left
        try:
            return bisect(self._ids, value, key=self._value_of)
        except IndexError as error:
            raise self._foreign_ids() from error

    def values_at(self, positions: np.ndarray) -> np.ndarray:
        try:
            return np.asarray(self._values[self._order[positions]])
        except IndexError as error:
            raise self._foreign_ids() from error

    def ids(self, start: int, stop: int) -> np.ndarray:
        return self._order[start:stop]

    def _foreign_ids(self) -> IndexCorruptError:
        return IndexCorruptError(
            f"order.arrow of metric {self._metric!r} has ids that the index has not; run arrowds verify, which names "
            "the folder to be deleted"
        )


class BucketOrder:
    """Distributions and buckets read where they are, those alone that a question touches."""

    def __init__(self, spec: ViewSpec) -> None:
        self._spec = spec
        self._read: dict[tuple[int, int], pl.DataFrame] = {}

    def rank(self, value: float, side: Side) -> int:
        return sum(
            self._rank_in_bucket(segment, bucket, value, side)
            for segment, column in enumerate(self._spec.columns)
            for bucket in column.buckets
        )

    def _rank_in_bucket(self, segment: int, bucket: Bucket, value: float, side: Side) -> int:
        """How many rows of a bucket lie below a value; its file is read only where the value lies inside it."""
        if bucket.high < value or (side == "right" and bucket.high == value):
            return bucket.rows
        if bucket.low > value or (side == "left" and bucket.low == value):
            return 0
        table = self._bucket(segment, bucket)
        values = memoryview(table[VALUE].to_numpy().data)
        rows = (bisect_right if side == "right" else bisect_left)(values, value)
        return int(table[COUNT][:rows].sum())

    def _bucket(self, segment: int, bucket: Bucket) -> pl.DataFrame:
        """The distribution of one bucket; the last ones are kept, as questions about one range follow each other."""
        key = (segment, bucket.number)
        if (found := self._read.get(key)) is None:
            found = _bucket_distribution(self._spec.columns[segment], bucket)
            for oldest in list(self._read)[: len(self._read) - _BUCKETS_KEPT + 1]:
                self._read.pop(oldest, None)
            self._read[key] = found
        return found

    @computed_once
    def _distribution(self) -> pl.DataFrame:
        return distribution_of(self._spec)

    def values_at(self, positions: np.ndarray) -> np.ndarray:
        dtype = numpy_dtype(mapped_type(self._spec.stored))
        if len(self._spec.columns) == 1:
            return self._values_of_one_segment(np.asarray(positions)).astype(dtype)
        rows = np.searchsorted(self._distribution[CUMULATIVE_COUNT].to_numpy(), positions, side="right")
        return np.asarray(self._distribution[VALUE].to_physical().to_numpy()[rows].astype(dtype))

    def _values_of_one_segment(self, positions: np.ndarray) -> np.ndarray:
        buckets = self._spec.columns[0].buckets
        stops = np.cumsum([bucket.rows for bucket in buckets])
        numbers = np.searchsorted(stops, positions, side="right")
        values = np.empty(positions.shape, numpy_dtype(mapped_type(self._spec.stored)))
        for number in np.unique(numbers).tolist():
            table = self._bucket(0, buckets[number])
            within = positions[numbers == number] - (stops[number] - buckets[number].rows)
            rows = np.searchsorted(table[COUNT].cum_sum().to_numpy(), within, side="right")
            values[numbers == number] = table[VALUE].to_numpy()[rows]
        return values

    def ids(self, start: int, stop: int) -> np.ndarray:
        if start >= stop:
            return np.empty(0, numpy_dtype(self._spec.id_type))
        if len(self._spec.columns) == 1:
            return self._ids_of_one_segment(start, stop)
        low, high = (Cut(value.item()) for value in self.values_at(np.array([start, stop - 1])))
        after = Cut(low.value, inclusive=False)
        slices = chain.from_iterable(column.between(after, high, self._spec.id_type) for column in self._spec.columns)
        frames = merged(slices, mapped_type(self._spec.stored), single_value=low == high)
        found = np.concatenate([frame[SAMPLE_ID].to_numpy() for frame in frames])
        before = self.rank(low.value, "left")
        return found[start - before : stop - before]

    def _ids_of_one_segment(self, start: int, stop: int) -> np.ndarray:
        column = self._spec.columns[0]
        pieces = []
        first = 0
        for bucket in column.buckets:
            left = bucket.rows
            for number in range(len(bucket.files)):
                rows = min(left, ROWS_PER_FILE)
                if first < stop and start < first + rows:
                    pieces.append((bucket, number, max(start - first, 0), min(stop - first, rows)))
                first += rows
                left -= rows

        def read(piece: tuple[Bucket, int, int, int]) -> np.ndarray:
            bucket, number, low, high = piece
            return column.ids(bucket, number)[low:high]

        found = np.concatenate(list(ordered_map(read, pieces, threads=self._spec.threads)))
        return found.astype(numpy_dtype(self._spec.id_type), copy=False)


def _bucket_distribution(column: SegmentColumn, bucket: Bucket) -> pl.DataFrame:
    """Return the distinct values of a bucket, bool as uint8, and their counts."""
    name = paths.distribution(column.metric, column.column.key, bucket.number)
    table = files.read_parquet(column.store, name, recorded=bucket.distribution)
    if table.num_rows != bucket.num_distinct or table.column_names != [VALUE, COUNT]:
        raise IndexCorruptError(f"{column.store.url}/{name} has {table.num_rows} rows instead of {bucket.num_distinct}")
    values = column.recoded(table.column(VALUE).combine_chunks())
    frame = pl.DataFrame(table.set_column(0, VALUE, values.cast(mapped_type(values.type))))
    return frame


def bucket_distributions(spec: ViewSpec) -> Iterator[pl.DataFrame]:
    """Yield the distinct values of one bucket of one segment after the other with their ``count``, bool as uint8."""
    pieces = [(column, bucket) for column in spec.columns for bucket in column.buckets]
    yield from ordered_map(lambda piece: _bucket_distribution(*piece), pieces, threads=spec.threads)


def distribution_of(spec: ViewSpec) -> pl.DataFrame:
    """Return each distinct value of all segments, ascending, with its ``count`` and ``cumulative_count`` (int64)."""
    dtype = _dtype(spec)
    frames = [frame.with_columns(pl.col(VALUE).cast(dtype)) for frame in bucket_distributions(spec)]
    whole = pl.concat(frames) if frames else pl.DataFrame(schema={VALUE: dtype, COUNT: pl.Int64})
    if len(spec.columns) > 1:
        whole = whole.group_by(VALUE).agg(pl.col(COUNT).sum()).sort(VALUE)
    return whole.with_columns(pl.col(COUNT).cum_sum().alias(CUMULATIVE_COUNT))


def num_distinct_of(spec: ViewSpec) -> int:
    """Return how many values occur: of one segment the manifest knows it, of several the distributions are read."""
    if len(spec.columns) == 1:
        return sum(bucket.num_distinct for bucket in spec.columns[0].buckets)
    values = [frame[VALUE].cast(_dtype(spec)) for frame in bucket_distributions(spec)]
    return pl.concat(values).n_unique() if values else 0


def _dtype(spec: ViewSpec) -> pl.DataType:
    return pl.Series(pa.nulls(0, spec.stored)).dtype
