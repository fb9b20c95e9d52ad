"""Source, what every kind of data looks like to the rest: a length, batches of a row range, a fingerprint."""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from arrowds.batch import Batch
from arrowds.errors import MissingColumnError, SourceError
from arrowds.sources.records import SourceFile

MAX_BATCH_ROWS = 65_536
"""The most rows that the batches of tables and files have."""

_MAX_NAMES_SHOWN = 8


class Source(ABC):
    """Ordered rows that can be read from any point; a row's number is its sample id.

    A source can be pickled with cloudpickle and read after a fork: files are opened where they are read.

    Example:
        >>> import arrowds.sources, pyarrow as pa
        >>> source = arrowds.sources.open_source(pa.table({"x": [1, 2, 3]}))
        >>> len(source), source.column_names, [batch.num_rows for batch in source.read(1, 3)]
        (3, ('x',), [2])
    """

    concurrent: bool = False
    """Whether `read` may run in several threads at once and leaves the GIL free most of the time."""

    batch_size: int = MAX_BATCH_ROWS
    """Rows of each batch that is no record batch, which has a length of its own; the last of a range may have fewer."""

    computed: tuple[str, ...] = ()
    """The columns that `read` computes at some cost, such as token ids: a build of two passes keeps them."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of rows."""

    @property
    def schema(self) -> pa.Schema | None:
        """The columns and their types, or None where batches aren't columnar."""
        return None

    @property
    def column_names(self) -> tuple[str, ...] | None:
        """The names of the columns, or None where batches aren't columnar."""
        return None if self.schema is None else tuple(self.schema.names)

    @abstractmethod
    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> Iterator[Batch]:
        """The rows [start, stop) in order, as batches of bounded memory.

        `columns` selects columns and their order (default: all); a source that isn't columnar ignores it.
        Raises SourceError for a range outside the data, MissingColumnError for an unknown column and
        UnreadableFileError for a file that can't be read any more.
        """

    def part_boundaries(self, target_rows: int) -> Sequence[int]:
        """Where to cut the rows into parts of about `target_rows`: increasing row numbers, first 0, last `len(self)`.

        Depends on the data and `target_rows` alone, never on who reads. An empty source has the one boundary 0.
        """
        check_target(target_rows)
        return [*range(0, len(self), target_rows), len(self)]

    @abstractmethod
    def fingerprint(self) -> str:
        """32 hexadecimal digits (XXH3, 128 bits) of the ordered content: other data, other digits."""

    def fingerprint_of(self, start: int, stop: int) -> str | None:
        """The fingerprint that a source of the rows [start, stop) alone would have; None where it can't be told."""
        return self.fingerprint() if (start, stop) == (0, len(self)) else None

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """The files that the rows lie in, in the order of the rows; empty where they lie in no file.

        The first use digests every file; raises UnreadableFileError where one changed since it was opened.
        """
        return ()

    def without(self, known: Sequence[SourceFile], *, compare_content: bool = False) -> Source | None:
        """The same source without the files that `known` records; None where that leaves nothing.

        A source that has no files is returned as it is. Raises SourceError where a known file has other content now
        or, if this source has any of the known files, where one of them is missing. `compare_content` compares the
        content of all files, whatever their paths and modification times.
        """
        return self

    def to_spec(self) -> Mapping[str, Any] | None:
        """A description in plain JSON values from which `source_from_spec` opens the same rows again.

        None where there is no such description, as for data in memory. Raises UnreadableFileError where a file
        changed since it was opened.
        """
        return None

    @property
    def stored(self) -> Source:
        """The source of the rows as they are stored: of tokenized text, that of the text."""
        return self

    @property
    @abstractmethod
    def description(self) -> str:
        """One line for people, the same wherever the data lie: no folder, host or time."""

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise MissingColumnError, naming the columns there are, unless all of `columns` exist."""
        if self.column_names is None:
            return
        missing = [name for name in columns if name not in self.column_names]
        if missing:
            there = ", ".join(map(repr, self.column_names)) or "no columns"
            raise MissingColumnError(f"no column {', '.join(map(repr, missing))}; the data has {there}")

    def check_read(self, start: int, stop: int, columns: Sequence[str] | None) -> list[str] | None:
        """Check the arguments of `read` and return the columns as a list, None standing for all."""
        if isinstance(columns, str):
            raise SourceError(f"columns must be a sequence of names, not the string {columns!r}; use [{columns!r}]")
        if not 0 <= start <= stop <= len(self):
            raise SourceError(f"rows [{start}, {stop}) are not within the {len(self)} rows of {self.description}")
        if columns is None:
            return None
        self.check_columns(columns)
        return list(columns)


def check_target(target_rows: int) -> None:
    """Raise SourceError unless parts of `target_rows` make sense.

    >>> check_target(1000)
    """
    if target_rows < 1:
        raise SourceError(f"target_rows must be at least 1, not {target_rows}")


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The same columns without metadata and top-level nullability, which differ between files for no reason.

    Raises SourceError where two columns have one name, and where a name, also of a nested field, is not UTF-8.

    >>> plain_schema(pa.schema([pa.field("x", pa.int8(), nullable=False)], metadata={"by": "pandas"}))
    x: int8
    """
    try:
        for field in schema:
            _read_names(field)
    except UnicodeDecodeError as error:
        raise SourceError(f"the name of a column is not UTF-8 ({error}); rename it, or is the file damaged?") from error
    repeated = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if repeated:
        raise SourceError(
            f"column {repeated[0]!r} appears more than once; rename it, so that it can be selected by name"
        )
    return pa.schema([pa.field(field.name, field.type) for field in schema])


def _read_names(field: pa.Field) -> None:
    """Read the names of a field and of those in it, which raises UnicodeDecodeError where one is not UTF-8."""
    _ = field.name
    for number in range(field.type.num_fields):
        _read_names(field.type.field(number))


def schema_to_text(schema: pa.Schema) -> str:
    """The schema as a string for JSON: its Arrow IPC message in base64."""
    return base64.b64encode(schema.serialize()).decode()


def schema_from_text(text: str) -> pa.Schema:
    """The schema of a string by `schema_to_text`; raises SourceError for any other string.

    >>> schema_from_text(schema_to_text(pa.schema({"x": pa.int8()})))
    x: int8
    """
    try:
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text, validate=True)))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise SourceError(f"the description of a schema is damaged: {error}") from error


def describe_columns(schema: pa.Schema) -> str:
    """The column names for `Source.description`, shortened where there are many.

    >>> describe_columns(pa.schema({"a": pa.int8(), "b": pa.int8()}))
    'columns a, b'
    """
    names = schema.names
    if not names:
        return "no columns"
    more = f" and {len(names) - _MAX_NAMES_SHOWN} more" if len(names) > _MAX_NAMES_SHOWN else ""
    return f"column{'s' if len(names) > 1 else ''} {', '.join(names[:_MAX_NAMES_SHOWN])}{more}"
