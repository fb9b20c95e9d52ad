"""What every lookup of a metric must answer, worked out from the values alone by Python, NumPy, Polars and DuckDB."""

from __future__ import annotations

import math
from typing import Any

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import strategies as st

import arrowds
from arrowds.errors import ConfigError
from arrowds.index.metric import MetricIndex

BOUNDS = st.none() | st.integers(-4, 4) | st.integers(-(2**65), 2**65) | st.floats(allow_nan=False) | st.booleans()

QUESTIONS = st.fixed_dictionaries(
    {
        "above": BOUNDS,
        "up_to": BOUNDS,
        "tenths": st.tuples(st.integers(0, 1000), st.integers(0, 1000)).map(sorted),
        "bins": st.integers(1, 20),
    }
)


def sorted_pairs(column: pa.Array) -> list[tuple[Any, int]]:
    """(value, id) of every sample that has a value, sorted; Python numbers, which compare exactly."""
    return sorted((v, i) for i, v in enumerate(column.to_pylist()) if v is not None and not math.isnan(v))


def check_lookups(metric: MetricIndex, column: pa.Array, *, above=None, up_to=None, tenths=(0, 1000), bins=7) -> None:
    """Compare every lookup of a metric with brute force over the column that was indexed."""
    pairs = sorted_pairs(column)
    check_order(metric, column, pairs)
    check_ranges(metric, pairs, above, up_to)
    check_positions(metric, pairs, *tenths)
    check_distribution(metric, [value for value, _ in pairs])
    check_histogram(metric, [value for value, _ in pairs], bins)
    check_values(metric, column)


def check_order(metric: MetricIndex, column: pa.Array, pairs: list[tuple[Any, int]]) -> None:
    assert len(metric) == len(column)
    assert metric.num_valid == len(pairs)
    assert metric.num_distinct == len({value for value, _ in pairs})
    assert metric.order.dtype == np.uint32
    assert metric.order.tolist() == [i for _, i in pairs]
    values = np.array([v for v, _ in pairs], column.type.to_pandas_dtype())
    ids = np.array([i for _, i in pairs], np.int64)
    assert metric.order.tolist() == ids[np.lexsort((ids, values))].tolist()  # NumPy agrees


def check_ranges(metric: MetricIndex, pairs: list[tuple[Any, int]], above: Any, up_to: Any) -> None:
    expected = [i for v, i in pairs if (above is None or v > above) and (up_to is None or v <= up_to)]
    ids = metric.sample_ids(above, up_to)
    assert ids.tolist() == expected
    assert ids.dtype == np.uint32
    assert metric.count(above, up_to) == len(expected)
    if above is not None:
        assert metric.rank(above) == sum(v <= above for v, _ in pairs)
        assert metric.rank(above, side="left") == sum(v < above for v, _ in pairs)


def check_positions(metric: MetricIndex, pairs: list[tuple[Any, int]], low: int, high: int) -> None:
    """Bounds are in tenths of a percent."""
    ids = metric.sample_ids_between_percentiles(low / 10, high / 10)
    assert ids.tolist() == [i for _, i in pairs][len(pairs) * low // 1000 : len(pairs) * high // 1000]
    if not pairs:
        for lookup in (lambda: metric.quantile(0.5), metric.min, metric.max):
            with pytest.raises(ConfigError, match="has a value"):
                lookup()
        return
    wanted = [pairs[max(0, -(-len(pairs) * tenths // 1000) - 1)][0] for tenths in (low, high)]
    assert metric.quantile([low / 1000, high / 1000]).tolist() == wanted
    assert metric.quantile(low / 1000) == wanted[0]
    assert (metric.min(), metric.max()) == (pairs[0][0], pairs[-1][0])
    start = min(len(pairs) * low // 1000, len(pairs) - 1)
    stop = max(start + 1, len(pairs) * high // 1000)
    found, values = metric.at_positions(start, stop)
    assert list(zip(values.tolist(), found.tolist(), strict=True)) == pairs[start:stop]


def check_distribution(metric: MetricIndex, values: list[Any]) -> None:
    frame = metric.distribution()
    distinct = sorted(set(values))
    assert frame["value"].to_list() == distinct
    assert frame["count"].to_list() == [values.count(v) for v in distinct]
    assert frame["cumulative_count"].to_list() == [sum(w <= v for w in values) for v in distinct]


def check_histogram(metric: MetricIndex, values: list[Any], bins: int) -> None:
    found = metric.histogram(bins)
    finite = [v for v in values if math.isfinite(v)]
    assert found["count"].sum() == len(finite)
    if any(abs(v) > 2**53 for v in finite) and not np.issubdtype(metric.dtype, np.floating):
        return  # NumPy rounds such integers before it compares them with its edges; the index compares exactly
    array = np.array(finite, metric.dtype)
    array = array.astype(np.uint8) if array.dtype == bool else array
    try:
        with np.errstate(all="raise"):
            counts, edges = np.histogram(array, bins)
    except (ValueError, FloatingPointError):
        return  # NumPy refuses values whose range overflows or is finer than the type; the sum above still holds
    if finite:  # of nothing, NumPy's edges from 0 to 1 are rounded otherwise
        assert found["lower"].to_list() == edges[:-1].tolist()
        assert found["upper"].to_list() == edges[1:].tolist()
    assert found["count"].to_list() == counts.tolist()


def check_values(metric: MetricIndex, column: pa.Array) -> None:
    """Bit by bit where floats are kept: -0.0 is not 0.0, and null and NaN are NaN."""
    assert metric.arrow_type == column.type
    if pa.types.is_floating(column.type):
        expected = column.fill_null(float("nan")).to_numpy(zero_copy_only=False)
        missing = np.isnan(expected)
        assert np.isnan(metric.values).tolist() == missing.tolist()
        assert metric.values[~missing].tobytes() == expected[~missing].tobytes()
        return
    assert np.ma.getmaskarray(metric.values).tolist() == column.is_null().to_pylist()
    present = [value for value in column.to_pylist() if value is not None]
    assert np.ma.compressed(metric.values).tolist() == present
    assert metric.values.dtype.itemsize <= metric.dtype.itemsize


def check_tables(index: arrowds.Index, columns: dict[str, pa.Array]) -> None:
    """``scan`` and ``sql`` give back every value, in the declared type; DuckDB's quantiles are the index's."""
    wanted = {
        name: [None if v is None or math.isnan(v) else v for v in column.to_pylist()]
        for name, column in columns.items()
    }
    rows = next(len(column) for column in columns.values())
    scanned = index.scan().collect()
    answered = index.sql("select * from samples order by sample_id")
    for frame in (scanned, answered):
        assert frame.columns == ["sample_id", *columns]
        assert frame["sample_id"].to_list() == list(range(rows))
        for name, column in columns.items():
            assert frame[name].dtype == pl.Series(pa.nulls(0, column.type)).dtype
            assert frame[name].to_list() == wanted[name]
    for name, column in columns.items():
        distribution = index.sql(f'from "distribution_{name}"')
        assert distribution["value"].to_list() == index[name].distribution()["value"].to_list()
        assert distribution["count"].to_list() == index[name].distribution()["count"].to_list()
        with duckdb.connect() as connection:
            connection.register("brute", pa.table({"v": pa.array(wanted[name], column.type)}))
            brute = connection.sql("select quantile_disc(v, 0.25), count(v) from brute").fetchall()[0]
        if index[name].num_valid:
            assert index[name].quantile(0.25) == brute[0]
        assert index[name].count() == brute[1]
