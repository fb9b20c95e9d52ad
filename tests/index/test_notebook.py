"""What a notebook shows: a well-formed table whose numbers are those of the values, and nothing that runs or loads."""

from __future__ import annotations

from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest

import arrowds
from arrowds.index import index as opened


def cells(html: str) -> tuple[str, list[str], list[list[str]]]:
    """The caption, the head and the rows of a table."""
    table = ElementTree.fromstring(html)
    assert {element.tag for element in table.iter()} <= {"table", "caption", "thead", "tbody", "tr", "th", "td"}
    assert not any(element.attrib for element in table.iter())
    rows = [[cell.text or "" for cell in row] for row in table.iter("tr")]
    return table.findtext("caption"), rows[0], rows[1:]


@pytest.fixture
def index(make_index, tmp_path):
    values = np.random.default_rng(0).integers(0, 90_000, 5000)
    columns = {
        "tokens": pa.array(values), "loss": pa.array([None, *(values[1:] / 7)]), "none": pa.nulls(5000, pa.int8()),
        "flag": pa.array(values > 9000),
    }  # fmt: skip
    return make_index(columns, {"t": np.array([1])}, path=tmp_path / "a <script>&'\"")


def test_an_index_shows_type_samples_and_quantiles_of_each_metric(index):
    caption, head, rows = cells(index._repr_html_())
    assert caption == f"{index.path}: version 1, 5,000 samples; totals: t"
    assert head == ["metric", "type", "samples", "min", "p1", "p25", "p50", "p75", "p99", "max"]
    shares = [0, 0.01, 0.25, 0.5, 0.75, 0.99, 1]
    tokens = np.quantile(index["tokens"].values, shares, method="inverted_cdf")
    loss = np.quantile(index["loss"].values[1:], shares, method="inverted_cdf")
    assert rows == [
        ["tokens", "int64", "5,000", *(f"{level:,}" for level in tokens)],
        ["loss", "float64", "4,999", *(f"{level:.6g}" for level in loss)],
        ["none", "int8", "0", *[""] * 7],
        ["flag", "bool", "5,000", "False", "False", *["True"] * 5],
    ]


def test_a_metric_shows_the_same_row(index):
    for name, row in zip(index, cells(index._repr_html_())[2], strict=True):
        assert cells(index[name]._repr_html_()) == (f"{name}: 5,000 samples", cells(index._repr_html_())[1], [row])


def test_a_large_index_is_shown_without_making_its_maps(index, monkeypatch):
    monkeypatch.setattr(opened, "_MOST_SAMPLES_AT_A_GLANCE", 4999)
    whole = cells(index._repr_html_())[2]
    fresh = arrowds.open_index(index.path)
    assert not (index.path / "views").exists()
    rows = cells(fresh._repr_html_())[2]
    assert not (index.path / "views").exists() and whole == rows
    values = index["tokens"].values
    assert rows[0] == ["tokens", "int64", "5,000", f"{values.min():,}", *[""] * 5, f"{values.max():,}"]
    assert rows[2][3:] == [""] * 7
    assert [row[5] != "" for row in cells(fresh._repr_html_())[2]] == [True, False, False, False]
