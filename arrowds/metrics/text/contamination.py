"""How much of a text occurs in a benchmark: n-grams of words that the two have in common.

Source: Brown et al., "Language Models are Few-Shot Learners" (GPT-3, 2020), appendix C: n-grams of words in lower case
without punctuation, n = 13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import pyarrow as pa
import xxhash

from arrowds.arrays import arrow_view, numpy_view
from arrowds.batch import Batch
from arrowds.errors import MetricError
from arrowds.metrics.base import ColumnMetric, Metric, Nulls, Totals
from arrowds.metrics.text.measures import blocks_of, texts_of
from arrowds.metrics.text.passages import Passages
from arrowds.metrics.text.spans import ngrams, ratio, sums


@dataclass(frozen=True, kw_only=True)
class NgramOverlap(ColumnMetric):
    """The share of a text's n-grams that occur in a benchmark, see :func:`ngram_overlap`."""

    n: int
    digest: str
    known: np.ndarray = field(compare=False, repr=False)

    in_threads: ClassVar[bool] = True

    def compute(self, batch: Batch, totals: Totals) -> pa.Array:
        texts = texts_of(batch, self.column)
        shares = [self._shares(passages) for passages in blocks_of(texts)]
        missing = numpy_view(texts.is_null()) if texts.null_count else None
        return arrow_view(np.concatenate(shares) if shares else np.empty(0), missing=missing)

    def _shares(self, passages: Passages) -> np.ndarray:
        found, bounds = ngrams(passages.plain_word_hashes, passages.plain_words.bounds, self.n)
        places = np.minimum(np.searchsorted(self.known, found), len(self.known) - 1)
        return ratio(sums(self.known[places] == found, bounds), np.diff(bounds))

    def definition(self) -> str:
        return f"text.ngram_overlap({self.column}, n={self.n}, {self.digest}, nulls={self.nulls})"


def ngram_overlap(
    benchmark: Iterable[str] | pl.Series | str | Path,
    column: str = "text",
    *,
    n: int = 13,
    benchmark_column: str = "text",
    name: str | None = None,
    nulls: Nulls = "refuse",
) -> Metric:
    r"""The share of a text's n-grams of words that occur in a benchmark: float64, 0 for a text of fewer words.

    Words are stretches of ``\w+`` in lower case. N-grams are compared by hashes of 64 bits.

    Args:
        benchmark: its texts, or the Parquet or JSON Lines file that has them in ``benchmark_column``. Texts of fewer
            than n words are not found.
        column: column of text.
        n: words of an n-gram; 13 in GPT-3. Shorter ones occur by chance more often.
        benchmark_column: column of the file.
        name: name of the metric; by default ``ngram_overlap``.
        nulls: what to do with null, see :class:`Metric`.

    Raises:
        MetricError: when the benchmark can't be read, or no text of it has n words.

    >>> metric = ngram_overlap(["What is the capital of France?"], n=3)
    >>> metric.compute(pa.record_batch({"text": ["the capital of Spain", "Paris"]}), {}).to_pylist()
    [0.5, 0.0]
    """
    if not isinstance(n, int) or n < 1:
        raise MetricError(f"ngram_overlap: n must be a whole number from 1; got {n!r}")
    if isinstance(benchmark, str | Path):
        benchmark = _read(Path(benchmark), benchmark_column)
    texts = pl.Series(benchmark if isinstance(benchmark, pl.Series) else list(benchmark), dtype=pl.String)
    passages = blocks_of(texts.rechunk().to_arrow().cast(pa.large_string()))
    blocks = [ngrams(block.plain_word_hashes, block.plain_words.bounds, n)[0] for block in passages]
    known = np.unique(np.concatenate(blocks)) if blocks else np.empty(0, np.uint64)
    if not len(known):
        raise MetricError(
            f"ngram_overlap: none of the {len(texts)} texts of the benchmark has {n} words; choose a smaller n"
        )
    return NgramOverlap(
        name="ngram_overlap" if name is None else name,
        dtype=pa.float64(),
        column=column,
        n=n,
        digest=xxhash.xxh3_128_hexdigest(known.tobytes()),
        known=known,
        nulls=nulls,
    )


def _read(path: Path, column: str) -> pl.Series:
    readers: dict[str, Callable[[Path], pl.LazyFrame]] = {
        ".parquet": pl.scan_parquet,
        ".jsonl": pl.scan_ndjson,
        ".ndjson": pl.scan_ndjson,
    }
    if path.suffix not in readers:
        raise MetricError(
            f"ngram_overlap: {path} is no {', '.join(readers)} file; expected one, or a list of the benchmark's texts"
        )
    try:
        return readers[path.suffix](path).select(column).collect().to_series()
    except (OSError, pl.exceptions.PolarsError) as error:
        raise MetricError(f"ngram_overlap: can't read column {column!r} of {path}: {error}") from error
