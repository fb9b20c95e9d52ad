"""A balanced binary tree over weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class WeightTree:
    """A binary tree: ``children[2 * node + side]`` is a node, or ~i for ``leaves[i]``. Node 0 is the root."""

    children: Int64
    leaves: Int64
    first_right: Int64
    """For each node, the position in ``leaves`` where its right side begins."""
    steerable: npt.NDArray[np.bool_]
    """For each node, whether both sides get enough draws, once they get any, to be steered."""

    @classmethod
    def of(cls, weights: Int64, steerable: float) -> WeightTree:
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
