"""Cutting a distribution into buckets, by brute force."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from arrowds.build import buckets


def test_bounds_of_buckets_by_brute_force():
    random = np.random.default_rng(3)
    for _ in range(50):
        values = np.unique(random.integers(-50, 50, random.integers(1, 40)))
        counts = random.integers(1, 30, len(values))
        target = float(random.integers(1, 60))
        cut = buckets.cut_buckets(values, counts, target)
        found = cut.of(values)
        assert len(cut) == found.max() + 1
        assert set(found.tolist()) == set(range(len(cut)))
        for bucket in range(len(cut)):
            mine = found == bucket
            assert counts[mine].sum() <= target or mine.sum() == 1
        for left, right in pairwise(range(len(cut))):  # no two neighbours would have fitted in one
            first_of_right = np.flatnonzero(found == right)[0]
            assert counts[found == left].sum() + counts[first_of_right] > target


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64, np.float32, np.float64])
def test_bounds_keep_the_type_and_its_extremes(dtype):
    limits = np.finfo(dtype) if np.issubdtype(dtype, np.floating) else np.iinfo(dtype)
    values = np.array([limits.min, 3, limits.max], dtype)
    cut = buckets.cut_buckets(values, np.array([1, 1, 1]), 1)
    assert cut.upper.dtype == dtype
    assert cut.of(values).tolist() == [0, 1, 2]


def test_infinities_and_both_zeros_have_a_place():
    values = np.array([-np.inf, 0.0, np.inf])
    cut = buckets.cut_buckets(values, np.array([1, 1, 1]), 1)
    assert cut.of(np.array([-np.inf, -0.0, 0.0, np.inf])).tolist() == [0, 1, 1, 2]
