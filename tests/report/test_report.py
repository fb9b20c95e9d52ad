"""The page of an index: its numbers against NumPy, SciPy and Polars over the data, and nothing of the data as HTML."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import scipy.stats
from pages import Page, number
from typer.testing import CliRunner

import arrowds
from arrowds.cli import app
from arrowds.errors import ConfigError, MissingColumnError, MissingExtraError, UnknownMetricError
from arrowds.metrics import column

METRICS = ["length", "loss", "clean", "quality", "language", "cluster_size"]
OF_THE_DATA = {"b", "i", "img", "iframe", "link", "base", "object"}
"""Tags that a page has none of, unless something of the data became one."""

NUMBERS = [name for name in METRICS if name != "language"]


def section_of(name: str) -> str:
    return f"section-{METRICS.index(name)}"


def test_the_head_says_what_was_indexed(page, index):
    assert f"samples{index.num_samples:,}" in page.text.replace("\n", "")
    size = sum(entry.bytes for entry in index.manifest.files.values())
    assert f"{size / 1000:.1f} kB" in page.text and str(index.path) in page.text and "parquet, " in page.text
    versions = page.table("versions")
    assert [(row["version"], row["made by"], row["samples"]) for row in versions] == [
        ("2", "append", "3,000"),
        ("1", "analyze", "2,000"),
    ]
    assert index.fingerprint in page.text


def test_the_table_of_metrics_is_that_of_numpy(page, data):
    rows = {row["metric"]: row for row in page.table("metrics")}
    assert list(rows) == METRICS
    for name in NUMBERS:
        values = data[name].drop_nulls().cast(pl.Float64).to_numpy()
        shown = {key: number(rows[name][key]) for key in ("min", "median", "mean", "max", "missing", "distinct")}
        assert shown == {
            "min": pytest.approx(values.min(), rel=1e-5),
            "median": pytest.approx(np.quantile(values, 0.5, method="inverted_cdf"), rel=1e-5),
            "mean": pytest.approx(values.mean(), rel=1e-5),
            "max": pytest.approx(values.max(), rel=1e-5),
            "missing": data[name].null_count(),
            "distinct": len(np.unique(values)),
        }
    assert rows["language"]["type"] == "category" and rows["language"]["mean"] == "-"
    assert (rows["language"]["distinct"], rows["clean"]["type"]) == ("4", "bool")


@pytest.mark.parametrize("name", ["length", "loss", "quality", "cluster_size"])
def test_the_quantiles_are_those_of_numpy(page, data, name):
    values = data[name].drop_nulls().to_numpy()
    shown = page.pairs(section_of(name))
    assert number(shown.pop("mean")) == pytest.approx(values.mean(), rel=1e-5)
    shares = {"min": 0, "p1": 1, "p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95, "p99": 99, "max": 100}
    assert list(shown) == list(shares)
    expected = np.percentile(values, list(shares.values()), method="inverted_cdf")
    assert [number(cell) for cell in shown.values()] == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.parametrize("name", ["length", "loss"])
def test_bars_and_curve_are_those_of_numpy(page, data, name):
    values = data[name].drop_nulls().to_numpy()
    bars, curve = page.data(f"metric-{METRICS.index(name)}", 0), page.data(f"metric-{METRICS.index(name)}", 1)
    edges = [*bars["from"], bars["to"][-1]]
    assert bars["to"].to_list() == edges[1:] and curve["to"].to_list() == edges and 20 <= bars.height <= 50
    assert np.histogram(values, edges)[0].tolist() == bars["samples"].to_list()
    assert sum(bars["samples"]) == len(values)
    assert curve["share"].to_list() == pytest.approx([(values <= edge).mean() for edge in edges])
    assert bars["share"].to_list() == curve["share"].to_list()[1:]
    scale = page.charts[f"metric-{METRICS.index(name)}"]["layer"][0]["encoding"]["x"]["scale"]
    assert scale.get("type") == ("log" if name == "length" else None)


def test_what_a_histogram_leaves_out_is_said(tmp_path):
    values = np.random.default_rng(2).standard_t(1.1, 1000)
    values[:7] = np.inf, -np.inf, np.inf, np.inf, 1e6, 2e6, -3e6
    index = arrowds.analyze(pl.DataFrame({"x": values}), column("x"), tmp_path / "index", progress=False)
    arrowds.write_report(index, tmp_path / "page.html")
    found = Page(tmp_path / "page.html")
    bars = found.data("metric-0", 0)
    finite = values[np.isfinite(values)]
    below, above = (finite < bars["from"][0]).sum(), (finite > bars["to"][-1]).sum()
    assert below > 1 and above > 1 and bars["samples"].sum() == len(finite) - below - above
    assert f"Samples outside, not drawn: {below} below, {above} above." in found.text
    assert "Infinite values, not drawn: 4." in found.text
    assert found.table("metrics")[0]["mean"] == "nan"


@pytest.mark.parametrize("name", ["clean", "quality", "language", "cluster_size"])
def test_few_values_are_counted_one_by_one(page, data, name):
    shown = page.data(f"metric-{METRICS.index(name)}", 0)
    expected = data[name].value_counts().sort("count", descending=True)
    if name != "language":
        expected = expected.sort(name)
    labels = [str(value).lower() if name == "clean" else str(value) for value in expected[name]]
    assert shown["name"].to_list() == labels and shown["samples"].to_list() == expected["count"].to_list()
    assert shown["text"][0] == f"{expected['count'][0]:,}  ({expected['count'][0] / data.height:.1%})"


def test_more_names_than_fit_are_one_bar(tmp_path):
    names = [f"name {row % 30}" for row in range(600)] + ["all others"] * 40
    index = arrowds.analyze(pl.DataFrame({"x": names}), column("x"), tmp_path / "index", progress=False)
    arrowds.write_report(index, tmp_path / "page.html")
    shown = Page(tmp_path / "page.html").data("metric-0", 0)
    assert shown["name"][0] == "all others" and shown["name"][-1] == "(all others)" and shown.height == 21
    assert shown["samples"].to_list() == [40, *[20] * 19, 640 - 40 - 20 * 19]


@pytest.mark.parametrize("name", ["length", "loss", "quality"])
@pytest.mark.parametrize("end", ["Lowest", "Highest"])
def test_the_lowest_and_the_highest_with_their_rows(page, data, name, end):
    rows = page.table(section_of(name), end)
    ordered = data.with_row_index("id").drop_nulls(name).sort(name, "id")
    expected = ordered[:5] if end == "Lowest" else ordered[::-1][:5]
    assert [int(row["sample"]) for row in rows] == expected["id"].to_list()
    assert [number(row[name]) for row in rows] == pytest.approx(expected[name].to_list(), rel=1e-5)
    for row, text, url in zip(rows, expected["text"], expected["<b>url</b>"], strict=True):
        assert row["<b>url</b>"] == url
        clean = text.replace("\x00", "\N{REPLACEMENT CHARACTER}").replace("\x1b", "\N{REPLACEMENT CHARACTER}")
        assert row["text"] == (clean if len(clean) <= 300 else clean[:300].rstrip() + " ...")


def test_the_correlations_are_those_of_scipy(page, data):
    shown = {(row["a"], row["b"]): row["rho"] for row in page.data("correlations", 0).iter_rows(named=True)}
    for first in NUMBERS:
        for second in NUMBERS:
            if first != second:
                both = data.select(first, second).drop_nulls()
                expected = scipy.stats.spearmanr(both[first].to_numpy(), both[second].to_numpy()).statistic
                assert shown[first, second] == pytest.approx(expected, abs=1e-12)
    assert len(shown) == 20 and "Spearman\N{RIGHT SINGLE QUOTATION MARK}s, over all 3,000 samples" in page.text
    strongest = max(shown, key=lambda pair: abs(shown[pair]))
    [first, *_] = [rows for place, title, rows in page.tables if place == "related" and "strongest" in title]
    assert {*first[0][:2]} == {*strongest} and float(first[0][2]) == pytest.approx(shown[strongest], abs=5e-4)


def test_correlations_of_a_sample_are_near_those_of_all_and_say_of_how_many(page, index, tmp_path):
    arrowds.write_report(index, tmp_path / "page.html", sample=1000)
    sampled = Page(tmp_path / "page.html")
    whole, part = (each.data("correlations", 0).sort("a", "b")["rho"].to_numpy() for each in (page, sampled))
    assert 0 < np.abs(whole - part).max() < 4 / np.sqrt(1000)
    assert "1,000 of 3,000 samples, drawn at random" in sampled.text
    counts = [int(row["drawn"]) for row in sampled.table(section_of("language"))]
    assert sum(counts) == 1000


def test_medians_by_category_are_those_of_polars(page, data):
    rows = {row["language"]: row for row in page.table(section_of("language"))}
    for (name,), group in data.group_by("language"):
        assert number(rows[name]["drawn"]) == group.height
        for metric in ("length", "loss", "quality"):
            assert number(rows[name][metric]) == pytest.approx(group[metric].median(), rel=1e-5)
        assert number(rows[name]["clean"]) == pytest.approx(group["clean"].mean(), rel=1e-5)


def test_duplicates(page):
    text = page.text.replace("\n", "")
    for shown in ("samples in clusters57", "of all1.9 %", "clusters of more than one4", "removed if each keeps one53"):
        assert shown in text
    rows = page.table("duplicates")
    found = [(row["samples"], row["clusters of that size"], row["a sample of it"]) for row in rows]
    assert found == [("40", "1", "0"), ("7", "2", "40"), ("3", "1", "54")]
    assert rows[0]["text"].startswith("row 0 ")


def test_ids_of_duplicates_have_a_section_only_where_it_is_asked_for(tmp_path):
    data = pl.DataFrame({"duplicate_of": [0, 0, 2, 0], "cluster_size": [3, 3, 1, 3]})
    metrics = [column(name) for name in data.columns]
    index = arrowds.analyze(data, metrics, tmp_path / "index", progress=False)
    arrowds.write_report(index, tmp_path / "page.html")
    found = Page(tmp_path / "page.html")
    assert [row["metric"] for row in found.table("metrics")] == ["cluster_size"]
    assert "in duplicates75.0 %" in found.text.replace("\n", "")
    assert [row["samples"] for row in found.table("duplicates")] == ["3"]
    assert not any("room for 40" in note for note in found.notes)
    arrowds.write_report(index, tmp_path / "page.html", metrics=["duplicate_of"])
    assert [row["metric"] for row in Page(tmp_path / "page.html").table("metrics")] == ["duplicate_of"]


@pytest.mark.parametrize("sizes", [[1, 1, 1], ["a", "b", "b"], [None, None, None], [True, False, True]])
def test_cluster_sizes_that_tell_nothing_are_no_trouble(sizes, tmp_path):
    data = pl.DataFrame({"cluster_size": sizes, "x": [1, 2, 3]}, schema_overrides={"x": pl.Int64})
    data = data.with_columns(pl.col("cluster_size").cast(pl.Int32) if sizes[0] is None else pl.col("cluster_size"))
    metrics = [column("cluster_size", nulls="keep"), column("x")]
    arrowds.write_report(arrowds.analyze(data, metrics, tmp_path / "i", progress=False), tmp_path / "page.html")
    found = Page(tmp_path / "page.html")
    assert ("samples in clusters0" in found.text.replace("\n", "")) == (sizes == [1, 1, 1])


def test_totals(page, data):
    rows = {row["total"]: row for row in page.table("totals")}
    counts = np.bincount(np.concatenate(data["input_ids"].to_list()))
    assert number(rows["token_counts"]["sum"]) == counts.sum() and rows["token_counts"]["shape"] == str(len(counts))
    assert (rows["rows"]["sum"], rows["rows"]["shape"]) == ("3,000", "scalar")
    [largest] = [rows for place, title, rows in page.tables if place == "totals" and title == "token_counts"]
    assert [[int(cell.replace(",", "")) for cell in row] for row in largest[1:]] == [
        [place, counts[place]] for place in np.argsort(counts)[::-1][:10]
    ]
    curve = page.data("total-0")
    descending = np.sort(counts)[::-1]
    assert curve["y"].to_list() == descending[curve["x"].to_numpy() - 1].tolist() and curve["x"][0] == 1


def test_nothing_of_the_data_is_markup(page):
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert scripts == [{"type": "application/json", "id": "charts"}, {}, {}]
    assert "<" not in page.scripts[0] and "owned" in page.scripts[0]
    assert page.text.count("<script>document.title='owned'</script>") > 20
    assert not [tag for tag, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    assert not {tag for tag, _ in page.tags} & OF_THE_DATA


def test_the_page_needs_nothing_from_anywhere_and_runs_its_own_scripts_alone(page):
    for tag, attributes in page.tags:
        assert "src" not in attributes and (attributes.get("href") or "#").startswith("#"), tag
    style = page.source[page.source.index("<style>") : page.source.index("</style>")]
    assert "url(" not in style and "@import" not in style
    [policy] = [attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in page.scripts[1:]]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    assert policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src {allowed}"


def test_equal_indexes_give_equal_pages(page, index, tmp_path):
    arrowds.write_report(index, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == page.path.read_bytes()


def test_data_that_is_gone_leaves_the_rest(index, page, data, tmp_path):
    files = [index.path.parent / f"{number}.parquet" for number in range(2)]
    moved = [file.rename(file.with_suffix(".gone")) for file in files]
    try:
        arrowds.write_report(arrowds.open_index(index.path), tmp_path / "page.html")
    finally:
        for file, original in zip(moved, files, strict=True):
            file.rename(original)
    found = Page(tmp_path / "page.html")
    assert any("can't be shown" in note and "0.parquet" in note for note in found.notes)
    assert found.charts == page.charts and not {tag for tag, _ in found.tags} & OF_THE_DATA
    ids = data.with_row_index("id").sort("length", "id")["id"][:5].to_list()
    assert [int(row["sample"]) for row in found.table(section_of("length"), "Lowest")] == ids


def test_data_that_came_from_no_file_is_said_and_may_be_left_out(tmp_path):
    index = arrowds.analyze(pl.DataFrame({"x": range(100)}), column("x"), tmp_path / "index", progress=False)
    arrowds.write_report(index, tmp_path / "page.html")
    assert any("can't be shown" in note for note in Page(tmp_path / "page.html").notes)
    arrowds.write_report(index, tmp_path / "page.html", columns=[])
    found = Page(tmp_path / "page.html")
    assert found.notes == [] and list(found.table("section-0", "Lowest")[0]) == ["x", "sample"]


def test_lists_and_numbers_are_shown_where_there_is_no_text(tmp_path):
    rows = pl.DataFrame({"ids": [list(range(row)) for row in range(1, 101)]})
    rows.write_parquet(tmp_path / "data.parquet")
    metric = arrowds.metrics.seqlen("ids")
    index = arrowds.analyze(tmp_path / "data.parquet", metric, tmp_path / "index", progress=False)
    arrowds.write_report(index, tmp_path / "page.html")
    found = Page(tmp_path / "page.html")
    assert found.table("section-0", "Lowest")[1]["ids"] == "[0, 1]"
    assert found.table("section-0", "Highest")[0]["ids"] == f"[{', '.join(map(str, range(40)))}, ...]"


def test_blank_lines_are_left_out_of_texts_and_what_is_cut_is_marked(tmp_path):
    texts = ["\n\none\n \n\n  two\n", "\n" * 2000 + "far below", "3"]
    pl.DataFrame({"text": texts, "x": [1, 2, 3]}).write_parquet(tmp_path / "data.parquet")
    index = arrowds.analyze(tmp_path / "data.parquet", column("x"), tmp_path / "index", progress=False)
    arrowds.write_report(index, tmp_path / "page.html")
    shown = Page(tmp_path / "page.html").table("section-0", "Lowest")
    assert [row["text"] for row in shown] == ["one\n  two", " ...", "3"]


def test_a_page_of_many_long_texts_stays_small(tmp_path):
    rng = np.random.default_rng(0)
    values = {f"m{number}": rng.permutation(500) for number in range(45)}
    texts = pl.DataFrame({f"t{number}": ["<&>" * 200 + str(row) for row in range(500)] for number in range(4)})
    texts.with_columns(**{name: pl.Series(order) for name, order in values.items()}).write_parquet(
        tmp_path / "d.parquet"
    )
    metrics = [column(name) for name in values]
    index = arrowds.analyze(tmp_path / "d.parquet", metrics, tmp_path / "index", progress=False)
    arrowds.write_report(index, tmp_path / "page.html")
    found = Page(tmp_path / "page.html")
    assert 1_000_000 < len(found.source.encode()) <= 3_000_000
    assert any(re.fullmatch(r"Texts are cut to \d+ characters, .*", note.strip()) for note in found.notes)
    assert any("a page has room for 40: 5." in note for note in found.notes) and len(found.table("metrics")) == 40
    arrowds.write_report(index, tmp_path / "page.html", metrics=["m44", "m3"])
    assert [row["metric"] for row in Page(tmp_path / "page.html").table("metrics")] == ["m44", "m3"]
    with pytest.raises(ConfigError, match=r"room for 40 metrics, got 41"):
        arrowds.write_report(index, tmp_path / "page.html", metrics=list(values)[:41])


def test_a_mean_of_too_many_values_is_that_of_the_sample(index, tmp_path, monkeypatch):
    monkeypatch.setattr("arrowds.report.facts._MOST_DISTINCT", 100)
    arrowds.write_report(index, tmp_path / "page.html", sample=500)
    found = Page(tmp_path / "page.html")
    means = {row["metric"]: row["mean"] for row in found.table("metrics")}
    assert means["loss"].startswith("\N{ALMOST EQUAL TO} ") and not means["quality"].startswith("\N{ALMOST EQUAL TO}")
    values = index["loss"].values
    assert number(means["loss"][2:]) == pytest.approx(np.nanmean(values), abs=5 * np.nanstd(values) / np.sqrt(500))
    assert any("500 of 3,000 samples, drawn at random" in note for note in found.notes)


def test_wrong_arguments(index, tmp_path, monkeypatch):
    for arguments, error in (
        ({"sample": 0}, ConfigError),
        ({"metrics": ["unknown"]}, UnknownMetricError),
        ({"columns": ["unknown"]}, MissingColumnError),
        ({"config": {"output": "x"}}, ConfigError),
    ):
        with pytest.raises(error):
            arrowds.write_report(index, tmp_path / "page.html", **arguments)
    for module in ("altair", "vl_convert", "jinja2"):
        with monkeypatch.context() as patch, pytest.raises(MissingExtraError, match=r"arrowds\[report\]"):
            patch.setitem(sys.modules, module, None)
            arrowds.write_report(index, tmp_path / "page.html")
    assert not list(tmp_path.iterdir())


def test_the_command_writes_the_same_page(index, page, tmp_path):
    run = CliRunner().invoke(app, ["report", str(index.path), "-o", str(tmp_path / "page.html")])
    assert run.exit_code == 0 and run.output.startswith(f"wrote {tmp_path / 'page.html'}, ")
    assert Path(tmp_path / "page.html").read_bytes() == page.path.read_bytes()


def test_settings_of_the_session_are_not_in_the_page(index, page, tmp_path):
    import altair as alt

    with alt.theme.enable("dark"):
        arrowds.write_report(index, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_bytes() == page.path.read_bytes()
