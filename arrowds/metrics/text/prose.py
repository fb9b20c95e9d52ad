r"""Metrics of text: sizes, shares of characters and words, variety, compression, ease of reading.

Text is a column of strings. A word is a stretch of characters without white space, as ``str.split`` has them; of
scripts without spaces, such as Chinese, a whole stretch is one word. Variety goes by plain words: the stretches of
``\w+`` in lower case. White space, letters, digits and case are those of Unicode. A text that is null has no value;
one without what is measured has 0, unless its function says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from arrowds.errors import MetricError
from arrowds.metrics.base import Metric, Nulls
from arrowds.metrics.text.measures import text_metric
from arrowds.metrics.text.quality import GOPHER_STOP_WORDS


def n_bytes(column: str = "text", *, name: str = "n_bytes", nulls: Nulls = "refuse") -> Metric:
    """Bytes of the text in UTF-8 (uint32).

    >>> import pyarrow as pa
    >>> n_bytes().compute(pa.record_batch({"text": ["ab", "é"]}), {}).to_pylist()
    [2, 2]
    """
    return text_metric("n_bytes", column, name, nulls)


def n_chars(column: str = "text", *, name: str = "n_chars", nulls: Nulls = "refuse") -> Metric:
    """Code points of the text (uint32).

    >>> import pyarrow as pa
    >>> n_chars().compute(pa.record_batch({"text": ["ab", "é"]}), {}).to_pylist()
    [2, 1]
    """
    return text_metric("n_chars", column, name, nulls)


def n_words(column: str = "text", *, name: str = "n_words", nulls: Nulls = "refuse") -> Metric:
    """Words of the text (uint32).

    >>> import pyarrow as pa
    >>> n_words().compute(pa.record_batch({"text": ["to be, or", " "]}), {}).to_pylist()
    [3, 0]
    """
    return text_metric("n_words", column, name, nulls)


def n_lines(column: str = "text", *, name: str = "n_lines", nulls: Nulls = "refuse") -> Metric:
    r"""Lines of the text, which ``\n`` ends; the last one counts where it is not empty (uint32).

    >>> import pyarrow as pa
    >>> n_lines().compute(pa.record_batch({"text": ["a", "a\n", "a\nb", ""]}), {}).to_pylist()
    [1, 1, 2, 0]
    """
    return text_metric("n_lines", column, name, nulls)


def n_sentences(column: str = "text", *, name: str = "n_sentences", nulls: Nulls = "refuse") -> Metric:
    """Sentences of the text (uint32).

    One ends with a word that ends in ``.``, ``!``, ``?`` or another character that Unicode calls Sentence_Terminal,
    also where closing quotes or brackets follow it, and with the last word. So "e.g." ends one, and "3.5" does not.

    >>> import pyarrow as pa
    >>> n_sentences().compute(pa.record_batch({"text": ['It is. "Is it?" No']}), {}).to_pylist()
    [3]
    """
    return text_metric("n_sentences", column, name, nulls)


def mean_word_length(column: str = "text", *, name: str = "mean_word_length", nulls: Nulls = "refuse") -> Metric:
    """Characters of a word, in the mean (float64).

    >>> import pyarrow as pa
    >>> mean_word_length().compute(pa.record_batch({"text": ["to bed"]}), {}).to_pylist()
    [2.5]
    """
    return text_metric("mean_word_length", column, name, nulls)


def mean_line_length(column: str = "text", *, name: str = "mean_line_length", nulls: Nulls = "refuse") -> Metric:
    r"""Characters of a line, in the mean, without the ``\n`` that ends it (float64).

    >>> import pyarrow as pa
    >>> mean_line_length().compute(pa.record_batch({"text": ["abc\n\nabc"]}), {}).to_pylist()
    [2.0]
    """
    return text_metric("mean_line_length", column, name, nulls)


def letter_share(column: str = "text", *, name: str = "letter_share", nulls: Nulls = "refuse") -> Metric:
    """Share of the characters that are letters (float64).

    >>> import pyarrow as pa
    >>> letter_share().compute(pa.record_batch({"text": ["ab 1"]}), {}).to_pylist()
    [0.5]
    """
    return text_metric("letter_share", column, name, nulls)


def digit_share(column: str = "text", *, name: str = "digit_share", nulls: Nulls = "refuse") -> Metric:
    """Share of the characters that are decimal digits (float64).

    >>> import pyarrow as pa
    >>> digit_share().compute(pa.record_batch({"text": ["ab 1"]}), {}).to_pylist()
    [0.25]
    """
    return text_metric("digit_share", column, name, nulls)


def upper_case_share(column: str = "text", *, name: str = "upper_case_share", nulls: Nulls = "refuse") -> Metric:
    """Share of the characters that are upper-case letters (float64).

    >>> import pyarrow as pa
    >>> upper_case_share().compute(pa.record_batch({"text": ["AB c"]}), {}).to_pylist()
    [0.5]
    """
    return text_metric("upper_case_share", column, name, nulls)


def white_space_share(column: str = "text", *, name: str = "white_space_share", nulls: Nulls = "refuse") -> Metric:
    """Share of the characters that are white space (float64).

    >>> import pyarrow as pa
    >>> white_space_share().compute(pa.record_batch({"text": ["ab 1"]}), {}).to_pylist()
    [0.25]
    """
    return text_metric("white_space_share", column, name, nulls)


def symbol_share(column: str = "text", *, name: str = "symbol_share", nulls: Nulls = "refuse") -> Metric:
    """Share of the characters that are no letter, no decimal digit and no white space (float64).

    >>> import pyarrow as pa
    >>> symbol_share().compute(pa.record_batch({"text": ["a+b!"]}), {}).to_pylist()
    [0.5]
    """
    return text_metric("symbol_share", column, name, nulls)


def stop_word_share(
    column: str = "text",
    *,
    name: str = "stop_word_share",
    stop_words: Sequence[str] = tuple(GOPHER_STOP_WORDS.split()),
    nulls: Nulls = "refuse",
) -> Metric:
    """Share of the words that are in a list, by default Gopher's: the, be, to, of, and, that, have, with (float64).

    Words are compared as they are, with their case and punctuation.

    >>> import pyarrow as pa
    >>> stop_word_share().compute(pa.record_batch({"text": ["the cat and the dog"]}), {}).to_pylist()
    [0.6]
    """
    if not stop_words or any(not word or word.split() != [word] for word in stop_words):
        raise MetricError(f"metric {name!r}: stop_words must be words without white space, got {stop_words!r}")
    return text_metric("stop_word_share", column, name, nulls, stop_words=" ".join(stop_words))


def type_token_ratio(column: str = "text", *, name: str = "type_token_ratio", nulls: Nulls = "refuse") -> Metric:
    """Different words over words, in lower case (float64): low where words repeat, and lower in longer texts.

    >>> import pyarrow as pa
    >>> type_token_ratio().compute(pa.record_batch({"text": ["To be or not to be"]}), {}).to_numpy().round(3)
    array([0.667])
    """
    return text_metric("type_token_ratio", column, name, nulls)


def hapax_share(column: str = "text", *, name: str = "hapax_share", nulls: Nulls = "refuse") -> Metric:
    """Share of the words, in lower case, that occur once in the text (float64).

    >>> import pyarrow as pa
    >>> hapax_share().compute(pa.record_batch({"text": ["To be or not to be"]}), {}).to_numpy().round(3)
    array([0.333])
    """
    return text_metric("hapax_share", column, name, nulls)


def unigram_entropy(column: str = "text", *, name: str = "unigram_entropy", nulls: Nulls = "refuse") -> Metric:
    """Entropy of the words of the text, in lower case, in nats (float64): the sum of -p log p over its words.

    >>> import pyarrow as pa
    >>> unigram_entropy().compute(pa.record_batch({"text": ["a b a b", "a a"]}), {}).to_numpy().round(3)
    array([0.693, 0.   ])
    """
    return text_metric("unigram_entropy", column, name, nulls)


def mtld(column: str = "text", *, name: str = "mtld", threshold: float = 0.72, nulls: Nulls = "refuse") -> Metric:
    """Measure of textual lexical diversity (float64): the mean length of stretches of plain words that stay varied.

    A stretch ends where the share of different words in it falls to the threshold; what is left at the end counts in
    part. The result is the mean of the text read forwards and backwards. Unlike the type-token ratio it does not
    depend on the length of the text. Source: McCarthy and Jarvis, "MTLD, vocd-D, and HD-D" (2010), as in the package
    lexicalrichness.

    Args:
        column: a column of strings.
        name: name of the metric.
        threshold: above 0 and below 1.
        nulls: what to do with null, see :class:`Metric`.

    >>> import pyarrow as pa
    >>> mtld().compute(pa.record_batch({"text": ["to be or not to be " * 10, "each word is another"]}), {}).to_pylist()
    [6.0, 4.0]
    """
    if not 0 < threshold < 1:
        raise MetricError(f"metric {name!r}: threshold must lie between 0 and 1, got {threshold}")
    return text_metric("mtld", column, name, nulls, threshold=threshold)


def flesch_reading_ease(column: str = "text", *, name: str = "flesch_reading_ease", nulls: Nulls = "refuse") -> Metric:
    """Flesch's reading ease of English text (float64): about 100 for very easy, below 30 for very difficult text.

    206.835 - 1.015 words per sentence - 84.6 syllables per word, of words with a letter. Syllables are counted by
    groups of vowels, less a silent e, and sentences as :func:`n_sentences` does. Source: Flesch, "A new readability
    yardstick" (1948).

    >>> import pyarrow as pa
    >>> flesch_reading_ease().compute(pa.record_batch({"text": ["The cat sat on the mat."]}), {}).to_numpy().round(3)
    array([116.145])
    """
    return text_metric("flesch_reading_ease", column, name, nulls)


def flesch_kincaid_grade(
    column: str = "text", *, name: str = "flesch_kincaid_grade", nulls: Nulls = "refuse"
) -> Metric:
    """School grade of the United States in which English text is understood (float64).

    0.39 words per sentence + 11.8 syllables per word - 15.59, counted as :func:`flesch_reading_ease` does. Source:
    Kincaid et al., "Derivation of new readability formulas" (1975).

    >>> import pyarrow as pa
    >>> flesch_kincaid_grade().compute(pa.record_batch({"text": ["The cat sat on the mat."]}), {}).to_numpy().round(3)
    array([-1.45])
    """
    return text_metric("flesch_kincaid_grade", column, name, nulls)


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

    >>> import pyarrow as pa
    >>> values = compression_ratio().compute(pa.record_batch({"text": ["ab" * 500, "the quick brown fox"]}), {})
    >>> [value > 1.5 for value in values.to_pylist()]
    [True, False]
    """
    if codec not in ("zstd", "zlib"):
        raise MetricError(f"metric {name!r}: codec must be 'zstd' or 'zlib', got {codec!r}")
    chosen = (3 if codec == "zstd" else 6) if level is None else level
    return text_metric("compression_ratio", column, name, nulls, codec=codec, level=chosen)
