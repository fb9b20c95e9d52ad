"""What a metric may return, and what it is told when it returns something else."""

from __future__ import annotations

import warnings
from decimal import Decimal

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowds.build.results import checked_sum, checked_values
from arrowds.errors import MetricValueError
from arrowds.index.totals import added, stored_sum, sum_of_segments
from arrowds.metrics import function


def metric(dtype: object = None, *, nulls: str = "refuse", kind: str = "per_sample"):
    return function("m", lambda batch: batch, dtype=dtype, nulls=nulls, kind=kind)


def checked(result, dtype=None, *, rows: int | None = None, nulls: str = "refuse", start: int = 100) -> pa.Array:
    rows = len(result) if rows is None else rows
    return checked_values(metric(dtype, nulls=nulls), result, start=start, rows=rows)


@pytest.mark.parametrize(
    "result",
    [
        np.array([1, 2, 3]),
        np.array([[1], [2], [3]]),
        np.array([1, 2, 3], ">i8"),
        np.array([1, 9, 2, 9, 3])[::2],
        np.array([1, 2, 3], object),
        torch.tensor([1, 2, 3]),
        torch.tensor([1.0, 2.0, 3.0], requires_grad=True),
        torch.tensor([1, 2, 3], dtype=torch.bfloat16),
        torch.tensor([1, 2, 3], dtype=torch.float16),
        pa.array([1, 2, 3]),
        pa.array([0, 1, 2, 3])[1:],
        pa.chunked_array([[1], [2, 3]]),
        pl.Series([1, 2, 3]),
        pl.Series([1.0, 2.0, 3.0], dtype=pl.Float32),
    ],
    ids=lambda result: f"{type(result).__name__}-{getattr(result, 'dtype', '')}",
)
def test_arrays_of_any_library_are_values(result):
    found = checked(result, "float32")
    assert found.type == pa.float32()
    assert found.to_pylist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("text", "dtype", "expected"),
    [
        ("9007199254740993", "int64", 9007199254740993),
        ("18446744073709551615", "uint64", 2**64 - 1),
        ("2.00", "int8", 2),
        ("1", "bool", True),
        ("0.1", None, 0.1),
        ("9007199254740993", "float64", 9007199254740992.0),
    ],
)
def test_decimals_are_exact_or_rounded_as_declared(text, dtype, expected):
    found = checked(pa.array([Decimal(text)], pa.decimal128(38, len(text.partition(".")[2]))), dtype)
    assert found.to_pylist() == [expected]


@pytest.mark.parametrize(
    ("text", "dtype"),
    [("9007199254740993", None), ("0.12345678901234567890", None), ("1.5", "int64"), ("1E+30", "int64"), ("2", "bool")],
)
def test_decimals_that_the_type_can_not_hold_are_refused(text, dtype):
    with pytest.raises(MetricValueError, match="can't hold"):
        checked(pa.array([Decimal(text)], pa.decimal128(38, len(text.partition(".")[2]))), dtype)


@pytest.mark.parametrize(
    ("result", "dtype", "message"),
    [
        (
            np.array([1.5]),
            "int64",
            r"returned double values for the samples 100 to 100 that its dtype int64 can't hold",
        ),
        (np.array([300]), "uint8", "uint8 can't hold"),
        (np.array([-1]), "uint64", "uint64 can't hold"),
        (np.array([2**53 + 1]), "float64", "double can't hold"),
        (np.array([1e300]), "float32", "float can't hold: some are too large"),
        (np.array([2]), "bool", "bool can't hold: some are neither 0 nor 1"),
        (np.array(["a"]), None, "returned string; declare a dtype that an index can hold"),
        (np.array(["a"]), "int64", "can't hold"),
        (np.array([object()]), None, "returned dtype object"),
        (np.array([1j]), None, "complex128"),
        (np.zeros((2, 3)), None, r"an array of shape \(2, 3\); expected one value for each sample"),
        (np.array(3), None, r"shape \(\)"),
        (torch.zeros(2, dtype=torch.float16), None, "returned halffloat; declare a dtype"),
        ([1, 2], None, "returned a list; expected a NumPy array, a torch tensor, an Arrow array or a Polars series"),
        (None, None, "returned a NoneType"),
        (pl.Series(["a"]), None, "string"),
    ],
)
def test_anything_else_is_refused_with_what_was_got(result, dtype, message):
    rows = len(result) if np.ndim(result) else 1
    with pytest.raises(MetricValueError, match=f"metric 'm' .*{message}"):
        checked(result, dtype, rows=rows)


def test_a_wrong_length_says_how_many_for_which_samples():
    with pytest.raises(MetricValueError, match="returned 2 values for the 5 samples 100 to 104"):
        checked(np.zeros(2), rows=5)


@pytest.mark.parametrize(
    "result",
    [
        np.array([1.0, 2.0, np.nan, np.nan]),
        pa.array([1, 2, None, 4]),
        pa.array([True, False, None, None]),
        pa.array([1.0, 2.0, None, float("nan")]),
        pl.Series([1, 2, None, 4]),
        np.ma.masked_array([1, 2, 3, 4], mask=[0, 0, 1, 0]),
        torch.tensor([0, 0, float("nan"), 0]),
        torch.tensor([0, 0, float("nan"), 0], dtype=torch.bfloat16),
    ],
    ids=lambda result: f"{type(result).__name__}-{getattr(result, 'dtype', getattr(result, 'type', ''))}",
)
@pytest.mark.parametrize("dtype", [None, "float32", "int64"])
def test_a_missing_value_names_the_sample(result, dtype):
    with pytest.raises(
        MetricValueError, match=r"metric 'm' has no value \(null or NaN\) for sample 102; .*nulls=\"keep\""
    ):
        checked(result, dtype)


def test_kept_nulls_of_floats_are_nan():
    found = checked(pa.array([1.0, None, float("nan")]), nulls="keep")
    assert found.null_count == 0
    assert np.isnan(found.to_numpy()).tolist() == [False, True, True]
    assert checked(pa.array([1, None]), "int8", nulls="keep").to_pylist() == [1, None]
    assert np.isnan(checked(pa.array([1, None]), "float64", nulls="keep").to_numpy()).tolist() == [False, True]


def test_infinities_and_huge_floats_are_values_and_warn_of_nothing():
    values = [np.inf, -np.inf, 1e308, 1e308, -1e308]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checked(np.array(values)).to_pylist() == values
    with pytest.raises(MetricValueError, match="sample 103"):
        checked(np.array([np.inf, -np.inf, 1.0, np.nan]))


def total_of(*results, dtype=None) -> np.ndarray:
    each = metric(dtype, kind="total")
    total = None
    for result in results:
        total = added(each.name, total, checked_sum(each, result))
    return stored_sum(each.name, total, each.dtype)


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([3, 4], 7),
        ([True, True], 2),
        ([np.float32(0.5), 1], 1.5),
        ([[1], [1, 2, 3], [0, 1]], [2, 3, 3]),
        ([[], [1]], [1]),
        ([torch.ones(2, 2), torch.ones(2, 2)], [[2, 2], [2, 2]]),
        ([np.array([250], np.uint8), np.array([250], np.uint8)], [500]),
        ([np.array([True, False]), np.array([True, True])], [2, 1]),
        ([np.float32(16_777_216), np.float32(1)], 16_777_217),
        ([np.uint64(2**63), np.int64(5)], 2**63 + 5),
        ([np.uint64(7), np.int64(-5)], 2),
        ([np.int64(-(2**63)), np.int64(2**63 - 1)], -1),
        ([np.zeros((0, 3)), np.zeros((0, 3))], np.zeros((0, 3))),
    ],
)
def test_totals_are_exact_sums_of_any_shape(results, expected):
    found = total_of(*results)
    assert found.shape == np.shape(expected)
    assert found.tolist() == np.asarray(expected).tolist()


@pytest.mark.parametrize(
    ("results", "dtype", "message"),
    [
        ([2**62, 2**62], None, "too large for 64 bits"),
        ([-(2**62), -(2**62), -1], None, "too large for 64 bits"),
        ([[1, 2**63 - 1], [1, 1]], None, "too large for 64 bits"),
        ([[2**63 - 1], [1, 1]], None, "too large for 64 bits"),
        ([np.uint64(2**64 - 1), np.uint64(1)], None, "too large for 64 bits"),
        ([np.uint64(2**64 - 1), np.int64(-1)], None, "too large for 64 bits"),
        ([np.inf, -np.inf], None, "infinities of both signs"),
        ([200, 100], "uint8", "sums up to 300, which its dtype uint8 can't hold"),
        ([-1], "uint8", "sums up to -1, which"),
        ([0.5], "int64", "sums up to 0.5, which its dtype int64 can't hold"),
        ([2.0**63], "int64", "can't hold"),
        ([2.0**64], "uint64", "can't hold"),
        ([np.inf], "int64", "can't hold"),
        ([1e300], "float32", "float can't hold"),
        ([np.nan], None, "returned NaN"),
        ([None], None, "expected numbers"),
        (["a"], None, "expected numbers"),
        ([[[1], [1, 2]]], None, "returned a list"),
        ([{}], None, "expected numbers"),
        ([[1, 2], [[1, 2]]], None, r"shape \(1, 2\) after \(2,\)"),
        ([1, [1]], None, r"shape \(1,\) after \(\)"),
    ],
)
def test_totals_that_would_be_wrong_are_refused(results, dtype, message):
    with pytest.raises(MetricValueError, match=message):
        total_of(*results, dtype=dtype)


@given(
    results=st.lists(
        st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-5, 5), max_size=4), min_size=1, max_size=6
    )
)
@settings(max_examples=150, deadline=None)
def test_integer_totals_are_pythons_sum_or_an_error(results):
    width = max(map(len, results))
    running = [
        [sum(each[i] for each in results[:n] if i < len(each)) for i in range(width)] for n in range(len(results) + 1)
    ]
    arrays = [np.array(each, np.int64) for each in results]
    if all(-(2**63) <= value < 2**63 for sums in running for value in sums):
        assert total_of(*arrays).tolist() == running[-1]
    else:
        with pytest.raises(MetricValueError, match="too large"):
            total_of(*arrays)


def test_the_sum_is_stored_in_the_declared_type():
    assert total_of([1, 2], dtype="uint8").dtype == np.uint8
    assert total_of([1, 2], dtype="float32").dtype == np.float32
    assert total_of([0, 2], dtype="bool").tolist() == [False, True]
    assert total_of([1.0, 3.0], dtype="int64").tolist() == [1, 3]


def test_a_contribution_is_not_changed():
    first, second = np.array([1, 2]), np.array([5])
    each = metric(kind="total")
    total = added(each.name, None, first)
    added(each.name, total, second)
    assert (first.tolist(), second.tolist(), total.tolist()) == ([1, 2], [5], [1, 2])


def test_totals_of_segments_add_up_in_their_type():
    parts = [np.array([250], np.uint8), np.array([3, 1], np.uint8)]
    assert sum_of_segments("t", parts).tolist() == [253, 1]
    assert sum_of_segments("t", parts).dtype == np.uint8
    with pytest.raises(MetricValueError, match="sums up to 260, which its dtype uint8 can't hold"):
        sum_of_segments("t", [np.array([250], np.uint8), np.array([10], np.uint8)])
    assert sum_of_segments("t", [np.array(1), np.array(0.5)]) == 1.5
    assert not sum_of_segments("t", parts).flags.writeable
