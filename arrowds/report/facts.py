"""What a report says of an index and of each of its metrics: from the manifest, distributions and binary searches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from arrowds.build.compact import versions
from arrowds.index import Index
from arrowds.index.lookup import bucket_distributions
from arrowds.index.metric import MetricIndex
from arrowds.plots import Bars, bars, describe, most_frequent
from arrowds.store import ObjectStore

BINS = 50
MOST_VALUES = 20
"""Metrics with no more distinct values are counted value by value."""

_MOST_DISTINCT = 1 << 24
_MOST_IN_A_TOTAL = 1 << 24
_POINTS_OF_A_TOTAL = 150
_NARROWEST = 1e-290
"""Browsers can't divide a narrower range into ticks."""

_LEVELS = {f"p{share:g}": share / 100 for share in (1, 5, 25, 50, 75, 95, 99)}


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricFacts:
    """A metric as a report shows it.

    Attributes:
        name: of the metric.
        row: what :func:`arrowds.plots.describe` says of it.
        mean: of all values; None without any, of a category, and where there are too many distinct values to add up.
        levels: quantiles by name, p1 to p99; empty without any value, of a bool and of a category.
        bars: of its histogram; None where there is no value, or the values are counted one by one.
        shares: the share of samples up to each edge of the bars.
        counts: values with their counts, names the most frequent first, numbers ascending; empty where there are bars.
        lowest: the ids and values of the samples with the lowest values, ascending; none of a bool or a constant.
        highest: those with the highest values, descending.
    """

    name: str
    row: dict[str, Any]
    mean: float | None = None
    levels: dict[str, Any]
    bars: Bars | None = None
    shares: list[float]
    counts: list[tuple[Any, int]]
    lowest: list[tuple[int, Any]]
    highest: list[tuple[int, Any]]

    @property
    def is_categorical(self) -> bool:
        """Whether its values are names."""
        return bool(self.row["type"] == "category")

    @property
    def uncounted(self) -> int:
        """Samples with a value that neither ``counts`` nor the bars count."""
        counted = sum(count for _, count in self.counts)
        if self.bars is not None:
            counted += self.bars.below + sum(self.bars.counts) + self.bars.above
        return int(self.row["samples"]) - counted


@dataclass(frozen=True, slots=True, kw_only=True)
class TotalFacts:
    """A total as a report shows it.

    Attributes:
        row: what :func:`arrowds.plots.describe` says of it.
        sum: of all elements; None of a total too large to be read.
        largest: of a vector the positions of the largest elements, with these.
        curve: of a vector some of its positive elements from the largest on: rank (from 1) and element.
    """

    row: dict[str, Any]
    sum: float | int | None
    largest: list[tuple[int, Any]]
    curve: list[tuple[int, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicates:
    """What the metric ``cluster_size`` says: how many samples are like others.

    Attributes:
        samples: that are in a cluster of more than one.
        share: of all samples with a value.
        clusters: of more than one sample.
        removable: samples that are left out if each cluster keeps one.
        largest: the largest sizes: samples of a cluster, how many clusters are of that size, and one sample of them.
    """

    samples: int
    share: float
    clusters: int
    removable: int
    largest: list[tuple[int, int, int]]


def index_facts(index: Index) -> dict[str, Any]:
    """Return what :func:`arrowds.plots.describe` says, and under ``versions`` those that can be opened."""
    options = index.store.options if isinstance(index.store, ObjectStore) else None
    return {**describe(index), "versions": versions(index.path, storage_options=options).to_dicts()}


def metric_facts(metric: MetricIndex, row: dict[str, Any], extremes: int) -> MetricFacts:
    """Return the facts of a metric.

    Args:
        metric: of an open index.
        row: what :func:`arrowds.plots.describe` says of it.
        extremes: how many of the lowest and of the highest samples.
    """
    if metric.is_categorical:
        counts: list[tuple[Any, int]] = list(most_frequent(metric, MOST_VALUES).items())
        return MetricFacts(name=metric.name, row=row, levels={}, shares=[], counts=counts, lowest=[], highest=[])
    if not metric.num_valid:
        return MetricFacts(name=metric.name, row=row, levels={}, shares=[], counts=[], lowest=[], highest=[])
    few = row["distinct"] <= MOST_VALUES
    chosen = None if few else bars(metric, BINS)
    if chosen is not None and chosen.edges[-1] - chosen.edges[0] < _NARROWEST:
        chosen = None
    is_bool = metric.dtype == np.bool_
    each = 0 if is_bool or row["distinct"] == 1 else min(extremes, metric.num_valid)
    return MetricFacts(
        name=metric.name,
        row=row,
        mean=_mean_of(metric) if row["distinct"] <= _MOST_DISTINCT else None,
        levels={} if is_bool else dict(zip(_LEVELS, metric.quantile(list(_LEVELS.values())).tolist(), strict=True)),
        bars=chosen,
        shares=[] if chosen is None else [metric.rank(edge) / metric.num_valid for edge in chosen.edges],
        counts=list(metric.distribution().select("value", "count").iter_rows()) if few else [],
        lowest=_samples_at(metric, 0, each),
        highest=_samples_at(metric, metric.num_valid - each, metric.num_valid)[::-1],
    )


def _samples_at(metric: MetricIndex, start: int, stop: int) -> list[tuple[int, Any]]:
    if start == stop:
        return []
    ids, values = metric.at_positions(start, stop)
    return list(zip(ids.tolist(), values.tolist(), strict=True))


def _mean_of(metric: MetricIndex) -> float:
    """Return the mean of all values, in the precision of float64, from the distributions of one bucket at a time."""
    total = 0.0
    for frame in bucket_distributions(metric.spec):
        values, counts = (frame[name].cast(pl.Float64).to_numpy() for name in ("value", "count"))
        with np.errstate(invalid="ignore"):  # infinities of both signs have no mean
            total += float(values @ counts)
    return total / metric.num_valid


def total_facts(index: Index, row: dict[str, Any]) -> TotalFacts:
    """Return the facts of a total, of which :func:`arrowds.plots.describe` gives the row."""
    size = int(np.prod(row["shape"], dtype=np.int64))
    if size > _MOST_IN_A_TOTAL:
        return TotalFacts(row=row, sum=None, largest=[], curve=[])
    array = index.totals[row["name"]]
    if array.ndim != 1 or size < 2:
        return TotalFacts(row=row, sum=array.sum().item(), largest=[], curve=[])
    descending = np.argsort(array, kind="stable")[::-1]
    positive = array[descending][np.isfinite(array[descending]) & (array[descending] > 0)]
    ranks = np.unique(np.geomspace(1, max(len(positive), 1), _POINTS_OF_A_TOTAL).astype(np.int64))
    return TotalFacts(
        row=row,
        sum=array.sum().item(),
        largest=[(int(place), array[place].item()) for place in descending[:10]],
        curve=[(int(rank), float(positive[rank - 1])) for rank in ranks if len(positive)],
    )


def duplicates(index: Index, most: int = 10) -> Duplicates | None:
    """Return what ``cluster_size`` says of duplicates; None where the index has no such number of samples."""
    if "cluster_size" not in index:
        return None
    metric = index["cluster_size"]
    if metric.is_categorical or not metric.num_valid or metric.dtype.kind not in "iuf":
        return None
    several = metric.distribution().filter(pl.col("value") > 1).with_columns(clusters=pl.col("count") / pl.col("value"))
    samples, clusters = int(several["count"].sum()), round(several["clusters"].sum())
    largest = []
    for value, count, cumulative, alike in several.tail(most).reverse().iter_rows():
        [(first, _)] = _samples_at(metric, cumulative - count, cumulative - count + 1)
        largest.append((int(value), max(1, round(alike)), first))
    share = samples / metric.num_valid
    return Duplicates(samples=samples, share=share, clusters=clusters, removable=samples - clusters, largest=largest)
