"""A map-style torch dataset over anything that arrowds indexes: tensors that are views of Arrow memory."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from arrowds import storage
from arrowds.errors import MissingExtraError, SourceError
from arrowds.sources import Source, open_source

if TYPE_CHECKING:
    import torch


class ArrowDataset:
    """The rows of a source as dictionaries of tensors, by sample id.

    Lists become tensors of one dimension and numbers tensors of none, both views of Arrow memory; text stays text.
    Arrow IPC and Megatron files stay memory-mapped, so that loader workers share their pages; other sources are read
    into memory once in each process or, with ``cache_dir``, converted once to an Arrow IPC file that all of them map.

    Args:
        source: anything that :func:`arrowds.sources.open_source` takes.
        columns: the columns to load; by default all.
        cache_dir: a local folder for the converted file, named after the source's fingerprint.

    Raises:
        MissingColumnError: for a column that is not there.
        SourceError: when the source is not columnar, or a column has nulls.

    >>> dataset = ArrowDataset(pa.table({"input_ids": [[1, 2, 3], [4]], "label": [0, 1]}))
    >>> len(dataset), dataset[0]
    (2, {'input_ids': tensor([1, 2, 3]), 'label': tensor(0)})
    >>> [sample["input_ids"] for sample in dataset.__getitems__([1, 0])]
    [tensor([4]), tensor([1, 2, 3])]
    """

    def __init__(
        self, source: Any, *, columns: Sequence[str] | None = None, cache_dir: str | Path | None = None
    ) -> None:
        self.source: Source = open_source(source)
        if self.source.column_names is None:
            raise SourceError(f"{self.source.description} is a dataset already; pass it to the loader as it is")
        self.columns = list(self.source.column_names if columns is None else columns)
        self.source.check_columns(self.columns)
        self._cache_dir = None if cache_dir is None else Path(cache_dir)
        self._loaded: list[_Column] | None = None

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, sample_id: int) -> dict[str, Any]:
        return self.__getitems__([sample_id])[0]

    def __getitems__(self, sample_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Return the samples of a batch; their places are found in one vectorised look-up for each column.

        Raises:
            IndexError: for an id outside the dataset.
        """
        ids = np.asarray(sample_ids, dtype=np.int64)
        if len(ids) and not (ids.min() >= 0 and ids.max() < len(self)):
            raise IndexError(f"sample ids {ids.min()} to {ids.max()} are not all within 0 to {len(self) - 1}")
        columns = [column.take(ids) for column in self._open()]
        return [dict(zip(self.columns, values, strict=True)) for values in zip(*columns, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        """Leave the loaded columns behind: another process opens them for itself."""
        return {**self.__dict__, "_loaded": None}

    def _open(self) -> list[_Column]:
        if self._loaded is None:
            table = self._table() if self._cache_dir is None else self._cached_table(self._cache_dir)
            self._loaded = [_open_column(name, table.column(name)) for name in self.columns]
        return self._loaded

    def _table(self) -> pa.Table:
        batches = self.source.read(0, len(self.source), self.columns)
        return pa.Table.from_batches(batches, schema=pa.schema([self._field(name) for name in self.columns]))

    def _field(self, name: str) -> pa.Field:
        schema = self.source.schema
        if schema is None:
            raise SourceError(f"{self.source.description} has no columns")
        return schema.field(name)

    def _cached_table(self, folder: Path) -> pa.Table:
        path = folder / f"{self.source.fingerprint()}-{'-'.join(self.columns)}.arrow"
        if not path.exists():
            schema = pa.schema([self._field(name) for name in self.columns])
            storage.write_batches(path, schema, self.source.read(0, len(self.source), self.columns))
        return storage.read_batches(path)


class _Column(ABC):
    """One column in chunks: for each row, which chunk it is in and where."""

    def __init__(self, chunks: list[pa.Array]) -> None:
        self._starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])[:-1]

    def places(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return chunk number and row in the chunk of each id."""
        chunk = np.searchsorted(self._starts, ids, side="right") - 1
        return chunk, ids - self._starts[chunk]

    @abstractmethod
    def take(self, ids: np.ndarray) -> list[Any]:
        """Return the values of ``ids``."""


class _Lists(_Column):
    """Lists of numbers: slices of one tensor for each chunk."""

    def __init__(self, chunks: list[pa.Array]) -> None:
        super().__init__(chunks)
        self._offsets = [chunk.offsets.to_numpy() for chunk in chunks]
        self._values = [as_tensor(chunk.values) for chunk in chunks]

    def take(self, ids: np.ndarray) -> list[Any]:
        found = []
        for chunk, row in zip(*self.places(ids), strict=True):
            offsets = self._offsets[chunk]
            found.append(self._values[chunk][offsets[row] : offsets[row + 1]])
        return found


class _Numbers(_Column):
    """Numbers, or rows of numbers of one length: elements of one tensor for each chunk."""

    def __init__(self, chunks: list[pa.Array]) -> None:
        super().__init__(chunks)
        self._values = [_rows_tensor(chunk) for chunk in chunks]

    def take(self, ids: np.ndarray) -> list[Any]:
        return [self._values[chunk][row] for chunk, row in zip(*self.places(ids), strict=True)]


class _Objects(_Column):
    """Text and whatever else is no tensor."""

    def __init__(self, chunks: list[pa.Array]) -> None:
        super().__init__(chunks)
        self._chunks = chunks

    def take(self, ids: np.ndarray) -> list[Any]:
        return [self._chunks[chunk][int(row)].as_py() for chunk, row in zip(*self.places(ids), strict=True)]


def _open_column(name: str, column: pa.ChunkedArray) -> _Column:
    chunks = [chunk for chunk in column.chunks if len(chunk)]
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    is_fixed = pa.types.is_fixed_size_list(kind)
    items = kind.value_type if is_list or is_fixed else kind
    if not (pa.types.is_integer(items) or pa.types.is_floating(items) or pa.types.is_boolean(items)):
        return _Objects(chunks)
    if column.null_count:
        raise SourceError(
            f"column {name!r} has {column.null_count} nulls, which no tensor can hold; fill or filter them"
        )
    return _Lists(chunks) if is_list else _Numbers(chunks)


def _rows_tensor(chunk: pa.Array) -> torch.Tensor:
    if pa.types.is_fixed_size_list(chunk.type):
        return as_tensor(chunk.flatten()).reshape(len(chunk), chunk.type.list_size)
    return as_tensor(chunk)


def as_tensor(array: pa.Array) -> torch.Tensor:
    """View a numeric Arrow array without nulls as a tensor, without a copy (bools are copied: Arrow packs their bits).

    The tensor must not be written to: it may be a file.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "torch") from error
    values = array.to_numpy(zero_copy_only=False)
    with warnings.catch_warnings():
        # Read-only memory is what is wanted here; torch warns that it can't enforce it.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)
