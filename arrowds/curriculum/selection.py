"""Leaving samples out: ids that are never drawn, without disturbing the order of the others."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from arrowds.curriculum.apportion import Changes
from arrowds.curriculum.metric_values import Ids
from arrowds.curriculum.permutation import permute, unpermute
from arrowds.curriculum.pools import Pools
from arrowds.errors import ConfigError, EmptyPoolError

Int64 = npt.NDArray[np.int64]


class Exclusion:
    """Excluded members of clusters: where they would come up in a pass, the members after them move up.

    What a run has drawn before the first of them comes up stays as it is.
    """

    def __init__(self, pools: Pools, excluded: Iterable[int], num_samples: int) -> None:
        ids = np.unique(np.array(list(excluded), np.int64))
        if len(ids) and (ids[0] < 0 or ids[-1] >= num_samples):
            raise ConfigError(f"exclude_ids must lie in [0, {num_samples}), got {ids[0]} to {ids[-1]}")
        self.ids = ids
        position = positions_of(pools, ids)
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


def _without(changes: Changes, gone: npt.NDArray[np.bool_]) -> Changes:
    """Return the changes of the clusters that are not gone.

    Raises:
        EmptyPoolError: when a phase is left without a sample.
    """
    kept = ~gone[changes.leaf]
    left = Changes(changes.phase[kept], changes.leaf[kept], changes.delta[kept])
    total = np.zeros(int(changes.phase[-1]) + 1, np.int64)
    np.add.at(total, left.phase, left.delta)
    if (np.cumsum(total) <= 0).any():
        raise EmptyPoolError("exclude_ids leaves nothing of the samples that a difficulty admits; exclude fewer")
    return left


def positions_of(pools: Pools, ids: Int64) -> Int64:
    """Return the positions of ids in the pools; ids that no cluster holds are left out."""
    if pools.ids is None or not len(ids):
        return ids
    found = [np.zeros(0, np.int64)]
    # One scan of the ids by blocks: they are sorted by value, which does not help to find an id.
    wanted = ids.astype(pools.ids.dtype)
    for start in range(0, int(pools.starts[-1]), 1 << 22):
        block = pools.ids[start : min(start + (1 << 22), int(pools.starts[-1]))]
        found.append(start + np.flatnonzero(_contained(block, wanted)))
    return np.concatenate(found)


def _contained(block: Ids, wanted: Ids) -> npt.NDArray[np.bool_]:
    if not len(wanted):
        return np.zeros(len(block), np.bool_)
    at = np.minimum(np.searchsorted(wanted, block), len(wanted) - 1)
    return np.asarray(wanted[at] == block)
