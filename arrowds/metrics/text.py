r"""Metrics of text: sizes, words, shares of characters, repetition of words, compression.

Text is a column of strings. A word is a stretch of characters without white space (``\S+``), as ``str.split`` has them;
of scripts without spaces, such as Chinese, a whole stretch is one word. Repetition goes by the words in lower case,
without the punctuation around them (``\w+``). White space, letters, digits and case are those of Unicode.

Most are Polars expressions and take a ``name`` and ``nulls`` as :func:`arrowds.metrics.expr` does: a text that is null
has no value, an empty one has 0.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
import pyarrow as pa

from arrowds.arrays import arrow_view, numpy_view
from arrowds.batch import Batch
from arrowds.batch import column as column_of
from arrowds.errors import MetricError, MetricValueError
from arrowds.metrics.base import Metric, Nulls, Spec, Totals
from arrowds.metrics.expressions import expr

__all__ = [
    "compression_ratio",
    "digit_share",
    "hapax_share",
    "letter_share",
    "mean_line_length",
    "mean_word_length",
    "n_bytes",
    "n_chars",
    "n_lines",
    "n_words",
    "symbol_share",
    "type_token_ratio",
    "unigram_entropy",
    "upper_case_share",
    "white_space_share",
]


def n_bytes(column: str = "text", *, name: str = "n_bytes", nulls: Nulls = "refuse") -> Metric:
    """Bytes of the text in UTF-8 (uint32).

    >>> n_bytes().compute(pa.record_batch({"text": ["ab", "é"]}), {}).to_pylist()
    [2, 2]
    """
    return expr(name, pl.col(column).str.len_bytes(), dtype="uint32", nulls=nulls)


def n_chars(column: str = "text", *, name: str = "n_chars", nulls: Nulls = "refuse") -> Metric:
    """Code points of the text (uint32).

    >>> n_chars().compute(pa.record_batch({"text": ["ab", "é"]}), {}).to_pylist()
    [2, 1]
    """
    return expr(name, pl.col(column).str.len_chars(), dtype="uint32", nulls=nulls)


def n_words(column: str = "text", *, name: str = "n_words", nulls: Nulls = "refuse") -> Metric:
    """Words of the text (uint32).

    >>> n_words().compute(pa.record_batch({"text": ["to be, or", " "]}), {}).to_pylist()
    [3, 0]
    """
    return expr(name, _count(column, r"\S+"), dtype="uint32", nulls=nulls)


def n_lines(column: str = "text", *, name: str = "n_lines", nulls: Nulls = "refuse") -> Metric:
    r"""Lines of the text, which ``\n`` ends; the last one counts where it is not empty (uint32).

    >>> n_lines().compute(pa.record_batch({"text": ["a", "a\n", "a\nb", ""]}), {}).to_pylist()
    [1, 1, 2, 0]
    """
    return expr(name, _lines(column), dtype="uint32", nulls=nulls)


def mean_word_length(column: str = "text", *, name: str = "mean_word_length", nulls: Nulls = "refuse") -> Metric:
    """Characters of a word, in the mean (float64).

    >>> mean_word_length().compute(pa.record_batch({"text": ["to bed"]}), {}).to_pylist()
    [2.5]
    """
    return expr(name, _ratio(_chars(column) - _count(column, r"\s"), _count(column, r"\S+")), nulls=nulls)


def mean_line_length(column: str = "text", *, name: str = "mean_line_length", nulls: Nulls = "refuse") -> Metric:
    r"""Characters of a line, in the mean, without the ``\n`` that ends it (float64).

    >>> mean_line_length().compute(pa.record_batch({"text": ["abc\n\nabc"]}), {}).to_pylist()
    [2.0]
    """
    return expr(name, _ratio(_chars(column) - _newlines(column), _lines(column)), nulls=nulls)


def letter_share(column: str = "text", *, name: str = "letter_share", nulls: Nulls = "refuse") -> Metric:
    """Share of the characters that are letters (float64).

    >>> letter_share().compute(pa.record_batch({"text": ["ab 1"]}), {}).to_pylist()
    [0.5]
    """
    return _share(column, r"\p{L}+", name, nulls)


def digit_share(column: str = "text", *, name: str = "digit_share", nulls: Nulls = "refuse") -> Metric:
    """Share of the characters that are decimal digits (float64).

    >>> digit_share().compute(pa.record_batch({"text": ["ab 1"]}), {}).to_pylist()
    [0.25]
    """
    return _share(column, r"\p{Nd}+", name, nulls)


def upper_case_share(column: str = "text", *, name: str = "upper_case_share", nulls: Nulls = "refuse") -> Metric:
    """Share of the characters that are upper-case letters (float64).

    >>> upper_case_share().compute(pa.record_batch({"text": ["AB c"]}), {}).to_pylist()
    [0.5]
    """
    return _share(column, r"\p{Lu}+", name, nulls)


def white_space_share(column: str = "text", *, name: str = "white_space_share", nulls: Nulls = "refuse") -> Metric:
    """Share of the characters that are white space (float64).

    >>> white_space_share().compute(pa.record_batch({"text": ["ab 1"]}), {}).to_pylist()
    [0.25]
    """
    return _share(column, r"\s+", name, nulls)


def symbol_share(column: str = "text", *, name: str = "symbol_share", nulls: Nulls = "refuse") -> Metric:
    """Share of the characters that are no letter, no decimal digit and no white space (float64).

    >>> symbol_share().compute(pa.record_batch({"text": ["a+b!"]}), {}).to_pylist()
    [0.5]
    """
    return _share(column, r"[^\p{L}\p{Nd}\s]+", name, nulls)


def type_token_ratio(column: str = "text", *, name: str = "type_token_ratio", nulls: Nulls = "refuse") -> Metric:
    """Different words over words, in lower case (float64): low where words repeat, and lower in longer texts.

    >>> type_token_ratio().compute(pa.record_batch({"text": ["To be or not to be"]}), {}).to_numpy().round(3)
    array([0.667])
    """
    words = _words(column)
    return expr(name, _ratio(words.list.n_unique(), words.list.len()), nulls=nulls)


def hapax_share(column: str = "text", *, name: str = "hapax_share", nulls: Nulls = "refuse") -> Metric:
    """Share of the words, in lower case, that occur once in the text (float64).

    >>> hapax_share().compute(pa.record_batch({"text": ["To be or not to be"]}), {}).to_numpy().round(3)
    array([0.333])
    """
    counts = _word_counts(column)
    return expr(name, _ratio(counts.list.count_matches(1), counts.list.sum()), nulls=nulls)


def unigram_entropy(column: str = "text", *, name: str = "unigram_entropy", nulls: Nulls = "refuse") -> Metric:
    """Entropy of the words of the text, in lower case, in nats (float64): the sum of -p log p over its words.

    >>> unigram_entropy().compute(pa.record_batch({"text": ["a b a b", "a a"]}), {}).to_numpy().round(3)
    array([0.693, 0.   ])
    """
    counts = _word_counts(column)
    total = counts.list.sum().cast(pl.Float64)
    weighted = counts.list.eval(pl.element() * pl.element().cast(pl.Float64).log()).list.sum()
    entropy = pl.when(total > 0).then(total.log() - weighted / total).otherwise(0.0)
    return expr(name, _where_text(column, entropy.clip(lower_bound=0.0)), nulls=nulls)


def compression_ratio(
    column: str = "text",
    *,
    name: str = "compression_ratio",
    codec: Literal["zstd", "zlib"] = "zstd",
    level: int | None = None,
    nulls: Nulls = "refuse",
) -> Metric:
    """Bytes of the text over those that it is compressed to (float64): high where it repeats itself, 0 without text.

    Args:
        column: a column of strings.
        name: name of the metric.
        codec: "zstd", or "zlib" for comparison with papers.
        level: of the codec; by default 3 of zstd, 6 of zlib.
        nulls: what to do with null, see :class:`Metric`.

    >>> values = compression_ratio().compute(pa.record_batch({"text": ["ab" * 500, "the quick brown fox"]}), {})
    >>> [value > 1.5 for value in values.to_pylist()]
    [True, False]
    """
    if codec not in ("zstd", "zlib"):
        raise MetricError(f"metric {name!r}: codec must be 'zstd' or 'zlib', got {codec!r}")
    chosen = (3 if codec == "zstd" else 6) if level is None else level
    return CompressionRatio(name=name, column=column, codec=codec, level=chosen, dtype=pa.float64(), nulls=nulls)


@dataclass(frozen=True, kw_only=True)
class CompressionRatio(Metric):
    """See :func:`compression_ratio`."""

    column: str
    codec: str
    level: int

    in_threads: ClassVar[bool] = True

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

    def compute(self, batch: Batch, totals: Totals) -> pa.Array:
        texts = column_of(batch, self.column)
        if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
            raise MetricValueError(f"metric {self.name!r} reads text, but column {self.column!r} has type {texts.type}")
        width = np.int64 if pa.types.is_large_string(texts.type) else np.int32
        _, offsets, data = texts.buffers()
        ends = np.frombuffer(offsets, width, len(texts) + 1, texts.offset * np.dtype(width).itemsize).tolist()
        view = memoryview(data if data is not None else b"")
        compressed = self._compressed()
        sizes = np.array([compressed(view[start:stop]) for start, stop in pairwise(ends)], np.float64)
        missing = numpy_view(texts.is_null()) if texts.null_count else None
        return arrow_view(np.diff(ends) / sizes, missing=missing)

    def _compressed(self) -> Callable[[Any], int]:
        if self.codec == "zlib":
            return lambda text: len(zlib.compress(text, self.level))
        codec = pa.Codec("zstd", compression_level=self.level)
        return lambda text: codec.compress(pa.py_buffer(text)).size

    def definition(self) -> str:
        return f"compression_ratio({self.column}, {self.codec} {self.level}, nulls={self.nulls})"

    def spec(self) -> Spec:
        return {
            "metric": "CompressionRatio",
            "name": self.name,
            "column": self.column,
            "codec": self.codec,
            "level": self.level,
            "dtype": "double",
            "nulls": self.nulls,
        }


def _chars(column: str) -> pl.Expr:
    return pl.col(column).str.len_chars()


def _count(column: str, pattern: str) -> pl.Expr:
    return pl.col(column).str.count_matches(pattern)


def _newlines(column: str) -> pl.Expr:
    return pl.col(column).str.count_matches("\n", literal=True)


def _lines(column: str) -> pl.Expr:
    text = pl.col(column)
    return _newlines(column) + ((text != "") & ~text.str.ends_with("\n")).cast(pl.UInt32)


def _words(column: str) -> pl.Expr:
    return pl.col(column).str.to_lowercase().str.extract_all(r"\w+")


def _word_counts(column: str) -> pl.Expr:
    return _words(column).list.eval(pl.element().unique_counts())


def _ratio(part: pl.Expr, whole: pl.Expr) -> pl.Expr:
    """Part / whole, 0 where both are; null where they are."""
    return part.cast(pl.Float64) / whole.cast(pl.Float64).clip(lower_bound=1.0)


def _where_text(column: str, values: pl.Expr) -> pl.Expr:
    return pl.when(pl.col(column).is_not_null()).then(values)


def _share(column: str, pattern: str, name: str, nulls: Nulls) -> Metric:
    """The share of the characters in stretches that match: what is left without them tells how many they are."""
    others = pl.col(column).str.replace_all(pattern, "").str.len_chars()
    return expr(name, _ratio(_chars(column) - others, _chars(column)), nulls=nulls)
