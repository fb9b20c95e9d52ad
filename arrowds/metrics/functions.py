"""Metrics that are Python callables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from arrowds.batch import Batch
from arrowds.digests import CallableDigest, callable_digest
from arrowds.errors import MetricError
from arrowds.metrics.base import Kind, Metric, Nulls, Totals
from arrowds.schema import value_type


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

    >>> import pyarrow as pa
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
