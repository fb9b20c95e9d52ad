"""How many of the next samples fit into microbatches of a number of tokens, and which goes where. Pure NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from arrowds.token_batches.best_fit import best_fit_decreasing

Int64 = npt.NDArray[np.int64]


def fill_flat(lengths: Int64, bins: int, capacity: int, fills: Sequence[float]) -> Int64:
    """Return the bin of each of the first samples: as many as fit, at least one in each bin. Pure."""
    total = np.cumsum(lengths)
    for fill in fills:
        count = int(np.searchsorted(total, fill * bins * capacity, side="right"))
        if count >= bins and (where := _dealt_evenly(lengths[:count], bins, capacity)) is not None:
            return where
    # Long samples, compared with the budget: look for what best-fit decreasing can pack.
    low, high = bins, int(np.searchsorted(total, bins * capacity, side="right"))
    found = np.arange(min(bins, len(lengths)))
    while low < high:
        count = (low + high + 1) // 2
        packed = _packed(lengths[:count], bins, capacity)
        if packed is None:
            high = count - 1
        else:
            low, found = count, packed
    return found


def _dealt_evenly(lengths: Int64, bins: int, capacity: int) -> Int64 | None:
    """Give each sample, longest first, to the bin with the fewest tokens; None where a bin then has too many. Pure.

    As many samples as there are bins that would be chosen before any of them twice are dealt at once.
    Source: the longest-processing-time rule (Graham, "Bounds on multiprocessing timing anomalies", 1969).
    """
    order = np.argsort(-lengths, kind="stable")
    descending = lengths[order]
    load = np.zeros(bins, np.int64)
    where = np.empty(len(lengths), np.int64)
    start = 0
    while start < len(order):
        by_load = np.argsort(load, kind="stable")
        ascending = load[by_load]
        count = int(np.searchsorted(ascending, ascending[0] + descending[start], side="left"))
        chosen = by_load[: min(count, len(order) - start)]
        where[order[start : start + len(chosen)]] = chosen
        load[chosen] += descending[start : start + len(chosen)]
        start += len(chosen)
    return where if load.max() <= capacity else None


def _packed(lengths: Int64, bins: int, capacity: int) -> Int64 | None:
    """Return the bin of each sample, none of them empty; None where best-fit decreasing needs more. Pure."""
    order = np.argsort(-lengths, kind="stable")
    none = np.empty(0, np.int64)
    found, used = best_fit_decreasing(lengths[order], none, none, capacity=capacity, max_rows=None)
    if used > bins:
        return None
    where = np.empty(len(lengths), np.int64)
    where[order] = found
    return _spread(where, used, bins)


def fill_padded(lengths: Int64, bins: int, capacity: int) -> Int64:
    """As :func:`fill_flat`, where a bin holds rows times its longest sample. Pure."""
    low, high = min(bins, len(lengths)), len(lengths)
    found = np.arange(low)
    while low <= high:
        count = (low + high) // 2
        order = np.argsort(-lengths[:count], kind="stable")
        descending = lengths[order].tolist()
        where, start, used = np.empty(count, np.int64), 0, 0
        while start < count and used < bins:
            rows = capacity // descending[start]
            where[order[start : start + rows]] = used
            start, used = start + rows, used + 1
        if start < count:
            high = count - 1
        else:
            low, found = count + 1, _spread(where, used, bins)
    return found


def _spread(where: Int64, used: int, bins: int) -> Int64:
    """Give half of the samples of the fullest bins to bins that are empty. Pure."""
    for empty in range(used, bins):
        fullest = np.bincount(where, minlength=empty).argmax()
        rows = np.flatnonzero(where == fullest)
        where[rows[len(rows) // 2 :]] = empty
    return where
