"""The metric type: from a batch to an Arrow array or a sum; no I/O, no ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa

from arrowds.batch import Batch
from arrowds.errors import MetricError
from arrowds.schema import check_metric_name, type_named

Kind = Literal["per_sample", "total"]
"""Whether a metric has a value for each sample, or one array that is added up over all of them."""
Nulls = Literal["refuse", "keep"]
"""Whether a sample without a value is an error, or kept in the index and out of the order."""
Totals = Mapping[str, np.ndarray]
"""The totals that a metric requires, by name."""
Spec = dict[str, str | int | float | bool | None]
"""A metric as plain data: an index keeps it, so that more samples can be measured in the same way."""


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

    alone: ClassVar[bool] = False
    """True where one process fills the device or all processors, so that more are started only when asked for."""

    categorical: ClassVar[bool] = False
    """True where text is what ``compute`` may return without a declared dtype: the names of categories."""

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

    @classmethod
    def compute_together(cls, metrics: Sequence[Metric], batch: Batch, totals: Totals) -> Iterator[Any]:
        """Yield the result of each of several metrics of this class; override it where they share work."""
        return (metric.compute(batch, totals) for metric in metrics)

    def check(self, batch: Batch) -> None:  # noqa: B027  # most metrics have nothing to refuse
        """Refuse what can be known to be wrong from a batch; called with the first one of each part.

        Raises:
            MetricError: when values would depend on which samples happen to share a batch.
        """

    @abstractmethod
    def definition(self) -> str:
        """Return a text that changes when the meaning of the metric changes; finished parts of another are dropped."""

    @classmethod
    def from_options(cls, options: Spec) -> Metric:
        """Rebuild the metric from :meth:`spec`, less the name of its class; see :func:`arrowds.metrics.from_spec`."""
        dtype = options["dtype"]
        return cls(**{**options, "dtype": None if dtype is None else type_named(str(dtype))})  # type: ignore[arg-type]

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
class ColumnMetric(Metric):
    """A metric that reads one column."""

    column: str

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)
