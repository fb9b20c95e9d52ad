"""Where the difficulty order is cut into buckets, and which bucket a value belongs to; pure functions on arrays.

A bucket is a range of values. Buckets serve twice: each is sorted on its own, so that memory holds one bucket and not
the dataset, and each becomes one hive partition, so that a query over a range of difficulty reads few of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

CODED_RANGE = 1 << 16
"""Integers that span no more than this are counted exactly: each value is a cell of its own and nothing is sorted."""

_BUCKETS_WANTED = 64
_FEWEST_ROWS = 1 << 16
_MOST_ROWS = 1 << 22


@dataclass(frozen=True, slots=True)
class Buckets:
    """Ranges of values: bucket b holds the values in (upper[b - 1], upper[b]].

    Attributes:
        upper: ascending, of shape (buckets - 1,), in the stored dtype; the last bucket has no upper bound.
    """

    upper: np.ndarray

    def __len__(self) -> int:
        return len(self.upper) + 1

    def of(self, values: np.ndarray) -> np.ndarray:
        """Return the bucket of each value, as uint16."""
        return np.searchsorted(self.upper, values, side="left").astype(np.uint16)


def rows_per_bucket(num_samples: int) -> int:
    """Return how many rows a bucket aims at: for about 64 buckets, within 65,536 and 4,194,304.

    >>> rows_per_bucket(1000), rows_per_bucket(100_000_000), rows_per_bucket(10**9)
    (65536, 1562500, 4194304)
    """
    return min(_MOST_ROWS, max(_FEWEST_ROWS, num_samples // _BUCKETS_WANTED))


def cut_buckets(values: np.ndarray, counts: np.ndarray, target: float) -> Buckets:
    """Cut a distribution into buckets of at most about ``target`` rows; a heavier value gets a bucket to itself.

    Args:
        values: distinct values, ascending.
        counts: how often each occurs, exactly or in a sample.
        target: the rows that a bucket may have, in the unit of ``counts``.

    >>> cut_buckets(np.array([1, 2, 3, 4]), np.array([5, 5, 100, 5]), 10).upper
    array([2, 3])
    """
    upper = []
    cumulative = np.cumsum(counts)
    first = 0
    while first < len(values):
        before = cumulative[first - 1] if first else 0
        # The last value with which the bucket still keeps to the target; at least one value goes in.
        last = max(first, int(np.searchsorted(cumulative, before + target, side="right")) - 1)
        upper.append(values[last])
        first = last + 1
    return Buckets(np.array(upper[:-1], dtype=values.dtype))
