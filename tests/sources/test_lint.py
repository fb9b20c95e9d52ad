"""lint against counting over the same rows with Polars and Python."""

from __future__ import annotations

import json
import math

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from arrowds.cli import app
from arrowds.errors import ConfigError, MissingColumnError
from arrowds.sources import TorchSource, open_source
from arrowds.sources.lint import lint

TOKENS = st.none() | st.lists(st.none() | st.integers(-2, 12), max_size=4)
TEXTS = st.none() | st.sampled_from(["", "a", "é"])
NUMBERS = st.none() | st.sampled_from([0.5, float("nan"), 1.0])
ROWS = st.lists(st.tuples(TEXTS, TOKENS, NUMBERS, st.none() | st.integers(0, 9)), min_size=1, max_size=30)


def told(found: pl.DataFrame) -> dict[tuple[str, str], tuple[int, str]]:
    return {(row["check"], row["column"]): (row["count"], row["first"]) for row in found.iter_rows(named=True)}


@given(ROWS, st.sampled_from([None, 10]))
def test_counts_and_first_rows_are_those_of_a_loop(rows, vocab_size):
    text, tokens, number, ids = (list(column) for column in zip(*rows, strict=True))
    table = pa.table(
        {
            "text": pa.array(text, pa.string()),
            "tokens": pa.array(tokens, pa.list_(pa.int64())),
            "number": pa.array(number, pa.float64()),
            "id": pa.array(ids, pa.int64()),
        }
    )
    expected: dict[tuple[str, str], list[int]] = {}

    def note(check, column, wrong):
        if places := [row for row, is_wrong in enumerate(wrong) if is_wrong]:
            expected[check, column] = places

    for name, column in (("text", text), ("tokens", tokens), ("number", number), ("id", ids)):
        note("null", name, [value is None for value in column])
    note("empty text", "text", [value == "" for value in text])
    note("empty list", "tokens", [value == [] for value in tokens])
    note("null in a list", "tokens", [None in (value or []) for value in tokens])
    note("NaN", "number", [value is not None and math.isnan(value) for value in number])
    beyond = [any(t is not None and (t < 0 or t >= (vocab_size or 99)) for t in value or []) for value in tokens]
    note("token id outside the vocabulary" if vocab_size else "token id below 0", "tokens", beyond)
    note("id that occurred before", "id", [value is not None and value in ids[:row] for row, value in enumerate(ids)])
    found = told(lint(open_source(table), vocab_size=vocab_size, id_column="id"))
    assert found == {key: (len(places), f"row {places[0]}") for key, places in expected.items()}


def test_files_and_places(tmp_path):
    for number, rows in enumerate([100, 100, 0, 10, 900, 100]):
        texts = ["x"] * rows
        if number == 4:
            texts[700] = ""
        columns = {"text": pa.array(texts, pa.string()), "n": pa.array(range(rows), pa.int64())}
        pq.write_table(pa.table(columns), tmp_path / f"{number}.parquet")
    found = told(lint(open_source(str(tmp_path / "*.parquet"))))
    assert found["file without rows", ""] == (1, None)
    count, first = found["file with far fewer or more rows than the others", ""]
    assert count == 2 and first.endswith("3.parquet, row 0")
    count, first = found["empty text", "text"]
    assert count == 1 and first.endswith("4.parquet, row 700")


def test_columns_that_do_not_fit(tmp_path):
    pq.write_table(pa.table({"a": [1], "b": ["x"]}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"a": ["text"], "b": ["x"]}), tmp_path / "1.parquet")
    found = told(lint(open_source(str(tmp_path / "*.parquet"))))
    assert found == {("column that does not fit into one table", "a"): (1, None)}


def test_text_that_is_not_utf8():
    broken = pa.StringArray.from_buffers(3, pa.array([0, 1, 2, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xffb"))
    found = told(lint(open_source(pa.table({"t": broken, "d": pa.array(["x", "", "x"]).dictionary_encode()}))))
    assert found == {("text that is not UTF-8", "t"): (1, "row 1"), ("empty text", "d"): (1, "row 1")}


def test_what_lint_can_not_look_at():
    with pytest.raises(ConfigError, match="data with columns"):
        lint(TorchSource(list(range(5)), batch_size=2))
    with pytest.raises(MissingColumnError, match="nothing"):
        lint(open_source(pa.table({"a": [1]})), id_column="nothing")


def test_the_command(tmp_path):
    pq.write_table(pa.table({"ids": [[1, 300], [2]], "doc": [7, 7]}), tmp_path / "data.parquet")
    line = ["lint", str(tmp_path / "data.parquet"), "--vocab-size", "256", "--id", "doc"]
    run = CliRunner().invoke(app, [*line, "--json"])
    assert run.exit_code == 1
    printed = [json.loads(row) for row in run.output.splitlines()]
    assert [(row["check"], row["count"]) for row in printed] == [
        ("token id outside the vocabulary", 1),
        ("id that occurred before", 1),
    ]
    assert printed[1]["first"].endswith("data.parquet, row 1")
    clean = CliRunner().invoke(app, line[:2])
    assert clean.exit_code == 0 and "2 rows: 0 kinds of errors, 0 of warnings" in clean.output
    assert CliRunner().invoke(app, [*line, "--csv"]).output.count("\n") == 3
    assert np.all(pl.read_csv(CliRunner().invoke(app, [*line, "--csv"]).output.encode())["count"].to_numpy() == 1)
