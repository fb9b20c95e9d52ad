"""Pools: which samples each phase of a curriculum admits, as clusters of ids that a plan can draw from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from arrowds.curriculum.apportion import Changes
from arrowds.curriculum.config import CurriculumMetric
from arrowds.curriculum.metric_values import (
    DerivedMetric,
    Ids,
    MetricSource,
    MetricValues,
    find_metric,
    id_dtype,
    valid_rows,
)
from arrowds.errors import ConfigError, EmptyPoolError

Int64 = npt.NDArray[np.int64]
BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Phases:
    """The phases of a curriculum: from step ``start[i]`` on, metric m has the difficulty ``levels[m][i]``."""

    start: Int64
    levels: dict[str, list[Any]]

    @classmethod
    def of(cls, metrics: Iterable[CurriculumMetric], *, limit: int) -> Phases:
        """Merge the changes of all metrics' difficulties, those of custom schedules up to step ``limit``. Pure."""
        changes = {metric.name: metric.changes(limit) for metric in metrics}
        lower = {f"{metric.name}_lower": metric.lower_changes(limit) for metric in metrics}
        changes |= {name: found for name, found in lower.items() if found is not None}
        start = np.unique(np.concatenate([[1], *(steps for steps, _ in changes.values())]).astype(np.int64))
        levels = {}
        for name, (steps, difficulties) in changes.items():
            at = np.searchsorted(steps, start, side="right") - 1
            levels[name] = [difficulties[i] for i in at.tolist()]
        return cls(start, levels)

    @classmethod
    def merged(cls, named: Mapping[str, Phases], starts: Int64) -> Phases:
        """Merge phases, with names for those of ``levels`` in front, and further steps at which one begins. Pure."""
        start = np.unique(np.concatenate([[1], starts, *(phases.start for phases in named.values())]).astype(np.int64))
        levels = {
            f"{prefix}{name}": [values[phase] for phase in phases.of_step(start).tolist()]
            for prefix, phases in named.items()
            for name, values in phases.levels.items()
        }
        return cls(start, levels)

    def of_step(self, steps: npt.ArrayLike) -> Int64:
        """Return the phase of each step."""
        return np.asarray(np.searchsorted(self.start, steps, side="right") - 1, np.int64)

    def difficulties(self, step: int) -> dict[str, Any]:
        """Return the difficulty of every metric at a step."""
        phase = int(self.of_step(step))
        return {name: levels[phase] for name, levels in self.levels.items()}


@dataclass(frozen=True, slots=True)
class Pools:
    """Clusters: cluster k holds the samples ``ids[starts[k] : starts[k + 1]]``; ``ids`` None means 0, 1, 2, ..."""

    ids: Ids | None
    starts: Int64
    changes: Changes

    @property
    def sizes(self) -> Int64:
        """How many samples each cluster has."""
        return np.diff(self.starts)

    def samples(self, cluster: Int64, member: Int64) -> Int64:
        """Return the ids of members of clusters."""
        position = self.starts[cluster] + member
        return position if self.ids is None else self.ids[position].astype(np.int64)


def cut_of_percentile(count: int, percentile: float) -> int:
    """Return floor(count * percentile / 100), for the number as it is written: 0.3 % of 1000 is 3.

    >>> cut_of_percentile(1000, 0.3), cut_of_percentile(3, 100)
    (3, 3)
    """
    return math.floor(count * Fraction(repr(percentile) if isinstance(percentile, float) else percentile) / 100)


def build_pools(
    index: MetricSource,
    metrics: Sequence[CurriculumMetric],
    derived: Mapping[str, DerivedMetric],
    allowed: npt.NDArray[np.bool_] | None,
    phases: Phases,
) -> Pools:
    """Divide the samples into clusters: those that a phase newly admits, divided where later phases differ.

    With one clustering metric and no filter a cluster is a slice of the metric's order, and nothing is read.

    Args:
        index: the source of the metrics.
        metrics: the curriculum.
        derived: the metrics that are expressions.
        allowed: the samples that pass the filter, or None for all.
        phases: when difficulties change.

    Raises:
        EmptyPoolError: when a phase admits no sample.
        ConfigError: when a difficulty lies outside the metric's values.
    """
    clustering = [metric for metric in metrics if metric.clustered]
    values = {metric.name: derived.get(metric.name) or find_metric(index, metric.name) for metric in clustering}
    for metric in clustering:
        _check_range(metric, values[metric.name])
    if not clustering and allowed is None:
        everything = np.full(len(phases.start), index.num_samples)
        pools = _sliced(None, np.zeros_like(everything), everything)
    elif len(clustering) == 1 and allowed is None and clustering[0].name not in derived:
        metric, of_metric = clustering[0], values[clustering[0].name]
        stop = _cuts(metric, of_metric, phases)
        start = np.zeros_like(stop) if metric.lower is None else _cuts(metric, of_metric, phases, lower=True)
        pools = _sliced(of_metric.order, np.minimum(start, stop), stop)
    else:
        pools = _gathered(index.num_samples, clustering, values, allowed, phases)
    _check_never_empty(pools, clustering, values, phases, filtered=allowed is not None)
    return pools


def _check_range(metric: CurriculumMetric, values: MetricValues) -> None:
    if not len(values.order):
        raise EmptyPoolError(f"no sample has a value of {metric.name!r}: all are null or NaN")
    lowest, _ = metric.bounds
    largest = values.values[int(values.order[-1])].item()
    if not metric.percentile and lowest > largest:
        raise ConfigError(
            f"the min_difficulty of {metric.name!r} is {lowest}, but its largest value is {largest}: every sample "
            f"would be admitted from the first step on; choose a min_difficulty of at most {largest}"
        )


def _cuts(metric: CurriculumMetric, values: MetricValues, phases: Phases, *, lower: bool = False) -> Int64:
    """Return where phases cut the order: before it are the samples admitted, or below a lower bound. Pure."""
    levels = phases.levels[f"{metric.name}_lower" if lower else metric.name]
    count = len(values.order)
    known: dict[Any, int] = {}
    for level in levels:
        if level not in known:
            by_value = values.rank(level, side="left" if lower else "right")
            known[level] = cut_of_percentile(count, level) if metric.percentile else by_value
    return np.array([known[level] for level in levels], np.int64)


def _sliced(order: Ids | None, start: Int64, stop: Int64) -> Pools:
    """Return slices of an order: phase i admits the positions from ``start[i]`` to ``stop[i]``. Pure."""
    starts = np.unique(np.concatenate([[0], start, stop]))
    sizes = np.diff(starts)
    added = _prefix_changes(np.searchsorted(starts, stop), sizes)
    if not start.any():
        return Pools(order, starts, added)
    left = _prefix_changes(np.searchsorted(starts, start), sizes)
    phase = np.concatenate([added.phase, left.phase])
    by_phase = np.argsort(phase, kind="stable")
    leaf, delta = np.concatenate([added.leaf, left.leaf]), np.concatenate([added.delta, -left.delta])
    return Pools(order, starts, Changes(phase[by_phase], leaf[by_phase], delta[by_phase]))


def _prefix_changes(admitted: Int64, sizes: Int64) -> Changes:
    """Return the weight changes where phase i admits the first ``admitted[i]`` clusters. Pure."""
    before = np.concatenate([[0], admitted[:-1]])
    counts = np.abs(admitted - before)
    phase = np.repeat(np.arange(len(admitted)), counts)
    within = np.arange(len(phase)) - np.repeat(np.cumsum(counts) - counts, counts)
    leaf = np.repeat(np.minimum(before, admitted), counts) + within
    return Changes(phase, leaf, sizes[leaf] * np.repeat(np.sign(admitted - before), counts))


def _gathered(
    num_samples: int,
    metrics: Sequence[CurriculumMetric],
    values: dict[str, MetricValues],
    allowed: npt.NDArray[np.bool_] | None,
    phases: Phases,
) -> Pools:
    """Read the values in blocks, twice: to count the samples that the same phases admit, and to group their ids."""
    bounds = [
        _Bounds.of(metric, values[metric.name], phases, lower=lower)
        for metric in metrics
        for lower in ((False,) if metric.lower is None else (False, True))
    ]
    rising = all(not bound.lower and (np.diff(bound.level) >= 0).all() for bound in bounds)

    def blocks() -> Iterator[tuple[Int64, Int64]]:
        return _blocks(num_samples, values, bounds, allowed, rising=rising)

    cells, counts = _count([np.unique(key, return_counts=True) for key, _ in blocks()])
    if rising:
        cluster_of_cell = np.minimum(np.arange(len(cells)), np.searchsorted(cells, len(phases.start)))
        sizes = counts[cells < len(phases.start)]
        changes = Changes(cells[: len(sizes)], np.arange(len(sizes)), sizes)
    else:
        pattern, cluster_of_cell = _patterns(cells, bounds, len(phases.start))
        sizes = np.bincount(cluster_of_cell, weights=counts, minlength=len(pattern)).astype(np.int64)[: len(pattern)]
        changes = _toggles(pattern, sizes)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    return Pools(_grouped(blocks(), cells, cluster_of_cell, starts, id_dtype(num_samples)), starts, changes)


def _count(blocks: list[tuple[Int64, Int64]]) -> tuple[Int64, Int64]:
    """Add up the counts of equal keys. Pure."""
    keys, counts = (np.concatenate([np.zeros(0, np.int64), *arrays]) for arrays in zip(*blocks, strict=True))
    cells, cell = np.unique(keys, return_inverse=True)
    return cells, np.bincount(cell, weights=counts, minlength=len(cells)).astype(np.int64)


def _patterns(cells: Int64, bounds: list[_Bounds], phases: int) -> tuple[npt.NDArray[np.bool_], Int64]:
    """Return the phases of each cluster, and the cluster of each cell: cells with the same phases are one cluster.

    Cells that no phase admits get the number of clusters.
    """
    active = np.ones((len(cells), phases), np.bool_)
    for bound in reversed(bounds):
        cells, level = np.divmod(cells, len(bound.value) + 1)
        within = level[:, np.newaxis] <= bound.level
        active &= ~within if bound.lower else within
    pattern, of_cell = np.unique(active, axis=0, return_inverse=True)
    used = pattern.any(axis=1)
    number = np.where(used, np.cumsum(used) - 1, used.sum())
    return pattern[used], number[of_cell.reshape(-1)]


def _grouped(
    blocks: Iterator[tuple[Int64, Int64]],
    cells: Int64,
    cluster_of_cell: Int64,
    starts: Int64,
    dtype: np.dtype[np.unsignedinteger[Any]],
) -> Ids:
    """Return the ids of all clusters one after another, ascending within each: a counting sort, block by block."""
    ids = np.empty(starts[-1], dtype)
    clusters = len(starts) - 1
    filled = starts[:-1].copy()
    for key, rows in blocks:
        cluster = cluster_of_cell[np.searchsorted(cells, key)]
        counts = np.bincount(cluster, minlength=clusters + 1)[:clusters]
        # NumPy sorts 16-bit keys by counting.
        order = np.argsort(cluster.astype(np.uint16) if clusters < 1 << 16 else cluster, kind="stable")
        ends = np.cumsum(counts)
        ids[np.repeat(filled - (ends - counts), counts) + np.arange(counts.sum())] = rows[order[: counts.sum()]]
        filled += counts
    return ids


def _blocks(
    num_samples: int,
    values: dict[str, MetricValues],
    bounds: list[_Bounds],
    allowed: npt.NDArray[np.bool_] | None,
    *,
    rising: bool,
) -> Iterator[tuple[Int64, Int64]]:
    """Yield, block by block, the key and the id of every sample that some phase may admit."""
    for start in range(0, num_samples, BLOCK):
        stop = min(start + BLOCK, num_samples)
        rows = np.arange(start, stop) if allowed is None else start + np.flatnonzero(allowed[start:stop])
        key = np.zeros(len(rows), np.int64)
        for bound in bounds:
            level = bound.levels_of(values[bound.name].values[start:stop][rows - start], rows)
            cell = key * (len(bound.value) + 1) + level
            key = np.maximum(key, bound.first_phase[level]) if rising else cell
        yield key, rows


@dataclass(frozen=True, slots=True)
class _Bounds:
    """The distinct difficulties of a metric, ascending: level i has all up to (``value[i]``, ``last_id[i]``)."""

    name: str
    lower: bool
    """Whether the samples of a level are left out, instead of admitted."""
    value: np.ndarray
    last_id: Int64
    level: Int64
    """The level of each phase."""

    @classmethod
    def of(cls, metric: CurriculumMetric, values: MetricValues, phases: Phases, *, lower: bool) -> _Bounds:
        cuts, level = np.unique(_cuts(metric, values, phases, lower=lower), return_inverse=True)
        last = values.order[np.maximum(cuts, 1) - 1].astype(np.int64)
        value = np.ma.getdata(values.values)[last]
        # A cut before the first sample admits nothing, not even the smallest value with id 0.
        return cls(metric.name, lower, value, np.where(cuts == 0, -1, last), level.reshape(-1))

    @property
    def first_phase(self) -> Int64:
        """The first phase that admits each level; for samples that none admits, the number of phases."""
        return np.searchsorted(np.maximum.accumulate(self.level), np.arange(len(self.value) + 1))

    def levels_of(self, values: np.ndarray, rows: Int64) -> Int64:
        """Return the lowest level that admits each sample, or the number of levels where none does. Pure."""
        plain, valid = np.ma.getdata(values), valid_rows(values)
        level = np.searchsorted(self.value, plain, side="left")
        # Samples whose value is that of a bound: the id decides. Bounds of one value are apart by their ids.
        equal = np.flatnonzero(self.value[np.minimum(level, len(self.value) - 1)] == plain)
        values_of_bounds, group = np.unique(self.value, return_inverse=True)
        width = int(self.last_id.max()) + 2
        place = np.searchsorted(values_of_bounds, plain[equal]) * width + np.minimum(rows[equal], width - 1)
        level[equal] = np.searchsorted(group.reshape(-1) * width + self.last_id, place, side="left")
        if valid is not None:
            level[~valid] = len(self.value)
        return level


def _toggles(pattern: npt.NDArray[np.bool_], sizes: Int64) -> Changes:
    """Return the weight changes of clusters that are drawn from in the phases that ``pattern`` says. Pure."""
    change = np.diff(pattern.astype(np.int8), axis=1, prepend=0)
    phase, leaf = np.nonzero(change.T)
    delta: Int64 = sizes[leaf] * change[leaf, phase].astype(np.int64)
    return Changes(phase, leaf, delta)


def _check_never_empty(
    pools: Pools,
    metrics: Sequence[CurriculumMetric],
    values: dict[str, MetricValues],
    phases: Phases,
    *,
    filtered: bool,
) -> None:
    total = np.zeros(len(phases.start), np.int64)
    np.add.at(total, pools.changes.phase, pools.changes.delta)
    empty = np.flatnonzero(np.cumsum(total) <= 0)
    if not len(empty):
        return
    step, phase = int(phases.start[empty[0]]), int(empty[0])
    stated = [_statement(metric, values[metric.name], phases, phase) for metric in metrics]
    raise EmptyPoolError(
        f"no sample is admitted at step {step}: "
        + "; ".join(stated + (["a filter is set"] if filtered else []))
        + (
            "; lower the lower bound, or raise the difficulty"
            if any(m.lower for m in metrics)
            else "; raise min_difficulty"
        )
    )


def _statement(metric: CurriculumMetric, values: MetricValues, phases: Phases, phase: int) -> str:
    level = phases.levels[metric.name][phase]
    if metric.lower is not None:
        return f"{metric.name!r} is bound from {phases.levels[f'{metric.name}_lower'][phase]} to {level}"
    if metric.percentile:
        return f"{metric.name!r} has the difficulty {level} % of {len(values.order)} samples"
    smallest = values.values[int(values.order[0])].item()
    return f"{metric.name!r} has the difficulty {level}, and its smallest value is {smallest}"
