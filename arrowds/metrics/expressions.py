"""Metrics that are Polars expressions."""

from __future__ import annotations

import io
import json
import warnings
from dataclasses import dataclass, replace
from typing import ClassVar

import polars as pl
import pyarrow as pa
import xxhash

from arrowds.batch import Batch, as_record_batch
from arrowds.errors import MetricError, MetricValueError
from arrowds.metrics.base import Metric, Nulls, Spec, Totals
from arrowds.schema import value_type

_CHECKED_ROWS = 64


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
        return self._evaluated(checked_text(as_record_batch(batch, self.columns))).to_arrow()

    def _evaluated(self, batch: pa.RecordBatch) -> pl.Series:
        frame = pl.from_arrow(batch)
        if not isinstance(frame, pl.DataFrame):
            raise MetricError(f"metric {self.name!r}: the batch is no table")
        return frame.select(self.expression.alias(self.name)).to_series()

    def check(self, batch: Batch) -> None:
        """Compute some rows together and in two halves: an expression that looks at other rows gives other values."""
        rows = as_record_batch(batch, self.columns)
        rows = checked_text(rows.slice(0, min(rows.num_rows, _CHECKED_ROWS)))
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
            rebuilt = _deserialized(text)
        except (ValueError, pl.exceptions.PolarsError):  # it holds Python code, or NaN or an infinity: not JSON
            return None
        return spec if replace(self, expression=rebuilt).definition() == self.definition() else None

    @classmethod
    def from_options(cls, options: Spec) -> Metric:
        return super().from_options({**options, "expression": _deserialized(str(options["expression"]))})  # type: ignore[dict-item]


def checked_text(batch: pa.RecordBatch) -> pa.RecordBatch:
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


def _deserialized(text: str) -> pl.Expr:
    if _holds_code(text):
        raise ValueError("it holds Python code")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pl.Expr.deserialize(io.StringIO(text), format="json")


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
