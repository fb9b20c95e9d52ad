"""Draws: the sequence of global batches of a run, by the name that ``CurriculumSampler(order=...)`` gives it.

The stateless draws are here: every global batch follows from the seed and the step alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from arrowds.curriculum.apportion import Changes, DrawPlan, Shares
from arrowds.curriculum.config import CurriculumMetric
from arrowds.curriculum.group_weights import GroupWeights
from arrowds.curriculum.metric_values import DerivedMetric, MetricSource
from arrowds.curriculum.permutation import derive_key, mix, permute, unpermute
from arrowds.curriculum.pools import Phases, Pools
from arrowds.errors import ConfigError, EmptyPoolError

Int64 = npt.NDArray[np.int64]

# What a key is for: keys for different purposes never coincide.
_CLUSTER, _BATCH = 1, 2
_BLOCK_DRAWS = 1 << 15
_MOST_DRAWS = 1 << 62


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawSettings:
    """Everything that the global batches of a curriculum follow from; ranks and microbatches do not matter.

    Attributes:
        index: where the metrics come from.
        metrics: the curriculum.
        derived: the metrics that are expressions.
        allowed: which samples the filter leaves, bool ``[num_samples]``; None for all.
        exclude_ids: samples that are never drawn, int64, sorted and distinct.
        phases: when difficulties change.
        seed: of all that is random.
        batch_size: samples per global batch.
        end: after how many draws the run ends.
    """

    index: MetricSource
    metrics: Sequence[CurriculumMetric]
    derived: Mapping[str, DerivedMetric]
    allowed: npt.NDArray[np.bool_] | None
    exclude_ids: Int64
    phases: Phases
    seed: int
    batch_size: int
    end: int


class Draws(ABC):
    """The global batches of a run, step by step."""

    partial_steps: ClassVar[bool] = False
    """Whether ``drop_last=True`` still draws the whole microbatches of a last step that is not full."""

    keeps_state: ClassVar[bool] = False
    """Whether a saved state needs more than the position: then :meth:`state_at` and :meth:`check_state` are called."""

    @abstractmethod
    def batches_from(self, step: int) -> Int64:
        """Return the global batches of a step (the first is 1) and perhaps some after it: ``[steps, batch_size]``."""

    def state_at(self, step: int) -> dict[str, Any]:
        """Return what a saved state needs after a step besides its position, as JSON-serialisable values."""
        return {}

    def check_state(self, step: int, state: Mapping[str, Any]) -> None:  # noqa: B027 - draws without state accept any
        """Compare a saved state with ``state_at(step)``.

        Raises:
            StateMismatchError: when these draws would not continue the run that saved the state.
        """


class RegisteredDraws(Draws):
    """Draws of a curriculum by another rule; subclasses are registered by :func:`register_draws`."""

    @classmethod
    @abstractmethod
    def of(cls, settings: DrawSettings) -> Self:
        """Return the draws of a run.

        Raises:
            ConfigError: for settings that these draws can't follow.
            EmptyPoolError: when a difficulty admits no sample.
        """


def register_draws(name: str, path: str) -> None:
    """Make a class of draws available as ``CurriculumSampler(order=name)``.

    The class is named, not passed, and imported when a sampler first asks for it. So a package above this one can
    contribute draws that ``curriculum`` never imports; ``"deepspeed"`` is such a name from the beginning.

    Args:
        name: the value of ``order``.
        path: ``"module:Class"``, of a :class:`RegisteredDraws`.

    >>> register_draws("mine", "arrowds.integrations.deepspeed.draws:DeepSpeedDraws")
    >>> find_draws("mine").__name__
    'DeepSpeedDraws'
    >>> del _REGISTERED["mine"]
    """
    _REGISTERED[name] = path


_REGISTERED = {"deepspeed": "arrowds.integrations.deepspeed.draws:DeepSpeedDraws"}


def find_draws(name: str) -> type[RegisteredDraws] | None:
    """Return the class of draws that is registered under a name; None for "stateless", which needs none.

    Raises:
        ConfigError: for an unknown name.
    """
    if name == "stateless":
        return None
    if not isinstance(name, str) or name not in _REGISTERED:
        raise ConfigError(f"order must be {' or '.join(map(repr, ['stateless', *_REGISTERED]))}, got {name!r}")
    draws: type[RegisteredDraws] = resolve_name(_REGISTERED[name])
    return draws


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupPools:
    """The samples of groups: of one with a curriculum, or of several without.

    Attributes:
        groups: the numbers of the groups.
        pools: the clusters.
        phases: when the curriculum of the only group changes; None: cluster i is all of group ``groups[i]``.
        seeds: of the passes of each group.
        exclude_ids: ids in the pools that are never drawn, sorted and distinct.
        offset: what is added to the ids of the pools.
    """

    groups: Int64
    pools: Pools
    phases: Phases | None
    seeds: Int64
    exclude_ids: Int64
    offset: int = 0


class StatelessDraws(Draws):
    """Global batches by step: which group and cluster each draw comes from, and which member it is, are closed forms.

    Draws divide among the groups by their weights, and those of a group among its clusters by their sizes. The draws of
    a cluster run through a keyed permutation of its members; each pass has a key of its own.

    Args:
        parts: the samples of all groups.
        phases: when a difficulty or a weight changes.
        weights: of the groups.
        seed: of the places of samples in their batch.
        batch_size: samples per global batch, or 0 where it varies.
        end: after how many draws the run ends; the batch that it cuts short is made of the draws before.
        draws_before: for each phase, how many draws come before it; None: those of the steps before.
        group_draws: for each phase, how many of these are of each group; None: as the weights say.
    """

    def __init__(
        self,
        parts: Sequence[GroupPools],
        phases: Phases,
        weights: GroupWeights,
        *,
        seed: int,
        batch_size: int,
        end: int = 0,
        draws_before: Int64 | None = None,
        group_draws: Int64 | None = None,
    ) -> None:
        self._weights = weights
        self._seed = seed
        self._batch_size = batch_size
        self._end = end
        if draws_before is None:
            # A phase may begin after more draws than int64 counts: no run reaches it.
            draws_before = np.minimum(phases.start - 1, _MOST_DRAWS // max(batch_size, 1)) * batch_size
        self._plan = weights.plan(draws_before[np.searchsorted(phases.start, weights.starts)])
        if group_draws is None and any(part.phases is not None for part in parts):
            of_weights = weights.phase_of(phases.start)
            counts = self._plan.shares(of_weights, draws_before, draws_before, empty=True).first
            group_draws = counts.reshape(len(phases.start), len(weights.names))
        self._parts = [_Part(part, phases, group_draws, batch_size if len(weights.names) == 1 else 0) for part in parts]
        self._part_of = np.empty(len(weights.names), np.int64)
        for number, part in enumerate(parts):
            self._part_of[part.groups] = number
        self._block = (0, np.zeros((0, batch_size), np.int64))

    def batches_from(self, step: int) -> Int64:
        """Return the global batches of a step and of some after it: int64, ``[steps, batch_size]``.

        For consecutive steps, ever larger blocks are computed at once.
        """
        if self._end % self._batch_size and step == self._end // self._batch_size + 1:
            steps, start = np.array([step]), np.array([(step - 1) * self._batch_size])
            return shuffled(self.draw(steps, start, np.array([self._end]))[np.newaxis], steps, self._seed)
        first, block = self._block
        if not first <= step < first + len(block):
            most = max(1, _BLOCK_DRAWS // self._batch_size)
            count = min(4 * len(block), most) if step == first + len(block) else 1
            first, block = step, self.batches(step, max(1, count))
            self._block = first, block
        return block[step - first :]

    def batches(self, first: int, count: int) -> Int64:
        """Return the global batches of consecutive steps: int64, ``[count, batch_size]``."""
        steps = np.arange(first, first + count)
        start = (steps - 1) * self._batch_size
        ids = self.draw(steps, start, start + self._batch_size).reshape(count, self._batch_size)
        return shuffled(ids, steps, self._seed)

    def draw(self, steps: Int64, start: Int64, stop: Int64) -> Int64:
        """Return the ids of the draws ``start[i]`` to ``stop[i]`` of step ``steps[i]``, one step after another."""
        if not len(steps):
            return steps
        return self.take(steps, self._plan.shares(self._weights.phase_of(steps), start, stop))

    def take(self, steps: Int64, shares: Shares) -> Int64:
        """Return the ids of what the groups, the leaves of ``shares``, give to steps."""
        if len(self._parts) == 1:
            return self._parts[0].take(steps, shares)
        ids = np.empty(shares.count.sum(), np.int64)
        begin = np.cumsum(shares.count) - shares.count
        part_of = self._part_of[shares.leaf]
        for number in np.unique(part_of).tolist():
            rows = np.flatnonzero(part_of == number)
            mine = Shares(*(getattr(shares, name)[rows] for name in Shares.__dataclass_fields__))
            within = np.arange(mine.count.sum()) - np.repeat(np.cumsum(mine.count) - mine.count, mine.count)
            ids[np.repeat(begin[rows], mine.count) + within] = self._parts[number].take(steps, mine)
        return ids


def shuffled(ids: Int64, steps: Int64, seed: int) -> Int64:
    """Return the batches, one per row, each shuffled by a key of its step. Pure."""
    keys = derive_key(seed, _BATCH, steps)
    words = mix(keys[:, np.newaxis] + np.arange(ids.shape[1], dtype=np.uint64))
    return np.take_along_axis(ids, np.argsort(words, axis=1, kind="stable"), axis=1)


class _Part:
    """What draws of groups are: their plan over clusters, and the passes through these."""

    def __init__(self, part: GroupPools, phases: Phases, group_draws: Int64 | None, batch_size: int) -> None:
        self._pools, self._phases, self._offset = part.pools, part.phases, part.offset
        exclusion = _Exclusion(part.pools, part.exclude_ids)
        self._exclusion = exclusion if len(exclusion.ids) else None
        self._sizes, self._pass_sizes = part.pools.sizes, exclusion.sizes
        self._seeds = part.seeds
        self._plan = None
        if part.phases is not None and group_draws is not None:
            before = group_draws[np.searchsorted(phases.start, part.phases.start), part.groups[0]]
            self._plan = DrawPlan(len(self._sizes), exclusion.changes, before, batch=batch_size)
        else:
            self._cluster_of = np.zeros(part.groups.max() + 1, np.int64)
            self._cluster_of[part.groups] = np.arange(len(part.groups))

    def take(self, steps: Int64, shares: Shares) -> Int64:
        if self._plan is not None and self._phases is not None:
            phases = self._phases.of_step(steps[shares.row])
            cluster, draw = self._plan.shares(phases, shares.first, shares.first + shares.count).expand()
            seeds, number = self._seeds[0], cluster
        else:
            group, draw = shares.expand()
            cluster = self._cluster_of[group]
            seeds, number = self._seeds[cluster], np.zeros(1, np.int64)
        turn, place = np.divmod(draw, self._pass_sizes[cluster])
        keys = derive_key(seeds, _CLUSTER, number, turn)
        if self._exclusion is None:
            member = permute(place, self._sizes[cluster], keys)
        else:
            member = self._exclusion.members(cluster, turn, place, keys, self._sizes)
        return self._pools.samples(cluster, member) + self._offset


class _Exclusion:
    """Excluded members of clusters: where one would come up in a pass, the members after it move up.

    What is drawn before the first of them comes up does not change.
    """

    def __init__(self, pools: Pools, ids: Int64) -> None:
        self.ids = ids
        position = _positions_of(pools, ids)
        cluster = np.searchsorted(pools.starts, position, side="right") - 1
        self._members: dict[int, Int64] = {
            int(k): position[cluster == k] - pools.starts[k] for k in np.unique(cluster).tolist()
        }
        self.sizes = pools.sizes - np.bincount(cluster, minlength=len(pools.sizes))
        self.changes = _without(pools.changes, self.sizes == 0)

    def members(self, cluster: Int64, turn: Int64, number: Int64, keys: npt.NDArray[np.uint64], sizes: Int64) -> Int64:
        """Return the members that come up ``number``-th in passes, the excluded ones not counted.

        Args:
            cluster: for each draw, its cluster, ...
            turn: ... its pass, ...
            number: ... its number within the pass, ...
            keys: ... and the key of the pass.
            sizes: the sizes of all clusters, with the excluded members.
        """
        number = number.copy()
        for k in self._members.keys() & set(np.unique(cluster).tolist()):
            draws = np.flatnonzero(cluster == k)
            for this_turn in np.unique(turn[draws]):
                chosen = draws[turn[draws] == this_turn]
                places = np.sort(unpermute(self._members[k], sizes[k], keys[chosen[0]]))
                number[chosen] += np.searchsorted(places - np.arange(len(places)), number[chosen], side="right")
        return permute(number, sizes[cluster], keys)


def _without(changes: Changes, empty: npt.NDArray[np.bool_]) -> Changes:
    """Return the changes of the clusters that are not empty.

    Raises:
        EmptyPoolError: when a phase is left without a sample.
    """
    kept = ~empty[changes.leaf]
    left = Changes(changes.phase[kept], changes.leaf[kept], changes.delta[kept])
    total = np.zeros(int(changes.phase[-1]) + 1, np.int64)
    np.add.at(total, left.phase, left.delta)
    if (np.cumsum(total) <= 0).any():
        raise EmptyPoolError("exclude_ids excludes every sample that a difficulty admits; exclude fewer")
    return left


def _positions_of(pools: Pools, ids: Int64) -> Int64:
    """Return the positions of ids in the pools; ids in no cluster are left out."""
    if pools.ids is None or not len(ids):
        return ids
    positions = [np.zeros(0, np.int64)]
    # One scan in blocks: the pools are sorted by value, which does not help to find an id.
    excluded = ids.astype(pools.ids.dtype)
    for start in range(0, int(pools.starts[-1]), 1 << 22):
        block = pools.ids[start : min(start + (1 << 22), int(pools.starts[-1]))]
        nearest = np.minimum(np.searchsorted(excluded, block), len(excluded) - 1)
        positions.append(start + np.flatnonzero(excluded[nearest] == block))
    return np.concatenate(positions)
