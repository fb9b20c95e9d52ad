"""Metrics of lists of token ids: length, counts, rarity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arrowds.arrays import arrow_view, numpy_view
from arrowds.batch import Batch, column
from arrowds.errors import MetricValueError
from arrowds.metrics.base import ColumnMetric, Kind, Metric, Nulls, Spec, Totals
from arrowds.schema import value_type

_LARGEST_TOKEN_ID = 1 << 28


@dataclass(frozen=True, kw_only=True)
class _TokenMetric(ColumnMetric):
    """A metric of the token ids in one list column."""

    in_threads: ClassVar[bool] = True

    def definition(self) -> str:
        return f"{type(self).__name__.lower()}({self.column}, {self.dtype}, nulls={self.nulls})"

    def spec(self) -> Spec:
        return {
            "metric": type(self).__name__,
            "name": self.name,
            "column": self.column,
            "dtype": None if self.dtype is None else str(self.dtype),
            "nulls": self.nulls,
        }

    def lists(self, batch: Batch) -> pa.Array:
        """Return the column as an Arrow list array."""
        lists = column(batch, self.column)
        if not (pa.types.is_list(lists.type) or pa.types.is_large_list(lists.type) or _is_fixed_list(lists.type)):
            raise MetricValueError(
                f"metric {self.name!r} reads lists of token ids, but column {self.column!r} has type {lists.type}; "
                "for text, use arrowds.sources.TokenizedSource (--tokenizer) or "
                "arrowds.metrics.expr(..., pl.col(...).str.len_chars())"
            )
        return lists

    def token_ids(self, lists: pa.Array) -> np.ndarray:
        """Return the ids of all lists, one after the other."""
        flat = lists.flatten()
        if len(flat) == 0:
            return np.empty(0, np.int64)  # empty lists alone may come without a type
        if not pa.types.is_integer(flat.type) or flat.null_count:
            raise MetricValueError(
                f"metric {self.name!r} needs integer token ids without nulls; column {self.column!r} has {lists.type}"
                + (f" with {flat.null_count} null ids" if flat.null_count else "")
            )
        return numpy_view(flat)


def _is_fixed_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_fixed_size_list(kind))


@dataclass(frozen=True, kw_only=True)
class SeqLen(_TokenMetric):
    """Number of tokens of each sample."""

    def compute(self, batch: Batch, totals: Totals) -> pa.Array:
        return pc.list_value_length(self.lists(batch)).cast(pa.int64())


@dataclass(frozen=True, kw_only=True)
class TokenCounts(_TokenMetric):
    """How often each token id occurs in all samples together."""

    kind: Kind = "total"
    vocab_size: int | None = None

    def definition(self) -> str:
        return f"{super().definition()}[{self.vocab_size}]"

    def spec(self) -> Spec:
        return {**super().spec(), "vocab_size": self.vocab_size}

    def compute(self, batch: Batch, totals: Totals) -> np.ndarray:
        ids = self.token_ids(self.lists(batch))
        limit = self.vocab_size or _LARGEST_TOKEN_ID
        if ids.size and (ids.min() < 0 or ids.max() >= limit):
            bad = ids.min() if ids.min() < 0 else ids.max()
            raise MetricValueError(f"metric {self.name!r}: token id {bad} lies outside 0 to {limit - 1}")
        return np.bincount(ids, minlength=self.vocab_size or 0)


@dataclass(frozen=True, kw_only=True)
class VocabRarity(_TokenMetric):
    """Sum over a sample's tokens of -log p(token), p being the token's share of all tokens."""

    @property
    def counts(self) -> TokenCounts:
        """The first pass that this metric needs."""
        return TokenCounts(name=f"{self.name}.token_counts", dtype=pa.int64(), column=self.column)

    @property
    def requires(self) -> tuple[Metric, ...]:
        return (self.counts,)

    def compute(self, batch: Batch, totals: Totals) -> pa.Array:
        lists = self.lists(batch)
        information = _information(totals[self.counts.name])
        missing = _null_mask(lists)
        lengths = numpy_view(pc.list_value_length(lists).cast(pa.int64()))
        lengths = lengths if missing is None else np.where(missing, 0, lengths)
        ids = self.token_ids(lists)
        if len(ids) and ids.max() >= len(information):  # data that was appended has tokens that were not counted
            ids = np.minimum(ids, len(information) - 1)
        sums = _sums_of_runs(information[ids], lengths)
        if self.dtype is not None and pa.types.is_integer(self.dtype):
            sums = np.trunc(sums)
        return arrow_view(sums, missing=missing).cast(self.dtype or pa.float64())


def _information(counts: np.ndarray) -> np.ndarray:
    """Return -log(share) of each token id in nats, and of any other id last.

    Ids that never occur get the value of one occurrence.
    """
    information: np.ndarray = np.log(max(counts.sum(), 1)) - np.log(np.maximum(np.append(counts, 0), 1))
    return information


def _sums_of_runs(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Sum consecutive runs of ``values`` whose lengths are given; a run of length 0 sums to 0."""
    sums = np.zeros(len(lengths))
    filled = np.flatnonzero(lengths)
    if len(filled):
        starts = np.cumsum(lengths, dtype=np.int64)[filled] - lengths[filled]
        sums[filled] = np.add.reduceat(values, starts)
    return sums


def _null_mask(array: pa.Array) -> np.ndarray | None:
    if array.null_count == 0:
        return None
    return numpy_view(array.is_null())


def seqlen(column: str = "input_ids", *, name: str = "seqlen", nulls: Nulls = "refuse") -> Metric:
    """Number of tokens of each sample: the length of each list in ``column`` (int64).

    >>> batch = pa.record_batch({"input_ids": [[5, 6, 7], [], [5]]})
    >>> seqlen("input_ids").compute(batch, {}).to_pylist()
    [3, 0, 1]
    """
    return SeqLen(name=name, column=column, dtype=pa.int64(), nulls=nulls)


def token_counts(column: str = "input_ids", *, name: str = "token_counts", vocab_size: int | None = None) -> Metric:
    """How often each token id occurs in all samples: an int64 array of shape (largest id + 1) or (``vocab_size``).

    >>> batch = pa.record_batch({"input_ids": [[2, 0, 2], [], [1]]})
    >>> token_counts("input_ids").compute(batch, {})
    array([1, 1, 2])
    """
    return TokenCounts(name=name, dtype=pa.int64(), column=column, vocab_size=vocab_size)


def vocab_rarity(
    column: str = "input_ids", *, name: str = "vocab_rarity", dtype: object = "float64", nulls: Nulls = "refuse"
) -> Metric:
    """How rare a sample's tokens are: the sum of -log p(token), in nats, p being the token's share of the dataset.

    Token counts are taken in a first pass of its own. With an integer ``dtype`` the sum is truncated, as in
    Megatron-DeepSpeed's analysis. Source: Li et al., "DeepSpeed Data Efficiency" (2022), after the rarity of
    Platanios et al., "Competence-based Curriculum Learning" (2019).

    >>> batch = pa.record_batch({"input_ids": [[0, 0], [0, 1]]})
    >>> metric = vocab_rarity("input_ids")
    >>> totals = {"vocab_rarity.token_counts": np.array([3, 1])}
    >>> metric.compute(batch, totals).to_numpy().round(3)
    array([0.575, 1.674])
    """
    return VocabRarity(name=name, column=column, dtype=value_type(dtype), nulls=nulls)
