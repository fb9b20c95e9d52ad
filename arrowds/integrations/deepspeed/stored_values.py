"""Turn values that are known already, and totals, into an index."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from arrowds.batch import Batch
from arrowds.build.api import analyze
from arrowds.index import Index
from arrowds.metrics import Metric, Totals, expr

_FIRST = "__first"


def index_stored_values(
    values: Mapping[str, pa.Array],
    totals: Mapping[str, np.ndarray],
    path: str | os.PathLike[str],
    *,
    num_samples: int,
    **how: Any,
) -> Index:
    """Write an index of columns with a value per sample, in the order of the sample ids, and of finished totals.

    Args:
        values: by metric name an array of length ``num_samples``; its type is that of the metric.
        totals: by name the finished sum, of any shape.
        path: folder of the index.
        num_samples: number of samples.
        how: options of ``arrowds.analyze``.
    """
    columns = dict(values)
    if totals:
        columns[_FIRST] = pa.array(np.arange(num_samples) == 0)
    metrics: list[Metric] = [expr(name, pl.col(name), dtype=column.type) for name, column in values.items()]
    metrics += [_StoredTotal(name=name, kind="total", total=total) for name, total in totals.items()]
    return analyze(pa.table(columns), metrics, os.fspath(path), **how)


@dataclass(frozen=True, kw_only=True, eq=False)
class _StoredTotal(Metric):
    """A finished sum, which the batch that holds the first sample contributes whole and every other as zeros."""

    total: np.ndarray

    @property
    def columns(self) -> tuple[str, ...]:
        return (_FIRST,)

    def compute(self, batch: Batch, totals: Totals) -> np.ndarray:
        first = batch.column(_FIRST)
        return self.total if first.true_count else np.zeros_like(self.total)

    def definition(self) -> str:
        return f"stored({self.total.dtype}, {self.total.shape}, {self.total.tobytes().hex()})"
