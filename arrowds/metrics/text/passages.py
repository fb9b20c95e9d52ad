"""Some texts of a column, one after the other: their characters, words, lines and sentences as NumPy arrays.

Whatever several metrics need is computed once. Nothing is done text by text: a row of an array is a character, a word
or a line, and bounds tell which of them belong to which text.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from arrowds.metrics.text.characters import (
    BREAK,
    CLOSING,
    LETTER,
    PUNCTUATION,
    SPACE,
    TERMINAL,
    WORD,
    classes,
    lower_case,
)
from arrowds.metrics.text.spans import (
    Groups,
    Repeated,
    Spans,
    covered,
    equal_in_text,
    hash_sums,
    hashes,
    repeated_ngrams,
    runs,
    sums,
    values_at,
)
from arrowds.parallel import computed_once

_ASCII = 128
LONGEST_NGRAM = 10
_RARE_FIRST = "zqjxkvbpygfwmucldrhsnioate "


Result = TypeVar("Result")


def computed_together(function: Callable[..., Result]) -> Callable[..., Result]:
    """Let a function of :class:`Passages` compute its result once for the same texts and options."""

    @wraps(function)
    def known(texts: Passages, *options: object) -> Result:
        key = (function, options)
        if key not in texts.known:
            texts.known[key] = function(texts, *options)
        found: Result = texts.known[key]
        return found

    return known


class Passages:
    """Texts, valid UTF-8 and without nulls, whose bytes lie one after the other.

    Attributes:
        texts: the texts, n of them.
        utf8: all their bytes, uint8.
        byte_bounds: int64 of shape (n + 1,): the bytes of text i are ``utf8[byte_bounds[i]:byte_bounds[i + 1]]``.
    """

    def __init__(self, texts: pa.Array) -> None:
        self.texts = texts
        self.known: dict[object, Any] = {}
        width = np.int64 if pa.types.is_large_string(texts.type) else np.int32
        _, offsets, data = texts.buffers()
        first = texts.offset * np.dtype(width).itemsize
        ends = np.frombuffer(offsets, width, len(texts) + 1, first).astype(np.int64)
        self.byte_bounds: np.ndarray = ends - ends[0]
        self.utf8: np.ndarray = np.frombuffer(data or b"", np.uint8)[ends[0] : ends[-1]]

    @computed_once
    def codes(self) -> np.ndarray:
        """The code points of all characters: uint8 where all are ASCII, else uint32."""
        if self._is_ascii:
            return self.utf8
        found: np.ndarray = np.frombuffer(self.utf8.tobytes().decode().encode("utf-32-le"), np.uint32)
        return found

    @computed_once
    def bounds(self) -> np.ndarray:
        """Where texts begin and end, int64: the characters of text i are ``codes[bounds[i]:bounds[i + 1]]``."""
        if self._is_ascii:
            return self.byte_bounds
        before = np.concatenate([[0], np.cumsum((self.utf8 & 0xC0) != 0x80)])
        found: np.ndarray = before[self.byte_bounds]
        return found

    @computed_once
    def _is_ascii(self) -> bool:
        return not self.utf8.size or bool(self.utf8.max() < _ASCII)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def num_chars(self) -> np.ndarray:
        return np.diff(self.bounds)

    @property
    def num_bytes(self) -> np.ndarray:
        return np.diff(self.byte_bounds)

    @computed_once
    def classes(self) -> np.ndarray:
        """Class bits of each character, see :func:`characters.classes`."""
        return np.take(classes(), self.codes)

    def has(self, bits: int) -> np.ndarray:
        """Whether each character is in one of these classes."""
        chosen: np.ndarray = (self.classes & np.uint16(bits)) != 0
        return chosen

    def are(self, character: str) -> np.ndarray:
        """Whether each character is this one."""
        chosen: np.ndarray = self.codes == ord(character)
        return chosen

    def count(self, chosen: np.ndarray) -> np.ndarray:
        """Return how many of the chosen characters each text has."""
        return sums(chosen.view(np.uint8), self.bounds)

    @computed_once
    def lower(self) -> np.ndarray:
        """The characters in lower case, where that is one character."""
        return np.take(lower_case(), self.codes).astype(self.codes.dtype, copy=False)

    @computed_once
    def words(self) -> Spans:
        """Stretches without white space, as ``str.split`` has them."""
        return runs(self.visible, self.bounds)

    @computed_once
    def plain_words(self) -> Spans:
        r"""Stretches of ``\w+``: words without punctuation."""
        return runs(self.has(WORD), self.bounds)

    @computed_once
    def _hash_sums(self) -> np.ndarray:
        return hash_sums(self.codes)

    @computed_once
    def word_hashes(self) -> np.ndarray:
        """Equal for equal words: uint64."""
        return self.hashes_of(self.words)

    @computed_once
    def plain_word_hashes(self) -> np.ndarray:
        """Equal for plain words that are equal in lower case: uint64."""
        return hashes(hash_sums(self.lower), self.plain_words)

    @computed_once
    def equal_words(self) -> Groups:
        """Which words of a text are the same."""
        return equal_in_text(self.words, self.word_hashes)

    @computed_once
    def equal_plain_words(self) -> Groups:
        """Which plain words of a text are the same in lower case."""
        return equal_in_text(self.plain_words, self.plain_word_hashes)

    def hashes_of(self, spans: Spans) -> np.ndarray:
        """Return a number for each stretch, equal for equal ones: uint64."""
        return hashes(self._hash_sums, spans)

    def equal(self, spans: Spans) -> Groups:
        """Which stretches of a text are the same."""
        return equal_in_text(spans, self.hashes_of(spans))

    @computed_once
    def newlines(self) -> np.ndarray:
        """Whether each character is ``\\n``."""
        return self.are("\n")

    @computed_once
    def lines(self) -> Spans:
        r"""Stretches without ``\n``, but no empty ones."""
        return runs(~self.newlines, self.bounds)

    @computed_once
    def num_lines(self) -> np.ndarray:
        r"""How many ``\n`` each text has, and one more where something follows the last."""
        filled = self.num_chars > 0
        unended = np.zeros(len(self), np.int64)
        unended[filled] = ~self.newlines[self.bounds[1:][filled] - 1]
        return self.count(self.newlines) + unended

    @computed_once
    def split_lines(self) -> Spans:
        """The lines of ``str.splitlines``, the empty ones as well; of ``\\r\\n`` the first belongs to the line."""
        breaks = self.has(BREAK)
        breaks[:-1] &= ~(self.are("\r")[:-1] & self.newlines[1:])
        ends = breaks.copy()
        ends[self.bounds[1:][self.num_chars > 0] - 1] = True  # the last line of a text may have no break
        last = np.flatnonzero(ends)
        starts = np.concatenate([[0], last + 1])[: len(last)]
        return Spans(starts, np.where(breaks[last], last, last + 1), np.searchsorted(starts, self.bounds))

    @computed_once
    def paragraphs(self) -> Spans:
        """What two or more ``\\n`` separate, without white space around the text."""
        filled = self.words.per_text > 0
        first, last = self.words.bounds[:-1][filled], self.words.bounds[1:][filled] - 1
        inside = covered(self.words.starts[first], self.words.stops[last], len(self.codes))
        gaps = runs(self.newlines, self.bounds)
        wide = gaps.lengths > 1
        inside &= ~covered(gaps.starts[wide], gaps.stops[wide], len(self.codes))
        return runs(inside, self.bounds)

    def word_ends(self, lines: Spans) -> tuple[np.ndarray, np.ndarray]:
        """Return where the last word of each line ends, and whether the line has one."""
        last = np.searchsorted(self.words.starts, lines.stops) - 1
        stops = values_at(self.words.stops, last)
        return stops, (last >= 0) & (stops > lines.starts)

    def three_dots(self, lines: Spans, stops: np.ndarray) -> np.ndarray:
        """Return whether each line has three full stops before a place in it."""
        dots = self.are(".")
        found: np.ndarray = stops - lines.starts >= 3
        for back in (1, 2, 3):
            found &= values_at(dots, stops - back)
        return found

    def counts_in(self, spans: Spans, chosen: np.ndarray) -> np.ndarray:
        """Return how many of the chosen characters each span has."""
        before = np.zeros(len(chosen) + 1, np.int32)
        np.cumsum(chosen, out=before[1:])
        counts: np.ndarray = before[spans.stops] - before[spans.starts]
        return counts

    @computed_once
    def sentence_ends(self) -> np.ndarray:
        """Whether a sentence ends with each word: in ``.``, ``!`` or the like, and closing quotes or brackets."""
        stops, starts = self.words.stops - 1, self.words.starts
        while (closing := (stops > starts) & ((self.classes[stops] & CLOSING) != 0)).any():
            stops = stops - closing
        ended: np.ndarray = (self.classes[stops] & TERMINAL) != 0
        return ended

    @computed_once
    def terminal_words(self) -> np.ndarray:
        """Whether each word holds a character that ends a sentence in scripts without spaces."""
        wide = self.has(TERMINAL) & (self.codes >= _ASCII)
        return self.counts_in(self.words, wide)

    @computed_once
    def num_sentences(self) -> np.ndarray:
        """How many sentences each text has: their ends, and what follows the last of them."""
        return self.sentences_of(self.words.bounds)

    def sentences_of(self, bounds: np.ndarray) -> np.ndarray:
        """Return how many sentences consecutive groups of words have; ``bounds`` are the words of each."""
        ends = np.maximum(self.terminal_words, self.sentence_ends)
        filled = np.diff(bounds) > 0
        last = np.where(filled, bounds[1:] - 1, 0)
        unended = filled & ~self.sentence_ends[last] if len(self.words) else filled
        return sums(ends, bounds) + unended

    @computed_once
    def visible(self) -> np.ndarray:
        """Whether each character is no white space."""
        return ~self.has(SPACE)

    @computed_once
    def dots(self) -> Spans:
        """Stretches of full stops."""
        return runs(self.are("."), self.bounds)

    @computed_once
    def lettered(self) -> np.ndarray:
        """Whether each word has a letter."""
        return self.counts_in(self.words, self.has(LETTER)) > 0

    @computed_once
    def unpunctuated(self) -> np.ndarray:
        """Whether each word has anything but punctuation."""
        return self.counts_in(self.words, ~self.has(PUNCTUATION)) > 0

    @computed_once
    def repeated_ngrams(self) -> list[Repeated]:
        """The n-grams of words that occur more than once in their text, for n from 1 to 10."""
        return list(islice(repeated_ngrams(self.words, self.equal_words), LONGEST_NGRAM))

    def positions(self, phrase: str) -> np.ndarray:
        """Return where a phrase of ASCII letters begins in the texts in lower case; it may go beyond the end of one."""
        anchor = min(range(len(phrase)), key=lambda place: _RARE_FIRST.find(phrase[place]))
        starts = np.flatnonzero(self.lower == ord(phrase[anchor])) - anchor
        starts = starts[(starts >= 0) & (starts + len(phrase) <= len(self.lower))]
        for place, character in enumerate(phrase):
            starts = starts[self.lower[starts + place] == ord(character)]
        return starts
