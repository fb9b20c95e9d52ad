"""Where the rows of a text file start, found block by block with NumPy; no parsing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from arrowds.errors import UnreadableFileError
from arrowds.sources.objects import ObjectPath

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]

BLOCK_BYTES = 8 << 20
MARK_BYTES = 1 << 20
_MAX_ROW_BYTES = 1 << 30
_SKIPPED_AT_ONCE = 1 << 20
_NEWLINE, _RETURN, _QUOTE, _SPACE = b'\n\r" '

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2"}
"""The endings of compressed text, and pyarrow's names for them."""


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


def check_utf8(path: Path | ObjectPath, data: memoryview, lines_before: int) -> None:
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


@contextmanager
def opened(path: Path | ObjectPath, position: int) -> Iterator[Any]:
    """The text of a file from a position on, decompressed where its name says that it is compressed.

    Reading raises OSError where compressed text is damaged or ends too early.
    """
    compression = COMPRESSIONS.get(path.suffix.lower())
    if compression is None:
        with path.open("rb") as file:
            file.seek(position)
            yield file
        return
    if not (path.stat().st_size if isinstance(path, Path) else path.size):
        raise UnreadableFileError(f"{path} is empty; even compressed text without rows has a header: is it truncated?")
    with (
        pa.OSFile(str(path)) if isinstance(path, Path) else pa.PythonFile(path.open(), mode="r") as file,
        pa.CompressedInputStream(file, compression) as text,
    ):
        while position and (skipped := len(text.read(min(position, _SKIPPED_AT_ONCE)))):
            position -= skipped
        yield text


def blocks(
    path: Path | ObjectPath,
    head: bytes,
    *,
    delimiter: str | None = None,
    quoted: bool = False,
    on_bytes: Callable[[memoryview], Any] = len,
) -> Iterator[Block]:
    """The lines behind `head`, in blocks of about `BLOCK_BYTES`; `on_bytes` sees every byte of them once, in order.

    The text is CSV if it has a `delimiter`. If its fields may be `quoted`, a line break between double quotes does not
    end a row. A quote opens a field where it is its first character, and nowhere else; one within quotes is doubled.
    Raises UnreadableFileError for a row above 1 GiB and for a quote that is never closed.
    """
    rest, offset, lines = b"", len(head), head.count(b"\n")
    with opened(path, len(head)) as file:
        while True:
            more = file.read(max(BLOCK_BYTES, len(rest)))
            on_bytes(memoryview(more))
            data = rest + more
            ends, opening = _row_ends(np.frombuffer(data, np.uint8), delimiter if quoted else None)
            if not more and opening is not None:
                line = lines + data.count(b"\n", 0, opening) + 1
                raise UnreadableFileError(
                    f"{path} ends within quotes; the last quote is on line {line}: is the file truncated? "
                    'If quotes are characters like any other in it, pass quoting="none"'
                )
            if not more and data and (not len(ends) or ends[-1] != len(data)):
                ends = np.append(ends, len(data))
            if len(ends):
                whole = int(ends[-1])
                view = memoryview(data)[:whole]
                starts = _row_starts(np.frombuffer(view, np.uint8), ends, spaces_count=delimiter is not None)
                yield Block(view, offset, lines, starts)
                lines += int(np.count_nonzero(np.frombuffer(view, np.uint8) == _NEWLINE))
                offset, data = offset + whole, data[whole:]
            if not more:
                return
            rest = data
            if len(rest) > _MAX_ROW_BYTES:
                cause = "a quote that is never closed" if quoted else "not text"
                raise UnreadableFileError(f"{path}: a row of more than 1 GiB begins on line {lines + 1}: {cause}?")


def _row_ends(data: Bytes, delimiter: str | None) -> tuple[Offsets, int | None]:
    """The positions behind the line breaks that end a row, and where the quotes open within which the data end."""
    ends = np.flatnonzero(data == _NEWLINE) + 1
    quotes = np.flatnonzero(data == _QUOTE) if delimiter is not None else ends[:0]
    if delimiter is None or not len(quotes):
        return ends, None
    # Of adjacent quotes, pairs are characters or nothing at all, so that only runs of an odd number count. Such a run
    # closes a quoted field, and opens one where it stands at the beginning of a field.
    first = np.flatnonzero(np.diff(quotes, prepend=-2) != 1)
    runs = quotes[first[np.diff(first, append=len(quotes)) % 2 == 1]]
    before = data[runs - 1]  # of a quote that is the first byte, the last one, which does not count
    opens = (before == ord(delimiter)) | (before == _NEWLINE) | (before == _RETURN) | (runs == 0)
    toggles = np.cumsum(opens)
    since_plain = toggles - np.maximum.accumulate(np.where(opens, 0, toggles))
    inside = np.concatenate([[False], since_plain % 2 == 1])
    ends = ends[~inside[np.searchsorted(runs, ends)]]
    return ends, int(runs[-1]) if inside[-1] else None


def _row_starts(data: Bytes, ends: Offsets, *, spaces_count: bool) -> Offsets:
    """Where the rows start: every line that isn't blank. A CSV line of spaces is a row, as pyarrow reads it."""
    starts = np.concatenate([[0], ends[:-1]])
    first = data[starts]
    if not np.any(first <= _SPACE):
        return starts
    visible = (data != _NEWLINE) & (data != _RETURN) if spaces_count else data > _SPACE
    return starts[np.logical_or.reduceat(visible, starts)]
