"""JSON Lines and CSV files as a source: one schema inferred from the whole file, reading from any row."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import xxhash

from arrowds.errors import SourceError, UnreadableFileError
from arrowds.sources.base import MAX_BATCH_ROWS, plain_schema
from arrowds.sources.files import DataFile, schema_difference, slice_rows
from arrowds.sources.records import FileStamp
from arrowds.sources.text_rows import BLOCK_BYTES, Block, blocks, check_utf8
from arrowds.sources.text_types import merge_schemas

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True)
class TextFile(DataFile):
    """One text file with a row per line: what its one pass found out."""

    mark_rows: npt.NDArray[np.int64]
    """Row numbers whose positions are known, first 0, last the number of rows."""
    mark_positions: npt.NDArray[np.int64]
    """The byte position of each of `mark_rows`, the last being the end of the file."""

    quoted: ClassVar[bool]

    @classmethod
    def _scan(cls, stamp: FileStamp, head: bytes, empty: pa.Schema, **options: Any) -> Self:
        """Find the rows, the schema and the digest of the file; `head` is what lies before the first row."""
        path = stamp.path
        state = xxhash.xxh3_128(head)
        schema, rows, marks = empty, 0, []
        for block in blocks(path, head, quoted=cls.quoted, on_bytes=state.update):
            if not len(block.row_starts):
                continue
            table = cls._parse_block(path, block, empty, options)
            schema = merge_schemas([schema, table.schema], path, text_wins=cls.quoted)
            mark_rows, positions = block.marks()
            marks.append((mark_rows + rows, positions))
            rows += len(block.row_starts)
        return cls(
            stamp=stamp,
            schema=plain_schema(schema),
            cuts=np.unique([0, rows]),
            splittable=True,
            digest=state.hexdigest(),
            mark_rows=np.concatenate([*(found for found, _ in marks), [rows]]),
            mark_positions=np.concatenate([*(found for _, found in marks), [stamp.num_bytes]]),
            **options,
        )

    @classmethod
    def _parse_block(cls, path: Path, block: Block, empty: pa.Schema, options: dict[str, Any]) -> pa.Table:
        """Parse a block with inferred types, checking that it is UTF-8 and that each line is one row."""
        check_utf8(path, block.data, block.lines_before)
        try:
            table = cls._parse(block.data, empty, None, **options)
        except pa.ArrowInvalid as error:
            place = re.search(r"in row (\d+)|Row #(\d+)", str(error))
            number = None if place is None else int(place[1] or int(place[2]) - 1)
            where = "" if number is None else f", line {block.line_of_row(number)}"
            raise UnreadableFileError(f"can't read {path}{where}: {error}") from error
        if table.num_rows != len(block.row_starts):
            raise UnreadableFileError(
                f"{path}: from line {block.line_of_row(0)} on, {len(block.row_starts)} lines hold {table.num_rows} "
                f"rows; {cls.format} must have one row per line"
            )
        return table

    @staticmethod
    @abstractmethod
    def _parse(data: memoryview | bytes, schema: pa.Schema, columns: list[str] | None, **options: Any) -> pa.Table:
        """Parse whole lines: these columns of `schema`, or with inferred types where `columns` is None."""

    def _options(self) -> dict[str, Any]:
        return {}

    def batches(self, start: int, stop: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Parse from the nearest known position on, about `BLOCK_BYTES` at a time."""
        mark = int(np.searchsorted(self.mark_rows, start, side="right")) - 1
        while self.mark_rows[mark] < stop:
            enough = int(np.searchsorted(self.mark_positions, self.mark_positions[mark] + BLOCK_BYTES, side="left"))
            last = int(np.searchsorted(self.mark_rows, stop, side="left"))
            end = max(min(enough, last, len(self.mark_rows) - 1), mark + 1)
            table = self._parse(self._bytes(mark, end), self.schema, columns, **self._options())
            first_row, rows = int(self.mark_rows[mark]), int(self.mark_rows[end] - self.mark_rows[mark])
            if table.num_rows != rows:
                raise UnreadableFileError(f"{self.path} changed since it was opened; open the source again")
            yield from slice_rows(iter(table.to_batches()), first_row, start, stop, MAX_BATCH_ROWS)
            mark = end

    def _bytes(self, mark: int, end: int) -> bytes:
        begin, stop = int(self.mark_positions[mark]), int(self.mark_positions[end])
        with self.path.open("rb") as file:
            file.seek(begin)
            return file.read(stop - begin)


@dataclass(frozen=True, kw_only=True)
class JsonLinesFile(TextFile):
    """One JSON Lines file: an object per line; keys that a line lacks are null."""

    format: ClassVar[str] = "json lines"
    quoted: ClassVar[bool] = False

    @classmethod
    def _open(cls, stamp: FileStamp) -> JsonLinesFile:
        """Read the whole file once."""
        return cls._scan(stamp, _byte_order_mark(stamp.path), pa.schema([]))

    @staticmethod
    def _parse(data: memoryview | bytes, schema: pa.Schema, columns: list[str] | None, **options: Any) -> pa.Table:
        """Parse JSON Lines."""
        read = pa.json.ReadOptions(use_threads=False, block_size=len(data))
        if columns is None:
            return pa.json.read_json(pa.BufferReader(data), read)
        # pyarrow drops rows of which it reads no field at all, so one field is read and left out again.
        wanted = columns or schema.names[:1]
        explicit = pa.schema([schema.field(name) for name in wanted])
        parse = pa.json.ParseOptions(explicit_schema=explicit, unexpected_field_behavior="ignore")
        return pa.json.read_json(pa.BufferReader(data), read, parse)

    @classmethod
    def unify(cls, files: Sequence[DataFile], given: pa.Schema) -> pa.Schema:
        """All keys of all files, with the types merged as within one file."""
        return _merged(files, given, text_wins=False)


@dataclass(frozen=True, kw_only=True)
class CsvFile(TextFile):
    """One CSV (or, by its delimiter, TSV) file with a header line; line breaks within quotes are part of the value."""

    format: ClassVar[str] = "csv"
    quoted: ClassVar[bool] = True

    delimiter: str
    names: tuple[str, ...]

    @classmethod
    def _open(cls, stamp: FileStamp) -> CsvFile:
        """Read the whole file once."""
        delimiter = "\t" if stamp.path.suffix == ".tsv" else ","
        head = _header(stamp.path)
        check_utf8(stamp.path, memoryview(head), 0)
        names = _header_names(head, delimiter)
        empty = plain_schema(_untyped(names))
        return cls._scan(stamp, head, empty, delimiter=delimiter, names=names)

    @staticmethod
    def _parse(data: memoryview | bytes, schema: pa.Schema, columns: list[str] | None, **options: Any) -> pa.Table:
        """Parse CSV rows without a header."""
        types = {field.name: field.type for field in schema} if columns is not None else None
        include = None if columns is None else columns or schema.names[:1]
        return pa.csv.read_csv(
            pa.BufferReader(data),
            pa.csv.ReadOptions(use_threads=False, block_size=max(len(data), 1), column_names=list(options["names"])),
            pa.csv.ParseOptions(delimiter=options["delimiter"], newlines_in_values=True),
            pa.csv.ConvertOptions(column_types=types, include_columns=include),
        )

    def _options(self) -> dict[str, Any]:
        return {"delimiter": self.delimiter, "names": self.names}

    @classmethod
    def unify(cls, files: Sequence[DataFile], given: pa.Schema) -> pa.Schema:
        """The same header in all files, in any order, with the types merged as within one file."""
        expected = _untyped(files[0].schema.names)
        for file in files:
            names = file.schema.names
            if difference := schema_difference(expected, _untyped(names)):
                raise SourceError(f"{file.path} does not fit {files[0].path}: {difference}")
            settled = _untyped([name for name in names if name in given.names])
            if difference := schema_difference(_untyped(given.names), settled):
                raise SourceError(f"{file.path} does not fit the expected columns: {difference}")
        return _merged(files, given, text_wins=True)


def _untyped(names: Sequence[str]) -> pa.Schema:
    return pa.schema([(name, pa.null()) for name in names])


def _merged(files: Sequence[DataFile], given: pa.Schema, *, text_wins: bool) -> pa.Schema:
    """The types of all files merged; those of `given` are settled, and a file whose values need another is refused."""
    schema = files[0].schema
    for file in files:
        schema = merge_schemas([schema, file.schema], file.path, text_wins=text_wins)
        known = pa.schema([field for field in file.schema if field.name in given.names])
        settled = merge_schemas([given, known], file.path, text_wins=text_wins)
        if difference := schema_difference(given, settled):
            raise SourceError(f"{file.path} does not fit the expected columns: {difference}")
    types = {field.name: field.type for field in schema} | {field.name: field.type for field in given}
    return pa.schema(types)


def _byte_order_mark(path: Path) -> bytes:
    with path.open("rb") as file:
        return _BYTE_ORDER_MARK if file.read(3) == _BYTE_ORDER_MARK else b""


def _header(path: Path) -> bytes:
    """The bytes of the first row that isn't blank, and all before it."""
    for block in blocks(path, b"", quoted=True, on_bytes=len):
        if len(block.row_starts):
            end = block.row_starts[1] if len(block.row_starts) > 1 else len(block.data)
            return bytes(block.data[:end])
    return b""


def _header_names(head: bytes, delimiter: str) -> tuple[str, ...]:
    if not head:
        return ()
    parse = pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    return tuple(pa.csv.read_csv(pa.BufferReader(head), parse_options=parse).column_names)
