"""Arrow data in memory and pyarrow datasets as sources."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from arrowds.sources.base import MAX_BATCH_ROWS, Source, describe_columns, plain_schema
from arrowds.sources.boundaries import merge_cuts
from arrowds.sources.columnar import ColumnarSource
from arrowds.sources.files import conform, counted, naming_the_file, slice_rows
from arrowds.sources.records import FileStamp, SourceFile, digests, new_files
from arrowds.sources.validation import check_array


class TableSource(ColumnarSource):
    """A `pyarrow.Table` in memory; batches are views of it.

    Example:
        >>> source = TableSource(pa.table({"x": [1, 2, 3]}))
        >>> [batch.to_pydict() for batch in source.read(1, 3)], source.description
        ([{'x': [2, 3]}], 'arrow table, column x')
    """

    def __init__(self, table: pa.Table) -> None:
        """Raises SourceError where two columns have one name."""
        super().__init__(plain_schema(table.schema))
        same = table.schema.equals(self._schema, check_metadata=True)
        self._table = table if same else table.cast(self._schema)

    def __len__(self) -> int:
        """The number of rows."""
        return int(self._table.num_rows)

    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Views of the rows [start, stop)."""
        names = self.check_read(start, stop, columns)
        table = self._table if names is None else self._table.select(names)
        return self._checked(table.slice(start, stop - start).to_batches(max_chunksize=MAX_BATCH_ROWS))

    def _checked(self, batches: list[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """The batches, which may be views of a damaged file that somebody mapped; text is for metrics to check."""
        for batch in batches:
            with naming_the_file(self.description):
                for column in batch.columns:
                    check_array(column, text=False)
            yield batch

    @property
    def description(self) -> str:
        """For instance "arrow table, columns input_ids, text"."""
        return f"arrow table, {describe_columns(self._schema)}"

    def __getstate__(self) -> dict[str, Any]:
        """Pickle through Arrow IPC: pyarrow's own pickling would send the whole table that a slice was cut from."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self._table.schema) as writer:
            writer.write_table(self._table)
        return {"table": sink.getvalue().to_pybytes(), "fingerprint": self.__dict__.get("_fingerprint")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Read the table back; its buffers are views of the bytes."""
        self.__init__(pa.ipc.open_stream(state["table"]).read_all())  # type: ignore[misc]  # the one place that sets up
        if state["fingerprint"] is not None:
            self._fingerprint = state["fingerprint"]


class DatasetSource(ColumnarSource):
    """A `pyarrow.dataset.FileSystemDataset`, hive partitions and schema evolution included, in the order of its files.

    Parts are cut at Parquet row groups and at the ends of other files.
    """

    def __init__(self, dataset: Any) -> None:
        """Count the rows of every file; raises SourceError where two columns have one name."""
        self._dataset = dataset
        super().__init__(plain_schema(dataset.schema))
        # What lies in a store is not checked.
        self._stamps = [FileStamp.of(Path(path)) for path in dataset.files] if _is_local(dataset.filesystem) else []
        pieces = self._pieces()
        rows = [_num_rows(piece) for piece in pieces]
        self._cuts = np.concatenate([[0], np.cumsum(rows, dtype=np.int64)])
        self._check_unchanged({piece.path for piece in pieces})

    def _pieces(self) -> list[Any]:
        """The fragments in order, Parquet files as one fragment per row group."""
        return [
            piece
            for fragment in self._dataset.get_fragments()
            for piece in (fragment.split_by_row_group() if hasattr(fragment, "split_by_row_group") else [fragment])
        ]

    def _check_unchanged(self, paths: Collection[str]) -> None:
        known = self.__dict__.get("_digests", [""] * len(self._stamps))
        for stamp, digest in zip(self._stamps, known, strict=True):
            if str(stamp.path) in paths:
                stamp.check(digest)

    @cached_property
    def _digests(self) -> list[str]:
        return digests(self._stamps)

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """The files in order; empty where they don't lie on a local file system."""
        rows = dict.fromkeys(self._dataset.files, 0)
        for piece, count in zip(self._pieces(), np.diff(self._cuts).tolist(), strict=True):
            rows[piece.path] += count
        both = zip(self._stamps, self._digests, strict=True)
        return tuple(stamp.record(rows[str(stamp.path)], digest) for stamp, digest in both)

    def without(self, known: Sequence[SourceFile], *, compare_content: bool = False) -> Source | None:
        """The fragments of the files that are new."""
        if not self._stamps:
            return self
        new = set(new_files([stamp.path for stamp in self._stamps], known, compare_content=compare_content))
        left = [fragment for fragment in self._dataset.get_fragments() if Path(fragment.path) in new]
        if len(new) == len(self._stamps) or not left:
            return self if left else None
        dataset = self._dataset
        return DatasetSource(type(dataset)(left, dataset.schema, dataset.format, dataset.filesystem))

    def __len__(self) -> int:
        """The number of rows."""
        return int(self._cuts[-1])

    def part_boundaries(self, target_rows: int) -> Sequence[int]:
        """Cuts at row groups and ends of files, small ones merged up to `target_rows`."""
        return merge_cuts(self._cuts, target_rows)

    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows [start, stop); reading from the middle of a row group decodes it from its beginning."""
        names = self.check_read(start, stop, columns)
        return self._read(start, stop, names)

    def _read(self, start: int, stop: int, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
        names = self._schema.names if columns is None else columns
        schema = pa.schema([self._schema.field(name) for name in names])
        first, last = np.searchsorted(self._cuts, [start + 1, stop], side="left") - [1, 0]
        pieces = self._pieces()[first:last]
        paths = {piece.path for piece in pieces}
        self._check_unchanged(paths)
        counts = np.diff(self._cuts)[first:last].tolist()
        for piece, row, rows in zip(pieces, self._cuts[first:last].tolist(), counts, strict=True):
            with naming_the_file(piece.path):
                batches = piece.to_batches(schema=self._dataset.schema, columns=names, batch_size=MAX_BATCH_ROWS)
                some = (conform(batch, schema) for batch in slice_rows(batches, row, start, stop, MAX_BATCH_ROWS))
                yield from counted(some, min(stop, row + rows) - max(start, row))
        self._check_unchanged(paths)

    @property
    def description(self) -> str:
        """For instance "pyarrow dataset, 3 files, columns input_ids, text"."""
        return f"pyarrow dataset, {len(self._dataset.files)} files, {describe_columns(self._schema)}"


def _is_local(filesystem: Any) -> bool:
    return bool(filesystem.type_name == "local")


def _num_rows(piece: Any) -> int:
    groups = getattr(piece, "row_groups", None)
    return sum(group.num_rows for group in groups) if groups else int(piece.count_rows())


def open_dataset(dataset: Any) -> Source:
    """A source for any pyarrow dataset; one with a filter, a union or data in memory is read into memory at once."""
    # Slow, because it loads pandas where that is installed.
    from pyarrow.dataset import FileSystemDataset

    filtered = bool(getattr(dataset, "_scan_options", None))
    if isinstance(dataset, FileSystemDataset) and not filtered:
        return DatasetSource(dataset)
    return TableSource(dataset.to_table())


def open_polars(frame: Any) -> TableSource:
    """A source for a Polars DataFrame, or for a LazyFrame, which is collected with the streaming engine.

    >>> import polars as pl
    >>> open_polars(pl.LazyFrame({"x": [1, 2, 3]}).filter(pl.col("x") > 1)).description
    'arrow table, column x'
    """
    import polars as pl

    collected = frame.collect(engine="streaming") if isinstance(frame, pl.LazyFrame) else frame
    # Not string views, which few of pyarrow's functions take.
    return TableSource(collected.to_arrow(compat_level=pl.CompatLevel.oldest()))
