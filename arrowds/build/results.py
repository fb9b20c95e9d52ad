"""Turn what a metric returned into checked Arrow values or a checked sum."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from arrowds.arrays import arrow_view, numpy_view
from arrowds.batch import as_numpy
from arrowds.errors import MetricValueError
from arrowds.index.totals import wide
from arrowds.metrics import Metric
from arrowds.schema import CATEGORY, VALUE_TYPES


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
    if wanted == CATEGORY and (metric.categorical or metric.dtype == CATEGORY):
        return _names(metric, values, start=start, stop=stop)
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


def _names(metric: Metric, values: pa.Array, *, start: int, stop: int) -> pa.Array:
    """Return the names of categories as they are."""
    try:
        names = values.cast(CATEGORY) if pa.types.is_large_string(values.type) else values
        if names.type != CATEGORY:
            raise pa.ArrowInvalid("a category is a string")
        names.validate(full=True)
    except pa.ArrowException as error:
        raise MetricValueError(
            f"metric {metric.name!r} returned {values.type} values for the samples {start} to {stop - 1} that can't be "
            f"the names of categories: {error}"
        ) from error
    return names


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
    return wide(array)
