"""Best-fit-decreasing bin packing over a histogram of lengths: the work grows with distinct lengths. Pure."""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from arrowds.token_batches.rules import IntArray


@dataclass(slots=True)
class _Shelves:
    """Bins by their room: all bins with the same room and the same free rows are one shelf, filled together.

    A shelf's key is `room * stride + free rows`, so that the next larger key is the best fit. Without a limit on rows
    the stride is 1 and rows are not counted.
    """

    stride: int
    bins: dict[int, array[int]] = field(default_factory=dict)
    keys: list[int] = field(default_factory=list)  # sorted
    smallest: int = 0  # bins with smaller keys have no room left and are dropped

    def add(self, key: int, bins: array[int]) -> None:
        if key < self.smallest or (self.stride > 1 and key % self.stride == 0):
            return
        if key in self.bins:
            self.bins[key].extend(bins)
        else:
            self.bins[key] = bins
            insort(self.keys, key)

    def take(self, at: int, count: int) -> array[int]:
        shelf = self.bins[self.keys[at]]
        taken = shelf[:count]
        del shelf[:count]
        if not shelf:
            del self.bins[self.keys.pop(at)]
        return taken


def best_fit_decreasing(
    lengths: IntArray, room: IntArray, rows: IntArray, *, capacity: int, max_rows: int | None
) -> tuple[npt.NDArray[np.uint32], int]:
    """Put every length into the bin with the least room that still holds it, longest first.

    All samples of one length are placed together, and all bins with equal room as well: the Python loop runs once for
    each pair of a length and a room that meet, which the capacity bounds, however many samples there are.

    Args:
        lengths: shape (n,), in descending order, each from 1 to capacity.
        room: shape (b,), tokens that still fit each of the bins which exist; new ones are opened as needed.
        rows: shape (b,), samples that each existing bin holds.
        capacity: tokens that fit a new bin.
        max_rows: samples that fit a bin; None for no limit.

    Returns:
        The bin of each length, shape (n,), and the number of bins.

    Source: best-fit decreasing (Johnson, "Near-optimal bin packing algorithms", 1973), on a histogram as in Krell et
    al., "Efficient sequence packing without cross-contamination", 2021.

    >>> bins, count = best_fit_decreasing(np.array([6, 4, 3, 3]), np.empty(0, int), np.empty(0, int), capacity=8,
    ...                                   max_rows=None)
    >>> bins.tolist(), count
    ([0, 1, 1, 2], 3)
    """
    if not len(lengths):
        return np.empty(0, np.uint32), len(room)
    counted = max_rows is not None
    stride = 1 if max_rows is None else max_rows + 1
    new_key = capacity if max_rows is None else capacity * stride + max_rows
    shelves = _Shelves(stride=stride, smallest=int(lengths[-1]) * stride + counted)
    _shelve(shelves, room if max_rows is None else room * stride + (max_rows - rows))
    number = len(room)
    placed: array[int] = array("I")
    values, counts = _runs(lengths)
    for length, total in zip(values.tolist(), counts.tolist(), strict=True):
        count, unit = total, length * stride + counted
        while count:
            at = bisect_left(shelves.keys, unit)
            if at == len(shelves.keys):
                opened = -(-count // _fitting(new_key, length, stride))
                shelves.add(new_key, array("I", range(number, number + opened)))
                number += opened
                continue
            key = shelves.keys[at]
            each = _fitting(key, length, stride)
            taken = shelves.take(at, min(len(shelves.bins[key]), max(1, count // each)))
            each = min(each, count)
            placed.frombytes(np.repeat(np.frombuffer(taken, np.uint32), each).tobytes())
            count -= len(taken) * each
            shelves.add(key - each * unit, taken)
    return np.frombuffer(placed, np.uint32), number


def _fitting(key: int, length: int, stride: int) -> int:
    """Return how many samples of this length a bin of this shelf still holds."""
    return key // length if stride == 1 else min(key // stride // length, key % stride)


def _runs(lengths: IntArray) -> tuple[IntArray, IntArray]:
    """Return the distinct values of a sorted array, and how often each occurs."""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(lengths)) + 1])
    return lengths[starts], np.diff(starts, append=len(lengths))


def _shelve(shelves: _Shelves, keys: IntArray) -> None:
    """Put the existing bins onto their shelves."""
    if not len(keys):
        return
    order = np.argsort(keys, kind="stable")
    values, counts = _runs(keys[order])
    stops = np.cumsum(counts)
    bins = order.astype(np.uint32)
    for key, start, stop in zip(values.tolist(), (stops - counts).tolist(), stops.tolist(), strict=True):
        shelves.add(key, array("I", bins[start:stop].tobytes()))
