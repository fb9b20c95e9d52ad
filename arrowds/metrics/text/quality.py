"""The rules of Gopher and FineWeb: what they measure, and which of them a text fails first.

Sources: Rae et al., "Scaling Language Models" (2021), section A.1; Penedo et al., "The FineWeb Datasets" (2024),
section 3.6. The limits and the order of the rules are those of datatrove's filters. A word is a stretch without white
space here, a token of spaCy there.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from arrowds.metrics.text.characters import TERMINAL
from arrowds.metrics.text.passages import Passages, computed_together
from arrowds.metrics.text.repetition import (
    duplicate_lines,
    duplicate_ngram_chars,
    duplicate_paragraphs,
    top_ngram_chars,
)
from arrowds.metrics.text.spans import Spans, hash_of, ratio, sums, values_at

PASS = "pass"
GOPHER_STOP_WORDS = "the be to of and that have with"

_TOP_NGRAMS = {2: 0.2, 3: 0.18, 4: 0.16}
_DUPLICATE_NGRAMS = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
_SHORT_LINE = 30

Rules = Iterable[tuple[str, np.ndarray]]
"""Names of rules, and which texts fail each."""


def verdicts(texts: Passages, rules: Rules) -> pa.Array:
    """Return the first rule that each text fails, or "pass": strings."""
    names, chosen = [PASS], np.zeros(len(texts), np.int32)
    for number, (name, fails) in enumerate(rules, start=1):
        names.append(name)
        chosen[(chosen == 0) & fails] = number
    return pa.DictionaryArray.from_arrays(pa.array(chosen), pa.array(names)).dictionary_decode()


def gopher_repetition(texts: Passages) -> pa.Array:
    """Which texts repeat their lines, paragraphs or n-grams too much."""
    return verdicts(texts, _gopher_repetition(texts))


def _gopher_repetition(texts: Passages) -> Rules:
    chars = texts.num_chars
    yield "empty", chars == 0
    paragraphs, lines = duplicate_paragraphs(texts), duplicate_lines(texts)
    yield "duplicate_paragraphs", paragraphs.share > 0.3
    yield "duplicate_paragraph_chars", ratio(paragraphs.chars, chars) > 0.2
    yield "duplicate_lines", lines.share > 0.3
    yield "duplicate_line_chars", ratio(lines.chars, chars) > 0.2
    for n, limit in _TOP_NGRAMS.items():
        yield f"top_{n}_gram", ratio(top_ngram_chars(texts, n), chars) > limit
    for n, limit in _DUPLICATE_NGRAMS.items():
        yield f"duplicate_{n}_grams", ratio(duplicate_ngram_chars(texts, n), chars) > limit


@computed_together
def hash_word_ratio(texts: Passages) -> np.ndarray:
    """The characters # over the words."""
    return ratio(texts.count(texts.are("#")), texts.words.per_text)


@computed_together
def ellipsis_word_ratio(texts: Passages) -> np.ndarray:
    """Ellipses, as one character or as three dots, over the words."""
    dots = texts.dots
    ellipses = sums(dots.lengths // 3, dots.bounds) + texts.count(texts.are("…"))
    return ratio(ellipses, texts.words.per_text)


@computed_together
def bullet_line_share(texts: Passages) -> np.ndarray:
    """Share of the lines that begin with a bullet or a hyphen."""
    lines = texts.split_lines
    first = np.searchsorted(texts.words.starts, lines.starts)
    starts = values_at(texts.words.starts, first)
    bullet = (starts < lines.stops) & values_at(texts.are("•") | texts.are("-"), starts)
    return ratio(sums(bullet, lines.bounds), lines.per_text)


@computed_together
def ellipsis_line_share(texts: Passages) -> np.ndarray:
    """Share of the lines that end with an ellipsis."""
    lines = texts.split_lines
    stops, filled = texts.word_ends(lines)
    ellipsis = texts.three_dots(lines, stops) | values_at(texts.are("…"), stops - 1)
    return ratio(sums(filled & ellipsis, lines.bounds), lines.per_text)


@computed_together
def alphabetic_word_share(texts: Passages) -> np.ndarray:
    """Share of the words that have a letter."""
    return ratio(sums(texts.lettered, texts.words.bounds), texts.words.per_text)


@computed_together
def stop_word_counts(texts: Passages, stop_words: str) -> tuple[np.ndarray, np.ndarray]:
    """Return how many words of each text are in a list, and how many of the list each text has."""
    total, different = np.zeros(len(texts), np.int64), np.zeros(len(texts), np.int64)
    for word in dict.fromkeys(stop_words.split()):
        occurring = sums(texts.word_hashes == np.uint64(hash_of(word)), texts.words.bounds)
        total += occurring
        different += occurring > 0
    return total, different


def gopher_quality(texts: Passages) -> pa.Array:
    """Which texts are no prose by the Gopher rules."""
    return verdicts(texts, _gopher_quality(texts))


def _gopher_quality(texts: Passages) -> Rules:
    words, named = texts.words, texts.unpunctuated
    count = sums(named, words.bounds)
    yield "few_words", count < 50
    yield "many_words", count > 100_000
    mean = ratio(sums(np.where(named, words.lengths, 0), words.bounds), count)
    yield "short_words", mean < 3
    yield "long_words", mean > 10
    yield "hashes", hash_word_ratio(texts) > 0.1
    yield "ellipses", ellipsis_word_ratio(texts) > 0.1
    yield "bullet_lines", bullet_line_share(texts) > 0.9
    yield "ellipsis_lines", ellipsis_line_share(texts) > 0.3
    yield "few_alphabetic_words", alphabetic_word_share(texts) < 0.8
    yield "few_stop_words", stop_word_counts(texts, GOPHER_STOP_WORDS)[1] < 2


@computed_together
def filled_lines(texts: Passages) -> Spans:
    r"""The lines, which ``\n`` ends, that are not white space alone."""
    lines = texts.lines
    words = texts.words.starts
    filled = np.searchsorted(words, lines.stops) > np.searchsorted(words, lines.starts)
    before = np.concatenate([[0], np.cumsum(filled)])
    return Spans(lines.starts[filled], lines.stops[filled], before[lines.bounds])


@computed_together
def terminal_line_share(texts: Passages) -> np.ndarray:
    """Share of the filled lines that end with a character that ends a sentence."""
    lines = filled_lines(texts)
    ended = values_at(texts.has(TERMINAL), lines.stops - 1)
    return ratio(sums(ended, lines.bounds), lines.per_text)


@computed_together
def short_line_share(texts: Passages) -> np.ndarray:
    """Share of the filled lines that have at most 30 characters."""
    lines = filled_lines(texts)
    return ratio(sums(lines.lengths <= _SHORT_LINE, lines.bounds), lines.per_text)


@computed_together
def repeated_line_char_share(texts: Passages) -> np.ndarray:
    r"""Characters of filled lines that are equal to an earlier one, over all but ``\n``."""
    lines = filled_lines(texts)
    later = np.ones(len(lines), np.bool_)
    later[texts.equal(lines).firsts] = False
    chars = sums(np.where(later, lines.lengths, 0), lines.bounds)
    return ratio(chars, texts.num_chars - texts.count(texts.newlines))


@computed_together
def newline_word_ratio(texts: Passages) -> np.ndarray:
    r"""``\n`` over the words."""
    return ratio(texts.count(texts.newlines), texts.words.per_text)


def fineweb_quality(texts: Passages) -> pa.Array:
    """Which texts are lists, fragments or repeat their lines, by FineWeb's rules."""
    return verdicts(texts, _fineweb_quality(texts))


def _fineweb_quality(texts: Passages) -> Rules:
    yield "empty", filled_lines(texts).per_text == 0
    yield "few_ended_lines", terminal_line_share(texts) < 0.12
    yield "short_lines", short_line_share(texts) > 0.67
    yield "duplicate_line_chars", repeated_line_char_share(texts) > 0.01
    yield "many_lines", newline_word_ratio(texts) > 0.3
