"""Several data files of one format as one source; what a format has to bring."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from arrowds.errors import SourceError, UnreadableFileError
from arrowds.sources import fingerprint
from arrowds.sources.base import Source, describe_columns
from arrowds.sources.boundaries import merge_cuts


@dataclass(frozen=True, kw_only=True)
class DataFile(ABC):
    """One file: what was found out when it was opened. Small, and safe to send to another process."""

    format: ClassVar[str]

    path: Path
    num_bytes: int
    schema: pa.Schema
    cuts: npt.NDArray[np.int64]
    """Row numbers where reading is cheap to start, first 0, last the number of rows."""
    splittable: bool
    """Whether reading may start between the cuts at little cost."""

    @property
    def num_rows(self) -> int:
        """The number of rows."""
        return int(self.cuts[-1])

    @abstractmethod
    def batches(self, start: int, stop: int, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """Batches of bounded size that together are rows [start, stop), with these columns in any order."""

    @classmethod
    def unify(cls, files: Sequence[DataFile]) -> pa.Schema:
        """The one schema under which all files are read; raises SourceError, naming the file, where there is none."""
        first = files[0]
        for file in files[1:]:
            if difference := schema_difference(first.schema, file.schema):
                raise SourceError(f"{file.path} does not fit {first.path}: {difference}")
        return first.schema

    @classmethod
    def digests(cls, files: Sequence[DataFile]) -> list[str]:
        """One digest of the content per file."""
        return fingerprint.of_files([file.path for file in files])


class FileSource(Source):
    """Files of one format, one after the other in the order given.

    Made by `open_source`, or from paths through the `open` function of a format.
    """

    concurrent = True

    def __init__(self, files: Sequence[DataFile]) -> None:
        """`files` must not be empty; raises SourceError where their schemas don't fit."""
        self._schema = type(files[0]).unify(files)
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
        for file, offset in zip(self._files[first:last], self._starts[first:last].tolist(), strict=True):
            low, high = max(start - offset, 0), min(stop - offset, file.num_rows)
            with naming_the_file(file.path):
                if file.path.stat().st_size != file.num_bytes:
                    raise UnreadableFileError(f"{file.path} changed since it was opened; open the source again")
                if low < high:
                    yield from (conform(batch, schema) for batch in file.batches(low, high, columns))

    def fingerprint(self) -> str:
        """The digest of the files' bytes, in order; their names don't count."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        return fingerprint.combine(self._files[0].format, type(self._files[0]).digests(self._files))

    @property
    def description(self) -> str:
        """For instance "parquet, 3 files, columns input_ids, text"."""
        count = f"{len(self._files)} file{'s' if len(self._files) > 1 else ''}"
        return f"{self._files[0].format}, {count}, {describe_columns(self._schema)}"


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The columns of `schema` in its order, without the file's own metadata; without columns, the length stays.

    >>> conform(pa.record_batch({"a": [1], "b": [2]}), pa.schema({"b": pa.int64()})).to_pydict()
    {'b': [2]}
    """
    if not schema.names:
        return batch.select([])
    return pa.RecordBatch.from_arrays([batch.column(name) for name in schema.names], schema=schema)


@contextmanager
def naming_the_file(path: Path) -> Iterator[None]:
    """Turn what pyarrow or the system raises about a file into an UnreadableFileError that names it."""
    try:
        yield
    except MemoryError:
        raise
    except OSError as error:
        # pyarrow's errors have a number, but their strerror is a long text that repeats the path.
        words = os.strerror(error.errno) if error.errno else str(error)
        raise UnreadableFileError(f"can't read {path}: {words}") from error
    except pa.ArrowException as error:
        raise UnreadableFileError(f"can't read {path}: {error}") from error


def schema_difference(expected: pa.Schema, found: pa.Schema) -> str:
    """What `found` lacks, has too much or types otherwise than `expected`, in words; empty where nothing. Pure.

    >>> schema_difference(pa.schema({"a": pa.int8(), "b": pa.int8()}), pa.schema({"a": pa.string()}))
    "column 'b' is missing; column 'a' is string instead of int8"
    """
    missing = [f"column {name!r} is missing" for name in expected.names if name not in found.names]
    extra = [f"column {name!r} is additional" for name in found.names if name not in expected.names]
    other = [
        f"column {field.name!r} is {found.field(field.name).type} instead of {field.type}"
        for field in expected
        if field.name in found.names and found.field(field.name).type != field.type
    ]
    return "; ".join([*missing, *extra, *other])


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
