"""diff against SciPy's two-sample statistic, and against counting."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_files import memory_folder
from scipy import stats
from typer.testing import CliRunner

import arrowds
from arrowds.cli import app
from arrowds.index.compare import common_samples, diff
from arrowds.metrics import column

VALUES = st.lists(st.integers(-5, 5) | st.floats(-9, 9).map(lambda x: round(x, 1)), min_size=1, max_size=40)


def built(path, **columns):
    metrics = [column(name, nulls="keep") for name in columns]
    return arrowds.analyze(pl.DataFrame(columns, strict=False), metrics, path, progress=False)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of SciPy's p-value, which is not used
@settings(max_examples=40, deadline=None)
@given(VALUES, VALUES)
def test_the_distance_of_numbers_is_that_of_scipy(left, right):
    with memory_folder() as folder:
        a = built(folder / "a", x=np.array(left, float))
        b = built(folder / "b", x=np.array(right, float))
        found = diff(a, b).row(0, named=True)
    assert found["distance"] == pytest.approx(stats.ks_2samp(left, right).statistic)
    assert found["p50_a"] == np.quantile(np.array(left, float), 0.5, method="inverted_cdf")
    assert (found["samples_a"], found["samples_b"]) == (len(left), len(right))


def test_categories_missing_metrics_and_missing_values(tmp_path):
    a = built(
        tmp_path / "a", c=["x", "x", "y", "z"], only_a=[1, 2, 3, 4], n=[1, None, 3, 3], void=[None, None, None, 1.0]
    )
    b = built(tmp_path / "b", c=["x", "w"], n=[1, 1], only_b=[0.5, 0.5])
    found = {row["metric"]: row for row in diff(a, b).iter_rows(named=True)}
    assert found["c"]["distance"] == pytest.approx((0.0 + 0.25 + 0.25 + 0.5) / 2)
    assert found["n"]["distance"] == pytest.approx(2 / 3)
    assert found["n"]["samples_a"] == 3
    assert found["only_a"]["distance"] is None and found["only_a"]["type_b"] is None
    assert found["only_b"]["type_b"] == "float64"
    assert list(found)[:2] == ["n", "c"]  # those that differ most come first


def test_versions_and_common_samples(tmp_path):
    data = [pl.DataFrame({"x": [1, 2, 3]}), pl.DataFrame({"x": [7, 8]})]
    for number, frame in enumerate(data):
        frame.write_parquet(tmp_path / f"{number}.parquet")
    arrowds.analyze(tmp_path / "0.parquet", column("x"), tmp_path / "index", progress=False)
    arrowds.append(tmp_path / "1.parquet", tmp_path / "index", progress=False)
    old, new = (arrowds.open_index(tmp_path / "index", version=version) for version in (1, 2))
    assert common_samples(old, new) == 3
    run = CliRunner().invoke(app, ["diff", str(tmp_path / "index"), "--versions", "1", "2", "--json"])
    assert json.loads(run.output)["distance"] == pytest.approx(2 / 5)
    table = CliRunner().invoke(app, ["diff", str(tmp_path / "index"), str(tmp_path / "index")]).output
    assert "5 samples of B were added from data that A has, too" in table
    csv = CliRunner().invoke(app, ["diff", str(tmp_path / "index"), str(tmp_path / "index"), "--csv"]).output
    assert csv.splitlines()[1].startswith("x,0.0")
    assert CliRunner().invoke(app, ["diff", str(tmp_path / "index")]).exit_code == 2
