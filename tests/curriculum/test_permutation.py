import math
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrowds.curriculum.permutation import derive_key, permute, unpermute


def test_every_small_size_is_permuted() -> None:
    for size in range(1, 300):
        images = permute(np.arange(size), size, derive_key(1, size))
        assert sorted(images.tolist()) == list(range(size))


@given(st.integers(1, 2**41), st.integers(0, 2**63), st.lists(st.integers(0, 2**41), min_size=1, max_size=20))
def test_huge_sizes_have_an_inverse(size: int, seed: int, numbers: list[int]) -> None:
    positions = np.array(numbers) % size
    images = permute(positions, size, derive_key(seed))
    assert ((images >= 0) & (images < size)).all()
    assert len(set(images.tolist())) == len(set(positions.tolist()))
    assert unpermute(images, size, derive_key(seed)).tolist() == positions.tolist()


@given(st.lists(st.tuples(st.integers(1, 10**6), st.integers(0, 2**32)), min_size=1, max_size=30))
def test_sizes_and_keys_of_each_position_give_the_same_as_one_by_one(pairs: list[tuple[int, int]]) -> None:
    sizes = np.array([size for size, _ in pairs])
    keys = derive_key(7, np.array([key for _, key in pairs]))
    together = permute(sizes // 2, sizes, keys)
    assert together.tolist() == [int(permute(n // 2, n, key)[0]) for n, key in zip(sizes.tolist(), keys, strict=True)]


def chi_square(counts: np.ndarray) -> float:
    return float(((counts - counts.mean()) ** 2 / counts.mean()).sum())


@pytest.mark.parametrize("size", [3, 4, 5])
def test_all_permutations_of_few_are_equally_likely(size: int) -> None:
    found = Counter(tuple(permute(np.arange(size), size, derive_key(2, key)).tolist()) for key in range(40 * 120))
    counts = np.array([found[order] for order in permutations(range(size))])
    freedom = math.factorial(size) - 1
    assert chi_square(counts) < freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("size", [7, 16, 100])
def test_neighbours_end_up_independent(size: int) -> None:
    keys = derive_key(3, np.arange(20_000))
    first, second = (permute(np.full(20_000, at), np.full(20_000, size), keys) for at in (0, 1))
    distances = np.bincount((second - first) % size, minlength=size)[1:]
    assert chi_square(np.bincount(first, minlength=size)) < size + 5 * math.sqrt(2 * size)
    assert chi_square(distances) < size + 5 * math.sqrt(2 * size)


def test_other_keys_give_other_orders() -> None:
    orders = {
        tuple(permute(np.arange(20), 20, derive_key(seed, turn)).tolist()) for seed in range(9) for turn in range(9)
    }
    assert len(orders) == 81
