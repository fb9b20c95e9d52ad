"""Hugging Face `datasets.Dataset` as a source, read column by column as Arrow data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from arrowds.sources.base import describe_columns, plain_schema
from arrowds.sources.columnar import ColumnarSource
from arrowds.sources.files import conform, naming_the_file
from arrowds.sources.validation import check_array

# A dataset with an indices mapping (after shuffle, select, filter) copies every batch, so batches are smaller here.
_BATCH_ROWS = 16_384


class HuggingFaceSource(ColumnarSource):
    """A `datasets.Dataset`, in the order of its indices mapping; its own format and transforms don't matter.

    The fingerprint is that of the rows, not the dataset's own, which changes from process to process for some data.

    Example:
        >>> import datasets
        >>> source = HuggingFaceSource(datasets.Dataset.from_dict({"x": [1, 2, 3]}).select([2, 0]))
        >>> [batch.to_pydict() for batch in source.read(0, 2)]
        [{'x': [3, 1]}]
    """

    def __init__(self, dataset: Any) -> None:
        """`dataset` is one split; SourceError where two columns have one name."""
        self._dataset = dataset.with_format("arrow")
        super().__init__(plain_schema(self._dataset[:0].schema))

    def __len__(self) -> int:
        """The number of rows."""
        return len(self._dataset)

    @property
    def schema(self) -> pa.Schema:
        """The columns and their Arrow types."""
        return self._schema

    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        """The rows [start, stop)."""
        names = self.check_read(start, stop, columns)
        return self._read(start, stop, names)

    def _read(self, start: int, stop: int, columns: list[str] | None) -> Iterator[pa.RecordBatch]:
        names = self._schema.names if columns is None else columns
        schema = pa.schema([self._schema.field(name) for name in names])
        # Of no columns, datasets would return no rows.
        dataset = self._dataset.select_columns(names) if names else self._dataset
        for low in range(start, stop, _BATCH_ROWS):
            with naming_the_file(self.description):
                table = dataset[low : min(low + _BATCH_ROWS, stop)].select(names)
                for column in table.columns:
                    _check_chunks(column)
                yield from (conform(batch, schema) for batch in table.combine_chunks().to_batches())

    @property
    def description(self) -> str:
        """For instance "hugging face dataset, columns input_ids, text"."""
        return f"hugging face dataset, {describe_columns(self._schema)}"


def _check_chunks(column: pa.ChunkedArray) -> None:
    """Raise ArrowInvalid where putting the chunks together would follow wrong offsets.

    That is the first and the last offset of a chunk, which a cheap check sees, but all offsets of what is nested in
    it. An indices mapping makes a chunk of every row.
    """
    kind = column.type
    if any(kind.field(number).type.num_fields for number in range(kind.num_fields)):
        for chunk in column.chunks:
            check_array(chunk)
    else:
        column.validate()
