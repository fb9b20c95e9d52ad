"""The stateless draws: every global batch follows from the seed and the step alone."""

from __future__ import annotations

from typing import Self

import numpy as np
import numpy.typing as npt

from arrowds.curriculum.apportion import Changes, DrawPlan
from arrowds.curriculum.draws import Draws, DrawSettings
from arrowds.curriculum.permutation import derive_key, mix, permute, unpermute
from arrowds.curriculum.pools import Phases, Pools, build_pools
from arrowds.errors import EmptyPoolError

Int64 = npt.NDArray[np.int64]

# What a key is for: keys for different purposes never coincide.
_CLUSTER, _BATCH = 1, 2
_BLOCK_DRAWS = 1 << 15
_MOST_DRAWS = 1 << 62


class StatelessDraws(Draws):
    """Global batches by step: which cluster each draw comes from, and which member it is, are closed forms.

    The draws of a cluster run through a keyed permutation of its members; each pass has a key of its own.

    Args:
        batch_size: samples per global batch, or 0 where it varies: the draws of one source of a mixture.
        end: after how many draws the run ends; the batch that it cuts short is made of the draws before.
        draws_before: for each phase, how many draws come before it; None: those of the steps before.
    """

    def __init__(
        self,
        pools: Pools,
        phases: Phases,
        *,
        seed: int,
        batch_size: int,
        end: int = 0,
        exclude_ids: Int64 | None = None,
        draws_before: Int64 | None = None,
    ) -> None:
        self._pools = pools
        self.phases = phases
        self._seed = seed
        self._batch_size = batch_size
        self._end = end
        exclusion = _Exclusion(pools, np.empty(0, np.int64) if exclude_ids is None else exclude_ids)
        self._exclusion = exclusion if len(exclusion.ids) else None
        self._sizes, self._pass_sizes = pools.sizes, exclusion.sizes
        # A phase may begin after more draws than int64 counts: no run reaches it.
        reached = np.minimum(phases.start - 1, _MOST_DRAWS // max(batch_size, 1))
        before = reached * batch_size if draws_before is None else draws_before
        self._plan = DrawPlan(len(pools.sizes), exclusion.changes, before, batch=batch_size)
        self._block = (0, np.zeros((0, batch_size), np.int64))

    @classmethod
    def of(cls, settings: DrawSettings) -> Self:
        """Divide the samples into pools, and draw from them.

        Raises:
            ConfigError: when a difficulty lies outside the metric's values.
            EmptyPoolError: when a difficulty admits no sample.
        """
        return cls(
            build_pools(settings.index, settings.metrics, settings.derived, settings.allowed, settings.phases),
            settings.phases,
            seed=settings.seed,
            batch_size=settings.batch_size,
            end=settings.end,
            exclude_ids=settings.exclude_ids,
        )

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
        cluster, draw = self._plan.shares(self.phases.of_step(steps), start, stop).expand()
        turn, number = np.divmod(draw, self._pass_sizes[cluster])
        keys = derive_key(self._seed, _CLUSTER, cluster, turn)
        if self._exclusion is None:
            member = permute(number, self._sizes[cluster], keys)
        else:
            member = self._exclusion.members(cluster, turn, number, keys, self._sizes)
        return self._pools.samples(cluster, member)


def shuffled(ids: Int64, steps: Int64, seed: int) -> Int64:
    """Return the batches, one per row, each shuffled by a key of its step. Pure."""
    keys = derive_key(seed, _BATCH, steps)
    words = mix(keys[:, np.newaxis] + np.arange(ids.shape[1], dtype=np.uint64))
    return np.take_along_axis(ids, np.argsort(words, axis=1, kind="stable"), axis=1)


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
        for k, excluded in self._members.items():
            draws = np.flatnonzero(cluster == k)
            for this_turn in np.unique(turn[draws]):
                chosen = draws[turn[draws] == this_turn]
                places = np.sort(unpermute(excluded, sizes[k], keys[chosen[0]]))
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
