"""C4's rules: which lines of a text stay, and why a text is left out.

Source: Raffel et al., "Exploring the Limits of Transfer Learning" (2020), section 2.2, in the reading of datatrove's
``C4QualityFilter``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa

from arrowds.metrics.text.passages import Passages, computed_together
from arrowds.metrics.text.quality import verdicts
from arrowds.metrics.text.spans import Spans, covered, ratio, sums, values_at

_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


@dataclass(frozen=True, slots=True)
class C4:
    """What C4's rules do with each text.

    Attributes:
        kept: lines that stay.
        lines: all of them.
        sentences: sentences of the lines that stay.
        lorem, bracket: the first line with either phrase, numbered through all texts; beyond all lines for none.
    """

    kept: np.ndarray
    lines: np.ndarray
    sentences: np.ndarray
    lorem: np.ndarray
    bracket: np.ndarray


@computed_together
def c4(texts: Passages) -> C4:
    """Apply C4's rules to each line."""
    lines = texts.split_lines
    short = texts.words.lengths <= 1000
    word_bounds = np.searchsorted(texts.words.starts, np.append(lines.starts, len(texts.codes)))
    num_words = np.diff(word_bounds)
    stops, filled = texts.word_ends(lines)
    plain, moved = _without_citations(texts)
    plain_lines, stops = Spans(moved[lines.starts], moved[lines.stops], lines.bounds), moved[stops]
    ended = filled & np.isin(values_at(plain.codes, stops - 1), [ord(each) for each in ".?!\"'"])
    ended &= ~plain.three_dots(plain_lines, stops)
    eligible = ended & (num_words >= 3) & (sums(~short, word_bounds) == 0)
    lorem = eligible & _with_phrase(plain, plain_lines, "lorem ipsum")
    eligible &= ~_with_phrase(plain, plain_lines, "javascript")
    bracket = eligible & ~lorem & (plain.counts_in(plain_lines, plain.are("{")) > 0)
    for policy in _POLICIES:
        eligible &= ~_with_phrase(plain, plain_lines, policy)
    plain_bounds = np.searchsorted(plain.words.starts, np.append(plain_lines.starts, len(plain.codes)))
    sentences = np.where(eligible, np.maximum(plain.sentences_of(plain_bounds), 1), 0)
    numbers, none = np.arange(len(lines)), len(lines)
    return C4(
        kept=sums(eligible, lines.bounds),
        lines=lines.per_text,
        sentences=sums(sentences, lines.bounds),
        lorem=_smallest(np.where(lorem, numbers, none), lines.bounds, none),
        bracket=_smallest(np.where(bracket, numbers, none), lines.bounds, none),
    )


def _without_citations(texts: Passages) -> tuple[Passages, np.ndarray]:
    """Return the texts without marks such as [1], and where each of their characters is in these."""
    content = texts.utf8.tobytes().decode() if texts.are("[").any() else ""
    marks = np.array([mark.span() for mark in _CITATION.finditer(content)], np.int64).reshape(-1, 2)
    if not len(marks):
        return texts, np.arange(len(texts.codes) + 1)
    kept = ~covered(marks[:, 0], marks[:, 1], len(texts.codes))
    moved = np.concatenate([[0], np.cumsum(kept)])
    remaining = texts.codes[kept].astype("<u4").tobytes().decode("utf-32-le")
    pieces = [remaining[start:stop] for start, stop in pairwise(moved[texts.bounds].tolist())]
    return Passages(pa.array(pieces, pa.string())), moved


def _with_phrase(texts: Passages, lines: Spans, phrase: str) -> np.ndarray:
    """Return which lines have a phrase in any case."""
    found = np.zeros(len(lines), np.bool_)
    for place in texts.positions(phrase):
        line = np.searchsorted(lines.starts, place, side="right") - 1
        found[line] |= place + len(phrase) <= lines.stops[line]
    return found


def _smallest(values: np.ndarray, bounds: np.ndarray, none: int) -> np.ndarray:
    """Return the smallest value of each stretch, or ``none``."""
    found = np.full(len(bounds) - 1, none)
    filled = np.diff(bounds) > 0
    if filled.any():
        found[filled] = np.minimum.reduceat(values, bounds[:-1][filled])
    return found


def c4_kept_line_share(texts: Passages) -> np.ndarray:
    """Share of the lines that C4 keeps."""
    found = c4(texts)
    return ratio(found.kept, found.lines)


def c4_quality(texts: Passages) -> pa.Array:
    """Which texts C4 leaves out, and why."""
    found = c4(texts)
    none = len(texts.split_lines)
    return verdicts(
        texts,
        [
            ("lorem_ipsum", found.lorem < np.minimum(found.bracket, none)),
            ("curly_bracket", found.bracket < none),
            ("few_sentences", found.sentences < 5),
        ],
    )
