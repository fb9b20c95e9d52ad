"""Parts of one metric -> values.arrow, order.arrow, hive buckets and the distribution; memory holds a few buckets.

The steps: copy the parts into the map of values; learn the distribution, exactly for integers of a small range and
from a random sample otherwise; cut it into buckets; distribute the ids into the buckets; sort each bucket that has more
than one value; write.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa

from arrowds.index import files as storage
from arrowds.build.buckets import CODED_RANGE, cut_buckets, rows_per_bucket
from arrowds.build.ordered import ordered_map
from arrowds.build.partition import count_cells, distribute
from arrowds.errors import MetricValueError
from arrowds.index.paths import Layout
from arrowds.index.manifest import MetricEntry, PartRange
from arrowds.metrics import Metric
from arrowds.schema import (
    COUNT,
    CUMULATIVE_COUNT,
    SAMPLE_ID,
    VALUE,
    mapped_type,
    narrowed,
    sample_id_type,
)
from arrowds.arrays import arrow_view, numpy_view

_SAMPLE_SIZE = 1 << 18
_ROWS_PER_FILE = 1 << 22
_ROW_BITS = 32

Distinct = tuple[np.ndarray, np.ndarray]
"""Distinct values, ascending, and how often each occurs."""


@dataclass(frozen=True, slots=True)
class _Column:
    """The values of one metric while it is reduced.

    Attributes:
        values: row i is the value of sample i, in the stored dtype (bool as uint8).
        missing: True where a sample has no value; None when all have one.
        kind: the Arrow type that queries see.
    """

    values: np.ndarray
    missing: np.ndarray | None
    kind: pa.DataType

    @property
    def num_valid(self) -> int:
        return len(self.values) - (0 if self.missing is None else int(np.count_nonzero(self.missing)))

    def of_part(self, part: PartRange) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the values of a part that are there, and their rows in it where some are not."""
        values = self.values[part.start : part.stop]
        if self.missing is None:
            return values, None
        rows = np.flatnonzero(~self.missing[part.start : part.stop])
        return values[rows], rows


@dataclass(frozen=True, slots=True)
class _Bucket:
    """A hive partition: positions [start, stop) of the order. ``distinct`` is None while its ids are not sorted."""

    number: int
    start: int
    stop: int
    distinct: Distinct | None


def reduce_metric(layout: Layout, metric: Metric, parts: tuple[PartRange, ...]) -> MetricEntry:
    """Build every file of one per-sample metric from its parts.

    Raises:
        IndexCorruptError: when a part can't be read.
        MetricValueError: when parts have different types.
        StorageError: when there is no room for the result.
    """
    name = metric.name
    logical, stored = _types(layout, metric, parts)
    shutil.rmtree(layout.buckets(name), ignore_errors=True)
    column = _write_values(layout, metric, parts, stored)
    num_valid = column.num_valid
    num_distinct = num_buckets = before = 0
    with (
        storage.allocated_map(layout.order(name), sample_id_type(parts[-1].stop), num_valid, name=SAMPLE_ID) as order,
        storage.parquet_stream(layout.distribution(name), _distribution_schema(stored)) as distribution,
    ):
        for distinct, counts in ordered_map(
            partial(_finish_bucket, layout, name, column, order), _cut(column, parts, order, layout.metric(name))
        ):
            cumulative = before + np.cumsum(counts, dtype=np.int64)
            distribution.write_table(_distribution_rows(column.kind, distinct, counts, cumulative))
            before = int(cumulative[-1])
            num_distinct += len(distinct)
            num_buckets += 1
    return MetricEntry(
        definition=metric.definition(),
        logical_type=str(logical),
        stored_type=str(stored),
        num_valid=num_valid,
        num_distinct=num_distinct,
        num_buckets=num_buckets,
    )


def _types(layout: Layout, metric: Metric, parts: tuple[PartRange, ...]) -> tuple[pa.DataType, pa.DataType]:
    """Return the type the metric declares, and the smallest that holds the values there are."""
    ranges = [storage.parquet_range(layout.part(metric.name, part.number), VALUE) for part in parts]
    logical = ranges[0].kind
    for part, found in zip(parts, ranges, strict=True):
        if found.kind != logical:
            raise MetricValueError(
                f"metric {metric.name!r} gave {logical} for sample 0 but {found.kind} for sample {part.start}; "
                "declare its dtype"
            )
    lows = [found.low for found in ranges if found.low is not None]
    highs = [found.high for found in ranges if found.high is not None]
    return logical, narrowed(logical, min(lows), max(highs)) if lows else logical


def _write_values(layout: Layout, metric: Metric, parts: tuple[PartRange, ...], stored: pa.DataType) -> _Column:
    """Copy the parts into values.arrow, in the stored type."""
    path, num_samples, physical = layout.values(metric.name), parts[-1].stop, mapped_type(stored)
    tables = ordered_map(lambda part: _part_values(layout, metric.name, part, physical), parts)
    if metric.nulls == "keep" and not pa.types.is_floating(stored):
        return _write_nullable_values(path, tables, stored)
    missing = np.zeros(num_samples, np.bool_) if metric.nulls == "keep" else None
    with storage.allocated_map(path, stored, num_samples, name=VALUE) as values:
        for part, array in zip(parts, tables, strict=True):
            rows = slice(part.start, part.stop)
            values[rows] = numpy_view(array)
            if missing is not None:
                np.isnan(values[rows], out=missing[rows])
    return _Column(values, missing if missing is not None and missing.any() else None, stored)


def _part_values(layout: Layout, name: str, part: PartRange, physical: pa.DataType) -> pa.Array:
    table = storage.read_parquet(layout.part(name, part.number), columns=[VALUE])
    return table.column(0).combine_chunks().cast(physical)


def _write_nullable_values(path: Path, tables: Iterator[pa.Array], stored: pa.DataType) -> _Column:
    """Write integers or bools of which some may be missing, with an Arrow validity bitmap; they pass through memory."""
    whole = pa.concat_arrays(list(tables))
    missing = numpy_view(whole.is_null())
    # What lies under a null is whatever memory held before; equal inputs shall give equal bytes.
    values = np.where(missing, whole.type.to_pandas_dtype()(0), numpy_view(whole))
    storage.write_map(path, arrow_view(values, missing=missing), name=VALUE)
    return _Column(values, missing if missing.any() else None, stored)


def _cut(column: _Column, parts: tuple[PartRange, ...], order: np.ndarray, folder: Path) -> list[_Bucket]:
    """Distribute all ids into ``order`` and return the buckets that it then consists of."""
    if len(order) == 0:
        return []
    if column.values.dtype.kind in "iu":
        low, high = int(column.values.min()), int(column.values.max())
        if high - low < CODED_RANGE:
            return _cut_exactly(column, parts, order, low, high)
    return _cut_by_sample(column, parts, order, folder)


def _cut_exactly(
    column: _Column, parts: tuple[PartRange, ...], order: np.ndarray, low: int, high: int
) -> list[_Bucket]:
    """Sort integers of a small range by counting: every value is a cell."""

    def codes(part: PartRange) -> tuple[np.ndarray, np.ndarray | None]:
        values, rows = column.of_part(part)
        unsigned = values.view(f"u{values.itemsize}")  # its difference wraps around to the right code
        return (unsigned - np.array(low, values.dtype).view(unsigned.dtype)).astype(np.uint16), rows

    counts = count_cells(parts, codes, high - low + 1)
    distribute(order, parts, codes, counts)
    present = np.flatnonzero(counts)
    counts = counts[present]
    distinct = present.astype(column.values.dtype) + np.array(low, column.values.dtype)  # wraps to the right value
    buckets = cut_buckets(distinct, counts, rows_per_bucket(len(order)))
    edges = [0, *(np.searchsorted(distinct, buckets.upper, side="right")), len(distinct)]
    starts = np.concatenate([[0], np.cumsum(counts)])
    return [
        _Bucket(number, int(starts[first]), int(starts[last]), (distinct[first:last], counts[first:last]))
        for number, (first, last) in enumerate(pairwise(edges))
    ]


def _cut_by_sample(column: _Column, parts: tuple[PartRange, ...], order: np.ndarray, folder: Path) -> list[_Bucket]:
    """Distribute values of a large range into buckets, with bounds from a random sample, that are yet to be sorted."""
    sample = _sampled(column)
    target = rows_per_bucket(len(order)) * len(sample) / len(order)
    buckets = cut_buckets(*np.unique(sample, return_counts=True), target)

    with storage.scratch_array(folder, np.dtype(np.uint16), len(column.values)) as found:

        def find_buckets(part: PartRange) -> tuple[np.ndarray, np.ndarray | None]:
            values, rows = column.of_part(part)
            found[part.start : part.start + len(values)] = buckets.of(values)
            return found[part.start : part.start + len(values)], rows

        def found_buckets(part: PartRange) -> tuple[np.ndarray, np.ndarray | None]:
            values, rows = column.of_part(part)
            return found[part.start : part.start + len(values)], rows

        counts = count_cells(parts, find_buckets, len(buckets))
        distribute(order, parts, found_buckets, counts)
    stops = np.cumsum(counts)
    return [
        _Bucket(number, int(stop - count), int(stop), None)
        for number, (stop, count) in enumerate(zip(stops, counts, strict=True))
    ]


def _sampled(column: _Column) -> np.ndarray:
    """Return all values of a small column, or those of random samples, the same in every run."""
    rows = slice(None)
    if len(column.values) > _SAMPLE_SIZE:
        rows = np.random.default_rng(0).integers(0, len(column.values), _SAMPLE_SIZE)  # type: ignore[assignment]  # an index either way
    values = column.values[rows]
    return values if column.missing is None else values[~column.missing[rows]]


def _finish_bucket(layout: Layout, name: str, column: _Column, order: np.ndarray, bucket: _Bucket) -> Distinct:
    """Sort one bucket where that is yet to be done, write its files, and return its distinct values."""
    ids = order[bucket.start : bucket.stop]
    distinct, counts = bucket.distinct or _sorted_by_value(column, ids)
    for number, start in enumerate(range(0, len(ids), _ROWS_PER_FILE)):
        rows = slice(start, start + _ROWS_PER_FILE)
        values = np.full(len(ids[rows]), distinct[0]) if len(distinct) == 1 else np.repeat(distinct, counts)[rows]
        table = pa.table({VALUE: _arrow_values(values, column.kind), SAMPLE_ID: arrow_view(ids[rows])})
        storage.write_parquet(layout.bucket(name, bucket.number, number), table)
    return distinct, counts


def _sorted_by_value(column: _Column, ids: np.ndarray) -> Distinct:
    """Sort ascending ``ids`` by (value, id) in place; ids of a single value are in order already and only streamed."""
    first = column.values[ids[0]]
    blocks = (ids[start : start + _ROWS_PER_FILE] for start in range(0, len(ids), _ROWS_PER_FILE))
    if all((column.values[block] == first).all() for block in blocks):
        return np.array([first]), np.array([len(ids)], dtype=np.int64)
    values = column.values[ids]
    by_value = np.argsort(values)
    ascending = values[by_value]
    starts = np.concatenate([[0], np.flatnonzero(ascending[1:] != ascending[:-1]) + 1])
    counts = np.diff(starts, append=len(values))
    if len(starts) < len(values):
        # The sort leaves equal values in any order. Rows are numbered as their ids ascend, so the numbers decide.
        run = np.repeat(np.arange(len(starts)), counts)
        by_value = np.sort(run << _ROW_BITS | by_value) & ((1 << _ROW_BITS) - 1)
    ids[:] = ids[by_value]
    return values[by_value[starts]], counts  # of 0.0 and -0.0, that of the first sample


def _arrow_values(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    return arrow_view(values.view(np.bool_) if pa.types.is_boolean(kind) else values)


def _distribution_schema(kind: pa.DataType) -> pa.Schema:
    return pa.schema({VALUE: kind, COUNT: pa.int64(), CUMULATIVE_COUNT: pa.int64()})


def _distribution_rows(kind: pa.DataType, distinct: np.ndarray, counts: np.ndarray, cumulative: np.ndarray) -> pa.Table:
    columns = {
        VALUE: _arrow_values(distinct, kind),
        COUNT: arrow_view(counts),
        CUMULATIVE_COUNT: arrow_view(cumulative),
    }
    return pa.table(columns, schema=_distribution_schema(kind))
