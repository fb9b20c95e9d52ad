"""Clusters of samples from pairs or keys; pure NumPy, no Python for each sample."""

from __future__ import annotations

import numpy as np


def equal_rows(keys: np.ndarray) -> np.ndarray:
    """Return the first row that is equal to each row.

    Args:
        keys: of shape (n, k), any integers.

    Returns:
        int64 of shape (n,); a row that is equal to none before it has its own number.

    >>> equal_rows(np.array([[1, 2], [3, 4], [1, 2]])).tolist()
    [0, 1, 0]
    """
    order = np.lexsort(keys.T)  # stable: rows that are equal stay in their order
    new = np.ones(len(keys), np.bool_)
    new[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
    first = np.empty(len(keys), np.int64)
    first[order] = order[np.flatnonzero(new)][np.cumsum(new) - 1]
    return first


def joined(roots: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Join the clusters of pairs: a union-find whose root is the smallest member.

    Args:
        roots: the root of each sample, int64 of shape (n,); changed in place.
        left: one sample of each pair.
        right: the other one.

    Returns:
        ``roots``, each of them the smallest sample of its cluster.

    >>> joined(np.arange(5), np.array([3, 1]), np.array([4, 3])).tolist()
    [0, 1, 2, 1, 1]
    """
    while True:
        low, high = np.minimum(roots[left], roots[right]), np.maximum(roots[left], roots[right])
        apart = low != high
        if not apart.any():
            return roots
        np.minimum.at(roots, high[apart], low[apart])
        while (shorter := roots[roots])[shorter != roots].size:
            roots[:] = shorter


def sizes_of(roots: np.ndarray) -> np.ndarray:
    """Return how many samples the cluster of each sample has: uint32, of shape (n,)."""
    sizes: np.ndarray = np.bincount(roots, minlength=len(roots))[roots].astype(np.uint32)
    return sizes
