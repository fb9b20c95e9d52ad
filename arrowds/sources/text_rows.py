"""Where the rows of a text file start, found block by block with NumPy; no parsing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from arrowds.errors import UnreadableFileError

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]
LineEnds = Callable[[Bytes], Offsets]

BLOCK_BYTES = 8 << 20
MARK_BYTES = 1 << 20
_MAX_ROW_BYTES = 1 << 30
_NEWLINE, _RETURN, _QUOTE, _SPACE = b'\n\r" '


@dataclass(frozen=True)
class Block:
    """Whole lines of a file: the bytes, where they lie in it, and where in them the rows start."""

    data: memoryview
    offset: int
    lines_before: int
    row_starts: Offsets

    def line_of_row(self, row: int) -> int:
        """The line number in the file, counted from 1, on which a row of this block starts."""
        start = int(self.row_starts[min(row, len(self.row_starts) - 1)])
        before = np.frombuffer(self.data[:start], np.uint8)
        return self.lines_before + int(np.count_nonzero(before == _NEWLINE)) + 1

    def marks(self) -> tuple[Offsets, Offsets]:
        """Row numbers within the block and positions in the file: the first row in every `MARK_BYTES` of the file."""
        positions = self.row_starts + self.offset
        _, rows = np.unique(positions // MARK_BYTES, return_index=True)
        return rows, positions[rows]


def check_utf8(path: Path, data: memoryview, lines_before: int) -> None:
    """Raise UnreadableFileError, with the line, unless these lines of the file are UTF-8."""
    ends = pa.py_buffer(np.array([0, len(data)], np.int64))
    text = pa.Array.from_buffers(pa.large_string(), 1, [None, ends, pa.py_buffer(data)])
    try:
        text.validate(full=True)  # several times as fast as decoding
    except pa.ArrowInvalid as invalid:
        try:
            str(data, "utf-8")
        except UnicodeDecodeError as error:
            line = lines_before + bytes(data[: error.start]).count(b"\n") + 1
            raise UnreadableFileError(f"can't read {path}, line {line}: not UTF-8; convert it to UTF-8") from invalid


def blocks(path: Path, head: bytes, *, quoted: bool, on_bytes: Callable[[memoryview], Any]) -> Iterator[Block]:
    """The lines behind `head`, in blocks of about `BLOCK_BYTES`; `on_bytes` sees every byte of them once, in order.

    `quoted`: a line break between double quotes does not end a row (CSV); a quote within quotes is doubled, so that the
    number of quotes before a line break, being even or odd, tells. Raises UnreadableFileError for a row above 1 GiB
    and for a quote that is never closed.
    """
    ends_of = _ends_outside_quotes if quoted else _ends
    rest, offset, lines = b"", len(head), head.count(b"\n")
    with path.open("rb") as file:
        file.seek(len(head))
        while True:
            more = file.read(max(BLOCK_BYTES, len(rest)))
            on_bytes(memoryview(more))
            data = rest + more
            ends = ends_of(np.frombuffer(data, np.uint8))
            if not more and data and (not len(ends) or ends[-1] != len(data)):
                ends = np.append(ends, len(data))
                _check_quotes(path, data, lines, quoted)
            if len(ends):
                whole = int(ends[-1])
                view = memoryview(data)[:whole]
                yield Block(view, offset, lines, _row_starts(np.frombuffer(view, np.uint8), ends, quoted))
                lines += int(np.count_nonzero(np.frombuffer(view, np.uint8) == _NEWLINE))
                offset, data = offset + whole, data[whole:]
            if not more:
                return
            rest = data
            if len(rest) > _MAX_ROW_BYTES:
                cause = "a quote that is never closed" if quoted else "not text"
                raise UnreadableFileError(f"{path}: a row of more than 1 GiB begins on line {lines + 1}: {cause}?")


def _check_quotes(path: Path, data: bytes, lines_before: int, quoted: bool) -> None:
    """Refuse a file that ends within quotes; `data` is its end from the start of a row on."""
    if quoted and data.count(b'"') % 2:
        line = lines_before + data.count(b"\n", 0, data.rindex(b'"')) + 1
        raise UnreadableFileError(
            f"{path} ends within quotes; the last quote is on line {line}: is the file truncated?"
        )


def _ends(data: Bytes) -> Offsets:
    """The position behind every line break."""
    return np.flatnonzero(data == _NEWLINE) + 1


def _ends_outside_quotes(data: Bytes) -> Offsets:
    """The position behind every line break that has an even number of quotes before it."""
    ends = _ends(data)
    quotes = np.flatnonzero(data == _QUOTE)
    return ends[np.searchsorted(quotes, ends) % 2 == 0] if len(quotes) else ends


def _row_starts(data: Bytes, ends: Offsets, quoted: bool) -> Offsets:
    """Where the rows start: every line that isn't blank. A CSV line of spaces is a row, as pyarrow reads it."""
    starts = np.concatenate([[0], ends[:-1]])
    first = data[starts]
    if not np.any(first <= _SPACE):
        return starts
    visible = (data != _NEWLINE) & (data != _RETURN) if quoted else data > _SPACE
    return starts[np.logical_or.reduceat(visible, starts)]
