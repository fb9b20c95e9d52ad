"""The commands give what the library gives, in a form that other programs read."""

from __future__ import annotations

import json
from io import BytesIO

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import arrowds
from arrowds.cli import app
from arrowds.cli.messages import spelled
from arrowds.errors import ConfigError, IndexCorruptError, IndexExistsError, UnknownMetricError


@pytest.fixture
def invoke():
    def run(*arguments, error=None):
        result = CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "100"})
        if error:
            assert isinstance(result.exception, error), result.output
        elif result.exit_code:
            raise result.exception
        return result

    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """1000 samples in two files: token ids and text."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 50, rng.integers(1, 30)).tolist() for _ in range(1000)]
    frame = pl.DataFrame({"ids": ids, "text": ["x" * len(row) for row in ids]})
    frame[:600].write_parquet(folder / "a.parquet")
    frame[600:].write_parquet(folder / "b.parquet")
    return frame, folder


@pytest.fixture(scope="module")
def index(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("index") / "index"
    metrics = [arrowds.metrics.seqlen("ids"), arrowds.metrics.vocab_rarity("ids"), arrowds.metrics.token_counts("ids")]
    return arrowds.analyze(f"{data[1]}/*.parquet", metrics, path, progress=False)


def test_analyze_makes_the_index_that_the_library_makes(invoke, data, index, tmp_path):
    invoke(
        "analyze", data[1] / "a.parquet", data[1] / "b.parquet", "-o", tmp_path / "out", "--workers", 1,
        "--metric", "seqlen:ids", "--metric", "vocab_rarity:ids", "--metric", "token_counts:ids",
    )  # fmt: skip
    made = arrowds.open_index(tmp_path / "out", verify=True)
    for name in index:
        assert np.array_equal(made[name].values, index[name].values)
    assert np.array_equal(made.totals["token_counts"], index.totals["token_counts"])


def test_analyze_takes_names_expressions_and_a_tokenizer(invoke, data, tmp_path):
    out = invoke(
        "analyze", f"{data[1]}/*.parquet", "-o", tmp_path / "out", "--tokenizer", "bytes", "--text-column", "text",
        "--metric", "n_bytes=seqlen", "--expr", "n_chars=length(text)", "--expr", "long = length(text) > 10",
    ).output  # fmt: skip
    made = arrowds.open_index(tmp_path / "out")
    lengths = data[0]["text"].str.len_chars().to_numpy()
    assert np.array_equal(made["n_bytes"].values, lengths)
    assert np.array_equal(made["n_chars"].values, lengths)
    assert np.array_equal(made["long"].values, lengths > 10)
    assert "1,000 samples" in out and "n_chars" in out


def test_analyze_keeps_or_refuses_nulls_and_overwrites_when_asked(invoke, tmp_path):
    pl.DataFrame({"x": [1.0, None, 3.0]}).write_parquet(tmp_path / "x.parquet")
    command = ("analyze", tmp_path / "x.parquet", "-o", tmp_path / "out", "--expr")
    invoke(*command, "x=x", error=arrowds.errors.MetricValueError)
    invoke(*command, "x=x", "--keep-nulls")
    assert arrowds.open_index(tmp_path / "out")["x"].order.tolist() == [0, 2]
    invoke(*command, "x=x * 2", "--keep-nulls", error=IndexExistsError)
    invoke(*command, "x=x * 2", "--keep-nulls", "--overwrite")
    assert arrowds.open_index(tmp_path / "out")["x"].max() == 6


def test_analyze_refuses_what_it_cannot_read(invoke, data, tmp_path):
    command = ("analyze", data[1] / "a.parquet", "-o", tmp_path / "out")
    for arguments in ([], ["--metric", "length:ids"], ["--expr", "length(text)"], ["--metric"]):
        assert invoke(*command, *arguments, error=SystemExit).exit_code == 2
    invoke(*command, "--expr", "n=length(", error=ConfigError)
    assert not (tmp_path / "out").exists()


def test_info_shows_every_metric(invoke, index):
    out = invoke("info", index.path).output
    for text in ("seqlen", "vocab_rarity", "uint8", "float64", "1,000 samples", "total token_counts: int64, 50"):
        assert text in out
    facts = json.loads(invoke("info", index.path, "--json").output)
    assert facts["num_samples"] == 1000
    assert facts["metrics"][0]["p50"] == index["seqlen"].quantile(0.5)
    assert (facts["version"], facts["operation"], facts["segments"]) == (1, "analyze", 1)
    assert facts["metrics"][1]["defined_with"] == {"vocab_rarity.token_counts": 1}
    assert "version 1, made by analyze; 1 segment\n" in out
    assert "vocab_rarity: defined with the vocab_rarity.token_counts of version 1" in out


def test_versions_are_listed_newest_first(invoke, make_index):
    path = make_index({"n": pl.Series([1, 2]).to_arrow()}).path
    pl.DataFrame({"n": [3]}).write_parquet(path.parent / "more.parquet")
    invoke("append", path.parent / "more.parquet", "-o", path)
    rows = [json.loads(line) for line in invoke("versions", path, "--json").output.splitlines()]
    assert [(row["version"], row["operation"], row["num_samples"], row["metrics"]) for row in rows] == [
        (2, "append", 3, ["n"]),
        (1, "analyze", 2, ["n"]),
    ]
    lines = [line for line in invoke("versions", path).output.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in line.split("│")[1:6]] for line in lines] == [
        ["2", "append", "3", "2", "n"],
        ["1", "analyze", "2", "1", "n"],
    ]
    assert "2 samples" in invoke("info", path, "--version", 1).output


def test_info_json_has_no_infinity(invoke, make_index):
    index = make_index({"x": pl.Series([np.inf, 1.0]).to_arrow()})
    facts = json.loads(invoke("info", index.path, "--json").output, parse_constant=pytest.fail)
    assert facts["metrics"][0]["max"] == "inf"


def test_sql_prints_nested_values_and_blobs(invoke, index):
    query = (
        "select [1, 2] as l, {'a': [0.5, 'nan'::double], 'b': '\\xAA\\x01'::blob} as s, '\\xAA'::blob as b, "
        "null::int[] as n, [18446744073709551615::ubigint] as u, map {'k': 2.5::double} as m, [1, 2]::int[2] as a, "
        "date '2020-01-02' as d"
    )
    [row] = [json.loads(line) for line in invoke("sql", index.path, query, "--json").output.splitlines()]
    assert row == {
        "l": [1, 2], "s": {"a": [0.5, None], "b": "aa01"}, "b": "aa", "n": None, "u": [2**64 - 1], "m": {"k": 2.5},
        "a": [1, 2], "d": "2020-01-02",
    }  # fmt: skip
    [cells] = pl.read_csv(BytesIO(invoke("sql", index.path, query, "--csv").stdout_bytes)).rows(named=True)
    assert (cells.pop("b"), cells.pop("d"), cells.pop("n")) == ("aa", "2020-01-02", None)
    assert {name: json.loads(text) for name, text in cells.items()} == {name: row[name] for name in cells}
    [row] = [json.loads(line) for line in invoke("sql", index.path, "select [1] as l", "--json").output.splitlines()]
    assert row == {"l": [1]}
    invoke("sql", index.path, "select interval 3 day", error=ConfigError)


def test_sql_prints_a_table_csv_or_json(invoke, index):
    query = "select sample_id, seqlen, vocab_rarity from samples order by seqlen desc, sample_id limit 7"
    wanted = index.sql(query)
    assert pl.read_csv(BytesIO(invoke("sql", index.path, query, "--csv").stdout_bytes)).rows() == wanted.rows()
    lines = invoke("sql", index.path, query, "--json").output.splitlines()
    assert [json.loads(line) for line in lines] == wanted.to_dicts()
    table = invoke("sql", index.path, query).output
    assert all(str(value) in table for value in [*wanted.columns, *wanted["sample_id"]])


def test_sql_table_shows_text_as_it_is_but_no_control_characters(invoke, index):
    out = invoke("sql", index.path, "select '[red]x[/red]' as a, chr(27) || '[2Jy' as b, null as c").output
    assert "[red]x[/red]" in out and "\x1b" not in out and "�[2Jy" in out


def test_sql_reads_other_files_only_where_it_is_allowed(invoke, index, tmp_path):
    (tmp_path / "secret.csv").write_text("word\nxyzzy\n")
    query = f"select word from '{tmp_path}/secret.csv'"
    error = invoke("sql", index.path, query, error=ConfigError).exception
    assert "--allow-files" in spelled(str(error))
    assert "xyzzy" in invoke("sql", index.path, query, "--allow-files").output


def test_sql_table_is_cut_and_says_so(invoke, index):
    out = invoke("sql", index.path, "select range as r from range(1500)").output
    assert "1,000 of 1,500 rows" in out
    invoke("sql", index.path, "selec", error=ConfigError)


def test_plot_draws_to_a_file_or_the_terminal(invoke, index, tmp_path):
    invoke("plot", index.path, "seqlen", "-o", tmp_path / "seqlen.svg")
    assert (tmp_path / "seqlen.svg").read_text().startswith("<?xml")
    lines = invoke("plot", index.path, "seqlen", "--bins", 5).output.splitlines()
    assert len(lines) == 5 and lines[-1].endswith("100.0%")
    lines = invoke("plot", index.path, "seqlen", "--bins", 5, "--between", 10, 90).output.splitlines()
    assert lines[0].strip().startswith("below") and lines[-1].strip().startswith("above")
    invoke("plot", index.path, "seqlen", "--between", 90, 10, error=ConfigError)
    invoke("plot", index.path, "length", error=UnknownMetricError)


def test_verify_finds_a_flipped_bit(invoke, make_index):
    index = make_index({"n": pl.Series([1, 2]).to_arrow()})
    assert "files of version 1 verified" in invoke("verify", index.path).output
    [values] = (index.path / "metrics/n/values").rglob("*.parquet")
    values.write_bytes(values.read_bytes()[:-1] + b"\xff")
    assert values.name in str(invoke("verify", index.path, error=IndexCorruptError).exception)


def test_export_and_import_give_the_index_back(invoke, index, tmp_path):
    invoke("export", index.path, tmp_path / "files", "--metric", "seqlen", "--metric", "token_counts")
    invoke("import", tmp_path / "files", tmp_path / "again")
    again = arrowds.open_index(tmp_path / "again")
    assert np.array_equal(again["seqlen"].values, index["seqlen"].values)
    assert np.array_equal(again.totals["token_counts"], index.totals["token_counts"])
    invoke("import", tmp_path / "files", tmp_path / "again", "--metric", "seqlen", "--overwrite")
    assert "token_counts" not in arrowds.open_index(tmp_path / "again").totals


def test_tables_cut_long_values_and_say_so(invoke, index):
    query = "select repeat('a', 30000000) as long, repeat('b', 500) as short"
    shown = invoke("sql", index.path, query).stdout
    letters = "".join(shown.split())
    assert letters.count("a") < 600 and "..." in shown
    assert letters.replace("|", "").count("b") == 500
    assert "long values are cut after 500 characters; --csv or --json prints all of them" in " ".join(shown.split())
    assert len(invoke("sql", index.path, query, "--csv").stdout) > 30_000_000
