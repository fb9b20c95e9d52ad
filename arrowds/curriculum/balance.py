"""Divide the samples of a step among ranks and microbatches so that the costliest rank costs as little as possible."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

_SHARES = (0.995, 0.98, 0.965)
"""How much of its tokens a rank may get, so that they can be packed into its microbatches."""

_LARGEST, _SMALLEST = 8, 24
"""For each rank, how many samples are dealt one by one: the costliest, and, to even out, the least costly."""


_MARGIN = 0.99
"""How much of its room a rank gets in one sweep, since stretches differ in their cost a token."""


def balanced(lengths: Int64, costs: Float64, *, ranks: int, microbatches: int, capacity: int) -> Int64 | None:
    """Return for each sample its place, microbatch * ranks + rank; None where no such division was found. Pure.

    Samples go to the rank with the least cost that still has room, costliest first; those of a rank to its microbatch
    with the fewest tokens, longest first. No microbatch has more tokens than ``capacity``, and none is empty.

    Args:
        lengths: tokens of each sample, in random order.
        costs: what each of them costs.
        ranks: how many ranks there are.
        microbatches: how many each of them has.
        capacity: the most tokens of a microbatch.

    Source: the longest-processing-time rule (Graham, "Bounds on multiprocessing timing anomalies", 1969), with room.

    >>> lengths = np.array([9, 3, 3, 3, 3, 1])
    >>> balanced(lengths, lengths**2.0, ranks=2, microbatches=1, capacity=14).tolist()
    [0, 1, 1, 1, 1, 1]
    """
    order = np.argsort(-costs, kind="stable")
    for share in _SHARES if microbatches > 1 else (1.0,):
        room = np.full(ranks, capacity * microbatches * share)
        rank = _to_ranks(lengths, costs, order, room)
        if rank is None:
            return None
        microbatch = _to_microbatches(lengths, rank, ranks, microbatches, capacity)
        if microbatch is not None:
            return microbatch * ranks + rank
    return None


def _to_ranks(lengths: Int64, costs: Float64, order: Int64, room: Float64) -> Int64 | None:
    """Deal the costliest and the least costly samples one by one, and those between them in one sweep."""
    ranks = len(room)
    rank = np.empty(len(order), np.int64)
    load, left = np.zeros(ranks), room.copy()
    first, last = _LARGEST * ranks, len(order) - _SMALLEST * ranks
    if last <= first:
        return rank if _deal(lengths, costs, order, rank, load=load, room=left) else None
    if not _deal(lengths, costs, order[:first], rank, load=load, room=left):
        return None
    between = np.sort(order[first:last])  # in their random order, so that any stretch of them has the mean cost a token
    tokens, cost = float(lengths[between].sum()), float(costs[between].sum())
    amount = _filled_up(load, _MARGIN * left * cost / tokens, cost)
    ends = np.cumsum(costs[between])
    rank[between] = np.searchsorted(np.cumsum(amount)[:-1], ends - costs[between] / 2)
    load += np.bincount(rank[between], costs[between], ranks)
    left -= np.bincount(rank[between], lengths[between], ranks)
    if left.min() >= 0 and _deal(lengths, costs, order[last:], rank, load=load, room=left):
        return rank
    load, left = np.zeros(ranks), room.copy()  # too tight for that
    return rank if _deal(lengths, costs, order, rank, load=load, room=left) else None


def _filled_up(load: Float64, room: Float64, total: float) -> Float64:
    """Return how much of a total each rank gets so that the least loaded come up to one level, within their room."""
    low, high = float(load.min()), float(load.max() + total)
    for _ in range(40):
        level = (low + high) / 2
        low, high = (low, level) if np.clip(level - load, 0, room).sum() >= total else (level, high)
    amount = np.clip(high - load, 0, room)
    scaled: Float64 = amount * (total / amount.sum())
    return scaled


def _deal(lengths: Int64, costs: Float64, order: Int64, rank: Int64, *, load: Float64, room: Float64) -> bool:
    """Give each sample of ``order`` to the least loaded rank with room for it; False where none has."""
    costs, lengths = costs[order], lengths[order]
    start = 0
    while start < len(order):
        open_ranks = np.flatnonzero(room >= lengths[start])
        if not len(open_ranks):
            return False
        by_load = open_ranks[np.argsort(load[open_ranks], kind="stable")]
        # As many as would be chosen before the first of them is chosen again, up to one that does not fit.
        count = int(np.searchsorted(load[by_load], load[by_load[0]] + costs[start], side="left"))
        count = min(max(count, 1), len(order) - start)
        fits = room[by_load[:count]] >= lengths[start : start + count]
        count = count if fits.all() else int(fits.argmin())
        chosen, stop = by_load[:count], start + count
        rank[order[start:stop]] = chosen
        load[chosen] += costs[start:stop]
        room[chosen] -= lengths[start:stop]
        start = stop
    return True


def _to_microbatches(lengths: Int64, rank: Int64, ranks: int, microbatches: int, capacity: int) -> Int64 | None:
    if microbatches == 1:
        return np.zeros(len(rank), np.int64) if np.bincount(rank, lengths, ranks).max() <= capacity else None
    order = np.lexsort((-lengths, rank))
    counts = np.bincount(rank, minlength=ranks)
    if counts.min() < microbatches:
        return None
    row, column = rank[order], np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    by_rank = np.zeros((ranks, counts.max()), np.int64)
    by_rank[row, column] = lengths[order]
    load = np.zeros((ranks, microbatches), np.int64)
    chosen = np.empty_like(by_rank)
    every = np.arange(ranks)
    for number in range(by_rank.shape[1]):  # the longest of each rank, the second of each, ...
        chosen[:, number] = load.argmin(axis=1)
        load[every, chosen[:, number]] += by_rank[:, number]
    if load.max() > capacity:
        return None
    microbatch = np.empty(len(order), np.int64)
    microbatch[order] = chosen[row, column]
    return microbatch
