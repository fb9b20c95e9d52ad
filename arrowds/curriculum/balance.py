"""Divide the samples of a step among ranks and microbatches so that the costliest rank costs as little as possible."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

_SHARES = (0.995, 0.98, 0.965)
"""How much of its tokens a rank may get, so that they can be packed into its microbatches."""


def balanced(lengths: Int64, costs: Float64, *, ranks: int, microbatches: int, capacity: int) -> Int64 | None:
    """Return for each sample its place, microbatch * ranks + rank; None where no such division was found. Pure.

    Samples go to the rank with the least cost that still has room, costliest first; those of a rank to its microbatch
    with the fewest tokens, longest first. No microbatch has more tokens than ``capacity``, and none is empty.

    Args:
        lengths: tokens of each sample.
        costs: what each of them costs.
        ranks: how many ranks there are.
        microbatches: how many each of them has.
        capacity: the most tokens of a microbatch.

    Source: the longest-processing-time rule (Graham, "Bounds on multiprocessing timing anomalies", 1969), with room.

    >>> lengths = np.array([9, 3, 3, 3, 3, 1])
    >>> balanced(lengths, lengths**2.0, ranks=2, microbatches=1, capacity=14).tolist()
    [0, 1, 1, 1, 1, 1]
    """
    for share in _SHARES:
        rank = _to_ranks(lengths, costs, ranks, capacity * microbatches * (share if microbatches > 1 else 1.0))
        if rank is None:
            return None
        microbatch = _to_microbatches(lengths, rank, ranks, microbatches, capacity)
        if microbatch is not None:
            return microbatch * ranks + rank
    return None


def _to_ranks(lengths: Int64, costs: Float64, ranks: int, room_each: float) -> Int64 | None:
    order = np.argsort(-costs, kind="stable")
    costs, lengths = costs[order], lengths[order]
    load, room = np.zeros(ranks), np.full(ranks, room_each)
    rank = np.empty(len(order), np.int64)
    start = 0
    while start < len(order):
        open_ranks = np.flatnonzero(room >= lengths[start])
        if not len(open_ranks):
            return None
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
    return rank


def _to_microbatches(lengths: Int64, rank: Int64, ranks: int, microbatches: int, capacity: int) -> Int64 | None:
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
