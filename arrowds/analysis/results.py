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
    values = _cast(metric, values, start=start)
    if pa.types.is_floating(values.type):
        # NaN is the one way in which a float metric says that it has no value.
        values = values.fill_null(float("nan")) if values.null_count else values
    if metric.nulls == "refuse":
        _refuse_missing(metric, values, start=start)
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
    return pa.array(array)


def _cast(metric: Metric, values: pa.Array, *, start: int) -> pa.Array:
    """Cast to the declared type; a cast that would change a value is an error."""
    wanted = metric.dtype or values.type
    if wanted not in VALUE_TYPES:
        raise MetricValueError(
            f"metric {metric.name!r} returned {wanted}; declare a dtype that an index can hold: "
            f"{', '.join(str(kind) for kind in VALUE_TYPES)}"
        )
    if values.type == wanted:
        return values
    if pa.types.is_floating(values.type) and pa.types.is_float32(wanted):
        return values.cast(wanted)  # rounding to the declared precision is what was asked for
    try:
        return values.cast(wanted)
    except pa.ArrowException as error:
        raise MetricValueError(
            f"metric {metric.name!r} returned {values.type} values for the samples from {start} on that its dtype "
            f"{wanted} can't hold: {error}"
        ) from error


def _refuse_missing(metric: Metric, values: pa.Array, *, start: int) -> None:
    missing = None
    if values.null_count:
        missing = values.is_null()
    elif pa.types.is_floating(values.type):
        array = values.to_numpy(zero_copy_only=False)
        # A sum is NaN or infinite where any value is, and is one pass without a temporary array.
        if not np.isfinite(np.sum(array, dtype=np.float64)) and np.isnan(array).any():
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
        MetricValueError: when the shapes can't be added.
    """
    if total is None:
        return contribution.copy()
    if total.shape == contribution.shape:
        return total + contribution
    if total.ndim != 1 or contribution.ndim != 1:
        raise MetricValueError(
            f"metric {metric.name!r} returned shape {contribution.shape} after {total.shape}; contributions must have "
            "one shape, or be vectors"
        )
    longer, shorter = sorted((total, contribution), key=len, reverse=True)
    padded = longer.astype(np.result_type(longer, shorter))
    padded[: len(shorter)] += shorter
    return padded


def stored_sum(metric: Metric, total: np.ndarray) -> np.ndarray:
    """Return a sum in the declared type.

    Raises:
        MetricValueError: when the declared integer type can't hold it.
    """
    kind = metric.dtype or value_type(total.dtype)
    dtype = np.dtype(kind.to_pandas_dtype())
    if dtype.kind in "iu" and total.size:
        limits = np.iinfo(dtype)
        if total.min() < limits.min or total.max() > limits.max:
            raise MetricValueError(
                f"metric {metric.name!r} sums up to {total.max()}, which its dtype {kind} can't hold"
            )
    stored: np.ndarray = total.astype(dtype)
    return stored
