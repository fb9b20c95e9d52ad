"""Apportionment: how many draws of each batch come from each cluster, in proportion to weights that change at phases.

The clusters are the leaves of a binary tree, and the n draws that have reached a node split between its two sides:

* floor(carry + rate * n) go left, where ``rate`` is the left side's share of the weight. Both sides only grow, and
  are off by at most 1/2 from their share of n.
* Where both sides get more than a draw per batch, the error of the node itself is halved instead of being passed on:
  round((l - r + n) / 2) go left, with l and r the exact shares of the sides in all draws so far. A count is then
  off by less than 1/2 + 1/4 + ... = 1 from its exact share at any time: within two draws over any run of batches.

Both are closed forms, so the draws of any batch follow without playing through those before it, and counts carry over
from phase to phase, roundings included. Nothing depends on the order of a floating-point sum, so all machines agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

# Rates are fixed-point numbers; after 10**11 draws the truncation has moved a count by less than 0.1.
_BITS = 40
_ONE = 1 << _BITS
_LOW_BITS = 22
_TABLE_ENTRIES = 1 << 20
# How many draws per batch a side needs for its count to be steered: 1 would do without truncation.
_STEERABLE = 1.25


@dataclass(frozen=True, slots=True)
class Changes:
    """Weights that change: from phase ``phase[i]`` on, the weight of leaf ``leaf[i]`` is larger by ``delta[i]``.

    All int64 arrays of one length; ``phase`` is sorted.
    """

    phase: Int64
    leaf: Int64
    delta: Int64


@dataclass(frozen=True, slots=True)
class Shares:
    """What batches take from the clusters: ``count[i]`` draws of cluster ``leaf[i]`` in batch ``row[i]``.

    They are the draws number ``first[i]`` and following of that cluster. Sorted by row, then leaf.
    """

    row: Int64
    leaf: Int64
    first: Int64
    count: Int64

    def expand(self) -> tuple[Int64, Int64]:
        """Return the leaf and the number within the leaf of each single draw."""
        ends = np.cumsum(self.count)
        number = np.arange(ends[-1] if len(ends) else 0) + np.repeat(self.first - (ends - self.count), self.count)
        return np.repeat(self.leaf, self.count), number


class DrawPlan:
    """Where each draw goes. A phase is a run of batches with constant weights; phases and draws count from 0.

    Args:
        num_leaves: how many clusters there are.
        changes: their weights; before phase 0 all are 0. In every phase some weight is positive.
        draws_before: for each phase, how many draws come before it.
        batch: how many draws every batch has, or 0 where that varies.
        shape: weights that shape the tree, so that changes of later phases do not; None: the largest of each cluster.

    >>> plan = DrawPlan(2, Changes(*np.array([[0, 0, 1], [0, 1, 1], [6, 2, 4]])), np.array([0, 16]), batch=8)
    >>> shares = plan.shares(np.array([0, 0, 1]), np.array([0, 8, 16]), np.array([8, 16, 24]))
    >>> shares.leaf, shares.count
    (array([0, 1, 0, 1, 0, 1]), array([6, 2, 6, 2, 4, 4]))
    """

    def __init__(
        self, num_leaves: int, changes: Changes, draws_before: Int64, *, batch: int = 0, shape: Int64 | None = None
    ) -> None:
        self._phases = len(draws_before)
        weights = _largest_weights(num_leaves, changes) if shape is None else shape
        tree = _WeightTree.of(weights, _steerable_weight(changes, batch))
        self._children, self._leaves = tree.children, tree.leaves
        self._clock = _Clock.of(changes, draws_before)
        self._entries = _Entries.joined(_entries_by_level(tree, changes, self._clock))
        self._table = self._dense_table(len(tree.children) // 2)

    def _dense_table(self, nodes: int) -> npt.NDArray[np.int32] | None:
        """Return the entry of each (node, phase) where that is a small table."""
        if not 0 < nodes * self._phases <= _TABLE_ENTRIES:
            return None
        table = np.zeros(nodes * self._phases, np.int32)
        table[self._entries.key] = np.arange(len(self._entries.key), dtype=np.int32)
        return np.maximum.accumulate(table.reshape(nodes, self._phases), axis=1).reshape(-1)

    def shares(self, phases: Int64, start: Int64, stop: Int64, *, empty: bool = False) -> Shares:
        """Return the shares of batches: row i consists of the draws ``start[i]`` to ``stop[i]`` of phase ``phases[i]``.

        With ``empty``, clusters that give nothing to a batch are listed too.
        """
        row, node = np.arange(len(start)), np.zeros(len(start), np.int64)
        if not len(self._children) or not len(start):
            return Shares(row, node, start, stop - start)
        times = _Times(phases, self._clock.at(phases, start), self._clock.at(phases, stop))
        first, count, leaves = start, stop - start, []
        while len(row):
            left, more = self._split(node, first, count, times.of(row))
            keep_left, keep_right = np.flatnonzero((more > 0) | empty), np.flatnonzero((count > more) | empty)
            row = np.concatenate([row[keep_left], row[keep_right]])
            node = np.concatenate([self._children[2 * node[keep_left]], self._children[2 * node[keep_right] + 1]])
            first = np.concatenate([left[keep_left], (first - left)[keep_right]])
            count = np.concatenate([more[keep_left], (count - more)[keep_right]])
            inner = node >= 0
            leaves.append((row[~inner], self._leaves[~node[~inner]], first[~inner], count[~inner]))
            row, node, first, count = row[inner], node[inner], first[inner], count[inner]
        row, leaf, first, count = (np.concatenate(arrays) for arrays in zip(*leaves, strict=True))
        order = np.argsort(row * len(self._leaves) + leaf, kind="stable")
        return Shares(row[order], leaf[order], first[order], count[order])

    def _split(self, node: Int64, first: Int64, count: Int64, times: _Times) -> tuple[Int64, Int64]:
        """Return how many of the first ``first`` draws of each node went left, and how many of the next ``count``."""
        key = node * self._phases + times.phase
        entry = self._table[key] if self._table is not None else np.searchsorted(self._entries.key, key, "right") - 1
        left, more = self._entries.at(entry, first, count)
        steered = np.flatnonzero(self._entries.steered[entry])
        if len(steered):
            which, seen, begin = entry[steered], first[steered], times.begin[steered]
            before = self._entries.steered_at(which, begin, seen)
            before = np.where(begin == self._entries.clock[which], self._entries.left[which], before)
            left[steered] = before
            more[steered] = self._entries.steered_at(which, times.end[steered], seen + count[steered]) - before
        return left, more


@dataclass(frozen=True, slots=True)
class _Times:
    """When batches are drawn: the phase, and the clock at the beginning and the end."""

    phase: Int64
    begin: Float64
    end: Float64

    def of(self, row: Int64) -> _Times:
        """Return the times of some batches."""
        return _Times(self.phase[row], self.begin[row], self.end[row])


@dataclass(frozen=True, slots=True)
class _Clock:
    """Time in passes: how often a cluster that exists from the first phase on has been drawn through."""

    draws_before: Int64
    total: Int64
    passes: Float64

    @classmethod
    def of(cls, changes: Changes, draws_before: Int64) -> _Clock:
        """Follow the total weight through the phases. Pure."""
        total = np.zeros(len(draws_before), np.int64)
        np.add.at(total, changes.phase, changes.delta)
        total = np.cumsum(total)
        # A running sum adds from left to right, as ``at`` does: the end of a phase is the beginning of the next.
        passes = np.cumsum(np.append(0.0, np.diff(draws_before) / total[:-1]))
        return cls(draws_before, total, passes)

    def at(self, phase: Int64, draws: Int64) -> Float64:
        """Return the time after ``draws`` draws, in a phase or at its end."""
        passes: Float64 = self.passes[phase] + (draws - self.draws_before[phase]) / self.total[phase]
        return passes


@dataclass(frozen=True, slots=True)
class _Entries:
    """What nodes do from phases on: arrays sorted by ``key`` = node * phases + phase."""

    key: Int64
    seen: Int64
    """Draws that reached the node before the phase, ..."""
    left: Int64
    """... and those of them that went left."""
    carry: Int64
    rate: Int64
    steered: npt.NDArray[np.bool_]
    clock: Float64
    lead: Float64
    """Exact share of the left side in all draws before the phase, less that of the right, ..."""
    slope: Float64
    """... and how much it grows per pass."""

    @classmethod
    def joined(cls, levels: list[_Entries]) -> _Entries:
        """Join the entries of several levels of the tree."""
        empty = np.zeros(0, np.int64)
        names = cls.__dataclass_fields__
        return cls(**{name: np.concatenate([getattr(x, name) for x in levels] or [empty]) for name in names})

    def at(self, entry: Int64, first: Int64, count: Int64) -> tuple[Int64, Int64]:
        """Return how many of the first ``first`` draws of a node went left, and how many of the next ``count`` do."""
        rate = self.rate[entry]
        whole, part = _scaled(first - self.seen[entry], rate)
        part += self.carry[entry]
        left = self.left[entry] + whole
        left += part >> _BITS
        part &= _ONE - 1
        part += rate * count
        return left, part >> _BITS

    def steered_at(self, entry: Int64, clock: Float64, seen: Int64) -> Int64:
        """Return how many of the ``seen`` draws of a steered node have gone left at a time of the clock."""
        lead = self.lead[entry] + self.slope[entry] * (clock - self.clock[entry])
        return np.floor((lead + (seen + 1)) / 2).astype(np.int64)


@dataclass(frozen=True, slots=True)
class _WeightTree:
    """A binary tree: ``children[2 * node + side]`` is a node, or ~i for ``leaves[i]``. Node 0 is the root."""

    children: Int64
    leaves: Int64
    first_right: Int64
    """For each node, the position in ``leaves`` where its right side begins."""
    steerable: npt.NDArray[np.bool_]
    """For each node, whether both sides get enough draws, once they get any, to be steered."""

    @classmethod
    def of(cls, weights: Int64, steerable: float) -> _WeightTree:
        """Set the light leaves apart, then split both kinds into halves of about equal weight, level by level. Pure."""
        leaves = np.argsort(weights, kind="stable").astype(np.int64)
        below = np.concatenate([[0.0], np.cumsum(weights[leaves], dtype=np.float64)])
        light = int(np.searchsorted(weights[leaves], steerable))
        children, first_right, heavy = [], [], []
        start, stop, made = np.array([0]), np.array([len(leaves)]), 1
        while len(start) and len(leaves) > 1:
            middle = _middles(below, start, stop)
            middle = np.where((start < light) & (light < stop), light, middle)
            heavy.append(start >= light)
            first_right.append(middle)
            start, stop = np.stack([start, middle], 1).ravel(), np.stack([middle, stop], 1).ravel()
            inner = stop - start > 1
            children.append(np.where(inner, made + np.cumsum(inner) - 1, ~start))
            made += int(inner.sum())
            start, stop = start[inner], stop[inner]
        none = np.zeros(0, np.int64)
        return cls(
            np.concatenate([none, *children]),
            leaves,
            np.concatenate([none, *first_right]),
            np.concatenate([none.astype(bool), *heavy]),
        )


def _middles(below: Float64, start: Int64, stop: Int64) -> Int64:
    """Return where to cut each range so that both parts weigh about the same and neither is empty. Pure."""
    half = (below[start] + below[stop]) / 2
    cut = np.clip(np.searchsorted(below, half), start + 1, stop - 1)
    earlier = np.maximum(cut - 1, start + 1)
    return np.asarray(np.where(np.abs(below[earlier] - half) < np.abs(below[cut] - half), earlier, cut), np.int64)


def _largest_weights(num_leaves: int, changes: Changes) -> Int64:
    """Return the largest weight that each leaf ever has. Pure."""
    order = np.argsort(changes.leaf, kind="stable")
    leaf = changes.leaf[order]
    largest = np.zeros(num_leaves, np.int64)
    np.maximum.at(largest, leaf, _within(leaf, changes.delta[order][np.newaxis])[0])
    return largest


def _steerable_weight(changes: Changes, batch: int) -> float:
    """Return the weight from which on a leaf may be steered: infinite where leaves come and go. Pure."""
    if not batch or (changes.delta <= 0).any() or len(np.unique(changes.leaf)) < len(changes.leaf):
        return float("inf")
    return _STEERABLE * float(changes.delta.sum()) / batch


def _entries_by_level(tree: _WeightTree, changes: Changes, clock: _Clock) -> list[_Entries]:
    """Return, level by level, what each node does from each phase on in which a weight below it changes. Pure."""
    phases = len(clock.draws_before)
    rank = np.empty(len(tree.leaves), np.int64)
    rank[tree.leaves] = np.arange(len(tree.leaves))
    position, phase, delta = rank[changes.leaf], changes.phase, changes.delta
    node, seen = np.zeros(len(phase), np.int64), clock.draws_before[phase]
    levels: list[_Entries] = []
    while len(tree.children) and len(phase):
        right = position >= tree.first_right[node]
        order = np.argsort(node * phases + phase, kind="stable")
        node, phase, position, delta, seen = (x[order] for x in (node, phase, position, delta, seen))
        right = right[order]
        key = node * phases + phase
        last = np.append(key[1:] != key[:-1], True)
        weights = _within(node, np.stack([delta * ~right, delta * right]))[:, last]
        at, steerable = clock.passes[phase[last]], tree.steerable[node[last]]
        level = _level(node[last], seen[last], weights, at, key=key[last], steerable=steerable)
        levels.append(level)
        left = level.left[np.cumsum(last) - last]
        seen = np.where(right, seen - left, left)
        node = tree.children[2 * node + right]
        keep = node >= 0
        node, phase, position, delta, seen = node[keep], phase[keep], position[keep], delta[keep], seen[keep]
    return levels


def _level(
    node: Int64, seen: Int64, weights: Int64, clock: Float64, *, key: Int64, steerable: npt.NDArray[np.bool_]
) -> _Entries:
    """Return the entries of one level; rows are (node, phase) pairs in order. Pure."""
    ends = np.append(node[1:] != node[:-1], True)
    rate = (weights[0] / np.maximum(weights.sum(axis=0), 1) * _ONE).astype(np.int64)
    whole, part = _running(node, np.where(ends, 0, np.append(seen[1:] - seen[:-1], 0)), rate)
    carry = part + _ONE // 2
    slope = (weights[0] - weights[1]).astype(np.float64)
    growth = np.where(ends, 0.0, slope * np.append(clock[1:] - clock[:-1], 0.0))
    lead = _within(node, growth[np.newaxis])[0] - growth
    entries = _Entries(
        key=key,
        seen=seen,
        left=whole + (carry >> _BITS),
        carry=carry & (_ONE - 1),
        rate=rate,
        steered=steerable & (weights > 0).all(axis=0),
        clock=clock,
        lead=lead,
        slope=slope,
    )
    # Where a node was steered before the phase too, the count at its beginning is that at the end of the last one.
    again = np.flatnonzero(entries.steered[:-1] & ~ends[:-1]) + 1
    entries.left[again] = entries.steered_at(again - 1, clock[again], seen[again])
    return entries


def _running(group: Int64, counts: Int64, rate: Int64) -> tuple[Int64, Int64]:
    """Return, for each row, the sum of counts * rate over the rows of its group before it: whole draws and parts."""
    whole, part = _scaled(counts, rate)
    terms = np.stack([whole + (part >> _BITS), part & (_ONE - 1)])
    sums = _within(group, terms) - terms
    return sums[0] + (sums[1] >> _BITS), sums[1] & (_ONE - 1)


def _within(group: Int64, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return running sums of each row that restart where ``group`` (sorted) changes. Pure."""
    sums = np.cumsum(rows, axis=1)
    starts = np.searchsorted(group, group)
    return np.asarray(sums - (sums - rows)[:, starts])


def _scaled(counts: Int64, rate: Int64) -> tuple[Int64 | int, Int64]:
    """Return counts * rate as whole draws and parts of 2**-40; counts < 2**44, rate <= 2**40."""
    if not len(counts) or counts.max() < 1 << _LOW_BITS:
        return 0, counts * rate
    high = (counts >> _LOW_BITS) * rate
    part = (high & ((1 << (_BITS - _LOW_BITS)) - 1)) << _LOW_BITS
    part += (counts & ((1 << _LOW_BITS) - 1)) * rate
    return high >> (_BITS - _LOW_BITS), part
