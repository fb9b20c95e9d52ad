"""The rows that the samples of an index are, read again from where they came from.

An index records, for everything that was added to it, which files that was and how they are read. So a sample's id
leads back to its row, whatever was appended and compacted since.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import xxhash

from arrowds.arrays import arrow_view
from arrowds.errors import ConfigError, IndexCorruptError, MissingColumnError, UnreadableFileError
from arrowds.index import files, paths
from arrowds.index.manifest import Manifest, SourceRecord
from arrowds.schema import SAMPLE_ID, numpy_dtype, sample_id_type
from arrowds.sources import Source, SourceFile, source_from_spec
from arrowds.sources.files import FileSource, conform
from arrowds.sources.opening import files_of_record
from arrowds.sources.schemas import common_type
from arrowds.store import ObjectStore, Store

_ROWS_PER_READ = 1 << 10
"""Where a source can be read from any row, samples that are so close together are read at once."""


def read_record(store: Store, record: SourceRecord) -> dict[str, Any]:
    """Read what an index has recorded of some data.

    Raises:
        IndexCorruptError: when the file is missing or has changed.
    """
    name = paths.source(record.key)
    with files.naming(store, name):
        content = memoryview(store.read(name))
        if xxhash.xxh3_128_hexdigest(content) != record.file.xxh3:
            raise IndexCorruptError(f"{store.url}/{name} has changed since it was written; restore it")
        found: dict[str, Any] = json.loads(bytes(content))
        return found


def source_files(store: Store, manifest: Manifest) -> list[SourceFile]:
    """The files that the samples of a snapshot come from, in order; none for data that did not come from files."""
    records = {piece.source.key: piece.source for segment in manifest.segments for piece in segment.pieces}
    return [file for record in records.values() for file in files_of_record(read_record(store, record))]


@dataclass(frozen=True, slots=True)
class _Piece:
    """The rows [first_row, first_row + num_rows) of a source, which are the samples from ``first_id`` on."""

    source: Source
    first_row: int
    num_rows: int
    first_id: int


class DataRows:
    """The rows of an index's samples, opened where they lie.

    Args:
        store: the index.
        manifest: the snapshot.

    Raises:
        SourceError: when they did not come from files, or have no column in common.
        UnreadableFileError: when a file is missing, or is not what was indexed.
    """

    def __init__(self, store: Store, manifest: Manifest) -> None:
        options = store.options if isinstance(store, ObjectStore) else None
        listed = [piece for segment in manifest.segments for piece in segment.pieces]
        records = {piece.source.key: piece.source for piece in listed}
        try:
            sources = {
                key: source_from_spec(read_record(store, record), storage_options=options)
                for key, record in records.items()
            }
        except UnreadableFileError as error:
            raise UnreadableFileError(
                f"{error}. If the data have moved, tell the index: arrowds.move_data({store.url!r}, old, new)"
            ) from error
        starts = accumulate((piece.num_samples for piece in listed), initial=0)
        self._pieces = [
            _Piece(sources[piece.source.key], piece.first_row, piece.num_samples, first)
            for piece, first in zip(listed, starts, strict=False)
        ]
        self._id_type = sample_id_type(manifest.num_samples)
        self.num_samples = manifest.num_samples
        self.schema = _common_schema([source.schema for source in sources.values()])

    @property
    def table(self) -> pa.Schema:
        """The columns as one table has them: ``sample_id`` first; one of the data with that name is renamed."""
        columns = [(_name_in_table(field.name), field.type) for field in self.schema]
        return pa.schema([(SAMPLE_ID, self._id_type), *columns])

    @property
    def local_parquet(self) -> list[tuple[str, int]] | None:
        """The files and the id of each one's first sample, where all are Parquet files of this host, unchanged.

        Raises:
            UnreadableFileError: when one has changed.
        """
        found = []
        for piece in self._pieces:
            source = piece.source
            if not isinstance(source, FileSource) or not source.is_local_parquet or piece.num_rows != len(source):
                return None
            source.check_unchanged()
            first = piece.first_id
            for file in source.files:
                found.append((file.path, first))
                first += file.num_rows
        return found

    def batches(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """All rows in the order of the samples: ``sample_id`` and some columns of the data, named as in ``table``."""
        self._check_columns(columns)
        schema = pa.schema([self.schema.field(name) for name in columns])
        names = [SAMPLE_ID, *map(_name_in_table, columns)]
        for piece in self._pieces:
            first = piece.first_id
            for batch in piece.source.read(piece.first_row, piece.first_row + piece.num_rows, list(columns)):
                ids = np.arange(first, first + batch.num_rows, dtype=numpy_dtype(self._id_type))
                arrays = conform(batch, schema).columns
                yield pa.RecordBatch.from_arrays([arrow_view(ids), *arrays], names=names)
                first += batch.num_rows

    def _check_columns(self, names: Sequence[str]) -> None:
        if missing := [name for name in names if name not in self.schema.names]:
            listed = ", ".join(map(repr, self.schema.names))
            raise MissingColumnError(f"no column {missing[0]!r}; the data has {listed}")

    def take(self, ids: npt.ArrayLike, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Return the rows of some samples, in the order of ``ids``."""
        names = self.schema.names if columns is None else list(columns)
        self._check_columns(names)
        wanted = np.atleast_1d(np.asarray(ids))
        if wanted.size and wanted.dtype.kind not in "iu":
            raise ConfigError(f"expected the ids of samples, got {wanted.dtype}")
        beyond = wanted[(wanted < 0) | (wanted >= self.num_samples)]
        if beyond.size:
            raise ConfigError(f"there is no sample {beyond[0]}; the index has {self.num_samples} samples")
        distinct, places = np.unique(wanted.astype(np.int64), return_inverse=True)
        schema = pa.schema([self.schema.field(name) for name in names])
        found = [conform(batch, schema) for batch in self._batches_of(distinct, names)]
        rows = pl.DataFrame(pa.Table.from_batches(found, schema))
        return rows[places] if names else rows

    def _batches_of(self, ids: np.ndarray, columns: list[str]) -> Iterator[pa.RecordBatch]:
        """The rows of ascending ids, reading whole stretches between the places where reading is cheap to start."""
        for piece in self._pieces:
            low, high = np.searchsorted(ids, [piece.first_id, piece.first_id + piece.num_rows])
            rows = ids[low:high] - piece.first_id + piece.first_row
            if not rows.size:
                continue
            stretch = np.searchsorted(piece.source.part_boundaries(_ROWS_PER_READ), rows, side="right")
            for together in np.split(rows, np.flatnonzero(np.diff(stretch)) + 1):
                first = int(together[0])
                for batch in piece.source.read(first, int(together[-1]) + 1, columns):
                    low, high = np.searchsorted(together, [first, first + batch.num_rows])
                    if low < high:
                        yield batch.take(arrow_view(together[low:high] - first))
                    first += batch.num_rows


def _common_schema(schemas: Sequence[pa.Schema | None]) -> pa.Schema:
    """The columns that all rows have, in the order of the first ones, each of a type that holds them all."""
    first, *others = schemas
    types = {} if first is None else dict(zip(first.names, first.types, strict=True))
    for schema in others:
        there = {} if schema is None else dict(zip(schema.names, schema.types, strict=True))
        common = {name: common_type(kind, there[name]) for name, kind in types.items() if name in there}
        types = {name: kind for name, kind in common.items() if kind is not None}
    return pa.schema(types)


def scan_data(rows: DataRows) -> pl.LazyFrame:
    """Return ``sample_id`` and the columns of the data, lazily: rows are read in the order of the samples.

    Columns that a query does not use are not read, rows that it does not want are dropped batch by batch, and reading
    ends as soon as it has enough. A column of the data that is called ``sample_id`` itself is ``data_sample_id``.
    """
    from polars.io.plugins import register_io_source

    names = dict(zip(rows.table.names[1:], rows.schema.names, strict=True))
    schema = pl.DataFrame(rows.table.empty_table()).schema

    def read(
        with_columns: list[str] | None, predicate: pl.Expr | None, n_rows: int | None, batch_size: int | None
    ) -> Iterator[pl.DataFrame]:
        chosen = list(schema) if with_columns is None else with_columns
        used = {*chosen, *(predicate.meta.root_names() if predicate is not None else [])}
        left = n_rows
        for batch in rows.batches([names[name] for name in names if name in used]):
            frame = pl.DataFrame(pa.Table.from_batches([batch]))
            frame = frame if predicate is None else frame.filter(predicate)
            frame = frame.select(pl.col(name).cast(schema[name]) for name in chosen)
            yield frame if left is None else frame.head(left)
            if left is not None:
                left -= frame.height
                if left <= 0:
                    return

    return register_io_source(read, schema=schema, is_pure=True)


def _name_in_table(column: str) -> str:
    return f"data_{column}" if column.lower() == SAMPLE_ID else column  # SQL ignores upper and lower case
