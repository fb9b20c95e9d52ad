"""The metric type of texts: what it measures by name, and how several of them share one look at a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arrowds.arrays import arrow_view, numpy_view
from arrowds.batch import Batch, column, plain
from arrowds.errors import MetricValueError
from arrowds.metrics.base import ColumnMetric, Metric, Nulls, Spec, Totals
from arrowds.metrics.expressions import checked_text
from arrowds.metrics.text import c4, diversity, quality, readability, repetition
from arrowds.metrics.text.characters import DIGIT, LETTER, SPACE, UPPER
from arrowds.metrics.text.passages import Passages
from arrowds.metrics.text.spans import ratio
from arrowds.schema import CATEGORY

_BLOCK_BYTES, _BLOCK_TEXTS = 1 << 20, 1 << 14
"""Texts that are looked at together: as many as caches of processors hold the arrays of."""

_COUNT, _SHARE = pa.uint32(), pa.float64()

Measure = Callable[..., Any]

MEASURES: Mapping[str, tuple[pa.DataType, Measure]] = {
    "n_bytes": (_COUNT, lambda texts: texts.num_bytes),
    "n_chars": (_COUNT, lambda texts: texts.num_chars),
    "n_words": (_COUNT, lambda texts: texts.words.per_text),
    "n_lines": (_COUNT, lambda texts: texts.num_lines),
    "n_sentences": (_COUNT, lambda texts: texts.num_sentences),
    "mean_word_length": (_SHARE, lambda texts: ratio(texts.count(texts.visible), texts.words.per_text)),
    "mean_line_length": (_SHARE, lambda texts: ratio(texts.count(~texts.newlines), texts.num_lines)),
    "letter_share": (_SHARE, lambda texts: ratio(texts.count(texts.has(LETTER)), texts.num_chars)),
    "digit_share": (_SHARE, lambda texts: ratio(texts.count(texts.has(DIGIT)), texts.num_chars)),
    "upper_case_share": (_SHARE, lambda texts: ratio(texts.count(texts.has(UPPER)), texts.num_chars)),
    "white_space_share": (_SHARE, lambda texts: ratio(texts.count(texts.has(SPACE)), texts.num_chars)),
    "symbol_share": (_SHARE, lambda texts: ratio(texts.count(~texts.has(LETTER | DIGIT | SPACE)), texts.num_chars)),
    "stop_word_share": (
        _SHARE,
        lambda texts, stop_words: ratio(quality.stop_word_counts(texts, stop_words)[0], texts.words.per_text),
    ),
    "type_token_ratio": (_SHARE, diversity.type_token_ratio),
    "hapax_share": (_SHARE, diversity.hapax_share),
    "unigram_entropy": (_SHARE, diversity.unigram_entropy),
    "mtld": (_SHARE, diversity.mtld),
    "compression_ratio": (_SHARE, diversity.compression_ratio),
    "flesch_reading_ease": (_SHARE, readability.flesch_reading_ease),
    "flesch_kincaid_grade": (_SHARE, readability.flesch_kincaid_grade),
    "duplicate_line_share": (_SHARE, lambda texts: repetition.duplicate_lines(texts).share),
    "duplicate_line_char_share": (
        _SHARE,
        lambda texts: ratio(repetition.duplicate_lines(texts).chars, texts.num_chars),
    ),
    "duplicate_paragraph_share": (_SHARE, lambda texts: repetition.duplicate_paragraphs(texts).share),
    "duplicate_paragraph_char_share": (
        _SHARE,
        lambda texts: ratio(repetition.duplicate_paragraphs(texts).chars, texts.num_chars),
    ),
    "top_ngram_char_share": (_SHARE, lambda texts, n: ratio(repetition.top_ngram_chars(texts, n), texts.num_chars)),
    "duplicate_ngram_char_share": (
        _SHARE,
        lambda texts, n: ratio(repetition.duplicate_ngram_chars(texts, n), texts.num_chars),
    ),
    "gopher_repetition": (CATEGORY, quality.gopher_repetition),
    "hash_word_ratio": (_SHARE, quality.hash_word_ratio),
    "ellipsis_word_ratio": (_SHARE, quality.ellipsis_word_ratio),
    "bullet_line_share": (_SHARE, quality.bullet_line_share),
    "ellipsis_line_share": (_SHARE, quality.ellipsis_line_share),
    "alphabetic_word_share": (_SHARE, quality.alphabetic_word_share),
    "gopher_quality": (CATEGORY, quality.gopher_quality),
    "terminal_line_share": (_SHARE, quality.terminal_line_share),
    "short_line_share": (_SHARE, quality.short_line_share),
    "repeated_line_char_share": (_SHARE, quality.repeated_line_char_share),
    "newline_word_ratio": (_SHARE, quality.newline_word_ratio),
    "fineweb_quality": (CATEGORY, quality.fineweb_quality),
    "c4_kept_line_share": (_SHARE, c4.c4_kept_line_share),
    "c4_quality": (CATEGORY, c4.c4_quality),
}


@dataclass(frozen=True, kw_only=True)
class TextMetric(ColumnMetric):
    """One of :data:`MEASURES` of a column of strings; see the functions of :mod:`arrowds.metrics.text`."""

    measure: str
    options: tuple[tuple[str, int | float | str], ...] = field(default=())

    in_threads: ClassVar[bool] = True

    def compute(self, batch: Batch, totals: Totals) -> pa.Array:
        return next(self.compute_together([self], batch, totals))

    @classmethod
    def compute_together(cls, metrics: Sequence[Metric], batch: Batch, totals: Totals) -> Iterator[pa.Array]:
        """Measure block by block, so that what the metrics share is computed once and stays in the caches."""
        chosen = [metric for metric in metrics if isinstance(metric, TextMetric)]
        pieces: list[list[pa.Array]] = [[] for _ in chosen]
        nulls = {}
        for name in dict.fromkeys(metric.column for metric in chosen):
            texts = texts_of(batch, name)
            nulls[name] = numpy_view(texts.is_null()) if texts.null_count else None
            for block in blocks_of(texts):
                for metric, found in zip(chosen, pieces, strict=True):
                    if metric.column == name:
                        found.append(metric._measured(block))
        for metric, found in zip(chosen, pieces, strict=True):
            yield _joined(found, metric.dtype, nulls[metric.column])

    def _measured(self, texts: Passages) -> pa.Array:
        values = MEASURES[self.measure][1](texts, **dict(self.options))
        return values if isinstance(values, pa.Array) else arrow_view(values).cast(self.dtype)

    def definition(self) -> str:
        options = "".join(f", {name}={value}" for name, value in self.options)
        return f"text.{self.measure}({self.column}{options}, nulls={self.nulls})"

    def spec(self) -> Spec:
        spec: Spec = {"metric": "TextMetric", "name": self.name, "measure": self.measure, "column": self.column}
        return {**spec, "nulls": self.nulls, **dict[str, Any](self.options)}

    @classmethod
    def from_options(cls, options: Spec) -> Metric:
        fixed = {key: str(options[key]) for key in ("name", "measure", "column", "nulls")}
        rest = tuple((name, value) for name, value in options.items() if name not in fixed)
        return cls(**fixed, options=rest, dtype=MEASURES[fixed["measure"]][0])  # type: ignore[arg-type]


def text_metric(measure: str, column: str, name: str | None, nulls: Nulls, **options: int | float | str) -> Metric:
    """Return the metric that measures a column of strings."""
    return TextMetric(
        name=measure if name is None else name,
        column=column,
        measure=measure,
        options=tuple(options.items()),
        dtype=MEASURES[measure][0],
        nulls=nulls,
    )


def texts_of(batch: Batch, name: str) -> pa.Array:
    """Return a column of strings, which are valid UTF-8."""
    texts = plain(column(batch, name))
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        raise MetricValueError(f"metrics.text reads text, but column {name!r} has type {texts.type}")
    checked_text(pa.record_batch({name: texts}))
    return texts


def blocks_of(texts: pa.Array) -> Iterator[Passages]:
    """Yield texts as passages of about a megabyte; nulls are empty texts."""
    filled = texts.fill_null("") if texts.null_count else texts
    sizes = np.cumsum(numpy_view(pc.binary_length(filled)), dtype=np.int64)
    start = 0
    while start < len(filled):
        before = sizes[start - 1] if start else 0
        stop = int(np.searchsorted(sizes, before + _BLOCK_BYTES, side="right"))
        stop = min(max(stop, start + 1), start + _BLOCK_TEXTS, len(filled))
        yield Passages(filled.slice(start, stop - start))
        start = stop


def _joined(pieces: list[pa.Array], dtype: pa.DataType | None, missing: np.ndarray | None) -> pa.Array:
    values = pa.concat_arrays(pieces) if pieces else pa.array([], dtype)
    return values if missing is None else pc.if_else(arrow_view(~missing), values, pa.scalar(None, values.type))
