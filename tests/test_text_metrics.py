"""Metrics of text against Python's own str, re and zlib, and the zstandard package, over real and generated text."""

from __future__ import annotations

import math
import re
import sysconfig
import unicodedata
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import zstandard
from datatrove.utils.text import TERMINAL_PUNCTUATION
from hypothesis import given
from hypothesis import strategies as st
from lexicalrichness import LexicalRichness
from typer.testing import CliRunner

import arrowds
from arrowds.cli import app
from arrowds.errors import MetricError, MetricValueError
from arrowds.metrics import from_spec, text
from arrowds.metrics.text import rules

LIBRARY = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-h]*.py"))
STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
CLOSING = "\"')]}\u2019\u201d»」』\uff09】"
RULES = {*rules.__dict__}
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cn"]), max_size=60) | st.sampled_from(
    [
        "",
        " ",
        "\n",
        "a\n",
        "one two\n\nthree",
        "日本語 テスト",
        "ÀÉ é ß İ",
        "a b a B",
        "…!?",
        "٣٤ 12",
        "\u00a0x\u2003",
        'It is. "Is it?" (No.) e.g. 3.5',
        "她走了。他来了\uff01",
        "क्या हुआ? हाँ।",
    ]
)


def share(value: str, counts) -> float:
    return sum(map(counts, value)) / max(len(value), 1)


def lower_words(value: str) -> list[str]:
    if value.isascii():
        return re.findall(r"\w+", value.lower())
    lower = "".join(each.lower() if len(each.lower()) == 1 else each for each in value)
    in_word = "".join(each if belongs_to_word(each) else " " for each in lower)
    return [word for word in in_word.split(" ") if word]


def belongs_to_word(character: str) -> bool:
    kept = unicodedata.category(character) in ("Mn", "Mc", "Me", "Pc") or character in "\u200c\u200d"
    return character.isalnum() or kept  # Python's own \w has no marks, so that it cuts words of Hindi into pieces


def entropy(value: str) -> float:
    counts = Counter(lower_words(value)).values()
    return -sum(count / sum(counts) * math.log(count / sum(counts)) for count in counts)


def category(*wanted: str):
    return lambda character: unicodedata.category(character).startswith(wanted)


def symbol(character: str) -> bool:
    return not (character.isspace() or category("L", "Nd")(character))


def mtld(value: str) -> float:
    found = lower_words(value)
    return LexicalRichness(found, preprocessor=None, tokenizer=None).mtld() if found else 0.0


def n_sentences(value: str) -> int:
    """Word by word, as the definition says."""
    ended, open_sentence = 0, False
    for word in value.split():
        bare = word[0] + word[1:].rstrip(CLOSING)
        wide = sum(each in TERMINAL_PUNCTUATION and not each.isascii() for each in word)
        ends = bare[-1] in TERMINAL_PUNCTUATION
        ended, open_sentence = ended + max(wide, int(ends)), not ends
    return ended + open_sentence


PLAIN = {
    "n_bytes": lambda value: len(value.encode()),
    "n_chars": len,
    "n_words": lambda value: len(value.split()),
    "n_lines": lambda value: value.count("\n") + (value != "" and not value.endswith("\n")),
    "mean_word_length": lambda value: sum(map(len, value.split())) / max(len(value.split()), 1),
    "mean_line_length": lambda value: (
        len(value.replace("\n", "")) / max(value.count("\n") + (value != "" and not value.endswith("\n")), 1)
    ),
    "letter_share": lambda value: share(value, category("L")),
    "digit_share": lambda value: share(value, category("Nd")),
    "upper_case_share": lambda value: share(value, category("Lu")),
    "white_space_share": lambda value: share(value, str.isspace),
    "symbol_share": lambda value: share(value, symbol),
    "type_token_ratio": lambda value: len(set(lower_words(value))) / max(len(lower_words(value)), 1),
    "hapax_share": lambda value: (
        sum(n == 1 for n in Counter(lower_words(value)).values()) / max(len(lower_words(value)), 1)
    ),
    "unigram_entropy": entropy,
    "mtld": mtld,
    "stop_word_share": lambda value: sum(word in STOP_WORDS for word in value.split()) / max(len(value.split()), 1),
    "n_sentences": n_sentences,
    "compression_ratio": lambda value: (
        len(value.encode()) / len(zstandard.ZstdCompressor(level=3, write_content_size=True).compress(value.encode()))
    ),
}


def measured(name: str, values: list[str | None], **options) -> list[float | None]:
    metric = getattr(text, name)("text", **options)
    return metric.compute(pa.record_batch({"text": pa.array(values, pa.string())}), {}).to_pylist()


def test_every_function_is_compared():
    elsewhere = {name for name in text.__all__ if name in RULES or name.startswith("flesch")}
    assert {*PLAIN, *elsewhere, "TextMetric", "NgramOverlap", "ngram_overlap"} == {*text.__all__}


@pytest.mark.parametrize("name", PLAIN)
@given(values=st.lists(TEXTS, min_size=1, max_size=6))
def test_generated_text(name, values):
    assert measured(name, values) == pytest.approx([PLAIN[name](value) for value in values], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", PLAIN)
def test_the_source_of_the_standard_library(name, tmp_path):
    sources = [path.read_text(encoding="utf-8") for path in LIBRARY[:40]]
    data = pl.DataFrame({"text": sources})
    index = arrowds.analyze(data, getattr(text, name)(), tmp_path / "index", progress=False)
    assert index[name].values.tolist() == pytest.approx([PLAIN[name](source) for source in sources])
    arrowds.append(data[:3], tmp_path / "index", progress=False)  # rebuilt from what the index has kept
    assert arrowds.open_index(tmp_path / "index")[name].values[-3:].tolist() == index[name].values[:3].tolist()


@pytest.mark.parametrize("name", PLAIN)
def test_empty_null_and_large_texts(name, tmp_path):
    values = measured(name, ["", None, "word " * 200_000], nulls="keep")
    assert values[0] == 0 and values[1] is None
    assert values[2] == pytest.approx(PLAIN[name]("word " * 200_000))
    with pytest.raises(MetricValueError, match="no value"):
        arrowds.analyze(pl.DataFrame({"text": ["a", None]}), getattr(text, name)(), tmp_path, progress=False)


@pytest.mark.parametrize("name", PLAIN)
def test_text_that_is_not_utf8_is_refused(name):
    broken = pa.StringArray.from_buffers(2, pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff"))
    with pytest.raises(MetricValueError, match="UTF-8"):
        getattr(text, name)().compute(pa.record_batch({"text": broken}), {})


def test_zlib_slices_and_large_strings():
    values = ["skipped", "ab" * 300, "", "the quick brown fox", None]
    metric = text.compression_ratio(codec="zlib", level=9, nulls="keep")
    assert from_spec(metric.spec()) == metric
    for kind in (pa.string(), pa.large_string()):
        batch = pa.record_batch({"text": pa.array(values, kind)})[1:]
        expected = [len(value) / len(zlib.compress(value.encode(), 9)) for value in values[1:-1]]
        assert metric.compute(batch, {}).to_pylist() == [*expected, None]
    with pytest.raises(MetricError, match="codec must be"):
        text.compression_ratio(codec="gzip")
    with pytest.raises(MetricValueError, match="reads text"):
        metric.compute(pa.record_batch({"text": [1]}), {})
    assert np.isfinite(metric.compute(pa.record_batch({"text": [""]}), {}).to_numpy()).all()


def test_a_misspelt_measure_on_the_command_line_gets_those_that_are_meant():
    said = CliRunner().invoke(app, ["analyze", "a", "-o", "b", "--metric", "text.nwords"])
    assert said.exit_code == 2 and "did you mean text.n_words" in " ".join(said.output.replace("│", " ").split())
