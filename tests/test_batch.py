"""Batches of every origin as Arrow columns, with the values that Python sees."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowds.batch import as_arrow, as_numpy, as_record_batch, column
from arrowds.errors import MetricError, MissingColumnError

RAGGED = st.lists(st.lists(st.integers(0, 99), max_size=4), min_size=1, max_size=8)


@given(rows=RAGGED)
@settings(max_examples=60, deadline=None)
def test_ragged_lists_of_any_kind_are_lists_of_their_rows(rows):
    kinds = [
        rows,
        tuple(rows),
        [torch.tensor(row, dtype=torch.int64) for row in rows],
        [torch.tensor(row) for row in rows],  # the empty ones are float32 to torch
        [np.array(row) for row in rows],  # and float64 to NumPy
        pa.array(rows, pa.list_(pa.int64())),
        pa.chunked_array([pa.array(rows[:1], pa.list_(pa.int64())), pa.array(rows[1:], pa.list_(pa.int64()))]),
    ]
    for kind in kinds:
        found = as_arrow(kind)
        assert found.to_pylist() == rows
        if any(rows):
            assert pa.types.is_integer(found.type.value_type)


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_tensors_are_values_or_lists_by_their_dimensions(make):
    assert as_arrow(make([1, 2])).to_pylist() == [1, 2]
    assert as_arrow(make([[1, 2], [3, 4]])).to_pylist() == [[1, 2], [3, 4]]
    assert as_arrow(make([[1, 2, 3, 4]])[:, ::2]).to_pylist() == [[1, 3]]
    assert as_arrow(make([[], []])).to_pylist() == [[], []]
    with pytest.raises(MetricError, match=r"shape \(1, 1, 1\) is no column"):
        as_arrow(make([[[1]]]))


def test_tensors_are_seen_without_a_copy():
    tensor = torch.arange(5)
    assert as_numpy(tensor).__array_interface__["data"][0] == tensor.data_ptr()
    assert as_numpy([1, 2]) is None
    weights = torch.ones(2, requires_grad=True)
    assert as_numpy(weights).tolist() == [1, 1]
    assert as_numpy(torch.tensor([0.1], dtype=torch.bfloat16)).dtype == np.float32


def test_a_missing_field_names_those_there_are():
    table = pa.record_batch({"a": [1], "b": [2]})
    with pytest.raises(MissingColumnError, match=r"no column 'c'; the columns are \['a', 'b'\]"):
        column(table, "c")
    with pytest.raises(MissingColumnError, match=r"no field 'c'; its fields are \['a'\]"):
        column({"a": torch.ones(1)}, "c")
    with pytest.raises(MissingColumnError, match="the batch is a Tensor, so it has no field 'c'"):
        column(torch.ones(1), "c")


def test_what_is_no_column_is_named():
    with pytest.raises(MetricError, match="a list can't be seen as a column of samples"):
        as_arrow([object()])


def test_a_record_batch_takes_only_the_fields_that_are_asked_for():
    batch = {"ids": torch.tensor([1, 2]), "image": torch.zeros(2, 3, 4, 4)}
    assert as_record_batch(batch, ["ids"]).to_pydict() == {"ids": [1, 2]}
    with pytest.raises(MetricError, match="is no column"):
        as_record_batch(batch)
    with pytest.raises(MissingColumnError, match="no field 'idz'"):
        as_record_batch(batch, ["idz"])
    assert as_record_batch(torch.tensor([3, 4])).to_pydict() == {"value": [3, 4]}
    table = pa.record_batch({"a": [1]})
    assert as_record_batch(table) is table
