"""Keyed permutations of [0, n): a shuffle with random access, without the shuffled array."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt64 = npt.NDArray[np.uint64]

_ROUNDS = 12
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SHIFTS = tuple(np.uint64(bits) for bits in (30, 27, 31, 32))
_ROUND_KEYS = tuple(np.uint64((0x9E3779B97F4A7C15 * (round_ + 1)) % 2**64) for round_ in range(_ROUNDS))


def mix(words: npt.ArrayLike) -> UInt64:
    """Return 64 well-mixed bits for each word: the finalizer of SplitMix64 (Steele, Lea and Flood, 2014).

    >>> int(mix(1)[0])
    6238072747940578789
    """
    z = np.array(words, np.uint64, ndmin=1)
    z ^= z >> _SHIFTS[0]
    z *= _MIX_1
    z ^= z >> _SHIFTS[1]
    z *= _MIX_2
    z ^= z >> _SHIFTS[2]
    return z


def derive_key(*parts: npt.ArrayLike) -> UInt64:
    """Return a key from integers (arrays broadcast): the seed, its purpose, and counters."""
    key = np.zeros((1,), np.uint64)
    for part in parts:
        key = mix((key ^ np.atleast_1d(np.asarray(part)).astype(np.uint64)) + _GOLDEN)
    return key


def permute(positions: npt.ArrayLike, size: npt.ArrayLike, key: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the images of positions under the keyed permutation of [0, size).

    A Feistel network over Z_a x Z_b with a * b just above ``size``, modular addition instead of XOR, and cycle
    walking where the image falls outside (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002,
    methods 3 and 2). Not meant to be cryptographically strong. Sizes up to 2**62.

    Args:
        positions: integers in [0, size).
        size: how many elements are permuted: one number, or one for each position.
        key: a word of :func:`derive_key`: one, or one for each position.

    >>> permute(np.arange(10), 10, derive_key(1234, 0)).tolist()
    [4, 6, 7, 0, 1, 9, 5, 8, 3, 2]
    """
    return _walk(positions, size, key, inverse=False)


def unpermute(images: npt.ArrayLike, size: npt.ArrayLike, key: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the positions whose images these are: the inverse of :func:`permute`.

    >>> key = derive_key(1234, 0)
    >>> unpermute(permute([3, 1, 2], 10, key), 10, key).tolist()
    [3, 1, 2]
    """
    return _walk(images, size, key, inverse=True)


def _walk(words: npt.ArrayLike, size: npt.ArrayLike, key: npt.ArrayLike, *, inverse: bool) -> npt.NDArray[np.int64]:
    x = np.array(words, np.uint64, ndmin=1)
    sizes, keys = np.asarray(size, np.uint64), np.asarray(key, np.uint64)
    sizes = sizes.reshape(()) if sizes.size == 1 else sizes
    keys = keys.reshape(()) if keys.size == 1 else keys
    # ceil(sqrt(n)) from a float may be off by one for huge n: the next line ensures a * b >= n.
    a = np.ceil(np.sqrt(sizes.astype(np.float64))).astype(np.uint64)
    b = (sizes + a - np.uint64(1)) // a
    rounds = _decipher if inverse else _encipher
    x = rounds(x, a, b, keys)
    outside = np.flatnonzero(x >= sizes)
    while outside.size:
        part = [array if array.ndim == 0 else array[outside] for array in (sizes, a, b, keys)]
        moved = rounds(x[outside], *part[1:])
        x[outside] = moved
        outside = outside[moved >= part[0]]
    return x.astype(np.int64)


def _encipher(x: UInt64, a: UInt64, b: UInt64, keys: UInt64) -> UInt64:
    left, right = np.divmod(x, b)
    for number, round_key in enumerate(_ROUND_KEYS):
        if number % 2 == 0:
            left += _round(right, keys + round_key, a)
            left -= a * (left >= a)
        else:
            right += _round(left, keys + round_key, b)
            right -= b * (right >= b)
    left *= b
    left += right
    return left


def _decipher(x: UInt64, a: UInt64, b: UInt64, keys: UInt64) -> UInt64:
    left, right = np.divmod(x, b)
    for number, round_key in reversed(list(enumerate(_ROUND_KEYS))):
        if number % 2 == 0:
            left += a - _round(right, keys + round_key, a)
            left -= a * (left >= a)
        else:
            right += b - _round(left, keys + round_key, b)
            right -= b * (right >= b)
    left *= b
    left += right
    return left


def _round(half: UInt64, round_key: UInt64, modulus: UInt64) -> UInt64:
    """Return a keyed function of one half, in [0, modulus); modulus < 2**32."""
    word = half * _GOLDEN
    word ^= round_key
    word *= _MIX_1
    word ^= word >> _SHIFTS[3]
    word *= _MIX_2
    word >>= _SHIFTS[3]
    word *= modulus
    word >>= _SHIFTS[3]
    return word
