"""JSON Lines and CSV files as a source: one schema inferred from the whole file, reading from any row."""

from __future__ import annotations

import json
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import xxhash

from arrowds.errors import SourceError, UnreadableFileError
from arrowds.sources.base import MAX_BATCH_ROWS, plain_schema
from arrowds.sources.files import DataFile, ReadOptions, slice_rows
from arrowds.sources.objects import ObjectPath
from arrowds.sources.records import FileStamp
from arrowds.sources.schemas import schema_difference
from arrowds.sources.text_rows import BLOCK_BYTES, COMPRESSIONS, Block, blocks, check_utf8, opened
from arrowds.sources.text_types import (
    EXACT_IN_FLOAT,
    exact_kind,
    has_large_floats,
    kind_of,
    merge_schemas,
    settled,
    text_stays_text,
)

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
# An integer of 16 digits may be above 2**53.
_LARGE_INTEGER = re.compile(rb"(?<![\d.eE+])\d{16,}(?![\d.eE])")


@dataclass(frozen=True, kw_only=True)
class TextFile(DataFile):
    """One text file with a row per line: what its one pass found out.

    Until `unify` has settled the types, integers in `schema` have the kinds of `text_types`.
    """

    mark_rows: npt.NDArray[np.int64]
    """Row numbers whose positions are known, first 0, last the number of rows."""
    mark_positions: npt.NDArray[np.int64]
    """The byte position of each of `mark_rows` in the text, the last being its end."""

    text_wins: ClassVar[bool]
    """Whether a column of types that don't fit is read as text."""

    @classmethod
    def _scan(cls, stamp: FileStamp, head: bytes, given: pa.Schema, empty: pa.Schema, **how: Any) -> Self:
        """Find the rows, the schema and the digest of the file; `head` is what lies before the first row."""
        path = stamp.path
        state = xxhash.xxh3_128(head)
        schema, rows, end, marks = empty, 0, len(head), []
        splitting = {name: how[name] for name in ("delimiter", "quoted") if name in how}
        for block in blocks(path, head, **splitting, on_bytes=state.update):
            end = block.offset + len(block.data)
            if not len(block.row_starts):
                continue
            schema = merge_schemas([schema, cls._block_schema(path, block, given, how)], path, text_wins=cls.text_wins)
            mark_rows, positions = block.marks()
            marks.append((mark_rows + rows, positions))
            rows += len(block.row_starts)
        compressed = path.suffix.lower() in COMPRESSIONS
        return cls(
            stamp=stamp,
            schema=plain_schema(schema),
            cuts=np.unique([0, rows]),
            splittable=not compressed,
            digest="" if compressed else state.hexdigest(),
            mark_rows=np.concatenate([*(found for found, _ in marks), [rows]]),
            mark_positions=np.concatenate([*(found for _, found in marks), [end]]),
            **how,
        )

    @classmethod
    def _block_schema(cls, path: Path | ObjectPath, block: Block, given: pa.Schema, how: dict[str, Any]) -> pa.Schema:
        """Parse a block with inferred types, checking that it is UTF-8 and that each line is one row."""
        check_utf8(path, block.data, block.lines_before)
        try:
            table = cls._parse(block.data, given, None, **how)
        except pa.ArrowInvalid as error:
            row = cls._failing_row(block, error, given, how)
            raise UnreadableFileError(
                f"can't read {path}, line {block.line_of_row(row)}: {cls._misfit(block, given, how)}{error}"
            ) from error
        if table.num_rows != len(block.row_starts):
            raise UnreadableFileError(
                f"{path}: from line {block.line_of_row(0)} on, {len(block.row_starts)} lines hold {table.num_rows} "
                f"rows; {cls.format} must have one row per line"
            )
        types = {}
        for name, column in zip(table.schema.names, table.columns, strict=True):
            if name in given.names:
                types[name] = column.type
            elif not has_large_floats(column):
                types[name] = kind_of(column)
            else:
                try:
                    types[name] = cls._exact_kind(name, column, block, how)
                except SourceError as error:
                    raise SourceError(f"{path}: {error}") from error
        return pa.schema([(name, kind if name in given.names else cls._kept(kind)) for name, kind in types.items()])

    @classmethod
    def _misfit(cls, block: Block, given: pa.Schema, how: dict[str, Any]) -> str:
        """Which of the given types does not fit the block, in words; empty where all do."""
        for field in given:
            try:
                cls._parse(block.data, pa.schema([field]), [field.name], **how)
            except pa.ArrowInvalid:
                return f"column {field.name!r} is not {field.type} everywhere: "
            except KeyError:
                continue  # a CSV file lacks the column, which unify names
        return ""

    @classmethod
    def _failing_row(cls, block: Block, error: Exception, given: pa.Schema, how: dict[str, Any]) -> int:
        """The first row that can't be parsed: as pyarrow says, or found by parsing ever fewer rows."""
        place = re.search(r"in row (\d+)|Row #(\d+)", str(error))
        if place is not None:
            return int(place[1] or int(place[2]) - 1)
        ends = [*block.row_starts.tolist()[1:], len(block.data)]
        low, high = 0, len(ends)  # the first `low` rows parse, the first `high` don't
        while high - low > 1:
            middle = (low + high) // 2
            try:
                cls._parse(block.data[: ends[middle - 1]], given, None, **how)
                low = middle
            except pa.ArrowInvalid:
                high = middle
        return high - 1

    @staticmethod
    def _kept(kind: pa.DataType) -> pa.DataType:
        """The type as which an inferred type is kept."""
        return kind

    @classmethod
    @abstractmethod
    def _exact_kind(cls, name: str, column: pa.ChunkedArray, block: Block, how: dict[str, Any]) -> pa.DataType:
        """The kind of a column that was read as floats, some of which may be integers that were rounded."""

    @staticmethod
    @abstractmethod
    def _parse(data: memoryview | bytes, schema: pa.Schema, columns: list[str] | None, **how: Any) -> pa.Table:
        """Parse whole lines: these columns of `schema`, or all, with inferred types for those that it lacks."""

    def _how(self) -> dict[str, Any]:
        return {}

    def batches(self, start: int, stop: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Parse from the nearest known position on, about `BLOCK_BYTES` at a time."""
        mark = int(np.searchsorted(self.mark_rows, start, side="right")) - 1
        with opened(self.path, int(self.mark_positions[mark])) as file:
            while self.mark_rows[mark] < stop:
                enough = int(np.searchsorted(self.mark_positions, self.mark_positions[mark] + BLOCK_BYTES, side="left"))
                last = int(np.searchsorted(self.mark_rows, stop, side="left"))
                end = max(min(enough, last, len(self.mark_rows) - 1), mark + 1)
                data = file.read(int(self.mark_positions[end] - self.mark_positions[mark]))
                first_row, rows = int(self.mark_rows[mark]), int(self.mark_rows[end] - self.mark_rows[mark])
                try:
                    table = self._parse(data, self.schema, columns, **self._how())
                except pa.ArrowInvalid as error:
                    raise UnreadableFileError(
                        f"can't read {self.path}, rows {first_row} to {first_row + rows - 1}: {error}"
                    ) from error
                if table.num_rows != rows:
                    raise UnreadableFileError(f"{self.path} changed since it was opened; open the source again")
                yield from slice_rows(iter(table.to_batches()), first_row, start, stop, MAX_BATCH_ROWS)
                mark = end

    @classmethod
    def unify(cls, files: Sequence[DataFile], given: pa.Schema) -> tuple[pa.Schema, dict[str, str]]:
        """All columns of all files, with the types merged as within one file."""
        schema = files[0].schema
        for file in files[1:]:
            schema = merge_schemas([schema, file.schema], file.path, text_wins=cls.text_wins)
        types = {field.name: settled(field.type) for field in schema} | {field.name: field.type for field in given}
        return pa.schema(types), {}


@dataclass(frozen=True, kw_only=True)
class JsonLinesFile(TextFile):
    """One JSON Lines file: an object per line; keys that a line lacks are null."""

    format: ClassVar[str] = "json lines"
    text_wins: ClassVar[bool] = False

    @classmethod
    def _open(cls, stamp: FileStamp, options: ReadOptions) -> JsonLinesFile:
        """Read the whole file once."""
        return cls._scan(stamp, _byte_order_mark(stamp.path), options.schema, options.schema)

    @staticmethod
    def _parse(data: memoryview | bytes, schema: pa.Schema, columns: list[str] | None, **how: Any) -> pa.Table:
        """Parse JSON Lines."""
        # pyarrow drops rows of which it reads no field at all, so one field is read and left out again.
        names = schema.names if columns is None else columns or schema.names[:1]
        return pa.json.read_json(
            pa.BufferReader(data),
            pa.json.ReadOptions(use_threads=False, block_size=max(len(data), 1)),
            pa.json.ParseOptions(
                explicit_schema=pa.schema([schema.field(name) for name in names]),
                unexpected_field_behavior="infer" if columns is None else "ignore",
            ),
        )

    @staticmethod
    def _kept(kind: pa.DataType) -> pa.DataType:
        return text_stays_text(kind)

    @classmethod
    def _exact_kind(cls, name: str, column: pa.ChunkedArray, block: Block, how: dict[str, Any]) -> pa.DataType:
        if not _LARGE_INTEGER.search(block.data):
            return kind_of(column)
        try:
            unsigned = cls._parse(block.data, pa.schema([(name, _unsigned(column.type))]), [name])
            return kind_of(unsigned.column(name))
        except pa.ArrowInvalid:
            ends = [*block.row_starts.tolist()[1:], len(block.data)]
            lines = (block.data[a:b] for a, b in zip(block.row_starts.tolist(), ends, strict=True))
            return exact_kind(name, [json.loads(bytes(line)).get(name) for line in lines], column.type)


@dataclass(frozen=True, kw_only=True)
class CsvFile(TextFile):
    """One CSV (or, by its delimiter, TSV) file with a header line; line breaks within quotes are part of the value."""

    format: ClassVar[str] = "csv"
    text_wins: ClassVar[bool] = True

    delimiter: str
    quoted: bool
    names: tuple[str, ...]

    @classmethod
    def _open(cls, stamp: FileStamp, options: ReadOptions) -> CsvFile:
        """Read the whole file once."""
        path = stamp.path
        plain_name = path.stem if path.suffix.lower() in COMPRESSIONS else path.name
        delimiter = "\t" if plain_name.lower().endswith(".tsv") else ","
        how: dict[str, Any] = {"delimiter": delimiter, "quoted": options.quoting != "none"}
        head = _header(path, **how)
        check_utf8(path, memoryview(head), 0)
        names = _header_names(head, **how)
        types = {field.name: field.type for field in options.schema}
        empty = plain_schema(pa.schema([(name, types.get(name, pa.null())) for name in names]))
        return cls._scan(stamp, head, options.schema, empty, names=names, **how)

    @staticmethod
    def _parse(data: memoryview | bytes, schema: pa.Schema, columns: list[str] | None, **how: Any) -> pa.Table:
        """Parse CSV rows without a header."""
        return pa.csv.read_csv(
            pa.BufferReader(data),
            pa.csv.ReadOptions(use_threads=False, block_size=max(len(data), 1), column_names=list(how["names"])),
            _csv_options(how["delimiter"], quoted=how["quoted"]),
            pa.csv.ConvertOptions(
                column_types={field.name: field.type for field in schema},
                include_columns=None if columns is None else columns or schema.names[:1],
            ),
        )

    def _how(self) -> dict[str, Any]:
        return {"delimiter": self.delimiter, "quoted": self.quoted, "names": self.names}

    @classmethod
    def _exact_kind(cls, name: str, column: pa.ChunkedArray, block: Block, how: dict[str, Any]) -> pa.DataType:
        def read(dtype: pa.DataType) -> pa.ChunkedArray:
            return cls._parse(block.data, pa.schema([(name, dtype)]), [name], **how).column(name)

        try:
            return kind_of(read(pa.uint64()))
        except pa.ArrowInvalid:
            large = pc.greater_equal(pc.abs(column), float(EXACT_IN_FLOAT))
            literals = read(pa.string()).filter(large)
            rounded = pc.any(pc.match_substring_regex(literals, r"^\s*[+-]?\d+\s*$")).as_py()
            return pa.string() if rounded else column.type

    @classmethod
    def unify(cls, files: Sequence[DataFile], given: pa.Schema) -> tuple[pa.Schema, dict[str, str]]:
        """The same header in all files, in any order, with the types merged as within one file."""
        expected = _untyped(files[0].schema.names)
        for file in files:
            names = file.schema.names
            if difference := schema_difference(expected, _untyped(names)):
                raise SourceError(f"{file.path} does not fit {files[0].path}: {difference}")
            present = _untyped([name for name in names if name in given.names])
            if difference := schema_difference(_untyped(given.names), present):
                raise SourceError(f"{file.path} does not fit the expected columns: {difference}")
        return super().unify(files, given)


def _unsigned(kind: pa.DataType) -> pa.DataType:
    """The type with uint64 for each float. Pure."""
    if pa.types.is_floating(kind):
        return pa.uint64()
    if pa.types.is_list(kind):
        return pa.list_(_unsigned(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _unsigned(field.type)) for field in kind])
    return kind


def _untyped(names: Sequence[str]) -> pa.Schema:
    return pa.schema([(name, pa.null()) for name in names])


def _byte_order_mark(path: Path | ObjectPath) -> bytes:
    with opened(path, 0) as file:
        return _BYTE_ORDER_MARK if file.read(3) == _BYTE_ORDER_MARK else b""


def _header(path: Path | ObjectPath, *, delimiter: str, quoted: bool) -> bytes:
    """The bytes of the first row that isn't blank, and all before it."""
    mark = _byte_order_mark(path)
    for block in blocks(path, mark, delimiter=delimiter, quoted=quoted):
        if len(block.row_starts):
            end = block.row_starts[1] if len(block.row_starts) > 1 else len(block.data)
            return mark + bytes(block.data[:end])
    return b""


def _header_names(head: bytes, *, delimiter: str, quoted: bool) -> tuple[str, ...]:
    if not head:
        return ()
    return tuple(
        pa.csv.read_csv(pa.BufferReader(head), parse_options=_csv_options(delimiter, quoted=quoted)).column_names
    )


def _csv_options(delimiter: str, *, quoted: bool) -> pa.csv.ParseOptions:
    return pa.csv.ParseOptions(delimiter=delimiter, newlines_in_values=quoted, quote_char='"' if quoted else False)
