"""Megatron and DeepSpeed `.bin`/`.idx` token files as a source: lengths from the index, tokens as views of the file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from arrowds.errors import ConfigError, SourceError, UnreadableFileError
from arrowds.indexed_dataset import Dialect, IndexedDataset, strip_suffix
from arrowds.sources import fingerprint
from arrowds.sources.base import MAX_BATCH_ROWS, Source, describe_columns
from arrowds.sources.records import FileStamp, SourceFile, digests, new_files, recorded_stamp

_LENGTHS = "num_tokens"


class MegatronSource(Source):
    """The rows of a `.bin`/`.idx` pair: `input_ids` (large_list of the tokens) and `num_tokens` (int32).

    Lengths, whether of the lists or as `num_tokens`, come from the `.idx` file; the tokens are views of the
    memory-mapped `.bin` file, which is read only where a metric looks at tokens.

    Args:
        prefix: The path of the pair without `.bin` and `.idx`.
        dialect: Who wrote the files, where that can't be told from their size; see `IndexedDataset.open`.
        column: The name of the token column.

    Example:
        >>> import tempfile, numpy as np
        >>> from arrowds.indexed_dataset import write_indexed_dataset
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_indexed_dataset(f"{folder}/tokens", np.arange(5), np.array([2, 3]), dtype="uint16")
        ...     source = MegatronSource(f"{folder}/tokens")
        ...     [batch.to_pydict() for batch in source.read(0, 2)]
        [{'input_ids': [[0, 1], [2, 3, 4]], 'num_tokens': [2, 3]}]
    """

    concurrent = True

    def __init__(
        self, prefix: str | os.PathLike[str], *, dialect: Dialect | None = None, column: str = "input_ids"
    ) -> None:
        if column == _LENGTHS:
            raise ConfigError(f"the token column can't be named {_LENGTHS!r}, which is the column of lengths")
        stamps = [FileStamp.of(path) for path in pair_of(prefix)]
        self._rows, self._stamps = IndexedDataset.open(prefix, dialect), stamps
        self._check_unchanged()
        self._column = column
        tokens = pa.large_list(pa.from_numpy_dtype(self._rows.dtype))
        self._schema = pa.schema([(column, tokens), (_LENGTHS, pa.int32())])

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._rows)

    @property
    def schema(self) -> pa.Schema:
        """The two columns and their types."""
        return self._schema

    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows [start, stop); no token is read from the file here."""
        names = self.check_read(start, stop, columns)
        return self._read(start, stop, self._schema.names if names is None else names)

    def _read(self, start: int, stop: int, names: list[str]) -> Iterator[pa.RecordBatch]:
        self._check_unchanged()
        for low in range(start, stop, MAX_BATCH_ROWS):
            high = min(low + MAX_BATCH_ROWS, stop)
            batch = pa.record_batch({_LENGTHS: pa.array(self._rows.sizes[low:high])})
            if self._column in names:
                batch = batch.append_column(self._schema.field(0), self._lists(low, high))
            yield batch.select(names)
        self._check_unchanged()

    def _check_unchanged(self) -> None:
        known = self.__dict__.get("_digests", ["", ""])
        for stamp, digest in zip(self._stamps, known, strict=True):
            stamp.check(digest)

    def _lists(self, low: int, high: int) -> pa.LargeListArray:
        """The rows [low, high) as lists over the mapped file, or over a copy where the rows don't lie back to back."""
        sizes = self._rows.sizes[low:high].astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        filled = sizes > 0
        tokens = self._tokens(self._rows.pointers[low:high][filled], sizes[filled], offsets[:-1][filled])
        values = pa.Array.from_buffers(self._schema.field(0).type.value_type, len(tokens), [None, pa.py_buffer(tokens)])
        return pa.LargeListArray.from_arrays(pa.array(offsets), values)

    def _tokens(
        self, pointers: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]
    ) -> npt.NDArray[Any]:
        """The tokens of rows that aren't empty, back to back; row i lies at byte `pointers[i]`, token `offsets[i]`."""
        tokens, itemsize = self._rows.tokens, self._rows.dtype.itemsize
        if not len(sizes):
            return tokens[:0]
        if pointers.min() < 0 or np.any(pointers > tokens.nbytes - sizes * itemsize):
            raise UnreadableFileError(f"{self._rows.prefix}.idx points outside {self._rows.prefix}.bin: it is damaged")
        first, count = int(pointers[0]), int(sizes.sum())
        aligned = not np.any(pointers % itemsize)
        if aligned and np.array_equal(pointers, first + offsets * itemsize):
            return tokens[first // itemsize : first // itemsize + count]
        # Rows may begin within an item of the file: then their bytes are gathered.
        items, per_token = (tokens, 1) if aligned else (tokens.view(np.uint8), itemsize)
        shifts = pointers * per_token // itemsize - offsets * per_token
        gathered: npt.NDArray[Any] = items[np.arange(count * per_token) + np.repeat(shifts, sizes * per_token)]
        return gathered.view(self._rows.dtype)

    def fingerprint(self) -> str:
        """The digest of both files' bytes and of the dtype under which they are read."""
        return fingerprint.combine("indexed dataset", [str(self._rows.dtype), *self._digests])

    @cached_property
    def _digests(self) -> list[str]:
        return digests(self._stamps)

    @property
    def files(self) -> tuple[SourceFile, ...]:
        """The `.bin` file, which has the rows, and the `.idx` file."""
        counts = (len(self), 0)
        both = zip(self._stamps, counts, self._digests, strict=True)
        return tuple(stamp.record(rows, digest) for stamp, rows, digest in both)

    def without(self, known: Sequence[SourceFile], *, compare_content: bool = False) -> MegatronSource | None:
        """The pair, unless it is known."""
        paths = [stamp.path for stamp in self._stamps]
        return self if new_files(paths, known, compare_content=compare_content) else None

    def to_spec(self) -> dict[str, Any]:
        """The pair and how it is read."""
        files = [asdict(file) for file in self.files]
        return {"kind": "indexed dataset", "files": files, "dialect": self._rows.dialect, "column": self._column}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> MegatronSource:
        """The source of a description by `to_spec`; raises UnreadableFileError for a file that differs."""
        records = [SourceFile.from_json(file) for file in spec["files"]]
        stamps = [recorded_stamp(record) for record in records]
        if [stamp.path for stamp in stamps] != pair_of(records[0].path):
            raise SourceError(
                f"expected the records of a .bin and an .idx file, got {[record.path for record in records]}"
            )
        self = cls(records[0].path, dialect=spec["dialect"], column=spec["column"])
        for stamp in stamps:
            stamp.check()
        self._digests = [record.digest for record in records]
        return self

    @property
    def description(self) -> str:
        """For instance "indexed dataset of uint16, columns input_ids, num_tokens"."""
        return f"indexed dataset of {self._rows.dtype.name}, {describe_columns(self._schema)}"


def pair_of(prefix: str | os.PathLike[str]) -> list[Path]:
    """The `.bin` and the `.idx` file of a prefix, or of either of the two.

    >>> [path.name for path in pair_of("data/tokens.idx")]
    ['tokens.bin', 'tokens.idx']
    """
    stem = strip_suffix(prefix)
    return [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("bin", "idx")]
