"""How easily a text reads: sentences, syllables and the scores of Flesch and Kincaid, for English.

Syllables are counted from spelling: groups of vowels, less a silent e. Sources: Flesch, "A new readability yardstick"
(1948); Kincaid et al., "Derivation of new readability formulas" (1975).
"""

from __future__ import annotations

import numpy as np

from arrowds.metrics.text.characters import LETTER, VOWEL
from arrowds.metrics.text.passages import Passages, computed_together
from arrowds.metrics.text.spans import sums


def flesch_reading_ease(texts: Passages) -> np.ndarray:
    """206.835 - 1.015 words per sentence - 84.6 syllables per word; 0 without words."""
    per_sentence, per_word, has_words = _means(texts)
    return np.where(has_words, 206.835 - 1.015 * per_sentence - 84.6 * per_word, 0.0)


def flesch_kincaid_grade(texts: Passages) -> np.ndarray:
    """0.39 words per sentence + 11.8 syllables per word - 15.59; 0 without words."""
    per_sentence, per_word, has_words = _means(texts)
    return np.where(has_words, 0.39 * per_sentence + 11.8 * per_word - 15.59, 0.0)


@computed_together
def _means(texts: Passages) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return words per sentence, syllables per word, and whether a text has a word with a letter."""
    words, has_letter = texts.words, texts.lettered
    num_words = sums(has_letter, words.bounds)
    syllables = sums(np.where(has_letter, _syllables(texts), 0), words.bounds)
    counted = np.maximum(num_words, 1)
    return counted / np.maximum(texts.num_sentences, 1), syllables / counted, num_words > 0


def _syllables(texts: Passages) -> np.ndarray:
    """Return the syllables of each word, at least 1."""
    words, lower = texts.words, texts.lower
    vowel = texts.has(VOWEL)
    begins = vowel.copy()
    begins[1:] &= ~vowel[:-1]
    begins[words.starts] = vowel[words.starts]
    counts = texts.counts_in(words, begins)
    letters = np.where(texts.has(LETTER), np.arange(len(lower), dtype=np.int32), -1)
    last = np.maximum.accumulate(letters)[words.stops - 1]
    length = last - words.starts + 1
    third, second = np.maximum(last - 2, 0), np.maximum(last - 1, 0)
    is_e = (length > 2) & (lower[last] == ord("e")) & ~vowel[second]
    sounded = (lower[second] == ord("l")) & ~vowel[third]  # "table", but not "whole"
    silent = is_e & ~sounded
    past = (length > 3) & (lower[last] == ord("d")) & (lower[second] == ord("e")) & ~vowel[third]
    silent |= past & ~np.isin(lower[third], [ord("t"), ord("d")])  # "asked", but not "wanted"
    plural = (length > 3) & (lower[last] == ord("s")) & (lower[second] == ord("e")) & ~vowel[third]
    hissing = np.isin(lower[third], [ord(each) for each in "sxzcgh"])
    after_l = (lower[third] == ord("l")) & ~vowel[np.maximum(last - 3, 0)]
    silent |= plural & ~hissing & ~after_l  # "names", but not "boxes"
    syllables: np.ndarray = np.maximum(counts - silent, 1)
    return syllables
