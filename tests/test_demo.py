"""The demo's data are the functions and classes of a library, each as Python itself sees it."""

from __future__ import annotations

import ast
import textwrap

import duckdb
import polars as pl
import pytest

from arrowds.demo import read_functions, run_demo
from arrowds.errors import IndexExistsError, SourceError

MODULE = '''\
import os

def first(x):
    """Doc."""
    def inner():
        return x
    return inner

class Thing:
    @property
    async def value(self):
        return "é"

if os:
    try:
        def hidden(): pass
    except Exception:
        def fallback(): pass
'''


@pytest.fixture
def library(tmp_path):
    folder = tmp_path / "library"
    (folder / "package" / "tests").mkdir(parents=True)
    (folder / "package" / "__init__.py").write_text(MODULE, encoding="utf-8")
    (folder / "package" / "tests" / "test_it.py").write_text("def test(): pass")
    (folder / "broken.py").write_text("def (")
    (folder / "latin.py").write_bytes(b"# -*- coding: latin-1 -*-\ndef caf\xe9(): return '\\d'\n")
    return folder


def test_every_definition_is_a_row_with_its_own_text(library):
    frame = read_functions(library)
    assert frame["name"].to_list() == [
        "café", "first", "first.inner", "Thing", "Thing.value", "hidden", "fallback",
    ]  # fmt: skip
    assert frame["module"].to_list() == ["latin", *["package"] * 6]
    assert frame.filter(pl.col("kind") == "class")["name"].to_list() == ["Thing"]
    for row in frame.filter(pl.col("module") == "package").iter_rows(named=True):
        parsed = ast.parse(textwrap.dedent(row["text"])).body[0]
        assert parsed.name == row["name"].rpartition(".")[2]
        assert MODULE.splitlines()[row["line"] - 1] == row["text"].splitlines()[0]


def test_equal_words_have_equal_ids(library):
    rows = read_functions(library).select("text", "input_ids").explode("input_ids")
    words = [
        word
        for text in read_functions(library)["text"]
        for word in pl.Series([text]).str.extract_all(r"\w+|[^\w\s]")[0]
    ]
    assert len(words) == rows.height
    pairs = set(zip(words, rows["input_ids"].to_list(), strict=True))
    assert len(pairs) == len(set(words)) == rows["input_ids"].n_unique()


def test_demo_can_be_run_again_and_answers_its_query(library, tmp_path):
    long = "def long():\n" + "".join(f"    rare_{i} = {i}\n" for i in range(60))
    (library / "long.py").write_text(long)
    for _ in range(2):
        result = run_demo(tmp_path / "out", library=library)
    index = result.index
    assert index.metrics == ["bytes", "tokens", "vocab_rarity", "compression_ratio"]
    assert index.num_samples == 8 and index["tokens"].max() == 60 * 3 + 5
    assert index["bytes"].max() == len(long)
    assert index.totals["token_counts"].sum() == index["tokens"].values.sum()
    answer = index.sql(result.query)
    assert answer.select("module", "name", "line", "tokens").rows() == [("long", "long", 1, 185)]


def test_demo_spares_other_folders_and_says_what_is_missing(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(IndexExistsError, match="--keep"):
        run_demo(tmp_path / "mine")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match="no Python source files"):
        run_demo(tmp_path / "out", library=tmp_path / "empty")
    assert not (tmp_path / "out").exists()


def test_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(IndexExistsError):
        run_demo(tmp_path / "out")


def test_query_quotes_the_path(library, tmp_path):
    result = run_demo(tmp_path / "it's", library=library)
    with duckdb.connect():
        assert result.index.sql(result.query).is_empty()
