"""Ranges of values: where the difficulty order is cut into buckets, and how sorted rows are merged within a range."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from arrowds.schema import VALUE

ROWS_PER_FILE = 1 << 22
"""The most rows of one file of a bucket, and of one table in memory where a value is too frequent to be sorted."""

_BUCKETS_WANTED = 64
_FEWEST_ROWS = 1 << 21
_MOST_ROWS = 1 << 22
_ROWS_PER_RUN = 8
"""Equal values in a row, on average, from which on runs are sorted instead of rows."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A place in the order: after all samples up to ``value``, or, exclusive, after those below it."""

    value: Any
    inclusive: bool = True


def rows_up_to(ascending: np.ndarray, cut: Cut) -> int:
    """Return how many of some ascending values lie before a cut.

    >>> rows_up_to(np.array([1, 2, 2, 3]), Cut(2)), rows_up_to(np.array([1, 2, 2, 3]), Cut(2, inclusive=False))
    (3, 1)
    """
    value = cut.value
    if ascending.dtype.kind in "iu":  # NumPy would compare 64-bit integers of both signs as floats
        limits = np.iinfo(ascending.dtype)
        if not limits.min <= int(value) <= limits.max:
            return len(ascending) if int(value) > limits.max else 0
        value = ascending.dtype.type(value)
    return int(np.searchsorted(ascending, value, side="right" if cut.inclusive else "left"))


def rows_per_bucket(num_samples: int) -> int:
    """Return how many rows a bucket aims at: for about 64 buckets, within 2,097,152 and 4,194,304.

    >>> rows_per_bucket(1000), rows_per_bucket(200_000_000), rows_per_bucket(10**9)
    (2097152, 3125000, 4194304)
    """
    return min(_MOST_ROWS, max(_FEWEST_ROWS, num_samples // _BUCKETS_WANTED))


def cut_buckets(sampled: np.ndarray, target: float) -> list[Cut]:
    """Cut an order into buckets of about ``target`` samples; a value that is more frequent gets a bucket to itself.

    Args:
        sampled: values of some or all samples, ascending.
        target: the samples that a bucket may have, in the unit of ``sampled``.

    >>> [(int(cut.value), cut.inclusive) for cut in cut_buckets(np.array([1, 1, 2, 2, 3, 3, 3, 3, 3, 4]), 4)]
    [(3, False), (3, True)]
    """
    distinct, starts = np.unique(sampled, return_index=True)
    stops = np.append(starts[1:], len(sampled))
    cuts: list[Cut] = []
    first = 0
    alone = False  # whether the bucket before is that of one value
    while first < len(distinct):
        last = int(np.searchsorted(stops, starts[first] + target, side="right")) - 1
        if last < first:  # too frequent: values that the sample has missed must not be in its bucket
            last = first
            if first and not alone:
                cuts[-1] = Cut(distinct[first], inclusive=False)
            elif first or distinct[first] != _least(distinct.dtype):
                cuts.append(Cut(distinct[first], inclusive=False))
            alone = True
        else:
            alone = False
        cuts.append(Cut(distinct[last]))
        first = last + 1
    return cuts[:-1] if cuts and cuts[-1].value == distinct[-1] and stops[-1] - starts[-1] <= target else cuts


def _least(dtype: np.dtype[Any]) -> Any:
    return np.iinfo(dtype).min if dtype.kind in "iu" else -np.inf


def is_single_value(after: Cut | None, up_to: Cut | None) -> bool:
    """Tell whether two cuts enclose but one value: the bucket of a value that is too frequent to share one."""
    return after is not None and up_to is not None and bool(after.value == up_to.value)


def merged(slices: Iterable[pa.Table], kind: pa.DataType, *, single_value: bool) -> Iterator[pl.DataFrame]:
    """Merge sorted rows of several places into one order, by (value, place), as frames of bounded size.

    Each slice is sorted by (value, sample_id), and the ids of a later slice are larger where values are equal, so that
    a stable sort by value is a sort by both. Rows of a single value are in order already and stream.

    Args:
        slices: rows of one range of values.
        kind: the Arrow type of the values that are given.
        single_value: whether all rows have one value.
    """
    tables = (_of_kind(table, kind) for table in slices if table.num_rows)
    if single_value:
        yield from _regrouped(map(pl.DataFrame, tables))
    elif unsorted := list(tables):
        rows = pl.DataFrame(pa.concat_tables(unsorted).combine_chunks())
        yield from _sorted(rows).iter_slices(ROWS_PER_FILE)


def _sorted(frame: pl.DataFrame) -> pl.DataFrame:
    """Sort by value, keeping the order of rows with one value.

    Rows that come from sorted pieces have few runs of equal values where few values occur: sorting the runs, and taking
    the rows in the order of the runs, is two to four times as fast as sorting the rows.
    """
    runs = frame[VALUE].rle().struct.unnest()
    if runs.height * _ROWS_PER_RUN > frame.height:
        return frame.sort(VALUE, maintain_order=True, multithreaded=False)
    start = pl.col("len").cum_sum() - pl.col("len")
    ordered = runs.select("value", "len", start.alias("start")).sort("value", maintain_order=True)
    rows = ordered["len"].to_numpy()
    # A run of rows moves as a whole; the sum wraps around to the right row.
    moved = ordered["start"].to_numpy() - (np.cumsum(rows) - rows)
    taken = np.repeat(moved.astype(np.uint32), rows) + np.arange(frame.height, dtype=np.uint32)
    return frame[pl.Series(taken)]


def _of_kind(table: pa.Table, kind: pa.DataType) -> pa.Table:
    at = table.schema.get_field_index(VALUE)
    return table if table.schema.types[at] == kind else table.set_column(at, VALUE, table.column(at).cast(kind))


def _regrouped(frames: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """The same rows in frames of exactly ``ROWS_PER_FILE``, but for the last."""
    waiting: list[pl.DataFrame] = []
    rows = 0
    for frame in frames:
        start = 0
        while start < frame.height:
            waiting.append(frame.slice(start, ROWS_PER_FILE - rows))
            start += waiting[-1].height
            rows += waiting[-1].height
            if rows == ROWS_PER_FILE:
                yield pl.concat(waiting)
                waiting, rows = [], 0
    if waiting:
        yield pl.concat(waiting)
