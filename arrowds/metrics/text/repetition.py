"""What occurs more than once in a text: lines, paragraphs and n-grams of words, as the Gopher rules count them.

Source: Rae et al., "Scaling Language Models: Methods, Analysis & Insights from Training Gopher" (2021), table A1, in
the reading of datatrove's ``GopherRepetitionFilter``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from arrowds.metrics.text.passages import Passages, computed_together
from arrowds.metrics.text.spans import Repeated, Spans, ratio, sums


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Elements of each text that are equal to an earlier one.

    Attributes:
        elements: how many elements each text has.
        repeated: how many of them are duplicates.
        chars: characters of these.
    """

    elements: np.ndarray
    repeated: np.ndarray
    chars: np.ndarray

    @property
    def share(self) -> np.ndarray:
        """Duplicates over elements."""
        return ratio(self.repeated, self.elements)


@computed_together
def duplicate_lines(texts: Passages) -> Duplicates:
    r"""Lines, which stretches of ``\n`` separate; one before or after a text is an empty line of its own."""
    found = _duplicates(texts, texts.lines)
    filled = texts.num_chars > 0
    at_start, at_end = np.zeros(len(texts), np.bool_), np.zeros(len(texts), np.bool_)
    at_start[filled] = texts.newlines[texts.bounds[:-1][filled]]
    at_end[filled] = texts.newlines[texts.bounds[1:][filled] - 1]
    return Duplicates(found.elements + at_start + at_end, found.repeated + (at_start & at_end), found.chars)


@computed_together
def duplicate_paragraphs(texts: Passages) -> Duplicates:
    r"""Paragraphs, which two or more ``\n`` separate."""
    return _duplicates(texts, texts.paragraphs)


def _duplicates(texts: Passages, spans: Spans) -> Duplicates:
    later = np.ones(len(spans), np.bool_)
    later[texts.equal(spans).firsts] = False
    chars = sums(np.where(later, spans.lengths, 0), spans.bounds)
    return Duplicates(spans.per_text, sums(later, spans.bounds), chars)


@computed_together
def top_ngram_chars(texts: Passages, n: int) -> np.ndarray:
    """Characters of the most frequent n-gram of each text with a space between words, times how often it occurs.

    Of several it is the one that occurs first; of a text without a repetition, its first n-gram.
    """
    words, repeated = texts.words, texts.repeated_ngrams[n - 1]
    before = np.concatenate([[0], np.cumsum(words.lengths)])
    found = np.zeros(len(texts), np.int64)
    long_enough = words.per_text >= n
    first = words.bounds[:-1][long_enough]
    found[long_enough] = before[first + n] - before[first] + n - 1
    groups = repeated.groups
    if len(groups.counts):
        places = repeated.places[groups.firsts]
        text = words.texts[places]
        ranked = np.lexsort((places, -groups.counts, text))
        best = ranked[np.concatenate([[True], text[ranked][1:] != text[ranked][:-1]])]
        at = places[best]
        found[text[best]] = (before[at + n] - before[at] + n - 1) * groups.counts[best]
    return found


@computed_together
def duplicate_ngram_chars(texts: Passages, n: int) -> np.ndarray:
    """Characters, without spaces, of the n-grams that occurred before; what one covers begins no other."""
    words = texts.words
    taken = np.array(_without_overlap(texts.repeated_ngrams[n - 1], n), np.int64)
    before = np.concatenate([[0], np.cumsum(words.lengths)])
    return np.bincount(words.texts[taken], before[taken + n] - before[taken], minlength=len(texts))


def _without_overlap(repeated: Repeated, n: int) -> list[int]:
    """Return the n-grams that a reader from left to right has seen before, jumping over each."""
    seen, taken = bytearray(len(repeated.groups.counts)), []
    free = 0
    for place, group in zip(repeated.places.tolist(), repeated.groups.ids.tolist(), strict=True):
        if place >= free:
            if seen[group]:
                taken.append(place)
                free = place + n
            else:
                seen[group] = 1
    return taken
