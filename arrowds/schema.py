"""Column names, Arrow types and the format version of an index; no I/O."""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa

from arrowds.errors import MetricNameError, MetricValueError

FORMAT_VERSION = 2

SAMPLE_ID = "sample_id"
VALUE = "value"
COUNT = "count"
CUMULATIVE_COUNT = "cumulative_count"
BUCKET = "bucket"

_METRIC_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+\-]{0,126}")
_UNSIGNED = (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())
_SIGNED = (pa.int8(), pa.int16(), pa.int32(), pa.int64())
VALUE_TYPES: tuple[pa.DataType, ...] = (*_UNSIGNED, *_SIGNED, pa.float32(), pa.float64(), pa.bool_())
CATEGORY = pa.string()
"""The type of a categorical metric. Each of its names has a code, its place among the sorted names: uint32 at most."""

MOST_NAMES = 1 << 16
VALUE_TYPE_NAMES = tuple(str(kind) for kind in (*VALUE_TYPES, CATEGORY))
"""Arrow's names of the value types, as a manifest has them."""

_TYPE_OF_NAME = {np.dtype(kind.to_pandas_dtype()).name: kind for kind in VALUE_TYPES} | {
    "boolean": pa.bool_(),
    "str": CATEGORY,
    "string": CATEGORY,
}


def check_metric_name(name: str) -> str:
    """Return ``name`` if it can be a folder of the index and a column of a query.

    Raises:
        MetricNameError: for anything but letters, digits and ``_ . + -``, for more than 127 characters, for names
            that start with a dot, and for the name of the id column.

    >>> check_metric_name("vocab_rarity")
    'vocab_rarity'
    """
    if not isinstance(name, str) or not _METRIC_NAME.fullmatch(name) or name == SAMPLE_ID:
        raise MetricNameError(
            f"{name!r} can't be the name of a metric: use at most 127 letters, digits and '_', '.', '+', '-', "
            f"not starting with a dot, and not {SAMPLE_ID!r}"
        )
    return name


def value_type(dtype: object) -> pa.DataType:
    """Return the Arrow type that a declared dtype names: a NumPy, torch, Polars, Arrow or Python spelling.

    Raises:
        MetricValueError: when the dtype is none of the integers, float32, float64, bool and string.

    >>> value_type("float32"), value_type(np.int64), value_type(bool)
    (DataType(float), DataType(int64), DataType(bool))
    """
    if isinstance(dtype, pa.DataType):
        found = dtype if dtype in (*VALUE_TYPES, CATEGORY) else None
    else:
        numpy_like = isinstance(dtype, np.dtype) or dtype in (bool, int, float, str) or _is_numpy_scalar(dtype)
        # torch.int64 and pl.Int64 are unknown to NumPy, but their names are its names.
        name = np.dtype(dtype).name if numpy_like else str(dtype).removeprefix("torch.").lower()  # type: ignore[call-overload]  # numpy_like says so
        found = _TYPE_OF_NAME.get(name)
    if found is None:
        raise MetricValueError(f"a metric can't have the dtype {dtype!r}; use one of {', '.join(_TYPE_OF_NAME)}")
    return found


def _is_numpy_scalar(dtype: object) -> bool:
    return isinstance(dtype, type) and issubclass(dtype, np.generic)


def sample_id_type(num_samples: int) -> pa.DataType:
    """Return uint32 when every id below ``num_samples`` fits, else uint64."""
    return pa.uint32() if num_samples <= 2**32 else pa.uint64()


def type_named(name: str) -> pa.DataType:
    """Return the value type that Arrow calls ``name``, as manifests have it.

    >>> type_named("double")
    DataType(double)
    """
    return (*VALUE_TYPES, CATEGORY)[VALUE_TYPE_NAMES.index(name)]


def narrowed(kind: pa.DataType, low: int, high: int) -> pa.DataType:
    """Return the smallest type that holds integers, or the codes of a category, from ``low`` to ``high``; others stay.

    >>> narrowed(pa.int64(), 0, 300), narrowed(pa.int64(), -1, 300), narrowed(pa.float64(), 0, 1)
    (DataType(uint16), DataType(int16), DataType(double))
    """
    if not pa.types.is_integer(kind) and kind != CATEGORY:
        return kind
    for candidate in _UNSIGNED if low >= 0 else _SIGNED:
        limits = np.iinfo(candidate.to_pandas_dtype())
        if limits.min <= low and high <= limits.max:
            return candidate
    return kind


def mapped_type(kind: pa.DataType) -> pa.DataType:
    """Return the type that a memory map stores for ``kind``: bool takes a byte, a name the bytes of its code."""
    if kind == CATEGORY:
        return pa.uint32()
    return pa.uint8() if pa.types.is_boolean(kind) else kind


def numpy_dtype(kind: pa.DataType) -> np.dtype[np.generic]:
    """Return the NumPy dtype of an Arrow value or id type."""
    dtype: np.dtype[np.generic] = np.dtype(kind.to_pandas_dtype())
    return dtype
