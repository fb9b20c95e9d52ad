"""Names, types and how they are spelled."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arrowds.errors import MetricNameError, MetricValueError
from arrowds.index import paths
from arrowds.schema import (
    VALUE_TYPES,
    check_metric_name,
    mapped_type,
    narrowed,
    numpy_dtype,
    sample_id_type,
    value_type,
)

ARROW_OF = {
    "uint8": pa.uint8(), "uint16": pa.uint16(), "uint32": pa.uint32(), "uint64": pa.uint64(), "int8": pa.int8(),
    "int16": pa.int16(), "int32": pa.int32(), "int64": pa.int64(), "float32": pa.float32(), "float64": pa.float64(),
    "bool": pa.bool_(),
}  # fmt: skip
POLARS_OF = {name: getattr(pl, {"bool": "Boolean"}.get(name) or name.title().replace("Ui", "UI")) for name in ARROW_OF}


@pytest.mark.parametrize("name", ARROW_OF)
def test_a_dtype_may_be_spelled_as_any_library_does(name):
    spellings = [name, np.dtype(name), np.dtype(name).type, getattr(torch, name), POLARS_OF[name], ARROW_OF[name]]
    assert {value_type(spelling) for spelling in spellings} == {ARROW_OF[name]}
    assert numpy_dtype(ARROW_OF[name]) == np.dtype(name)


def test_python_types_are_those_of_numpy():
    assert [value_type(kind) for kind in (bool, int, float)] == [pa.bool_(), pa.int64(), pa.float64()]
    assert value_type(np.dtype(">i4")) == pa.int32()


@pytest.mark.parametrize(
    "dtype", ["float16", complex, np.complex64, pa.binary(), pl.Binary, torch.bfloat16, None, object, 3, np]
)
def test_other_dtypes_are_refused_with_those_there_are(dtype):
    with pytest.raises(MetricValueError, match=r"can't have the dtype .*; use one of uint8, .*bool"):
        value_type(dtype)


@pytest.mark.parametrize("dtype", ["string", "str", str, pa.string(), pl.String])
def test_text_is_a_category(dtype):
    assert value_type(dtype) == pa.string()


@given(low=st.integers(-(2**63), 2**63 - 1), high=st.integers(-(2**63), 2**63 - 1))
def test_narrowed_types_hold_the_range_and_no_smaller_one_does(low, high):
    low, high = sorted((low, high))
    limits = np.iinfo(narrowed(pa.int64(), low, high).to_pandas_dtype())
    assert limits.min <= low <= high <= limits.max
    kinds = [kind for kind in VALUE_TYPES if pa.types.is_integer(kind) and kind.bit_width < limits.bits]
    fitting = [np.iinfo(kind.to_pandas_dtype()) for kind in kinds]
    assert not any(smaller.min <= low and high <= smaller.max for smaller in fitting)


def test_narrowing_leaves_other_types_and_the_widest_alone():
    assert narrowed(pa.uint64(), 0, 2**64 - 1) == pa.uint64()
    assert [narrowed(kind, 0, 1) for kind in (pa.bool_(), pa.float32())] == [pa.bool_(), pa.float32()]
    assert [mapped_type(kind) for kind in (pa.bool_(), pa.float32())] == [pa.uint8(), pa.float32()]


def test_ids_take_32_bits_as_long_as_they_can():
    assert [sample_id_type(n) for n in (1, 2**32, 2**32 + 1)] == [pa.uint32(), pa.uint32(), pa.uint64()]


@given(name=st.text(max_size=20) | st.sampled_from(["..", "a/b", "/", "a\\b", "C:", "metrics/../x", "a\0", "~"]))
def test_no_name_leaves_the_folder_of_the_index(tmp_path_factory, name):
    root = tmp_path_factory.getbasetemp() / "root"
    places = (
        lambda: paths.values(name, "key", 1),
        lambda: paths.bucket(name, "key", 2, 3),
        lambda: paths.distribution(name, "key", 2),
        lambda: paths.total(name, "key"),
        lambda: paths.run("key", name, 4),
        lambda: paths.part_values("key", name, 4),
        lambda: paths.part_sum("key", name, 4),
        lambda: paths.outcome("key", name, "values-00001"),
        lambda: paths.view(name, "key"),
    )
    try:
        check_metric_name(name)
    except MetricNameError:
        for place in places:
            with pytest.raises(MetricNameError):
                place()
    else:
        for place in places:
            assert (root / place()).resolve().is_relative_to(root)
            assert len(place().split("/")) >= 2
