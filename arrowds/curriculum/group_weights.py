"""Which group each draw comes from: weights by step, and the draws that give each group its share of the tokens."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from typing import Any

import numpy as np
import numpy.typing as npt

from arrowds.curriculum.apportion import Changes, DrawPlan, Shares
from arrowds.errors import ConfigError, StateMismatchError

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]

_WEIGHT_UNIT = 1 << 30

Weights = Mapping[str, float]
WeightSchedule = Weights | Sequence[tuple[int, Weights]]
"""The share of each group (any positive scale), or a list of (first step, shares), the first at step 1."""


@dataclass(frozen=True, slots=True)
class GroupWeights:
    """The weights of groups: from step ``starts[i]`` on, ``shares[i]``, integers that add up to about 2**30."""

    names: tuple[str, ...]
    starts: Int64
    shares: Int64

    @classmethod
    def of(cls, schedule: WeightSchedule, names: Sequence[str]) -> GroupWeights:
        """Return the weights of a schedule; groups that it does not name have none.

        Raises:
            ConfigError: for steps that do not ascend from 1, unknown names and invalid weights.
        """
        entries = [(1, schedule)] if isinstance(schedule, Mapping) else list(schedule)
        steps = [step for step, _ in entries]
        if not steps or steps[0] != 1 or any(later <= step for step, later in itertools.pairwise(steps)):
            raise ConfigError(f"weights must start at step 1 and have ascending steps, got the steps {steps}")
        rows = [_shares(step, weights, names) for step, weights in entries]
        return cls(tuple(names), np.array(steps, np.int64), np.array(rows, np.int64).reshape(len(steps), len(names)))

    def changed(self, from_step: int, weights: Weights) -> GroupWeights:
        """Return these weights, with others from a step on."""
        kept = int(np.searchsorted(self.starts, from_step))
        row = np.array(_shares(from_step, weights, self.names), np.int64)
        return replace(
            self,
            starts=np.append(self.starts[:kept], from_step),
            shares=np.concatenate([self.shares[:kept], row[np.newaxis]]),
        )

    def check_servable(self, sizes: Int64) -> None:
        """Raise ConfigError where a group has a weight and no samples."""
        empty = np.flatnonzero((self.shares > 0).any(axis=0) & (sizes == 0))
        if len(empty):
            listed = ", ".join(repr(self.names[group]) for group in empty[:5].tolist())
            raise ConfigError(
                f"{len(empty)} groups have a weight but no sample that may be drawn: {listed}"
                f"{', ...' if len(empty) > 5 else ''}; give them the weight 0, or leave them out"
            )

    def phase_of(self, steps: npt.ArrayLike) -> Int64:
        """Return which weights each step has, from 0."""
        return np.asarray(np.searchsorted(self.starts, steps, side="right") - 1, np.int64)

    def plan(self, draws_before: Int64) -> DrawPlan:
        """Return where each draw goes; what it says of a phase does not depend on later weights. Pure.

        Args:
            draws_before: how many draws come before each of ``starts``.
        """
        change = np.diff(self.shares, axis=0, prepend=0)
        phase, group = np.nonzero(change)
        changes = Changes(phase, group, change[phase, group])
        return DrawPlan(len(self.names), changes, draws_before, shape=np.maximum(self.shares[0], 1))

    def digest(self, step: int) -> str:
        """Return 16 hexadecimal digits that identify the weights up to a step."""
        known = max(1, int(np.searchsorted(self.starts, step, side="right")))
        content = self.starts[:known].tobytes() + self.shares[:known].tobytes()
        return hashlib.blake2b(content, digest_size=8).hexdigest()


def _shares(step: int, weights: Weights, names: Sequence[str]) -> list[int]:
    if not isinstance(weights, Mapping):
        raise ConfigError(f"the weights from step {step} on must be a dictionary by group, got {weights!r:.60}")
    unknown = [name for name in weights if name not in names] if len(names) < 100 else list(weights.keys() - set(names))
    numbers = all(
        isinstance(value, (int, float, np.integer, np.floating)) and math.isfinite(value) and value >= 0
        for value in weights.values()
    )
    total = math.fsum(weights.values()) if numbers else 0.0
    if unknown or not numbers or not 0 < total < math.inf:
        problem = (
            f"{', '.join(map(repr, unknown[:3]))} is no group"
            if unknown
            else "their sum is zero"
            if numbers and not total
            else "they are not finite numbers >= 0"
        )
        raise ConfigError(
            f"the weights from step {step} on must be numbers >= 0, one per group of {list(names)!s:.200}, not all "
            f"zero; {problem}: {dict(weights)!s:.200}"
        )
    # A group with a weight is drawn, however small its share.
    return [max(1, round(value / total * _WEIGHT_UNIT)) if (value := weights.get(name, 0)) else 0 for name in names]


@dataclass(frozen=True, slots=True)
class Taken:
    """What was drawn from groups up to a draw.

    Attributes:
        counts: how many samples of each group.
        tokens: how many tokens of each group since the weights last changed.
        credit: the tokens due to each group when the weights last changed, less those drawn.
        phase: which weights these are.
        group_draws: the counts at the beginning of each phase of the run so far, where curricula need them.
    """

    counts: Int64
    tokens: Int64
    credit: Float64
    phase: int
    group_draws: tuple[tuple[int, ...], ...]

    def to_state(self) -> list[Any] | None:
        """As JSON values; None where there are too many groups for a small state."""
        if len(self.counts) * (1 + len(self.group_draws)) > _MOST_IN_A_STATE:
            return None
        numbers = [self.counts.tolist(), self.tokens.tolist(), self.credit.tolist()]
        return [*numbers, self.phase, [list(counts) for counts in self.group_draws]]

    @classmethod
    def from_state(cls, values: Any, groups: int) -> Taken:
        """What a saved state has; raises StateMismatchError for anything else."""
        try:
            counts, tokens, credit, phase, before = values
            arrays = np.array(counts, np.int64), np.array(tokens, np.int64), np.array(credit, np.float64)
            rows = tuple(tuple(int(count) for count in row) for row in before)
            shapes = {np.shape(array) for array in arrays}
            fits = shapes == {(groups,)} and all(len(row) == groups for row in rows)
            if fits and min(arrays[0].min(), arrays[1].min()) >= 0 and np.isfinite(arrays[2]).all() and phase >= 0:
                return cls(*arrays, int(phase), rows)
        except (TypeError, ValueError, OverflowError):
            pass
        raise StateMismatchError(f"the saved state is damaged: the shares of its groups are {values!r:.200}")


_MOST_IN_A_STATE = 24


class TokenShares:
    """Draws that keep each group within one sample's tokens of its share of all tokens, at every draw.

    Of the groups that are not ahead of their share, the next sample is that which should end first: worst-case fair
    weighted fair queueing (Bennett and Zhang, "WF2Q", INFOCOM 1996), in tokens. Each draw depends on those before it:
    on what they have :class:`Taken`.

    Args:
        weights: of the groups.
        take: returns the ids of draws of groups at a step: the draws number ``draw[i]`` of group ``group[i]``.
        tokens_of: returns the tokens of samples, at least 1 each.
        counts_phases: whether ``take`` needs ``Taken.group_draws``.
    """

    def __init__(
        self,
        weights: GroupWeights,
        take: Callable[[Taken, int, Shares], Int64],
        tokens_of: Callable[[Int64], Int64],
        *,
        counts_phases: bool,
    ) -> None:
        self.weights = weights
        self._fractions = weights.shares / weights.shares.sum(axis=1, keepdims=True)
        self._take = take
        self._tokens_of = tokens_of
        self._counts_phases = counts_phases
        self._seen = np.zeros((2, len(weights.names)))  # samples and tokens that were looked at, of each group

    def nothing(self) -> Taken:
        """Return what was drawn before the first draw."""
        groups = len(self.weights.names)
        return Taken(np.zeros(groups, np.int64), np.zeros(groups, np.int64), np.zeros(groups), 0, ())

    def entering(self, taken: Taken, step: int, phase: int) -> Taken:
        """Return the same as of a step of a phase of the run."""
        of_weights = int(self.weights.phase_of(step))
        if of_weights != taken.phase:
            due = self._fractions[taken.phase] * float(taken.tokens.sum())
            taken = replace(
                taken, credit=taken.credit + (due - taken.tokens), tokens=np.zeros_like(taken.tokens), phase=of_weights
            )
        if self._counts_phases and len(taken.group_draws) <= phase:
            rows = [tuple(taken.counts.tolist())] * (phase + 1 - len(taken.group_draws))
            taken = replace(taken, group_draws=(*taken.group_draws, *rows))
        return taken

    def after(self, taken: Taken, groups: Int64, lengths: Int64) -> Taken:
        """Return what was drawn after draws of these groups and lengths."""
        size = len(taken.counts)
        tokens = np.bincount(groups, weights=lengths, minlength=size).astype(np.int64)
        return replace(taken, counts=taken.counts + np.bincount(groups, minlength=size), tokens=taken.tokens + tokens)

    def draw(self, taken: Taken, step: int, count: int) -> tuple[Int64, Int64, Int64]:
        """Return the next draws at a step: their ids, groups and lengths."""
        chosen: list[tuple[Int64, Int64, Int64]] = []
        while count > 0:
            ids, group, lengths = self._ahead(taken, step, count)
            order = _fair_order(taken, self._fractions[taken.phase], group, lengths, count)
            chosen.append((ids[order], group[order], lengths[order]))
            taken = self.after(taken, group[order], lengths[order])
            count -= len(order)
        ids, group, lengths = (np.concatenate([np.zeros(0, np.int64), *arrays]) for arrays in zip(*chosen, strict=True))
        return ids, group, lengths

    def _ahead(self, taken: Taken, step: int, count: int) -> tuple[Int64, Int64, Int64]:
        """Return for each group about as many of its next samples as come up among the next draws."""
        fractions = self._fractions[taken.phase]
        served = np.flatnonzero(fractions)
        samples, tokens = self._seen[:, served]
        typical = (tokens.sum() + 1) / (samples.sum() + 1)
        rate = fractions[served] / (tokens + 8 * typical) * (samples + 8)
        expected = count * rate / rate.sum()
        each = (expected + 3 * np.sqrt(expected) + 2).astype(np.int64)
        group = np.repeat(served, each)
        draw = np.arange(len(group)) + np.repeat(taken.counts[served] - (np.cumsum(each) - each), each)
        # One by one: of several draws at once, those of one cluster come together.
        rows = Shares(np.zeros(len(group), np.int64), group, draw, np.ones(len(group), np.int64))
        ids = self._take(taken, step, rows)
        lengths = self._tokens_of(ids)
        self._seen[:, served] += each, np.add.reduceat(lengths, np.cumsum(each) - each)
        return ids, group, lengths


def _fair_order(taken: Taken, fractions: Float64, group: Int64, lengths: Int64, count: int) -> Int64:
    """Return which of the samples ahead come next, up to ``count``, as far as those beyond them do not matter. Pure.

    A sample may start once its group is not ahead of its share; of these the one with the earliest end is next.
    """
    first = np.flatnonzero(np.diff(group, prepend=-1))
    total = np.cumsum(lengths)
    spent = taken.tokens[group] + total - np.repeat((total - lengths)[first], np.diff(np.append(first, len(group))))
    starts = (spent - lengths - taken.credit[group]) / fractions[group]
    ends = (spent - taken.credit[group]) / fractions[group]
    horizon = float(ends[np.append(first[1:], len(group)) - 1].min())  # where what is beyond may start
    by_start, by_end = np.argsort(starts, kind="stable"), np.argsort(ends, kind="stable")
    place = np.empty(len(group), np.int64)
    place[by_end] = np.arange(len(group))
    waiting, released = starts[by_start].tolist(), place[by_start].tolist()
    end_of, tokens_of = ends[by_end].tolist(), lengths[by_end].tolist()
    now, at, size = int(taken.tokens.sum()), 0, len(group)
    eligible: list[int] = []
    order: list[int] = []
    while len(order) < count:
        while at < size and waiting[at] <= now:
            heappush(eligible, released[at])
            at += 1
        if not eligible:
            if at == size or waiting[at] > horizon:
                break
            heappush(eligible, released[at])
            at += 1
        if now >= horizon and end_of[eligible[0]] > horizon:
            break
        chosen = heappop(eligible)
        order.append(chosen)
        now += tokens_of[chosen]
    return by_end[order]
