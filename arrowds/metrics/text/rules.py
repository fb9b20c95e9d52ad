"""Metrics of text quality: what the rules of Gopher, C4 and FineWeb measure, and which rule a text fails.

The limits and the order of the rules are those of datatrove's filters. A word is a stretch of characters without white
space here, a token of spaCy there.
"""

from __future__ import annotations

from arrowds.errors import MetricError
from arrowds.metrics.base import Metric, Nulls
from arrowds.metrics.text.measures import text_metric
from arrowds.metrics.text.passages import LONGEST_NGRAM


def duplicate_line_share(
    column: str = "text", *, name: str = "duplicate_line_share", nulls: Nulls = "refuse"
) -> Metric:
    r"""Share of the lines that are equal to an earlier one (float64).

    Stretches of ``\n`` separate lines, so that no line is empty but one before or after the text.

    >>> import pyarrow as pa
    >>> duplicate_line_share().compute(pa.record_batch({"text": ["a\nb\na\na"]}), {}).to_pylist()
    [0.5]
    """
    return text_metric("duplicate_line_share", column, name, nulls)


def duplicate_line_char_share(
    column: str = "text", *, name: str = "duplicate_line_char_share", nulls: Nulls = "refuse"
) -> Metric:
    r"""Share of the characters that are in lines equal to an earlier one (float64).

    >>> import pyarrow as pa
    >>> duplicate_line_char_share().compute(pa.record_batch({"text": ["ab\nab"]}), {}).to_pylist()
    [0.4]
    """
    return text_metric("duplicate_line_char_share", column, name, nulls)


def duplicate_paragraph_share(
    column: str = "text", *, name: str = "duplicate_paragraph_share", nulls: Nulls = "refuse"
) -> Metric:
    r"""Share of the paragraphs that are equal to an earlier one (float64); two or more ``\n`` separate them.

    >>> import pyarrow as pa
    >>> duplicate_paragraph_share().compute(pa.record_batch({"text": ["a\n\nb\n\na\n\na"]}), {}).to_pylist()
    [0.5]
    """
    return text_metric("duplicate_paragraph_share", column, name, nulls)


def duplicate_paragraph_char_share(
    column: str = "text", *, name: str = "duplicate_paragraph_char_share", nulls: Nulls = "refuse"
) -> Metric:
    r"""Share of the characters that are in paragraphs equal to an earlier one (float64).

    >>> import pyarrow as pa
    >>> duplicate_paragraph_char_share().compute(pa.record_batch({"text": ["aab\n\n\n\naab"]}), {}).to_pylist()
    [0.3]
    """
    return text_metric("duplicate_paragraph_char_share", column, name, nulls)


def top_ngram_char_share(
    n: int = 2, column: str = "text", *, name: str | None = None, nulls: Nulls = "refuse"
) -> Metric:
    r"""Share of the characters that are in the most frequent n-gram of words (float64).

    Its length with a space between words, times how often it occurs. A text without a repetition has that of its
    first n-gram, one of fewer than n words 0. Metrics are called ``top_2_gram_char_share`` and so on, unless ``name``
    is given.

    Args:
        n: words of an n-gram, 2 to 10.
        column: a column of strings.
        name: name of the metric.
        nulls: what to do with null, see :class:`Metric`.

    >>> import pyarrow as pa
    >>> top_ngram_char_share().compute(pa.record_batch({"text": ["a b c d a b"]}), {}).to_numpy().round(3).tolist()
    [0.545]
    """
    _check_n(n)
    chosen = f"top_{n}_gram_char_share" if name is None else name
    return text_metric("top_ngram_char_share", column, chosen, nulls, n=n)


def duplicate_ngram_char_share(
    n: int = 5, column: str = "text", *, name: str | None = None, nulls: Nulls = "refuse"
) -> Metric:
    r"""Share of the characters that are in n-grams of words which occurred before (float64).

    Read from left to right; what such an n-gram covers begins no other, and its length is that without spaces.
    Metrics are called ``duplicate_5_gram_char_share`` and so on, unless ``name`` is given.

    Args:
        n: words of an n-gram, 2 to 10.
        column: a column of strings.
        name: name of the metric.
        nulls: what to do with null, see :class:`Metric`.

    >>> import pyarrow as pa
    >>> duplicate_ngram_char_share(3).compute(pa.record_batch({"text": ["a b c d a b c"]}), {}).to_numpy().round(3)
    array([0.231])
    """
    _check_n(n)
    chosen = f"duplicate_{n}_gram_char_share" if name is None else name
    return text_metric("duplicate_ngram_char_share", column, chosen, nulls, n=n)


def gopher_repetition(column: str = "text", *, name: str = "gopher_repetition", nulls: Nulls = "refuse") -> Metric:
    r"""The first of Gopher's rules of repetition that the text fails, or "pass" (a categorical metric).

    In this order: ``empty``; ``duplicate_paragraphs`` (share above 0.3), ``duplicate_paragraph_chars`` (0.2),
    ``duplicate_lines`` (0.3), ``duplicate_line_chars`` (0.2); ``top_2_gram`` (0.2), ``top_3_gram`` (0.18),
    ``top_4_gram`` (0.16); ``duplicate_5_grams`` (0.15) to ``duplicate_10_grams`` (0.10). Source: Rae et al., "Scaling
    Language Models" (2021), table A1.

    >>> import pyarrow as pa
    >>> gopher_repetition().compute(pa.record_batch({"text": ["spam ham " * 9]}), {}).to_pylist()
    ['top_2_gram']
    """
    return text_metric("gopher_repetition", column, name, nulls)


def hash_word_ratio(column: str = "text", *, name: str = "hash_word_ratio", nulls: Nulls = "refuse") -> Metric:
    r"""The characters ``#`` over the words (float64).

    >>> import pyarrow as pa
    >>> hash_word_ratio().compute(pa.record_batch({"text": ["# one #two"]}), {}).to_numpy().round(3).tolist()
    [0.667]
    """
    return text_metric("hash_word_ratio", column, name, nulls)


def ellipsis_word_ratio(column: str = "text", *, name: str = "ellipsis_word_ratio", nulls: Nulls = "refuse") -> Metric:
    r"""Ellipses, as one character or as three dots, over the words (float64).

    >>> import pyarrow as pa
    >>> ellipsis_word_ratio().compute(pa.record_batch({"text": ["well ... so…"]}), {}).to_numpy().round(3).tolist()
    [0.667]
    """
    return text_metric("ellipsis_word_ratio", column, name, nulls)


def bullet_line_share(column: str = "text", *, name: str = "bullet_line_share", nulls: Nulls = "refuse") -> Metric:
    r"""Share of the lines that begin with ``•`` or ``-``, after white space (float64).

    >>> import pyarrow as pa
    >>> bullet_line_share().compute(pa.record_batch({"text": ["- one\n two"]}), {}).to_pylist()
    [0.5]
    """
    return text_metric("bullet_line_share", column, name, nulls)


def ellipsis_line_share(column: str = "text", *, name: str = "ellipsis_line_share", nulls: Nulls = "refuse") -> Metric:
    r"""Share of the lines that end with an ellipsis, before white space (float64).

    >>> import pyarrow as pa
    >>> ellipsis_line_share().compute(pa.record_batch({"text": ["one...\n\n two… \nend"]}), {}).to_pylist()
    [0.5]
    """
    return text_metric("ellipsis_line_share", column, name, nulls)


def alphabetic_word_share(
    column: str = "text", *, name: str = "alphabetic_word_share", nulls: Nulls = "refuse"
) -> Metric:
    r"""Share of the words that have a letter (float64).

    >>> import pyarrow as pa
    >>> alphabetic_word_share().compute(pa.record_batch({"text": ["a1 2 - b"]}), {}).to_pylist()
    [0.5]
    """
    return text_metric("alphabetic_word_share", column, name, nulls)


def gopher_quality(column: str = "text", *, name: str = "gopher_quality", nulls: Nulls = "refuse") -> Metric:
    r"""The first of Gopher's rules of quality that the text fails, or "pass" (a categorical metric).

    In this order: ``few_words`` (fewer than 50 with anything but punctuation), ``many_words`` (more than 100,000),
    ``short_words`` (fewer than 3 characters in the mean), ``long_words`` (more than 10), ``hashes`` (more than 0.1
    for each word), ``ellipses`` (likewise), ``bullet_lines`` (share above 0.9), ``ellipsis_lines`` (0.3),
    ``few_alphabetic_words`` (below 0.8), ``few_stop_words`` (fewer than two of the eight of :func:`stop_word_share`).
    Source: Rae et al., "Scaling Language Models" (2021), section A.1.

    >>> import pyarrow as pa
    >>> gopher_quality().compute(pa.record_batch({"text": ["too short"]}), {}).to_pylist()
    ['few_words']
    """
    return text_metric("gopher_quality", column, name, nulls)


def terminal_line_share(column: str = "text", *, name: str = "terminal_line_share", nulls: Nulls = "refuse") -> Metric:
    r"""Share of the lines that end with a character that ends a sentence (float64); lines of white space do not count.

    >>> import pyarrow as pa
    >>> terminal_line_share().compute(pa.record_batch({"text": ["It is.\nIs it"]}), {}).to_pylist()
    [0.5]
    """
    return text_metric("terminal_line_share", column, name, nulls)


def short_line_share(column: str = "text", *, name: str = "short_line_share", nulls: Nulls = "refuse") -> Metric:
    r"""Share of the lines that have at most 30 characters (float64); lines of white space do not count.

    >>> import pyarrow as pa
    >>> short_line_share().compute(pa.record_batch({"text": ["short\n" + "long" * 8]}), {}).to_pylist()
    [0.5]
    """
    return text_metric("short_line_share", column, name, nulls)


def repeated_line_char_share(
    column: str = "text", *, name: str = "repeated_line_char_share", nulls: Nulls = "refuse"
) -> Metric:
    r"""Share of the characters but ``\n`` that are in lines equal to an earlier one (float64).

    Lines of white space do not count, unlike in :func:`duplicate_line_char_share`.

    >>> import pyarrow as pa
    >>> repeated_line_char_share().compute(pa.record_batch({"text": ["ab\nab"]}), {}).to_pylist()
    [0.5]
    """
    return text_metric("repeated_line_char_share", column, name, nulls)


def newline_word_ratio(column: str = "text", *, name: str = "newline_word_ratio", nulls: Nulls = "refuse") -> Metric:
    r"""``\n`` over the words (float64).

    >>> import pyarrow as pa
    >>> newline_word_ratio().compute(pa.record_batch({"text": ["a b\nc\n"]}), {}).to_numpy().round(3).tolist()
    [0.667]
    """
    return text_metric("newline_word_ratio", column, name, nulls)


def fineweb_quality(column: str = "text", *, name: str = "fineweb_quality", nulls: Nulls = "refuse") -> Metric:
    r"""The first of FineWeb's rules that the text fails, or "pass" (a categorical metric).

    In this order: ``empty``; ``few_ended_lines`` (:func:`terminal_line_share` below 0.12), ``short_lines``
    (:func:`short_line_share` above 0.67), ``duplicate_line_chars`` (:func:`repeated_line_char_share` above 0.01),
    ``many_lines`` (:func:`newline_word_ratio` above 0.3). Source: Penedo et al., "The FineWeb Datasets" (2024),
    section 3.6.

    >>> import pyarrow as pa
    >>> fineweb_quality().compute(pa.record_batch({"text": ["no sentence", "It is one."]}), {}).to_pylist()
    ['few_ended_lines', 'short_lines']
    """
    return text_metric("fineweb_quality", column, name, nulls)


def c4_kept_line_share(column: str = "text", *, name: str = "c4_kept_line_share", nulls: Nulls = "refuse") -> Metric:
    r"""Share of the lines that C4 keeps (float64).

    Those that end in ``.``, ``?``, ``!`` or a quote and not in ``...``, with at least three words and none of more
    than 1,000 characters, without "javascript" and phrases about cookies and terms of use. Marks such as ``[1]`` are
    taken out first.

    >>> import pyarrow as pa
    >>> c4_kept_line_share().compute(pa.record_batch({"text": ["This is a sentence.\nNo sentence"]}), {}).to_pylist()
    [0.5]
    """
    return text_metric("c4_kept_line_share", column, name, nulls)


def c4_quality(column: str = "text", *, name: str = "c4_quality", nulls: Nulls = "refuse") -> Metric:
    r"""Why C4 leaves the text out, or "pass" (a categorical metric).

    A line that would be kept has "lorem ipsum" (``lorem_ipsum``) or ``{`` (``curly_bracket``), whichever comes first;
    or the kept lines have fewer than five sentences (``few_sentences``), counted as :func:`n_sentences` does. Source:
    Raffel et al., "Exploring the Limits of Transfer Learning" (2020), section 2.2; its list of bad words is not
    applied.

    >>> import pyarrow as pa
    >>> c4_quality().compute(pa.record_batch({"text": ["One is it. " * 5, "One { is it."]}), {}).to_pylist()
    ['pass', 'curly_bracket']
    """
    return text_metric("c4_quality", column, name, nulls)


def _check_n(n: int) -> None:
    if not 2 <= n <= LONGEST_NGRAM:
        raise MetricError(f"n-grams of {n} words can't be counted; n must be 2 to {LONGEST_NGRAM}")
