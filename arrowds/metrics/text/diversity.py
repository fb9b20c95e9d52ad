"""How varied the words of texts are, and how far texts can be compressed."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from arrowds.metrics.text.passages import Passages, computed_together
from arrowds.metrics.text.spans import previous, ratio

_WINDOW = 128
"""Words that are looked at together when a factor of MTLD is sought: one has 50 to 120 in most prose."""

_FEW_TEXTS = 24
"""Fewer texts are read faster word by word than together."""


def type_token_ratio(texts: Passages) -> np.ndarray:
    """Different plain words over all of them."""
    types = np.bincount(_text_of_types(texts), minlength=len(texts))
    return ratio(types, texts.plain_words.per_text)


def hapax_share(texts: Passages) -> np.ndarray:
    """Plain words that occur once over all of them."""
    once = texts.equal_plain_words.counts == 1
    return ratio(np.bincount(_text_of_types(texts)[once], minlength=len(texts)), texts.plain_words.per_text)


def unigram_entropy(texts: Passages) -> np.ndarray:
    """The sum of -p log p over the plain words of each text, in nats."""
    counts, total = texts.equal_plain_words.counts, np.maximum(texts.plain_words.per_text, 1)
    weighted = np.bincount(_text_of_types(texts), counts * np.log(counts), minlength=len(texts))
    entropy: np.ndarray = np.maximum(np.log(total) - weighted / total, 0.0)
    return entropy


@computed_together
def _text_of_types(texts: Passages) -> np.ndarray:
    found: np.ndarray = texts.plain_words.texts[texts.equal_plain_words.firsts]
    return found


def mtld(texts: Passages, threshold: float) -> np.ndarray:
    """The mean length of stretches of plain words that keep a type-token ratio, forwards and backwards."""
    words, before = texts.plain_words, previous(texts.equal_plain_words)
    bounds, total = words.bounds, words.per_text
    following = np.full(len(before), -1)
    later = np.flatnonzero(before >= 0)
    following[before[later]] = later
    backwards = np.where(following < 0, -1, len(before) - 1 - following)[::-1]
    back_bounds = len(before) - bounds[::-1]
    forth = _num_factors(before, bounds, threshold)
    back = _num_factors(backwards, back_bounds, threshold)[::-1]
    means: np.ndarray = (total / forth + total / back) / 2
    return means


def _num_factors(before: np.ndarray, bounds: np.ndarray, threshold: float) -> np.ndarray:
    """Return how many stretches each text has until the share of new words falls to the threshold: float64.

    All texts are looked at together, a window of words of each at a time. ``before`` is the last occurrence of a word.
    """
    factors = np.zeros(len(bounds) - 1)
    at, start, stop = bounds[:-1].copy(), bounds[:-1].copy(), bounds[1:]
    types = np.zeros(len(factors), np.int64)
    share = np.ones(len(factors))
    active = np.flatnonzero(at < stop)
    while len(active) >= _FEW_TEXTS:
        places = at[active, None] + np.arange(_WINDOW)
        inside = places < stop[active, None]
        new = (before[np.minimum(places, len(before) - 1)] < start[active, None]) & inside
        types_here = types[active, None] + np.cumsum(new, axis=1)
        shares = types_here / (places - start[active, None] + 1)
        ended = (shares <= threshold) & inside
        ends = ended.argmax(axis=1)
        has_end = ended[np.arange(len(active)), ends]
        last = np.where(has_end, ends, inside.sum(axis=1) - 1)
        at[active] += last + 1
        factors[active] += has_end
        types[active] = np.where(has_end, 0, types_here[np.arange(len(active)), last])
        share[active] = np.where(has_end, 1.0, shares[np.arange(len(active)), last])
        start[active] = np.where(has_end, at[active], start[active])
        active = active[at[active] < stop[active]]
    limits = _limits(int((stop - start)[active].max(initial=0)), threshold)
    for text in active.tolist():
        rest = before[at[text] : stop[text]].tolist()
        ended, share[text] = _factors_of(rest, int(at[text]), int(start[text]), int(types[text]), limits)
        factors[text] += ended
    factors += (1 - share) / (1 - threshold)
    return np.where(factors == 0, 1.0, factors)


def _factors_of(before: list[int], at: int, start: int, types: int, limits: list[int]) -> tuple[int, float]:
    """Read on word by word; return how many stretches ended, and the share of new words since the last of them.

    Only a word that has occurred since the start lowers the share. ``limits`` are the most types of n words at the end.
    """
    factors = 0
    for place, last in enumerate(before, start=at):
        if last < start:
            types += 1
        elif types <= limits[place - start]:
            factors, start, types = factors + 1, place + 1, 0
    read = at + len(before) - start
    return factors, types / read if read else 1.0


def _limits(size: int, threshold: float) -> list[int]:
    """Return, for 1 to ``size`` words, the most types whose share of them is not above the threshold."""
    words = np.arange(1, size + 1)
    most = np.floor(threshold * words).astype(np.int64) + 1
    while (above := most / words > threshold).any():
        most -= above
    return most.tolist()  # type: ignore[no-any-return]


def compression_ratio(texts: Passages, codec: str, level: int) -> np.ndarray:
    """Bytes over compressed bytes."""
    compressed = _compressor(codec, level)
    view = texts.utf8.data
    sizes = [compressed(view[start:stop]) for start, stop in pairwise(texts.byte_bounds.tolist())]
    return texts.num_bytes / np.array(sizes, np.float64)


def _compressor(codec: str, level: int) -> Callable[[Any], int]:
    if codec == "zlib":
        return lambda text: len(zlib.compress(text, level))
    zstd = pa.Codec("zstd", compression_level=level)
    return lambda text: zstd.compress(pa.py_buffer(text)).size
