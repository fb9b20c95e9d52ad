"""Turn what a metric returned into checked Arrow values or a checked sum."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from arrowds.batch import as_numpy
from arrowds.errors import MetricValueError
from arrowds.metrics import Metric
from arrowds.schema import VALUE_TYPES, value_type
from arrowds.arrays import arrow_view, numpy_view


def checked_values(metric: Metric, result: Any, *, start: int, rows: int) -> pa.Array:
    """Return the values of the samples [start, start + rows) as an Arrow array of the metric's type.

    Raises:
        MetricValueError: for a wrong length or dtype, values that the declared dtype can't hold, and, unless the metric
            keeps nulls, for null and NaN; names the metric and the first such sample.
    """
    values = _as_array(metric, result)
    if len(values) != rows:
        raise MetricValueError(
            f"metric {metric.name!r} returned {len(values)} values for the {rows} samples {start} to "
            f"{start + rows - 1}; it must return one for each"
        )
    if metric.nulls == "refuse":
        _refuse_missing(metric, values, start=start)
    values = _cast(metric, values, start=start, stop=start + rows)
    if pa.types.is_floating(values.type) and values.null_count:
        # NaN is the one way in which a float metric says that it has no value.
        values = values.fill_null(float("nan"))
    return values


def _as_array(metric: Metric, result: Any) -> pa.Array:
    if isinstance(result, pl.Series):
        result = result.to_arrow()
    if isinstance(result, pa.ChunkedArray):
        result = result.combine_chunks()
    if isinstance(result, pa.Array):
        return result
    array = as_numpy(result)
    if array is None:
        raise MetricValueError(
            f"metric {metric.name!r} returned a {type(result).__name__}; "
            "expected a NumPy array, a torch tensor, an Arrow array or a Polars series"
        )
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise MetricValueError(
            f"metric {metric.name!r} returned an array of shape {array.shape}; expected one value for each sample"
        )
    missing = np.ma.getmaskarray(array) if isinstance(array, np.ma.MaskedArray) else None
    try:
        if array.dtype.kind not in "biuf":
            return pa.array(array)
        return arrow_view(np.array(array), missing=missing)  # a copy: the metric may use its array again
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise MetricValueError(
            f"metric {metric.name!r} returned dtype {array.dtype}, which is no column of numbers: {error}"
        ) from error


def _cast(metric: Metric, values: pa.Array, *, start: int, stop: int) -> pa.Array:
    """Cast to the declared type; a cast that would change a value is an error."""
    # What SQL makes of a literal such as 2.0 is a decimal.
    wanted = metric.dtype or (pa.float64() if pa.types.is_decimal(values.type) else values.type)
    if wanted not in VALUE_TYPES:
        raise MetricValueError(
            f"metric {metric.name!r} returned {wanted}; declare a dtype that an index can hold: "
            f"{', '.join(str(kind) for kind in VALUE_TYPES)}"
        )
    if values.type == wanted:
        return values
    try:
        if pa.types.is_decimal(values.type) and pa.types.is_boolean(wanted):
            values = values.cast(pa.int64())
        cast = values.cast(wanted)  # a float that is rounded to float32 is what was asked for
        if pa.types.is_decimal(values.type) and metric.dtype is None and not cast.cast(values.type).equals(values):
            raise pa.ArrowInvalid("some digits would be lost; declare the dtype that the metric is to have")
        if pa.types.is_boolean(wanted) and not cast.cast(values.type).equals(values):
            raise pa.ArrowInvalid("some are neither 0 nor 1")
        if pa.types.is_float32(wanted) and pc.sum(pc.is_inf(cast)) != pc.sum(pc.is_inf(values)):
            raise pa.ArrowInvalid("some are too large")
    except pa.ArrowException as error:
        raise MetricValueError(
            f"metric {metric.name!r} returned {values.type} values for the samples {start} to {stop - 1} that its "
            f"dtype {wanted} can't hold: {error}"
        ) from error
    return cast


def _refuse_missing(metric: Metric, values: pa.Array, *, start: int) -> None:
    missing = None
    if values.null_count:
        missing = values.is_null()
    elif pa.types.is_floating(values.type):
        array = numpy_view(values)
        # A sum is NaN or infinite where any value is, and is one pass without a temporary array.
        with np.errstate(all="ignore"):
            suspect = not np.isfinite(np.sum(array, dtype=np.float64))
        if suspect and np.isnan(array).any():
            missing = pc.is_nan(values)
    if missing is not None:
        sample = start + missing.index(pa.scalar(True)).as_py()
        raise MetricValueError(
            f"metric {metric.name!r} has no value (null or NaN) for sample {sample}; "
            'correct the data or the metric, or declare it with nulls="keep"'
        )


def checked_sum(metric: Metric, result: Any) -> np.ndarray:
    """Return what a total metric returned for one batch as an array of the type in which sums are taken.

    Integers are summed in 64 bits and floats in float64, whatever type is stored in the end.

    Raises:
        MetricValueError: for anything but numbers, and for NaN.
    """
    array = as_numpy(result)
    if array is None:
        try:
            array = np.asarray(result)
        except (TypeError, ValueError) as error:
            raise MetricValueError(f"metric {metric.name!r} returned a {type(result).__name__}: {error}") from error
    if array.dtype.kind not in "buif":
        raise MetricValueError(f"metric {metric.name!r} returned dtype {array.dtype}; expected numbers to add up")
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise MetricValueError(f"metric {metric.name!r} returned NaN; a sum that contains it would be lost")
    wide = {"b": np.int64, "i": np.int64, "u": np.uint64, "f": np.float64}[array.dtype.kind]
    wide_array: np.ndarray = array.astype(wide, copy=False)
    return wide_array


def added(metric: Metric, total: np.ndarray | None, contribution: np.ndarray) -> np.ndarray:
    """Return the sum of two contributions; the shorter of two vectors is padded with zeros.

    Raises:
        MetricValueError: when the shapes can't be added, or the sum of integers leaves 64 bits.
    """
    if total is None:
        return contribution.copy()
    if total.shape != contribution.shape and (total.ndim != 1 or contribution.ndim != 1):
        raise MetricValueError(
            f"metric {metric.name!r} returned shape {contribution.shape} after {total.shape}; contributions must have "
            "one shape, or be vectors"
        )
    total, contribution = _of_one_type(metric, total, contribution)
    if total.shape == contribution.shape:
        return _sum(metric, total, contribution)
    longer, shorter = sorted((total, contribution), key=len, reverse=True)
    padded = longer.copy()
    padded[: len(shorter)] = _sum(metric, longer[: len(shorter)], shorter)
    return padded


def _of_one_type(metric: Metric, left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bring int64, uint64 and float64 arrays to one type without rounding an integer to a float."""
    if left.dtype == right.dtype:
        return left, right
    if "f" in (left.dtype.kind, right.dtype.kind):
        return left.astype(np.float64), right.astype(np.float64)
    for dtype in (np.dtype(np.int64), np.dtype(np.uint64)):
        if _holds(dtype, left) and _holds(dtype, right):
            return left.astype(dtype), right.astype(dtype)
    raise _too_large(metric)


def _holds(dtype: np.dtype[Any], array: np.ndarray) -> bool:
    """Tell whether all numbers of an array lie within the range of an integer dtype."""
    limits = np.iinfo(dtype)
    # A float can equal the limit plus one, but not the limit of 64 bits itself.
    return bool(np.all((array >= limits.min) & (array < int(limits.max) + 1)))


def _sum(metric: Metric, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Add two arrays of one type and shape; integers that wrap around are an error."""
    with np.errstate(all="ignore"):
        total: np.ndarray = np.asarray(left + right)
    if total.dtype.kind == "i":
        wrapped = ((left ^ total) & (right ^ total)) < 0
    elif total.dtype.kind == "u":
        wrapped = total < left
    else:
        wrapped = np.isnan(total)  # infinity minus infinity
    if np.any(wrapped):
        raise _too_large(metric)
    return total


def _too_large(metric: Metric) -> MetricValueError:
    return MetricValueError(
        f"the sum of metric {metric.name!r} is too large for 64 bits (or adds infinities of both signs); "
        "let it return smaller numbers, or floats"
    )


def stored_sum(metric: Metric, total: np.ndarray) -> np.ndarray:
    """Return a sum in the declared type.

    Raises:
        MetricValueError: when the declared type can't hold it; floats may be rounded to float32, not to integers.
    """
    kind = metric.dtype or value_type(total.dtype)
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
            f"metric {metric.name!r} sums up to {largest}, which its dtype {kind} can't hold; declare a wider one"
        )
    return stored
