"""The stateless order: every global batch follows from the seed and the step alone."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from arrowds.curriculum.apportion import DrawPlan
from arrowds.curriculum.permutation import derive_key, mix, permute
from arrowds.curriculum.pools import Phases, Pools
from arrowds.curriculum.selection import Exclusion

Int64 = npt.NDArray[np.int64]

# What a key is for: keys of one purpose never meet those of another.
_CLUSTER, _BATCH = 1, 2
_BLOCK_DRAWS = 1 << 15


class StatelessOrder:
    """Global batches by step: which cluster each draw comes from, and which member it is, are closed forms.

    The draws of a cluster run through a keyed permutation of its members; each pass has a key of its own.

    Args:
        batch_size: samples per global batch, or 0 where it varies: the inner order of a mixture.
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
        num_samples: int,
        end: int = 0,
        exclude_ids: Iterable[int] = (),
        draws_before: Int64 | None = None,
    ) -> None:
        self._pools = pools
        self.phases = phases
        self._seed = seed
        self._batch_size = batch_size
        self._end = end
        exclusion = Exclusion(pools, exclude_ids, num_samples)
        self._exclusion = exclusion if len(exclusion.ids) else None
        self._sizes, self._pass_sizes = pools.sizes, exclusion.sizes
        before = (phases.start - 1) * batch_size if draws_before is None else draws_before
        self._plan = DrawPlan(len(pools.sizes), exclusion.changes, before, batch=batch_size)
        self._block = (0, np.zeros((0, batch_size), np.int64))

    def batches_from(self, step: int) -> Int64:
        """Return the global batches of a step and of some after it: int64, ``[steps, batch_size]``.

        Where the steps that are asked for follow one another, ever larger blocks are computed at once.
        """
        if self._end % self._batch_size and step == self._end // self._batch_size + 1:
            return self._last(step)
        first, block = self._block
        if not first <= step < first + len(block):
            most = max(1, _BLOCK_DRAWS // self._batch_size)
            count = min(4 * len(block), most) if step == first + len(block) else 1
            first, block = step, self.batches(step, max(1, count))
            self._block = first, block
        return block[step - first :]

    def _last(self, step: int) -> Int64:
        start = np.array([(step - 1) * self._batch_size])
        steps = np.array([step])
        return shuffled(self.draw(steps, start, np.array([self._end]))[np.newaxis], steps, self._seed)

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
