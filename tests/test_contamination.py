"""The overlap of n-grams with a benchmark, against Python's sets of tuples of words."""

from __future__ import annotations

import re
import sysconfig
from itertools import permutations
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import arrowds
from arrowds.errors import ArrowdsError, MetricError
from arrowds.metrics import text

LIBRARY = [path.read_text() for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-d]*.py"))]
WORDS = st.sampled_from(["a", "b", "ab", "ba", "A", "é", "É", "x1", "日本", "a_b"])
SEPARATORS = st.sampled_from([" ", ", ", "\n", "-", "."])
TEXTS = st.lists(st.tuples(WORDS, SEPARATORS), max_size=12).map(lambda pairs: "".join(map("".join, pairs)))


def ngrams(value: str, n: int) -> list[tuple[str, ...]]:
    words = re.findall(r"\w+", value.lower())
    return list(zip(*(words[at:] for at in range(n)), strict=False))


def expected(texts: list[str], benchmark: list[str], n: int) -> list[float]:
    known = {ngram for each in benchmark for ngram in ngrams(each, n)}
    found = [[ngram in known for ngram in ngrams(each, n)] for each in texts]
    return [sum(each) / len(each) if each else 0.0 for each in found]


def measured(metric, texts: list[str | None]) -> list[float | None]:
    return metric.compute(pa.record_batch({"text": pa.array(texts, pa.string())}), {}).to_pylist()


@given(st.lists(TEXTS, max_size=6), st.lists(TEXTS, max_size=4), st.integers(1, 4))
def test_shares_are_those_of_sets_of_tuples(texts, benchmark, n):
    if any(ngrams(each, n) for each in benchmark):
        assert measured(text.ngram_overlap(benchmark, n=n), texts) == expected(texts, benchmark, n)
    else:
        with pytest.raises(MetricError, match=f"has {n} words; choose a smaller n"):
            text.ngram_overlap(benchmark, n=n)


@pytest.mark.parametrize("n", [1, 5, 13])
def test_real_text(n):
    benchmark = [each[len(each) // 3 : len(each) // 3 + 2000] for each in LIBRARY[::5]]
    shares = measured(text.ngram_overlap(benchmark, n=n), LIBRARY)
    assert shares == pytest.approx(expected(LIBRARY, benchmark, n), rel=1e-12)
    assert n == 1 or (min(shares) < 0.01 and max(shares) > 0.05)


def test_letters_that_change_places_make_other_words():
    """Hashes of words are sums over letters, so that sums of these would be the same."""
    words = ["".join(letters) for letters in permutations("abcd")]
    benchmark = ["ab cd", "ac bd"]
    texts = [f"{word[:2]} {word[2:]}" for word in words]
    assert measured(text.ngram_overlap(benchmark, n=2), texts) == expected(texts, benchmark, 2)
    assert measured(text.ngram_overlap(["ab c"], n=2), ["ac b"]) == [0.0]


def test_a_benchmark_in_memory_or_in_a_file(tmp_path):
    benchmark = ["What is the capital of France?", "Name a prime number."]
    frame = pl.DataFrame({"question": benchmark})
    frame.write_parquet(tmp_path / "questions.parquet")
    frame.write_ndjson(tmp_path / "questions.jsonl")
    whole = text.ngram_overlap(benchmark, n=4)
    assert measured(whole, ["the capital of France is Paris", None]) == [1 / 3, None]
    for given_as in (frame["question"], str(tmp_path / "questions.parquet"), tmp_path / "questions.jsonl"):
        assert text.ngram_overlap(given_as, n=4, benchmark_column="question").definition() == whole.definition()
    for wrong in ("questions.txt", "missing.parquet"):
        with pytest.raises(ArrowdsError):
            text.ngram_overlap(tmp_path / wrong, n=4)
    with pytest.raises(MetricError, match="can't read column 'text'"):
        text.ngram_overlap(tmp_path / "questions.parquet", n=4)


def test_another_benchmark_is_another_metric(tmp_path):
    table, path = pa.table({"text": LIBRARY[:10]}), tmp_path / "index"
    metric = text.ngram_overlap(LIBRARY[:2])
    index = arrowds.analyze(table, metric, path, progress=False)
    assert (index["ngram_overlap"].values[:2] == 1).all() and np.max(index["ngram_overlap"].values[2:]) < 1
    assert metric.spec() is None
    assert text.ngram_overlap(LIBRARY[1::-1]).definition() == metric.definition()
    with pytest.raises(ArrowdsError, match="defined otherwise"):
        arrowds.analyze(table, text.ngram_overlap(LIBRARY[:3]), path, progress=False)
    with pytest.raises(MetricError, match="can't rebuild ngram_overlap"):
        arrowds.append(table, path, progress=False)
    grown = arrowds.append(table, path, metrics=[metric], progress=False)
    assert len(grown["ngram_overlap"]) == 20
