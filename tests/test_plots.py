"""Summaries agree with the values; pictures are the formats they claim to be."""

from __future__ import annotations

import json
import sys

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from arrowds.errors import ArrowdsWarning, ConfigError, MissingExtraError, StorageError
from arrowds.plots import bars, describe, draw, plot, text_histogram


@pytest.fixture(scope="module")
def index(make_index):
    rng = np.random.default_rng(0)
    columns = {
        "n": pa.array([*rng.integers(0, 300, 999).tolist(), None]),
        "x": pa.array(rng.normal(size=1000)),
        "b": pa.array(rng.integers(0, 2, 1000).astype(bool)),
        "nothing": pa.array([None] * 1000, pa.int32()),
        "one": pa.array([7] * 1000),
        "infinite": pa.array([np.inf, -np.inf] * 500),
    }
    return make_index(columns, {"t": np.zeros((3, 4), np.float32)})


def test_description_agrees_with_the_values(index):
    facts = describe(index)
    json.dumps(facts)
    by_name = {row["name"]: row for row in facts["metrics"]}
    values = index["n"].values.compressed()
    n = by_name["n"]
    assert (n["type"], n["stored_type"], n["samples"], n["missing"]) == ("int64", "uint16", 999, 1)
    assert (n["min"], n["max"], n["distinct"]) == (values.min(), values.max(), len(np.unique(values)))
    assert [n[f"p{p}"] for p in (1, 25, 50, 75, 99)] == np.percentile(
        values, [1, 25, 50, 75, 99], method="inverted_cdf"
    ).tolist()
    assert by_name["nothing"]["min"] is None and by_name["nothing"]["missing"] == 1000
    assert by_name["b"]["type"] == "bool" and by_name["b"]["max"] is True
    assert facts["totals"] == [{"name": "t", "type": "float32", "shape": [3, 4], "bytes": facts["totals"][0]["bytes"]}]
    on_disk = sum(path.stat().st_size for path in (index.path / "metrics/n").rglob("*") if path.is_file())
    assert n["bytes"] == on_disk
    sources = sum(path.stat().st_size for path in (index.path / "sources").iterdir())
    assert facts["bytes"] == sum(row["bytes"] for row in facts["metrics"] + facts["totals"]) + sources


@pytest.mark.parametrize("name", ["n", "x", "b", "one"])
@pytest.mark.parametrize("width", [30, 80])
def test_text_histogram_counts_every_finite_value(index, name, width):
    lines = text_histogram(index[name], bins=10, width=width).splitlines()
    frame = index[name].histogram(10)
    assert len(lines) == frame.height
    assert [int(line.split()[-2].replace(",", "")) for line in lines] == frame["count"].to_list()
    assert len({len(line) for line in lines}) == 1
    if width == 80:
        assert len(lines[0]) == width
    longest = max(line.count("█") for line in lines)
    if frame["count"].sum():
        assert lines[frame["count"].arg_max()].count("█") == longest > 0


def test_what_a_histogram_leaves_out_is_said(make_index):
    inf = float("inf")
    index = make_index(
        {
            "some": pa.array([inf, 1.0, 2.0, -inf]),
            "last": pa.array([1.0, 2.0, 3.0, inf]),
            "only": pa.array([inf, -inf, inf, inf]),
            "nothing": pa.array([None] * 4, pa.float64()),
        }
    )
    said = {
        "some": "2 infinite values are not shown",
        "last": "1 infinite value is not shown",
        "only": "4 infinite values are not shown",
        "nothing": "no values",
    }
    for name, text in said.items():
        assert text_histogram(index[name], bins=2).splitlines()[-1] == text
        assert [note.get_text() for note in draw(index[name], bins=2).axes[0].texts] == [text]
    assert len(text_histogram(index["some"], bins=2).splitlines()) == 3
    assert text_histogram(index["nothing"]) == "no values"


@pytest.mark.parametrize("values", [[1e300, -1e300], [1e-12, 2e-12], [2**53, 2**53 + 4], [123456.5, 123457.5]])
def test_text_histogram_tells_edges_apart(make_index, values):
    lines = text_histogram(make_index({"m": pa.array(values)})["m"], bins=4).splitlines()
    assert all(line.split(" to ")[0].strip() != line.split(" to ")[1].split()[0] for line in lines[:1])


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_plot_writes_the_format_of_the_suffix_with_equal_bytes(index, tmp_path, suffix, magic):
    for name in ("first", "second"):
        plot(index["n"], tmp_path / f"{name}.{suffix}", bins=10)
    first, second = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("first", "second"))
    assert first.startswith(magic)
    assert first == second
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"first.{suffix}", f"second.{suffix}"]


@pytest.mark.parametrize("name", ["x", "b", "nothing", "one", "infinite"])
def test_drawing_shows_the_histogram_and_the_cumulative_share(index, name):
    figure = draw(index[name], bins=10)
    histogram, cumulative = figure.axes
    assert histogram.patches[0].get_data().values.tolist() == index[name].histogram(10)["count"].to_list()
    edges, shares = cumulative.lines[0].get_data()
    assert shares[-1] == sum(index[name].sample_ids(up_to=edges[-1]).shape) / max(index[name].num_valid, 1)


def test_bad_targets_are_refused(index, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"\.png"):
        plot(index["n"], tmp_path / "picture.gif")
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        plot(index["n"], tmp_path / "file" / "picture.png")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"arrowds\[report\]"):
        plot(index["n"], tmp_path / "picture.png")


def test_index_without_metrics_or_totals_is_described(make_index):
    assert describe(make_index({"n": pa.array([1])}))["totals"] == []
    assert pl.DataFrame(describe(make_index({"n": pa.array([1])}))["metrics"]).height == 1


@pytest.fixture(scope="module")
def skewed(make_index):
    """Real shapes: token counts with one huge document, mostly zeros, a signed tail, packed lengths, a low tail."""
    rng = np.random.default_rng(0)
    tokens = np.clip(rng.lognormal(6, 1.1, 9999).astype(np.int64), 1, None)
    columns = {
        "tokens": np.append(tokens, 644_127),
        "zeros": np.append(np.where(rng.random(9999) < 0.6, 0, rng.lognormal(3, 1, 9999)).astype(np.int64), 90_000),
        "loss": np.append(rng.exponential(1, 9999), 5000.0),
        "signed": rng.standard_t(1.1, 10_000),
        "packed": np.append(np.full(9999, 2048), 7),
        "low_tail": np.append(1000 - rng.exponential(5, 9999), 0.0),
        "denormal": np.append(rng.lognormal(0, 1, 9998), [1e-300, 1e4]),
        "normal": rng.normal(size=10_000).astype(np.float32),
    }
    return make_index({name: pa.array(values) for name, values in columns.items()})


@pytest.mark.parametrize("bins", [1, 2, 20, 50])
@pytest.mark.parametrize("log", [None, False])
def test_bars_count_every_value_once_as_numpy_does(skewed, bins, log):
    for name in skewed:
        values, chosen = skewed[name].values.astype(np.float64), bars(skewed[name], bins, log=log)
        assert 1 <= len(chosen.counts) <= bins
        assert np.histogram(values, chosen.edges)[0].tolist() == chosen.counts
        assert chosen.below == np.count_nonzero(values < chosen.edges[0])
        assert chosen.above == np.count_nonzero(values > chosen.edges[-1])
        assert chosen.below + sum(chosen.counts) + chosen.above == len(values)


def test_skewed_values_are_not_one_bar(skewed):
    for name in ("tokens", "loss", "signed", "low_tail", "denormal"):
        plain = skewed[name].histogram(20)["count"]
        assert plain.max() > 0.99 * plain.sum()
        counts = bars(skewed[name], 20).counts
        assert max(counts) < 0.5 * len(skewed[name]) and sum(count > 50 for count in counts) >= 5
    assert [name for name in skewed if bars(skewed[name], 20).log] == ["tokens", "zeros", "loss", "denormal"]


def test_values_that_do_not_ask_for_it_keep_the_equal_bins_of_the_histogram(skewed):
    for name in ("normal", "packed"):
        frame, chosen = skewed[name].histogram(20), bars(skewed[name], 20)
        assert chosen.counts == frame["count"].to_list() and not chosen.log
        assert chosen.edges == [*frame["lower"], frame["upper"][-1]]


def test_bars_are_logarithmic_or_not_as_asked(skewed):
    plain = bars(skewed["tokens"], 20, log=False)
    assert not plain.log and plain.counts == skewed["tokens"].histogram(20)["count"].to_list()
    assert bars(skewed["packed"], 20, log=True).log
    with pytest.raises(ConfigError, match="below zero, which have no logarithm; pass log=False"):
        bars(skewed["normal"], 20, log=True)


def test_bars_lie_between_percentiles_as_asked(skewed):
    low, high = np.percentile(skewed["tokens"].values, [5, 90], method="inverted_cdf")
    chosen = bars(skewed["tokens"], 10, between=(5, 90))
    assert (chosen.edges[0], chosen.edges[-1], chosen.log) == (low, high, False)
    assert bars(skewed["tokens"], 10, between=(5, 90), log=True).edges[0] == low
    for bounds in ((90, 5), (5, 5), (-1, 50), (50, 101)):
        with pytest.raises(ConfigError, match="0 <= LO < HI <= 100"):
            bars(skewed["tokens"], 10, between=bounds)
    with pytest.warns(ArrowdsWarning, match=r"percentiles are 0 to 100, so 0 to 0.5 "):
        bars(skewed["tokens"], 10, between=(0, 0.5))


def test_text_and_picture_show_what_lies_outside_the_bars(skewed):
    lines = text_histogram(skewed["signed"], bins=10, width=80).splitlines()
    assert lines[0].split()[0] == "below" and lines[-1].split()[0] == "above" and {len(line) for line in lines} == {80}
    assert sum(int(line.split()[-2].replace(",", "")) for line in lines) == 10_000
    figure = draw(skewed["signed"], bins=10)
    assert [note.get_text() for note in figure.axes[0].texts] == ["99 samples below and 100 above are not shown"]
    assert draw(skewed["tokens"]).axes[0].get_xscale() == "log"
    assert draw(skewed["zeros"]).axes[0].get_xscale() == "symlog"
    assert draw(skewed["tokens"], log=False).axes[0].get_xscale() == "linear"


def test_edges_of_logarithmic_bars_are_told_apart(skewed):
    for name in ("tokens", "zeros", "loss", "denormal"):
        edges = [line.split(" to ")[0].strip() for line in text_histogram(skewed[name], bins=40).splitlines()]
        assert len(set(edges)) == len(edges)
