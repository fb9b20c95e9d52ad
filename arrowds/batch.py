"""What a batch is, and how a metric sees it as Arrow columns, whether a table or a collate function made it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from arrowds.arrays import arrow_view
from arrowds.errors import MetricError, MissingColumnError

Batch = Any
"""A ``pyarrow.RecordBatch`` from a columnar source; anything that a collate function returns from a torch dataset."""


def column(batch: Batch, name: str) -> pa.Array:
    """Return one field of a batch as an Arrow array with a row per sample.

    A record batch gives its column. A mapping gives the field ``name``: tensors and arrays of one dimension become
    values, those of two become lists of their rows, and sequences of tensors, arrays or lists become lists.

    Raises:
        MissingColumnError: when the batch has no such field; names those it has.

    >>> column({"input_ids": np.array([[1, 2], [3, 4]])}, "input_ids").to_pylist()
    [[1, 2], [3, 4]]
    """
    if isinstance(batch, pa.RecordBatch):
        index = batch.schema.get_field_index(name)
        if index < 0:
            raise MissingColumnError(f"there is no column {name!r}; the columns are {batch.schema.names}")
        return batch.column(index)
    if not isinstance(batch, Mapping):
        raise MissingColumnError(
            f"the batch is a {type(batch).__name__}, so it has no field {name!r}; "
            "let the dataset or its collate_fn return a dict, or use arrowds.metrics.function"
        )
    if name not in batch:
        raise MissingColumnError(f"the batch has no field {name!r}; its fields are {list(batch)}")
    return as_arrow(batch[name])


def plain(values: pa.Array) -> pa.Array:
    """Return dictionaries and views of strings as what they stand for, and fixed-size lists as lists.

    >>> plain(pa.array(["a", "b", "a"]).dictionary_encode()).type
    DataType(string)
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_string_view(values.type):
        values = values.cast(pa.large_string())
    if pa.types.is_fixed_size_list(values.type):
        values = values.cast(pa.list_(values.type.value_type))
    return values


def as_record_batch(batch: Batch, columns: Sequence[str] | None = None) -> pa.RecordBatch:
    """Return a batch, or some fields of it, as a record batch; one that is no mapping becomes the column ``value``.

    Raises:
        MissingColumnError: when the batch has no such field; names those it has.
    """
    if isinstance(batch, pa.RecordBatch):
        return batch
    fields = batch if isinstance(batch, Mapping) else {"value": batch}
    return pa.record_batch({str(name): column(fields, name) for name in (fields if columns is None else columns)})


def as_numpy(data: object) -> np.ndarray | None:
    """Return a tensor or array as NumPy, without a copy where it lies in host memory; None for anything else."""
    if isinstance(data, np.ndarray):
        return data
    if hasattr(data, "detach") and hasattr(data, "numpy") and not isinstance(data, type):
        tensor: Any = data
        if tensor.device.type != "cpu" or tensor.requires_grad:
            tensor = tensor.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":
            tensor = tensor.float()  # NumPy has no such type; float32 holds every value
        array: np.ndarray = tensor.numpy()
        return array
    return None


def as_arrow(data: object) -> pa.Array:
    """Return values as an Arrow array: a tensor, an array, a series, or a sequence of tensors or arrays."""
    if isinstance(data, np.ma.MaskedArray):
        return arrow_view(data.data, missing=np.ma.getmaskarray(data))
    if hasattr(data, "to_arrow"):
        data = data.to_arrow()
    array = as_numpy(data)
    if array is not None:
        return _from_numpy(array)
    if isinstance(data, pa.ChunkedArray):
        return data.combine_chunks()
    if isinstance(data, pa.Array):
        return data
    if isinstance(data, list | tuple) and data and as_numpy(data[0]) is not None:
        return _from_rows([_row(item) for item in data])
    try:
        return pa.array(data)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        raise MetricError(f"a {type(data).__name__} can't be seen as a column of samples: {error}") from error


def _from_numpy(array: np.ndarray) -> pa.Array:
    if array.ndim == 1:
        return arrow_view(array) if array.dtype.kind in "biuf" else pa.array(array)
    if array.ndim != 2:
        raise MetricError(f"an array of shape {array.shape} is no column; expected one or two dimensions")
    rows, width = array.shape
    offsets = np.arange(rows + 1, dtype=np.int64) * width
    return pa.LargeListArray.from_arrays(arrow_view(offsets), _from_numpy(array.reshape(-1)))


def _row(item: object) -> np.ndarray:
    array = as_numpy(item)
    return np.atleast_1d(np.asarray(item) if array is None else array)


def _from_rows(rows: list[np.ndarray]) -> pa.Array:
    offsets = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([row.size for row in rows], out=offsets[1:])
    # An empty list has no type of its own, and must not turn the integers of the others into floats.
    filled = [row.reshape(-1) for row in rows if row.size] or [rows[0].reshape(-1)]
    return pa.LargeListArray.from_arrays(arrow_view(offsets), _from_numpy(np.concatenate(filled)))
