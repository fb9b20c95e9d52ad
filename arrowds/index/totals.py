"""Accumulated metrics: sums of arrays that lose nothing, and their files."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from arrowds.arrays import arrow_view, numpy_view
from arrowds.errors import IndexCorruptError, MetricValueError
from arrowds.index import files, paths
from arrowds.index.manifest import File, Total
from arrowds.schema import VALUE, numpy_dtype, type_named, value_type
from arrowds.store import Store

_WIDE = {"b": np.int64, "i": np.int64, "u": np.uint64, "f": np.float64}


def write_total(store: Store, name: str, key: str, total: np.ndarray) -> Total:
    """Write a sum, flattened in C order, and return what the manifest says of it."""
    flat = arrow_view(total.reshape(-1))
    written = files.write_parquet(store, paths.total(name, key), pa.table({VALUE: flat}))
    return Total(key=key, type=str(flat.type), shape=total.shape, file=File.of(written))


def read_total(store: Store, name: str, total: Total) -> np.ndarray:
    """Return the sum of one segment, read-only.

    Raises:
        IndexCorruptError: when its file is damaged, or has another type or length than the manifest says.
    """
    where = paths.total(name, total.key)
    column = files.read_parquet(store, where, [VALUE], total.file).column(VALUE).combine_chunks()
    if len(column) != math.prod(total.shape) or str(column.type) != total.type or column.null_count:
        raise IndexCorruptError(f"{store.url}/{where} does not hold {total.type} of shape {total.shape}")
    array = numpy_view(column).astype(numpy_dtype(type_named(total.type)), copy=True).reshape(total.shape)
    array.flags.writeable = False
    return array


def sum_of_segments(name: str, totals: Iterable[np.ndarray]) -> np.ndarray:
    """Return the sum over all segments in the type that they are stored in.

    Raises:
        MetricValueError: when that type can't hold it.
    """
    arrays = list(totals)
    whole: np.ndarray | None = None
    for array in arrays:
        whole = added(name, whole, wide(array))
    kinds = {array.dtype for array in arrays}
    declared = value_type(kinds.pop()) if len(kinds) == 1 else None
    summed = stored_sum(name, np.zeros(0) if whole is None else whole, declared)
    summed.flags.writeable = False
    return summed


def wide(array: np.ndarray) -> np.ndarray:
    """Return an array in the type in which sums are taken: 64 bits, integers as integers."""
    return array.astype(_WIDE[array.dtype.kind], copy=False)


def added(name: str, total: np.ndarray | None, contribution: np.ndarray) -> np.ndarray:
    """Return the sum of two contributions; the shorter of two vectors is padded with zeros.

    Raises:
        MetricValueError: when the shapes can't be added, or the sum of integers leaves 64 bits.
    """
    if total is None:
        return contribution.copy()
    if total.shape != contribution.shape and (total.ndim != 1 or contribution.ndim != 1):
        raise MetricValueError(
            f"metric {name!r} returned shape {contribution.shape} after {total.shape}; contributions must have "
            "one shape, or be vectors"
        )
    total, contribution = _of_one_type(name, total, contribution)
    if total.shape == contribution.shape:
        return _sum(name, total, contribution)
    longer, shorter = sorted((total, contribution), key=len, reverse=True)
    padded = longer.copy()
    padded[: len(shorter)] = _sum(name, longer[: len(shorter)], shorter)
    return padded


def _of_one_type(name: str, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bring int64, uint64 and float64 arrays to one type without rounding an integer to a float."""
    if left.dtype == right.dtype:
        return left, right
    if "f" in (left.dtype.kind, right.dtype.kind):
        return left.astype(np.float64), right.astype(np.float64)
    for dtype in (np.dtype(np.int64), np.dtype(np.uint64)):
        if _holds(dtype, left) and _holds(dtype, right):
            return left.astype(dtype), right.astype(dtype)
    raise _too_large(name)


def _holds(dtype: np.dtype[Any], array: np.ndarray) -> bool:
    """Tell whether all numbers of an array lie within the range of an integer dtype."""
    limits = np.iinfo(dtype)
    # A float can equal the limit plus one, but not the limit of 64 bits itself.
    return bool(np.all((array >= limits.min) & (array < int(limits.max) + 1)))


def _sum(name: str, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Add two arrays of one type and shape; integers that wrap around are an error."""
    with np.errstate(all="ignore"):
        total: np.ndarray = np.asarray(left + right)
    if total.dtype.kind == "i":
        wrapped = ((left ^ total) & (right ^ total)) < 0
    elif total.dtype.kind == "u":
        wrapped = total < left
    else:
        wrapped = np.isnan(total)  # infinity minus infinity
    if wrapped.any():
        raise _too_large(name)
    return total


def _too_large(name: str) -> MetricValueError:
    return MetricValueError(
        f"the sum of metric {name!r} is too large for 64 bits (or adds infinities of both signs); "
        "let it return smaller numbers, or floats"
    )


def stored_sum(name: str, total: np.ndarray, declared: pa.DataType | None = None) -> np.ndarray:
    """Return a sum in the declared type, or in its own.

    Raises:
        MetricValueError: when the declared type can't hold it; floats may be rounded to float32, not to integers.
    """
    kind = declared or value_type(total.dtype)
    dtype = np.dtype(kind.to_pandas_dtype())
    with np.errstate(all="ignore"):
        stored: np.ndarray = total.astype(dtype)
    if dtype.kind in "iu":
        held = _holds(dtype, total) and bool(np.all(stored == total))
    else:
        held = dtype.kind == "b" or bool(np.all(np.isinf(stored) == np.isinf(total)))
    if not held:
        largest = total.reshape(-1)[np.argmax(np.abs(total.astype(np.float64)))]
        raise MetricValueError(
            f"metric {name!r} sums up to {largest}, which its dtype {kind} can't hold; declare a wider one"
        )
    return stored
