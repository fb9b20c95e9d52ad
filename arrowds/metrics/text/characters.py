"""What is known of each Unicode character: classes as bits, and lower case. Tables, made once for each process."""

from __future__ import annotations

import unicodedata
from functools import cache

import numpy as np

SPACE, LETTER, DIGIT, UPPER, WORD, VOWEL, PUNCTUATION, TERMINAL, CLOSING, BREAK = (1 << bit for bit in range(10))

_LIMIT = 0x110000
_LAST_MARK = 0xE01F0
_SENTENCE_TERMINAL = (
    "21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736 17d4-17d6 "
    "17d9-17da 1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e 1c3b-1c3c 1c7e-1c7f 203c-203d 2047-2049 "
    "2e2e 2e3c 2e53-2e54 3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb "
    "fe52 fe56-fe57 ff01 ff0e ff1f ff61 10a56-10a57 10f55-10f59 10f86-10f89 11047-11048 110be-110c1 11141-11143 "
    "111c5-111c6 111cd 111de-111df 11238-11239 1123b-1123c 112a9 1144b-1144c 115c2-115c3 115c9-115d7 11641-11642 "
    "1173c-1173e 11944 11946 11a42-11a43 11a9b-11a9c 11c41-11c42 11ef7-11ef8 11f43-11f44 16a6e-16a6f 16af5 "
    "16b37-16b38 16b44 16e98 1bc9f 1da88"
)
"""Unicode's property Sentence_Terminal, in hexadecimal."""

_PUNCTUATION = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~«´»–—’“”„…∶━►、。〈〉《》「」【】！％（），．１：；？～"
_CLOSING = "\"')]}’”»」』）】"
_BREAKS = "\n\v\f\r\x1c\x1d\x1e\x85\u2028\u2029"


@cache
def classes() -> np.ndarray:
    r"""Return the class bits of each code point: uint16, of shape (0x110000,).

    SPACE, LETTER and DIGIT are Python's ``str.isspace``, ``isalpha`` and ``isdecimal``, UPPER the letters of
    ``isupper``. WORD are letters, numbers, marks, joiners and connectors such as ``_``. VOWEL are a, e, i, o, u and
    y of either case, with any accent. TERMINAL may end a sentence, CLOSING may follow it, BREAK ends a line of
    ``str.splitlines``. PUNCTUATION are controls and the characters of which the Gopher rules make no word.

    >>> bool(classes()[ord("é")] & VOWEL), bool(classes()[ord("。")] & TERMINAL)
    (True, True)
    """
    points = np.arange(_LIMIT, dtype=np.uint32)
    points[0xD800:0xE000] = 0  # surrogates are no characters
    characters = points.view("U1")
    letter = np.strings.isalpha(characters)
    bits = np.zeros(_LIMIT, np.uint16)
    bits[np.strings.isspace(characters)] |= SPACE
    bits[letter] |= LETTER
    bits[np.strings.isdecimal(characters)] |= DIGIT
    bits[letter & np.strings.isupper(characters)] |= UPPER
    bits[letter | np.strings.isnumeric(characters) | _marks()] |= WORD
    bits[[ord("_"), 0x200C, 0x200D, 0x203F, 0x2040, 0x2054, 0xFE33, 0xFE34, 0xFE4D, 0xFE4E, 0xFE4F, 0xFF3F]] |= WORD
    bits[[point for point in range(0x250) if _base_letter(point) in "aeiouyAEIOUY"]] |= VOWEL
    bits[_points(_SENTENCE_TERMINAL)] |= TERMINAL | PUNCTUATION
    bits[[*map(ord, _PUNCTUATION), *range(9), *range(11, 32), *range(127, 160)]] |= PUNCTUATION
    bits[list(map(ord, _CLOSING))] |= CLOSING
    bits[list(map(ord, _BREAKS))] |= BREAK
    bits[0xD800:0xE000] = 0
    return bits


@cache
def lower_case() -> np.ndarray:
    """Return the lower case of each code point, where that is one: uint32, of shape (0x110000,).

    >>> chr(lower_case()[ord("Ä")])
    'ä'
    """
    lower = np.arange(_LIMIT, dtype=np.uint32)
    for point in range(0x1E944):  # the last scripts with two cases
        found = chr(point).lower()
        if len(found) == 1:
            lower[point] = ord(found)
    return lower


def _marks() -> np.ndarray:
    """Accents, vowel signs and the like, which belong to the word of their letter."""
    found = np.zeros(_LIMIT, np.bool_)
    candidates = (*range(0x300, 0x1F000), *range(0xE0100, _LAST_MARK))
    found[[point for point in candidates if unicodedata.category(chr(point))[0] == "M"]] = True
    return found


def _base_letter(point: int) -> str:
    return unicodedata.normalize("NFD", chr(point))[0]


def _points(ranges: str) -> list[int]:
    bounds = [[int(end, 16) for end in each.split("-")] for each in ranges.split()]
    return [point for ends in bounds for point in range(ends[0], ends[-1] + 1)]
