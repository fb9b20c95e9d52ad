"""docs/metrics.md can be followed from top to bottom, and says what is true."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import arrowds
from arrowds.errors import ArrowdsError

DOCUMENT = Path(__file__).parent.parent / "docs" / "metrics.md"
pytestmark = pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # torch's, of mapped files


def test_examples_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL)
    names = {"__name__": "document"}
    indexes = []
    for number, block in enumerate(blocks):
        exec(compile(block, f"block {number}", "exec"), names)
        indexes.append(names.get("index"))
    _, built_in, categories, texts, expressions, ranked, losses, _, totals, scores = indexes
    lengths = names["data"]["text"].str.len_chars().to_numpy()
    assert np.array_equal(built_in["seqlen"].values, lengths)
    assert texts["n_words"].values.tolist() == [len(words.split()) for words in names["data"]["text"]]
    assert categories["language"].sample_ids_of("fr").tolist() == list(range(2, 100, 4))
    assert np.array_equal(expressions["long"].values, lengths > 40)
    assert sorted(ranked["position"].values) == list(range(1, 101))
    assert losses["loss"].dtype == np.float32 and losses["loss"].num_valid == 100
    assert totals.totals["first_bytes"].sum() == totals.totals["first_bytes"][ord("s")] == 100
    assert scores["score"].num_valid == 90 and scores["score"].values.mask[0]


@pytest.mark.parametrize(
    "expression",
    [pl.col("x").rank(), pl.col("x").shift(), pl.col("x").sum().over("x"), pl.col("x").cum_sum(), pl.col("x").mean()],
)
def test_expressions_over_rows_are_refused(tmp_path, expression):
    with pytest.raises(ArrowdsError):
        arrowds.analyze(pl.DataFrame({"x": [1, 2, 1]}), arrowds.metrics.expr("m", expression), tmp_path / "index")
