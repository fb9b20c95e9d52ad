"""How input is damaged: bytes of any file, and one or two values of a document such as JSON. All follows from `rng`."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

WORDS = [
    b"\xff\xff\xff\x7f",
    b"\0\0\0\x80",
    b"\xff" * 8,
    b"\xff" * 7 + b"\x7f",
    b"\0" * 8,
    b"\xed\xa0\x80",
    b"\xff\xfe",
]
NESTED = "@nested@"
"""Stands for lists in lists, deeper than a parser's stack, where a document becomes text."""
ABSURD: list[Any] = [
    *(None, True, False, -1, 0, 1, 2, 255, 2**31, 2**32, 2**53 + 1, 2**61, 2**63 - 1, 2**63, 2**64, 2**70, -(2**63)),
    *(-(2**70), 10**400, 0.5, -0.0, 1.5, 1e-300, 1e300, float("nan"), float("inf"), float("-inf")),
    *("", "x", "/", "..", "../../x", "\0", "é", "1", "nan", "Infinity", "x" * 300, "int64", "seqlen", NESTED),
    *([], [-1], [0, 5, 3], ["x"], [[]], {}, {"x": 1}, {"": None}),
]


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """Flip bits, set bytes and words to extremes, cut, repeat or drop a stretch; often near the end."""
    raw = bytearray(whole)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(raw)) if rng.random() < 0.5 else max(len(raw) - 1 - rng.randrange(900), 0)
        match rng.randrange(6):
            case 0 | 1:
                raw[at] ^= 1 << rng.randrange(8)
            case 2:
                raw[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
            case 3:
                word = rng.choice(WORDS)
                raw[at : at + len(word)] = word
            case 4 if len(raw) > 10:
                end = min(at + rng.randrange(1, 40), len(raw) - 1)
                raw[at:end] = rng.choice([b"", bytes(raw[at:end]) * 2])
            case 5 if rng.random() < 0.2:
                del raw[at + 1 :]
    return bytes(raw)


def mutated(document: Any, rng: random.Random) -> Any:
    """Return a copy of a document of dictionaries and lists in which a value or two are absurd, missing or moved."""
    root = copy.deepcopy(document)
    for _ in range(rng.choice([1, 1, 1, 2])):
        place = _place(root, rng)
        if place is not None:
            _change(root, *place, rng)
    return root


def _place(root: Any, rng: random.Random) -> tuple[Any, Any] | None:
    """A container and a key in it; None where the document is empty."""
    value = root
    if not (isinstance(value, dict | list) and value):
        return None
    while True:
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if rng.random() < 0.2 or not (isinstance(value[key], dict | list) and value[key]):
            return value, key
        value = value[key]


def _change(root: Any, container: Any, key: Any, rng: random.Random) -> None:
    value = container[key]
    match rng.randrange(9):
        case 0:
            del container[key]
        case 1 if isinstance(container, list):
            container.insert(key, copy.deepcopy(value))
        case 1:
            container[rng.choice(["x", "", f"{key}s"])] = value
        case 2 if (other := _place(root, rng)) is not None:
            container[key] = copy.deepcopy(other[0][other[1]])
        case 3 | 4 if isinstance(value, int | float) and not isinstance(value, bool):
            container[key] = rng.choice([-value, value + 1, value - 1, value * 2, repr(value), [value]])
        case 3 | 4 if isinstance(value, str):
            container[key] = rng.choice([value[:-1], value + value, value.upper(), value[::-1], [value]])
        case _:
            container[key] = rng.choice(ABSURD)


def as_json(document: Any, rng: random.Random) -> bytes:
    """Write a document as JSON, NaN and all; lists are nested deeply where the document says so."""
    depth = rng.choice([500, 100_000])
    return json.dumps(document).encode().replace(f'"{NESTED}"'.encode(), b"[" * depth + b"]" * depth)
