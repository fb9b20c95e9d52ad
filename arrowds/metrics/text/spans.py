"""Stretches of characters or words: where they are, which are equal, which follow one another more than once.

Stretches are compared by hashes of 64 bits: of a million different words in a batch, two are taken for the same one
with a probability of about one in 40 million.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np

from arrowds.arrays import arrow_view, numpy_view

_FACTOR = 0x9E3779B97F4A7C15
_INVERSE = pow(_FACTOR, -1, 1 << 64)
_KEPT_POWERS = 1 << 21


@dataclass(frozen=True, slots=True)
class Spans:
    """Some stretches, in order.

    Attributes:
        starts: where each begins, of shape (m,).
        stops: where each ends, the first position behind it.
        bounds: which ones each of n texts has, of shape (n + 1,): ``starts[bounds[i]:bounds[i + 1]]``.
    """

    starts: np.ndarray
    stops: np.ndarray
    bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> np.ndarray:
        lengths: np.ndarray = self.stops - self.starts
        return lengths

    @property
    def per_text(self) -> np.ndarray:
        """How many stretches each text has."""
        return np.diff(self.bounds)

    @property
    def texts(self) -> np.ndarray:
        """The text that each stretch is in."""
        return np.repeat(np.arange(len(self.bounds) - 1), self.per_text)


@dataclass(frozen=True, slots=True)
class Groups:
    """Items that are equal.

    Attributes:
        ids: the group of each item, of shape (m,).
        counts: how many items each group has, of shape (g,).
        firsts: the first item of each group, of shape (g,).
    """

    ids: np.ndarray
    counts: np.ndarray
    firsts: np.ndarray


def runs(chosen: np.ndarray, bounds: np.ndarray) -> Spans:
    """Return the longest stretches of chosen positions that do not go beyond their text.

    >>> found = runs(np.array([True, False, True, True]), np.array([0, 3, 4]))
    >>> found.starts.tolist(), found.stops.tolist(), found.bounds.tolist()
    ([0, 2, 3], [1, 3, 4], [0, 2, 3])
    """
    before, after = np.zeros_like(chosen), np.zeros_like(chosen)
    before[1:], after[:-1] = chosen[:-1], chosen[1:]
    filled = np.diff(bounds) > 0
    before[bounds[:-1][filled]] = False
    after[bounds[1:][filled] - 1] = False
    starts, stops = np.flatnonzero(chosen & ~before), np.flatnonzero(chosen & ~after) + 1
    return Spans(starts, stops, np.searchsorted(starts, bounds))


def covered(starts: np.ndarray, stops: np.ndarray, size: int) -> np.ndarray:
    """Return which of ``size`` positions lie in stretches that do not overlap."""
    marks = np.zeros(size + 1, np.int8)
    marks[starts] += 1
    marks[stops] -= 1
    return np.cumsum(marks[:-1], dtype=np.int8).view(np.bool_)


def values_at(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the values at some places, any value for those outside."""
    if not len(values):
        return np.zeros(len(places), values.dtype)
    found: np.ndarray = values[np.clip(places, 0, len(values) - 1)]
    return found


def sums(values: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """Sum consecutive stretches of values: 0 for empty ones, int64 for integers.

    >>> sums(np.array([1, 2, 3]), np.array([0, 2, 2, 3])).tolist()
    [3, 0, 3]
    """
    kind = np.float64 if values.dtype.kind == "f" else np.int64
    found = np.zeros(len(bounds) - 1, kind)
    filled = np.flatnonzero(np.diff(bounds))
    if len(filled):
        values = values[: bounds[-1]]
        numbers = values.view(np.uint8) if values.dtype == np.bool_ else values
        found[filled] = np.add.reduceat(numbers, bounds[filled], dtype=kind)
    return found


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Part / whole as float64, 0 where the whole is."""
    shares: np.ndarray = np.where(whole > 0, part / np.maximum(whole, 1), 0.0)
    return shares


def hash_sums(codes: np.ndarray) -> np.ndarray:
    """Return the sums from which :func:`hashes` follow: of code * factor^place, modulo 2^64, before each place."""
    before = np.zeros(len(codes) + 1, np.uint64)
    np.cumsum(np.multiply(codes, _powers(len(codes))[0][1 : len(codes) + 1], dtype=np.uint64), out=before[1:])
    return before


def hashes(before: np.ndarray, spans: Spans) -> np.ndarray:
    """Return a number for each stretch of code points, equal for equal ones: uint64.

    >>> halves = Spans(np.array([0, 2]), np.array([2, 4]), np.array([0, 2]))
    >>> one, two = hashes(hash_sums(np.array([3, 4, 3, 4], np.uint8)), halves)
    >>> bool(one == two)
    True
    """
    found: np.ndarray = (before[spans.stops] - before[spans.starts]) * _powers(len(before))[1][spans.starts]
    return found


def ngrams(keys: np.ndarray, bounds: np.ndarray, n: int, *, least: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return a number for each n consecutive keys of a text, equal for equal ones.

    Args:
        keys: hashes of words, or token ids, of all texts: uint64.
        bounds: which of them each text has.
        n: how many make an n-gram.
        least: 1 where a text with fewer keys has one n-gram all the same, of all its keys.

    Returns:
        The numbers, uint64, and which of them each text has, as bounds.

    >>> found, bounds = ngrams(np.array([5, 6, 5, 6, 7], np.uint64), np.array([0, 2, 5]), 2)
    >>> bool(found[0] == found[1]), bounds.tolist()
    (True, [0, 1, 3])
    """
    counts = np.maximum(np.diff(bounds) - n + 1, least)
    ends = np.concatenate([[0], np.cumsum(counts)])
    starts = np.arange(ends[-1]) + np.repeat(bounds[:-1] - ends[:-1], counts)
    stops = np.minimum(starts + n, np.repeat(bounds[1:], counts))
    return hashes(hash_sums(_mixed(keys)), Spans(starts, stops, ends)), ends


def _mixed(keys: np.ndarray) -> np.ndarray:
    """Scramble keys (the finalizer of MurmurHash3): those of words are sums, so that sums of them would collide."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        keys = (keys ^ (keys >> np.uint64(33))) * np.uint64(factor)
    mixed: np.ndarray = keys ^ (keys >> np.uint64(33))
    return mixed


def hash_of(text: str) -> int:
    """Return what :func:`hashes` gives for a stretch of this text."""
    whole = Spans(np.array([0]), np.array([len(text)]), np.array([0, 1]))
    return int(hashes(hash_sums(np.array([*map(ord, text)], np.uint32)), whole)[0])


def _powers(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the powers of the factor and of its inverse, modulo 2^64, more than ``size`` of each."""
    if size >= _KEPT_POWERS:
        return _power_table(_FACTOR, size + 1), _power_table(_INVERSE, size + 1)
    return _kept_powers()


@cache
def _kept_powers() -> tuple[np.ndarray, np.ndarray]:
    return _power_table(_FACTOR, _KEPT_POWERS), _power_table(_INVERSE, _KEPT_POWERS)


def _power_table(factor: int, size: int) -> np.ndarray:
    powers = np.full(size, factor, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, out=powers)


def equal_in_text(spans: Spans, content: np.ndarray) -> Groups:
    """Group the stretches of each text by their hashes."""
    keys = content * np.uint64(_INVERSE) ^ (spans.texts.astype(np.uint64) + np.uint64(1)) * np.uint64(_FACTOR)
    return grouped(keys)


def grouped(keys: np.ndarray) -> Groups:
    """Group equal keys, in the order of their first items.

    >>> groups = grouped(np.array([7, 5, 7]))
    >>> groups.ids.tolist(), groups.counts.tolist(), groups.firsts.tolist()
    ([0, 1, 0], [2, 1], [0, 1])
    """
    ids = numpy_view(arrow_view(keys).dictionary_encode().indices)  # a hash table, many times as fast as a sort
    highest = np.maximum.accumulate(ids)
    firsts = np.flatnonzero(np.diff(highest, prepend=-1))
    return Groups(ids, np.bincount(ids, minlength=len(firsts)), firsts)


def previous(groups: Groups) -> np.ndarray:
    """Return the last equal item before each, -1 where there is none: int64, of shape (m,).

    >>> previous(grouped(np.array([7, 5, 7]))).tolist()
    [-1, -1, 0]
    """
    ids = groups.ids
    if len(groups.counts) <= 1 << 16:
        ids = ids.astype(np.uint16)  # which NumPy sorts digit by digit
    order = np.argsort(ids, kind="stable")
    before = np.full(len(ids), -1)
    same = ids[order[1:]] == ids[order[:-1]]
    before[order[1:][same]] = order[:-1][same]
    return before


@dataclass(frozen=True, slots=True)
class Repeated:
    """The n-grams of words that occur at least twice in their text.

    Attributes:
        places: the first word of each occurrence, ascending.
        groups: which of them are equal; an item is an index of ``places``.
    """

    places: np.ndarray
    groups: Groups


def repeated_ngrams(words: Spans, equal: Groups) -> Iterator[Repeated]:
    """Yield the n-grams that occur more than once in their text, for n = 1, 2, and so on.

    An n-gram can only be repeated where both of the shorter ones in it are: each step looks at what the last one left.
    """
    texts = words.texts
    found = _repeated(np.arange(len(words)), equal)
    yield found
    while True:
        next_to = found.places[1:] == found.places[:-1] + 1
        next_to &= texts[found.places[1:]] == texts[found.places[:-1]]
        ids = found.groups.ids
        keys = (ids[:-1][next_to].astype(np.int64) << 32) | ids[1:][next_to]
        found = _repeated(found.places[:-1][next_to], grouped(keys))
        yield found


def _repeated(places: np.ndarray, groups: Groups) -> Repeated:
    often = groups.counts > 1
    chosen = often[groups.ids]
    ids = (np.cumsum(often) - 1)[groups.ids[chosen]]
    firsts = (np.cumsum(chosen) - 1)[groups.firsts[often]]
    return Repeated(places[chosen], Groups(ids, groups.counts[often], firsts))
