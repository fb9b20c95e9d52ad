"""A map-style torch dataset over anything that arrowds indexes: tensors that are views of Arrow memory."""

from __future__ import annotations

import json
import warnings
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate, repeat
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import xxhash

from arrowds.errors import MissingExtraError, SourceError
from arrowds.index import files
from arrowds.sources import Source, open_source


class ArrowDataset:
    """The rows of a source as dictionaries of tensors, by sample id.

    Lists become tensors of one dimension and numbers tensors of none, both read-only views of Arrow memory; text stays
    text. Arrow IPC and Megatron files stay memory-mapped, so that all processes share their pages. Other sources are
    read into memory, which forked loader workers share, or, with ``cache_dir``, converted once to an Arrow IPC file
    that all processes of the machine map.

    Args:
        source: anything that :func:`arrowds.sources.open_source` takes.
        columns: the columns to load; by default all.
        cache_dir: a local folder for the converted file, which is named after the fingerprint of the data.

    Raises:
        MissingColumnError: for a missing column.
        SourceError: when the source is not columnar, or a column of numbers has nulls.

    >>> dataset = ArrowDataset(pa.table({"input_ids": [[1, 2, 3], [4]], "label": [0, 1]}))
    >>> len(dataset), dataset[0]
    (2, {'input_ids': tensor([1, 2, 3]), 'label': tensor(0)})
    >>> [sample["input_ids"] for sample in dataset.__getitems__([1, 0])]
    [tensor([4]), tensor([1, 2, 3])]
    """

    def __init__(
        self, source: Any, *, columns: Sequence[str] | None = None, cache_dir: str | Path | None = None
    ) -> None:
        opened = open_source(source)
        if opened.schema is None:
            raise SourceError(f"{opened.description} is already a dataset; pass it to the loader directly")
        self.columns = list(opened.schema.names if columns is None else columns)
        opened.check_columns(self.columns)
        if not self.columns:
            raise SourceError(f"no columns to load from {opened.description}; it has {opened.schema.names}")
        self._length = len(opened)
        self._file = None if cache_dir is None else _converted(opened, self.columns, Path(cache_dir))
        self._source = opened if self._file is None else None
        # Read now, not in each forked worker: they share this memory.
        self._loaded: list[_Column] | None = self._load()

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, sample_id: int) -> dict[str, Any]:
        return self.__getitems__([sample_id])[0]

    def __getitems__(self, sample_ids: Sequence[int]) -> list[dict[str, Any]]:
        """Return the samples of a batch: one gather per column.

        Raises:
            IndexError: for an id outside the dataset.
        """
        ids = np.asarray(sample_ids, dtype=np.int64).tolist()
        if ids and not (min(ids) >= 0 and max(ids) < self._length):
            raise IndexError(f"sample ids {min(ids)} to {max(ids)} are not all within 0 to {self._length - 1}")
        if self._loaded is None:
            self._loaded = self._load()
        columns = [column.take(ids) for column in self._loaded]
        return [dict(zip(self.columns, values, strict=True)) for values in zip(*columns, strict=True)]

    def __getstate__(self) -> dict[str, Any]:
        """Omit the loaded columns: another process opens them itself."""
        return {**self.__dict__, "_loaded": None}

    def _load(self) -> list[_Column]:
        if self._file is not None:
            table = files.read_batches(self._file)
        else:
            table = pa.Table.from_batches(*_batches(cast(Source, self._source), self.columns))
        return [_open_column(name, table.column(name)) for name in self.columns]


def _batches(source: Source, columns: list[str]) -> tuple[Iterator[pa.RecordBatch], pa.Schema]:
    schema = cast(pa.Schema, source.schema)
    return source.read(0, len(source), columns), pa.schema([schema.field(name) for name in columns])


def _converted(source: Source, columns: list[str], folder: Path) -> Path:
    """Return the IPC file of the columns; processes that write it at the same time replace it atomically."""
    # Column names need not be valid file names.
    names = xxhash.xxh3_64_hexdigest(json.dumps(columns).encode())
    path = folder / f"{source.fingerprint()}-{names}.arrow"
    if not path.exists():
        read, schema = _batches(source, columns)
        files.write_batches(path, schema, read)
    return path


class _Column(ABC):
    """One column in chunks: for each row, which chunk it is in and where."""

    def __init__(self, chunks: list[pa.Array]) -> None:
        self._starts = [0, *accumulate(len(chunk) for chunk in chunks[:-1])]

    def places(self, ids: list[int]) -> Iterator[tuple[int, int]]:
        """Yield chunk number and row in the chunk of each id."""
        starts = self._starts
        if len(starts) == 1:
            return zip(repeat(0), ids)
        return ((chunk := bisect_right(starts, row) - 1, row - starts[chunk]) for row in ids)

    @abstractmethod
    def take(self, ids: list[int]) -> list[Any]:
        """Return the values of ``ids``."""


class _Lists(_Column):
    """Lists of numbers: slices of one array for each chunk."""

    def __init__(self, chunks: list[pa.Array]) -> None:
        super().__init__(chunks)
        self._offsets = [memoryview(chunk.offsets.to_numpy()) for chunk in chunks]  # whose items are Python integers
        self._values = [_writable(chunk.values) for chunk in chunks]

    def take(self, ids: list[int]) -> list[Any]:
        from torch import from_numpy

        tensors = []
        for chunk, row in self.places(ids):
            offsets = self._offsets[chunk]
            tensors.append(from_numpy(self._values[chunk][offsets[row] : offsets[row + 1]]))
        return tensors


class _Numbers(_Column):
    """Numbers, or rows of numbers of one length: elements of one array for each chunk."""

    def __init__(self, chunks: list[pa.Array]) -> None:
        super().__init__(chunks)
        if chunks and pa.types.is_fixed_size_list(chunks[0].type):
            self._values = [_writable(x.flatten()).reshape(len(x), x.type.list_size) for x in chunks]
        else:
            self._values = [_writable(chunk) for chunk in chunks]

    def take(self, ids: list[int]) -> list[Any]:
        from torch import from_numpy

        return [from_numpy(self._values[chunk][row, ...]) for chunk, row in self.places(ids)]


class _Objects(_Column):
    """Text and everything else that does not become a tensor."""

    def __init__(self, chunks: list[pa.Array]) -> None:
        super().__init__(chunks)
        self._chunks = chunks

    def take(self, ids: list[int]) -> list[Any]:
        return [self._chunks[chunk][row].as_py() for chunk, row in self.places(ids)]


def _open_column(name: str, column: pa.ChunkedArray) -> _Column:
    chunks = [chunk for chunk in column.chunks if len(chunk)]
    kind = column.type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    is_fixed = pa.types.is_fixed_size_list(kind)
    items = kind.value_type if is_list or is_fixed else kind
    if not (pa.types.is_integer(items) or pa.types.is_floating(items) or pa.types.is_boolean(items)):
        return _Objects(chunks)
    nulls = column.null_count
    if is_list or is_fixed:
        nulls += sum(chunk.values.null_count and chunk.flatten().null_count for chunk in chunks)
    if nulls:
        raise SourceError(f"column {name!r} has {nulls} nulls, which a tensor can't represent; fill or filter them")
    return _Lists(chunks) if is_list else _Numbers(chunks)


def _writable(array: pa.Array) -> np.ndarray:
    """View a numeric Arrow array without nulls as an array that torch takes without a warning for each view of it.

    Bools are copied: Arrow packs their bits.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "torch") from error
    values = array.to_numpy(zero_copy_only=False)
    with warnings.catch_warnings():
        # The memory is read-only on purpose; torch warns that it can't enforce that.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values).numpy()
