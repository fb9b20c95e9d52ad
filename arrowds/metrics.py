"""What is measured: the metric type and the built-ins, from a batch to an Arrow array or a sum; no I/O, no ranks."""

from __future__ import annotations

import io
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from arrowds.arrays import arrow_view, numpy_view
from arrowds.batch import Batch, as_record_batch, column
from arrowds.digests import CallableDigest, callable_digest
from arrowds.errors import MetricError, MetricValueError
from arrowds.schema import check_metric_name, type_named, value_type

Kind = Literal["per_sample", "total"]
Nulls = Literal["refuse", "keep"]
Totals = Mapping[str, np.ndarray]
Spec = dict[str, str | int | bool | None]
"""A metric as plain data: an index keeps it, so that more samples can be measured in the same way."""

_LARGEST_TOKEN_ID = 1 << 28
_CHECKED_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """One measurement. Derive from it to add a kind of metric; a single callable needs only :func:`function`.

    Attributes:
        name: folder in the index and column of a query.
        kind: ``"per_sample"`` (one value for each sample) or ``"total"`` (arrays that are added up over all batches).
        dtype: Arrow type of the values; None when the first result decides.
        nulls: ``"refuse"`` makes null and NaN an error; ``"keep"`` leaves such samples out of the difficulty order.
    """

    name: str
    kind: Kind = "per_sample"
    dtype: pa.DataType | None = None
    nulls: Nulls = "refuse"

    in_threads: ClassVar[bool] = False
    """True where ``compute`` works outside the interpreter lock, so that threads serve it as well as processes."""

    def __post_init__(self) -> None:
        check_metric_name(self.name)
        for value, allowed in ((self.kind, ("per_sample", "total")), (self.nulls, ("refuse", "keep"))):
            if value not in allowed:
                raise MetricError(f"metric {self.name!r}: got {value!r}, expected one of {allowed}")

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The columns that ``compute`` reads; None for all."""
        return None

    @property
    def requires(self) -> tuple[Metric, ...]:
        """Totals that must be known before ``compute`` is called."""
        return ()

    @abstractmethod
    def compute(self, batch: Batch, totals: Totals) -> Any:
        """Measure one batch of n samples.

        Args:
            batch: a record batch, or what the collate function of a torch dataset returned.
            totals: the sums of ``requires``, by name.

        Returns:
            For ``"per_sample"`` n values: an Arrow array, a NumPy array, a torch tensor or a Polars series. For
            ``"total"`` an array or number of any shape; shorter vectors are padded with zeros when they are added.
        """

    def check(self, batch: Batch) -> None:  # noqa: B027  # most metrics have nothing to refuse
        """Refuse what can be known to be wrong from a batch; called with the first one of each part.

        Raises:
            MetricError: when values would depend on which samples happen to share a batch.
        """

    @abstractmethod
    def definition(self) -> str:
        """Return a text that changes when the meaning of the metric changes; finished parts of another are dropped."""

    def prepared(self) -> Metric:
        """Return the metric for one run, in which its definition does not change.

        What a callable holds on to may change while it runs, and finished parts must stay known.
        """
        return self

    @property
    def unknown(self) -> str:
        """What decides the values and can't be told, in words; where it is not empty, no earlier result is used."""
        return ""

    def spec(self) -> Spec | None:
        """Return what :func:`from_spec` rebuilds the metric from; None where only the user's code can."""
        return None


@dataclass(frozen=True, kw_only=True)
class _TokenMetric(Metric):
    """A metric of the token ids in one list column."""

    column: str

    in_threads: ClassVar[bool] = True

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)

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
        return TokenCounts(name=f"{self.name}.token_counts", kind="total", dtype=pa.int64(), column=self.column)

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


@dataclass(frozen=True, kw_only=True)
class Expression(Metric):
    """A Polars expression that gives one value for each row."""

    expression: pl.Expr

    in_threads: ClassVar[bool] = True

    @property
    def columns(self) -> tuple[str, ...] | None:
        names = self.expression.meta.root_names()
        selects_more = self.expression.meta.has_multiple_outputs() or "*" in names
        return None if selects_more or not names else tuple(sorted(set(names)))

    def compute(self, batch: Batch, totals: Totals) -> pa.Array:
        return self._evaluated(_checked_text(as_record_batch(batch, self.columns))).to_arrow()

    def _evaluated(self, batch: pa.RecordBatch) -> pl.Series:
        frame = pl.from_arrow(batch)
        if not isinstance(frame, pl.DataFrame):
            raise MetricError(f"metric {self.name!r}: the batch is no table")
        return frame.select(self.expression.alias(self.name)).to_series()

    def check(self, batch: Batch) -> None:
        """Compute some rows together and in two halves: an expression that looks at other rows gives other values."""
        rows = as_record_batch(batch, self.columns)
        rows = _checked_text(rows.slice(0, min(rows.num_rows, _CHECKED_ROWS)))
        half = rows.num_rows // 2
        whole, left, right = map(self._evaluated, (rows, rows.slice(0, half), rows.slice(half)))
        if len(whole) == rows.num_rows and not whole.equals(left.append(right), null_equal=True):
            raise MetricError(
                f"metric {self.name!r} has other values where other samples are in its batch: {self.expression}; "
                "an expression must compute each row for itself (no rank, shift, over, or mean over rows)"
            )

    def definition(self) -> str:
        body = xxhash.xxh3_128_hexdigest(self.expression.meta.serialize())
        return f"expr({body}, {self.dtype}, nulls={self.nulls})"

    def spec(self) -> Spec | None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Polars keeps no promise about the text across its versions; see from_spec
            text = self.expression.meta.serialize(format="json")
        dtype = None if self.dtype is None else str(self.dtype)
        spec: Spec = {
            "metric": "Expression",
            "name": self.name,
            "expression": text,
            "dtype": dtype,
            "nulls": self.nulls,
        }
        try:
            rebuilt = from_spec(spec)
        except MetricError:  # it holds Python code, or NaN or an infinity, which JSON has not
            return None
        return spec if rebuilt.definition() == self.definition() else None


def _holds_code(serialized: str) -> bool:
    """Tell whether a serialized expression holds a Python function, which Polars would unpickle."""
    waiting = [json.loads(serialized)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            if any("Anonymous" in key or "Python" in key or "Rename" in key for key in node):
                return True
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(item for item in node if isinstance(item, dict | list))
    return False


def from_spec(spec: Spec) -> Metric:
    """Rebuild a metric from :meth:`Metric.spec`; nothing in it is executed.

    Raises:
        MetricError: for what is no such description, or one that this version of Polars can't read.

    >>> from_spec(seqlen("ids").spec()) == seqlen("ids")
    True
    """
    options: dict[str, Any] = dict(spec)
    kind = options.pop("metric", None)
    try:
        options["dtype"] = None if options["dtype"] is None else type_named(options["dtype"])
        if kind == "SeqLen":
            return SeqLen(**options)
        if kind == "TokenCounts":
            return TokenCounts(kind="total", **options)
        if kind == "VocabRarity":
            return VocabRarity(**options)
        if kind == "Expression" and not _holds_code(options["expression"]):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                options["expression"] = pl.Expr.deserialize(io.StringIO(options["expression"]), format="json")
            return Expression(**options)
    except (KeyError, TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise MetricError(f"the description of a metric can't be read ({error}); pass metrics=[...]") from error
    raise MetricError(
        f"the description of a metric names {kind!r}, which this version does not know; pass metrics=[...]"
    )


def _checked_text(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch; Polars takes text for valid UTF-8 and would crash on any other.

    Raises:
        MetricValueError: naming the column that holds bytes which are no text.
    """
    for name, values in zip(batch.schema.names, batch.columns, strict=True):
        if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
            try:
                values.validate(full=True)
            except pa.ArrowInvalid as error:
                raise MetricValueError(
                    f"column {name!r} holds text that is not UTF-8 ({error}); convert the data, or read it as binary"
                ) from error
    return batch


@dataclass(frozen=True, kw_only=True)
class Function(Metric):
    """A callable from a batch to values, or to something to add up."""

    fn: Callable[[Any], Any]
    version: str | None = None
    code: CallableDigest | None = None
    reads: tuple[str, ...] | None = None

    @property
    def columns(self) -> tuple[str, ...] | None:
        return self.reads

    def compute(self, batch: Batch, totals: Totals) -> Any:
        return self.fn(batch)

    def prepared(self) -> Metric:
        return (
            self if self.version is not None or self.code is not None else replace(self, code=callable_digest(self.fn))
        )

    @property
    def unknown(self) -> str:
        return "" if self.version is not None else self._code.unknown

    @property
    def _code(self) -> CallableDigest:
        return self.code or callable_digest(self.fn)

    def definition(self) -> str:
        body = self._code.digest if self.version is None else f"version {self.version!r}"
        return f"function({body}, {self.kind}, {self.dtype}, nulls={self.nulls})"


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
    return TokenCounts(name=name, kind="total", dtype=pa.int64(), column=column, vocab_size=vocab_size)


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


def expr(name: str, expression: pl.Expr, *, dtype: object = None, nulls: Nulls = "refuse") -> Metric:
    """Any Polars expression over the columns of a sample that gives one number or bool for each row.

    The expression sees one batch at a time, so it must not look at other rows: ``rank``, ``shift``, ``over`` and means
    over rows are refused.

    >>> batch = pa.record_batch({"text": ["abc", "de"]})
    >>> expr("n_chars", pl.col("text").str.len_chars()).compute(batch, {}).to_pylist()
    [3, 2]
    """
    if not isinstance(expression, pl.Expr):
        raise MetricError(f"metric {name!r} needs a Polars expression such as pl.col('x'); got {expression!r}")
    declared = None if dtype is None else value_type(dtype)
    return Expression(name=name, expression=expression, dtype=declared, nulls=nulls)


def function(
    name: str,
    fn: Callable[[Any], Any],
    *,
    dtype: object = None,
    version: str | None = None,
    kind: Kind = "per_sample",
    columns: tuple[str, ...] | list[str] | None = None,
    nulls: Nulls = "refuse",
) -> Metric:
    """A callable on a batch: per sample (n values) or total (any shape, added up over all batches).

    Args:
        name: name of the metric.
        fn: takes a ``pyarrow.RecordBatch`` from a columnar source, or the collated batch of a torch dataset; returns
            a NumPy array, a torch tensor, an Arrow array or a Polars series.
        dtype: the type to store, in NumPy's, torch's, Polars' or Arrow's spelling; by default that of the first result.
        version: names what ``fn`` measures. Results of an earlier run are used again where it is the same, whatever the
            code; give it where ``fn`` depends on what can't be told from Python objects, such as a file or a service.
            By default code, data and models that ``fn`` reaches are digested by their content; where some have none,
            nothing is used again.
        kind: ``"per_sample"`` or ``"total"``.
        columns: the columns that ``fn`` reads, so that a file source reads no others; by default all.
        nulls: what to do with NaN and null, see :class:`Metric`.

    >>> metric = function("first", lambda batch: batch["x"].to_numpy() * 2, dtype="int32")
    >>> metric.compute(pa.record_batch({"x": [1, 2]}), {})
    array([2, 4])
    """
    if not callable(fn):
        raise MetricError(f"metric {name!r} needs a callable that takes a batch; got a {type(fn).__name__}")
    if isinstance(columns, str):
        raise MetricError(f"metric {name!r}: columns must be a list of names; got {columns!r}, so pass [{columns!r}]")
    declared = None if dtype is None else value_type(dtype)
    return Function(
        name=name,
        fn=fn,
        version=version,
        dtype=declared,
        kind=kind,
        reads=None if columns is None else tuple(columns),
        nulls=nulls,
    )
