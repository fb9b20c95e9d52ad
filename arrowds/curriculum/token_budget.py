"""A token budget: what bounds a microbatch, how many samples fit into microbatches, and which goes to which rank."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from arrowds.cost import LengthCost
from arrowds.curriculum.metric_values import MetricSource, find_metric
from arrowds.errors import ConfigError, TokenBudgetError
from arrowds.token_batches.best_fit import best_fit_decreasing

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
Cost = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], npt.NDArray[np.float64]]
"""From the ids and the lengths of samples to what each of them costs."""

_SHARES = (0.995, 0.98, 0.965)
"""How much of its tokens a rank may get, so that they can be packed into its microbatches."""

_LARGEST, _SMALLEST = 8, 24
"""For each rank, how many samples are dealt one by one: the costliest, and, to even out, the least costly."""

_MARGIN = 0.99
"""How much of its room a rank gets in one sweep, since stretches differ in their cost a token."""


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """What bounds a microbatch.

    Attributes:
        max_tokens: the most tokens that it has.
        lengths: the metric that counts those of a sample.
        padded: whether padding counts, up to the longest sample.
        overlong: what becomes of longer samples: "raise" or "truncate".
        cost: what samples cost: a function of their length, or a metric; None to count tokens.
    """

    max_tokens: int
    lengths: str
    padded: bool
    overlong: str
    cost: LengthCost | str | None

    def check(self, lengths: npt.NDArray[Any], drawn: npt.NDArray[np.bool_]) -> None:
        """Raise TokenBudgetError when a sample that may be drawn is longer than the budget, unless it is truncated."""
        over = (lengths > self.max_tokens) & drawn
        if self.overlong == "raise" and over.any():
            first = int(np.where(over, lengths, 0).argmax())
            raise TokenBudgetError(
                f"{int(over.sum())} samples are longer than max_tokens, {self.max_tokens}; the longest, sample "
                f"{first}, has {lengths[first]} tokens. Raise max_tokens, leave them out with where, a condition on "
                f"{self.lengths}, or cut them when they are loaded: overlong 'truncate', or max_length of a run"
            )


def costs_of(index: MetricSource, name: str) -> npt.NDArray[Any]:
    """Return what a metric says that samples cost.

    Raises:
        ConfigError: when it has no number, or one below zero, for a sample.
    """
    metric = find_metric(index, name)
    if metric.values.dtype.kind not in "iuf":
        raise ConfigError(f"costs must be numbers, but {name!r} has {metric.values.dtype}")
    if len(metric.order) < index.num_samples:
        missing = index.num_samples - len(metric.order)
        raise ConfigError(f"costs must be known, but {missing} samples have no value of {name!r}")
    least = int(metric.order[0])
    if metric.values[least] < 0:
        raise ConfigError(f"costs can't be negative, but sample {least} has {metric.values[least]} of {name!r}")
    return metric.values


def lengths_of(
    index: MetricSource,
    name: str,
    drawn: Callable[[], npt.NDArray[np.bool_]],
    budget: TokenBudget | None,
) -> npt.NDArray[Any]:
    """Return the tokens of every sample.

    Args:
        index: where the metric is.
        name: the metric that counts them.
        drawn: returns which samples may be drawn.
        budget: what they have to fit, if anything.

    Raises:
        ConfigError: when the metric has no integers, or no length for a sample that may be drawn.
        TokenBudgetError: when such a sample is longer than the budget.
    """
    metric = find_metric(index, name)
    values = metric.values
    if values.dtype.kind not in "iu":
        raise ConfigError(f"lengths must be integers, but {name!r} has {values.dtype}")
    lengths: npt.NDArray[Any] = np.ma.getdata(values)
    longest = int(lengths[metric.order[-1]]) if len(metric.order) else 0
    fits = budget is None or longest <= budget.max_tokens or budget.overlong == "truncate"
    if len(metric.order) == len(values) and fits:
        return lengths  # without a look at any other
    may_be_drawn = drawn()
    missing = np.ma.getmaskarray(values) & may_be_drawn
    if missing.any():
        raise ConfigError(
            f"{int(missing.sum())} samples have no {name}, the first is sample {int(missing.argmax())}; "
            "leave them out with where, a condition on metrics"
        )
    if budget is not None:
        budget.check(lengths, may_be_drawn)
    return lengths


def check_options(max_tokens: object, micro_batch_size: object, order: str, **options: object) -> None:
    """Raise ConfigError unless a batch is bounded in one way, and its options belong to that."""
    if (max_tokens is None) == (micro_batch_size is None):
        raise ConfigError(
            "pass micro_batch_size, the samples of a microbatch, or max_tokens, its tokens"
            + ("" if max_tokens is None else "; not both")
        )
    if max_tokens is not None and order != "stateless":
        raise ConfigError(f"max_tokens needs the order 'stateless', got {order!r}")
    if max_tokens is not None and (isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1):
        raise ConfigError(f"max_tokens must be a positive integer, got {max_tokens!r}")
    if options.get("overlong") not in (None, "raise", "truncate"):
        raise ConfigError(f"overlong must be 'raise' or 'truncate', got {options['overlong']!r}")
    if options.get("cost") is not None and options.get("padded"):
        raise ConfigError("cost does not go with padded: samples of one length then go together, whatever they cost")
    if not isinstance(options.get("cost"), LengthCost | tuple | list | str | None):
        raise ConfigError(f"cost must be a pair of factors, a metric or a LengthCost, got {options['cost']!r}")
    given = [name for name, value in options.items() if value is not None]
    if max_tokens is None and given:
        raise ConfigError(
            f"{', '.join(given)} belong{'s' if len(given) == 1 else ''} to max_tokens, which is not given"
        )


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
    order = _descending(costs)
    for share in _SHARES if microbatches > 1 else (1.0,):
        room = np.full(ranks, capacity * microbatches * share)
        rank = _to_ranks(lengths, costs, order, room)
        if rank is None:
            return None
        microbatch = _to_microbatches(lengths, rank, ranks, microbatches, capacity)
        if microbatch is not None:
            return microbatch * ranks + rank
    return None


def _descending(values: Float64) -> Int64:
    """Return the places of values >= 0, the largest first; of values that hardly differ, by their places.

    The same on every machine, which an unstable ``argsort`` is not, at a tenth of a stable one's time: the bits of
    numbers >= 0 are in their order, and the lowest make room for the places.

    >>> _descending(np.array([1.0, 3.0, 3.0, 0.0])).tolist()
    [1, 2, 0, 3]
    """
    bits = np.uint64(max(len(values) - 1, 1).bit_length())
    keys = (~(values + 0.0).view(np.uint64) >> bits << bits) | np.arange(len(values), dtype=np.uint64)
    return (np.sort(keys) & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)


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
    counts = np.bincount(rank, minlength=ranks)
    if counts.min() < microbatches:
        return None
    order = _descending(lengths.astype(np.float64))
    order = order[np.argsort(rank[order].astype(np.uint16), kind="stable")]  # a radix sort
    column, row = rank[order], np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    by_rank = np.zeros((counts.max(), ranks), np.int64)
    by_rank[row, column] = lengths[order]  # in row 0 the longest of each rank, in row 1 the second of each, ...
    load = np.zeros((ranks, microbatches), np.int64)
    flat, places = load.reshape(-1), np.empty_like(by_rank)
    first = np.arange(ranks) * microbatches
    for tokens, place in zip(by_rank, places, strict=True):
        np.add(load.argmin(axis=1), first, out=place)
        flat[place] += tokens
    if load.max() > capacity:
        return None
    microbatch = np.empty(len(order), np.int64)
    microbatch[order] = places[row, column] - column * microbatches
    return microbatch
