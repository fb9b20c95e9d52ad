"""Several data files of one format as one source; what a format has to bring."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from arrowds.errors import ArrowdsError, MissingColumnError, SourceError, UnreadableFileError
from arrowds.sources import fingerprint
from arrowds.sources.base import Source, describe_columns, schema_from_text, schema_to_text
from arrowds.sources.boundaries import merge_cuts
from arrowds.sources.objects import ObjectPath
from arrowds.sources.records import FileStamp, SourceFile, digests, new_files, recorded_stamp
from arrowds.sources.schemas import common_type
from arrowds.sources.validation import check_array

logger = logging.getLogger(__name__)

Quoting = Literal["standard", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReadOptions:
    """How files are to be read, where their format leaves it open.

    Attributes:
        schema: the types of some columns, which every file must have.
        quoting: "none" if double quotes in CSV are characters like any other.
    """

    schema: pa.Schema = field(default_factory=lambda: pa.schema([]))
    quoting: Quoting = "standard"


@dataclass(frozen=True, kw_only=True)
class DataFile(ABC):
    """One file: what was found out when it was opened. Small, and safe to send to another process."""

    format: ClassVar[str]

    stamp: FileStamp
    schema: pa.Schema
    cuts: npt.NDArray[np.int64]
    """Row numbers where reading is cheap to start, first 0, last the number of rows."""
    splittable: bool
    """Whether reading may start between the cuts at little cost."""
    digest: str = ""
    """The digest of its bytes where opening the file had to read all of them."""

    def __post_init__(self) -> None:
        """Raise UnreadableFileError for row numbers that can't be."""
        if self.cuts[0] or np.any(np.diff(self.cuts) < 0):
            raise UnreadableFileError(f"{self.path} is damaged: it says that it has a negative number of rows")

    @classmethod
    def open(cls, path: Path | ObjectPath, options: ReadOptions | None = None) -> Self:
        """Find out what reading needs to know; raises UnreadableFileError that names the file."""
        stamp = FileStamp.of(path)
        with naming_the_file(path):
            file = cls._open(stamp, options or ReadOptions())
        stamp.check()
        return replace(file, digest="") if isinstance(path, ObjectPath) else file  # that of an object is its ETag

    @classmethod
    @abstractmethod
    def _open(cls, stamp: FileStamp, options: ReadOptions) -> Self:
        """Open the file, which may raise what pyarrow and the system raise."""

    @property
    def path(self) -> Path | ObjectPath:
        """Where the file is."""
        return self.stamp.path

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return int(self.cuts[-1])

    @abstractmethod
    def batches(self, start: int, stop: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Batches of bounded size that together are rows [start, stop), with these columns in any order."""

    @classmethod
    def unify(cls, files: Sequence[DataFile], given: pa.Schema) -> tuple[pa.Schema, dict[str, str]]:
        """The one schema under which all files are read, and for each column that it leaves out the reason.

        `given` has the types that are settled already. Raises SourceError, naming the file, where a file doesn't fit
        `given`, or where nothing is left.
        """
        first = files[0]
        types = {column.name: column.type for column in first.schema}
        left_out: dict[str, str] = {}
        for file in files:
            present = {column.name: column.type for column in file.schema}
            for column in given:
                if problem := _misfit(column.name, column.type, present):
                    raise SourceError(f"{file.path} does not fit the expected columns: {problem}")
            if file.schema.equals(first.schema):
                continue
            problems = {name: _misfit(name, kind, present) for name, kind in types.items()}
            problems |= {name: f"column {name!r} is additional" for name in present if name not in first.schema.names}
            left_out |= {
                name: f"{file.path} does not fit {first.path}: {problem}"
                for name, problem in problems.items()
                if problem and name not in (*given.names, *left_out)
            }
            types = {name: common_type(kind, present[name]) for name, kind in types.items() if name not in left_out}
        if left_out and not types:
            raise SourceError("; ".join(left_out.values()))
        types |= {column.name: column.type for column in given}
        return pa.schema(types), left_out

    def to_spec(self) -> dict[str, Any]:
        """What was found out, but for the stamp and the schema, as plain JSON values."""
        values = {found.name: getattr(self, found.name) for found in fields(self)}
        return {
            name: np.asarray(value).tolist() if isinstance(value, np.ndarray | tuple) else value
            for name, value in values.items()
            if name not in ("stamp", "schema")
        }

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], stamp: FileStamp, schema: pa.Schema) -> Self:
        """The file of a description by `to_spec`."""
        values = {
            found.name: _from_json(spec[found.name], str(found.type)) for found in fields(cls) if found.name in spec
        }
        return cls(stamp=stamp, schema=schema, **values)


def _misfit(name: str, kind: pa.DataType, present: Mapping[str, pa.DataType]) -> str:
    """Why a column can't be read as `kind`, in words; empty where it can. Pure."""
    if name not in present:
        return f"column {name!r} is missing"
    fits = common_type(kind, present[name]) is not None
    return "" if fits else f"column {name!r} is {present[name]} instead of {kind}"


def _from_json(value: Any, annotation: str) -> Any:
    """The value of a field with this annotation; raises TypeError for a value of another type."""
    match annotation, value:
        case "npt.NDArray[np.int64]", [_, *_] if all(type(item) is int for item in value):
            return np.array(value, np.int64)
        case "tuple[str, ...]", list() if all(isinstance(item, str) for item in value):
            return tuple(value)
        case ("bool", bool()) | ("str", str()):
            return value
    raise TypeError(f"{value!r} is not a value of the type {annotation}")


class FileSource(Source):
    """Files of one format, one after the other in the order given.

    Made by `open_source`, or from paths through the `open` function of a format.
    """

    concurrent = True

    def __init__(self, files: Sequence[DataFile], schema: pa.Schema | None = None) -> None:
        """`files` must not be empty; raises SourceError where their schemas don't fit each other or `schema`."""
        self._schema, self._left_out = type(files[0]).unify(files, pa.schema([]) if schema is None else schema)
        for reason in self._left_out.values():
            logger.warning("a column is left out: %s", reason)
        # One schema object for all, so that a pickle holds it once.
        self._files = [replace(file, schema=self._schema) for file in files]
        self._starts = np.concatenate([[0], np.cumsum([file.num_rows for file in files], dtype=np.int64)])

    def __len__(self) -> int:
        """The number of rows of all files."""
        return int(self._starts[-1])

    @property
    def schema(self) -> pa.Schema:
        """The columns and their types."""
        return self._schema

    def check_columns(self, columns: Sequence[str]) -> None:
        """Raise MissingColumnError for a column that is missing or left out, with the file that it doesn't fit."""
        for reason in [self._left_out[name] for name in columns if name in self._left_out]:
            raise MissingColumnError(reason)
        super().check_columns(columns)

    def part_boundaries(self, target_rows: int) -> Sequence[int]:
        """Multiples of `target_rows`, or row groups where only those are cheap to start from, small ones merged."""
        if all(file.splittable for file in self._files):
            return super().part_boundaries(target_rows)
        cuts = [file.cuts + start for file, start in zip(self._files, self._starts, strict=False)]
        return merge_cuts(np.concatenate(cuts), target_rows)

    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows [start, stop); every batch has the same schema."""
        names = self.check_read(start, stop, columns)
        return self._read(start, stop, self._schema.names if names is None else names)

    def _read(self, start: int, stop: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        schema = pa.schema([self._schema.field(name) for name in columns])
        first, last = np.searchsorted(self._starts, [start + 1, stop], side="left") - [1, 0]
        for number, offset in zip(range(first, last), self._starts[first:last].tolist(), strict=True):
            file = self._files[number]
            low, high = max(start - offset, 0), min(stop - offset, file.num_rows)
            with naming_the_file(file.path):
                self._check_unchanged(number)
                if low < high:
                    yield from counted(
                        (conform(batch, schema) for batch in file.batches(low, high, columns)), high - low
                    )
                    self._check_unchanged(number)

    @property
    def is_local_parquet(self) -> bool:
        """Whether other programs can read the files by their paths, as Parquet."""
        return self._files[0].format == "parquet" and all(isinstance(file.path, Path) for file in self._files)

    def check_unchanged(self) -> None:
        """Raise UnreadableFileError where a file is no longer the one that was opened."""
        for number in range(len(self._files)):
            self._check_unchanged(number)

    def _check_unchanged(self, number: int) -> None:
        known = self.__dict__.get("_digests")
        self._files[number].stamp.check(known[number] if known else self._files[number].digest)

    def fingerprint(self) -> str:
        """The digest of the files' bytes, in order; their names don't count."""
        return fingerprint.combine(self._files[0].format, self._digests)

    @cached_property
    def _digests(self) -> list[str]:
        unread = {file.path: file.stamp for file in self._files if not file.digest}
        read = dict(zip(unread, digests(list(unread.values())), strict=True))
        return [file.digest or read[file.path] for file in self._files]

    @property
    def left_out(self) -> Mapping[str, str]:
        """The columns that do not fit into one table, with the reason for each."""
        return self._left_out

    @property
    def rows_of_files(self) -> list[tuple[str, int]]:
        """The path and the number of rows of each file in order."""
        return [(str(file.path), file.num_rows) for file in self._files]

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """The files in order."""
        pairs = zip(self._files, self._digests, strict=True)
        return tuple(file.stamp.record(file.num_rows, digest) for file, digest in pairs)

    def without(self, known: Sequence[SourceFile], *, compare_content: bool = False) -> FileSource | None:
        """The files that are new, under the schema of all."""
        new = set(new_files([file.path for file in self._files], known, compare_content=compare_content))
        left = [file for file in self._files if file.path in new]
        if len(left) == len(self._files):
            return self
        return FileSource(left, self._schema) if left else None

    def to_spec(self) -> dict[str, Any]:
        """The files with what was found out about each, and the schema."""
        return {
            "kind": "files",
            "format": self._files[0].format,
            "schema": schema_to_text(self._schema),
            "files": [
                {"record": asdict(record), "layout": file.to_spec()}
                for record, file in zip(self.files, self._files, strict=True)
            ],
        }

    @classmethod
    def from_spec(
        cls, spec: Mapping[str, Any], file_class: type[DataFile], storage_options: Mapping[str, Any] | None = None
    ) -> FileSource:
        """The source of a description by `to_spec`; raises UnreadableFileError for a file that differs."""
        schema = schema_from_text(spec["schema"])
        records = [SourceFile.from_json(file["record"]) for file in spec["files"]]
        stamps = [recorded_stamp(record, storage_options) for record in records]
        both = zip(spec["files"], stamps, strict=True)
        self = cls([file_class.from_spec(file["layout"], stamp, schema) for file, stamp in both], schema)
        self._digests = [record.digest for record in records]
        return self

    @property
    def description(self) -> str:
        """For instance "parquet, 3 files, columns input_ids, text"."""
        count = f"{len(self._files)} file{'s' if len(self._files) > 1 else ''}"
        return f"{self._files[0].format}, {count}, {describe_columns(self._schema)}"


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The columns of `schema` in its order and types, checked, without the file's own metadata.

    Without columns, the length stays. Raises ArrowInvalid for damaged data and for a value that the type can't hold.

    >>> conform(pa.record_batch({"a": [1], "b": [2]}), pa.schema({"b": pa.int32()})).to_pydict()
    {'b': [2]}
    """
    if not schema.names:
        return batch.select([])
    columns = [batch.column(name) for name in schema.names]
    for column in columns:
        check_array(column)
    pairs = zip(columns, schema.types, strict=True)
    columns = [column if column.type == kind else column.cast(kind) for column, kind in pairs]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def counted(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The batches; raises ArrowInvalid behind the last one unless they have this many rows."""
    left = rows
    for batch in batches:
        left -= batch.num_rows
        yield batch
    if left:
        raise pa.ArrowInvalid(f"it has {rows - left} rows where it says that there are {rows}: it is damaged")


@contextmanager
def naming_the_file(path: Path | ObjectPath | str) -> Iterator[None]:
    """Turn what pyarrow or the system raises about a file into an UnreadableFileError that names it."""
    try:
        yield
    except ArrowdsError:
        raise
    except pa.ArrowMemoryError as error:
        # A damaged file may say that it needs more than any machine has.
        raise UnreadableFileError(f"can't read {path}: {error}; is it damaged?") from error
    except OSError as error:
        # pyarrow's errors have a number, but their strerror is a long text that repeats the path.
        words = os.strerror(error.errno) if error.errno else str(error)
        raise UnreadableFileError(f"can't read {path}: {words}") from error
    except (pa.ArrowException, ValueError, OverflowError, KeyError, IndexError) as error:
        raise UnreadableFileError(f"can't read {path}: {error}") from error


def slice_rows(batches: Iterator[Any], offset: int, start: int, stop: int, max_rows: int) -> Iterator[pa.RecordBatch]:
    """The rows [start, stop) of consecutive batches whose first row has the number `offset`, at most `max_rows` each.

    >>> batches = pa.table({"x": range(10, 16)}).to_batches(max_chunksize=4)
    >>> [batch["x"].to_pylist() for batch in slice_rows(iter(batches), 100, 101, 105, 2)]
    [[11, 12], [13], [14]]
    """
    for batch in batches:
        low, high = max(start - offset, 0), min(stop - offset, batch.num_rows)
        yield from (batch.slice(at, min(max_rows, high - at)) for at in range(low, high, max_rows))
        offset += batch.num_rows
        if offset >= stop:
            return
