"""Metrics that are columns of the data as they are: numbers, or names of categories."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pyarrow as pa

from arrowds.batch import Batch, plain
from arrowds.batch import column as column_of
from arrowds.errors import MetricError
from arrowds.metrics.base import ColumnMetric, Metric, Nulls, Spec, Totals
from arrowds.metrics.expressions import checked_text


@dataclass(frozen=True, kw_only=True)
class Column(ColumnMetric):
    """The values of one column."""

    in_threads: ClassVar[bool] = True
    categorical: ClassVar[bool] = True

    def compute(self, batch: Batch, totals: Totals) -> pa.Array:
        values = plain(column_of(batch, self.column))
        if pa.types.is_large_string(values.type):
            values = values.cast(pa.string())
        if pa.types.is_string(values.type):
            checked_text(pa.record_batch({self.column: values}))
        return values

    def definition(self) -> str:
        return f"column({self.column}, nulls={self.nulls})"

    def spec(self) -> Spec:
        return {"metric": "Column", "name": self.name, "column": self.column, "dtype": None, "nulls": self.nulls}


@dataclass(frozen=True, kw_only=True)
class Values(Column):
    """Values that were computed elsewhere, handed over as a column of a table that has a row for each sample.

    Attributes:
        digest: of the values, by which a build that was interrupted is told from one of other values.
    """

    digest: str

    def definition(self) -> str:
        return f"values({self.digest})"

    def spec(self) -> Spec:
        return {"metric": "Values", "name": self.name}


def column(column: str, *, name: str | None = None, nulls: Nulls = "refuse") -> Metric:
    """A column of the data as it is: numbers, or strings as the names of categories.

    A categorical metric has a code for each name: its place among the sorted names, in the smallest unsigned type.
    ``index[name].values`` are the codes, ``index[name].names`` the names; queries and conditions see the names.

    Args:
        column: a column of integers, floats, bools or strings, these with at most 65,536 different ones.
        name: name of the metric; by default that of the column.
        nulls: what to do with null and NaN, see :class:`Metric`.

    >>> batch = pa.record_batch({"language": ["en", "de", "en"]})
    >>> column("language").compute(batch, {}).to_pylist()
    ['en', 'de', 'en']
    """
    if not isinstance(column, str):
        raise MetricError(f"metrics.column needs the name of a column, got {column!r}")
    return Column(name=column if name is None else name, column=column, nulls=nulls)
