"""Values that were computed elsewhere: what is handed over is what the index answers with, in every type."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import arrowds
from arrowds.errors import IndexChangedError, IndexExistsError

TYPES = ["int8", "uint8", "int16", "uint32", "int64", "uint64", "float32", "float64", "bool"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """An index of 50 samples in three segments."""
    folder = tmp_path_factory.mktemp("values")
    for number, size in enumerate((20, 29, 1)):
        pl.DataFrame({"x": range(size)}).write_parquet(folder / f"{number}.parquet")
        if number:
            arrowds.append(folder / f"{number}.parquet", folder / "index", progress=False)
        else:
            metric = arrowds.metrics.column("x")
            arrowds.analyze(folder / "0.parquet", metric, folder / "index", progress=False)
    return folder / "index"


@given(data=st.data(), kind=st.sampled_from(TYPES))
def test_values_of_every_type_with_and_without_holes(path, data, kind):
    numbers = (
        st.floats(width=32, allow_nan=False) if kind.startswith("f") else st.integers(0, 1 if kind == "bool" else 127)
    )
    values = np.array(data.draw(st.lists(numbers, min_size=50, max_size=50))).astype(kind)
    missing = np.array(data.draw(st.lists(st.booleans(), min_size=50, max_size=50)))
    if missing.all():
        missing[0] = False
    index = arrowds.add_values({"given": np.ma.masked_array(values, missing)}, path, refresh=True, progress=False)
    metric = index["given"]
    assert metric.dtype == values.dtype and metric.num_valid == 50 - missing.sum()
    answered = metric.values
    assert np.array_equal(np.ma.getdata(answered)[~missing], values[~missing])
    kept = np.flatnonzero(~missing)
    assert metric.sample_ids().tolist() == kept[np.argsort(values[kept], kind="stable")].tolist()
    column = index.scan().collect()["given"]
    assert column.null_count() == missing.sum()


@pytest.mark.parametrize(
    "values",
    [
        [1.5] * 50,
        np.arange(50),
        pl.Series(range(50)),
        pa.array(range(50)),
        torch.arange(50),
        pl.Series(["b", "a"] * 25),
    ],
    ids=["list", "numpy", "polars", "arrow", "torch", "names"],
)
def test_whatever_holds_values(path, values):
    index = arrowds.add_values({"any": values}, path, refresh=True, progress=False)
    answered = index.scan().collect()["any"].to_list()
    assert answered == (values.to_pylist() if isinstance(values, pa.Array) else list(values))


def test_a_name_that_is_taken_needs_refresh(path):
    arrowds.add_values({"taken": np.zeros(50)}, path, refresh=True, progress=False)
    before = arrowds.open_index(path).version
    assert arrowds.add_values({"taken": np.zeros(50)}, path, progress=False).version == before
    with pytest.raises(IndexExistsError, match="refresh=True"):
        arrowds.add_values({"taken": np.ones(50)}, path, progress=False)
    assert arrowds.add_values({"taken": np.ones(50)}, path, refresh=True, progress=False)["taken"].min() == 1


def test_values_for_an_open_index_are_refused_when_it_has_other_samples_now(tmp_path):
    metric = arrowds.metrics.column("x")
    index = arrowds.analyze(pl.DataFrame({"x": [1, 2, 3]}), metric, tmp_path / "index", progress=False)
    arrowds.analyze(pl.DataFrame({"x": [7, 8, 9]}), metric, tmp_path / "index", overwrite=True, progress=False)
    with pytest.raises(IndexChangedError):
        arrowds.add_values({"score": [0, 1, 2]}, index, progress=False)
    newest = arrowds.open_index(tmp_path / "index")
    assert newest.metrics == ["x"]
    assert arrowds.add_values({"score": [0, 1, 2]}, newest, progress=False)["score"].values.tolist() == [0, 1, 2]
