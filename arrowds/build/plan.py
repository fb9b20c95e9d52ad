"""What a run sets out to do: row ranges, metrics and passes, as a pure function of the source and the metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import xxhash

from arrowds.errors import EmptyDatasetError, MetricError, MetricNameError
from arrowds.index.paths import Layout
from arrowds.index.manifest import PartRange
from arrowds.metrics import Metric
from arrowds.schema import FORMAT_VERSION
from arrowds.sources.base import Source

_FEWEST_ROWS = 1 << 10
_MOST_ROWS = 1 << 20
_PARTS_WANTED = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """A run from a source to an index, before anything is computed.

    Attributes:
        layout: where the files go.
        source: what is indexed.
        fingerprint: digest of the source's ordered content.
        parts: the row ranges, in order.
        metrics: what is measured, with the totals that some of them require first.
    """

    layout: Layout
    source: Source
    fingerprint: str
    parts: tuple[PartRange, ...]
    metrics: tuple[Metric, ...]

    @property
    def num_samples(self) -> int:
        """Rows of the dataset."""
        return self.parts[-1].stop

    @property
    def per_sample(self) -> list[Metric]:
        """The metrics that have a value for each sample."""
        return [metric for metric in self.metrics if metric.kind == "per_sample"]

    @property
    def totals(self) -> list[Metric]:
        """The metrics that are sums over all samples."""
        return [metric for metric in self.metrics if metric.kind == "total"]

    @property
    def passes(self) -> list[list[Metric]]:
        """The metrics in the order of computation: those that need totals come after all others."""
        first = [metric for metric in self.metrics if not metric.requires]
        second = [metric for metric in self.metrics if metric.requires]
        return [metrics for metrics in (first, second) if metrics]

    def task(self, metrics: Sequence[Metric], totals: Mapping[str, np.ndarray]) -> MapTask:
        """Return the part of the plan that workers need for one pass."""
        return MapTask(
            layout=self.layout, source=self.source, fingerprint=self.fingerprint, metrics=tuple(metrics), totals=totals
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MapTask:
    """What is the same for all parts of one pass."""

    layout: Layout
    source: Source
    fingerprint: str
    metrics: tuple[Metric, ...]
    totals: Mapping[str, np.ndarray]

    def part_digest(self, metric: Metric, part: PartRange) -> str:
        """Return what a finished part must carry to be kept: the data, the rows and the metric it was made from."""
        text = f"{FORMAT_VERSION}|{self.fingerprint}|{part.start}|{part.stop}|{metric.name}|{metric.definition()}"
        return xxhash.xxh3_128_hexdigest(text.encode())


def make_plan(source: Source, metrics: Metric | Iterable[Metric], layout: Layout) -> BuildPlan:
    """Check the metrics against the source and cut the rows into parts.

    Raises:
        EmptyDatasetError: when the source has no rows.
        MetricNameError: when two metrics have one name.
        MissingColumnError: when a metric reads a column that the source does not have.
    """
    if len(source) == 0:
        raise EmptyDatasetError(f"the dataset ({source.description}) has no samples; there is nothing to index")
    listed = with_required(metrics)
    for metric in listed:
        if metric.columns is not None and source.column_names is not None:
            source.check_columns(metric.columns)
    return BuildPlan(
        layout=layout,
        source=source,
        fingerprint=source.fingerprint(),
        parts=cut(source.part_boundaries(rows_per_part(len(source)))),
        metrics=listed,
    )


def with_required(metrics: Metric | Iterable[Metric]) -> tuple[Metric, ...]:
    """Return the metrics with the totals that they require, each once, in the order given.

    Raises:
        MetricError: for something that is no metric, or for none at all.
        MetricNameError: when two metrics have one name.
    """
    given = [metrics] if isinstance(metrics, Metric) else list(metrics)
    found: dict[str, Metric] = {}
    for metric in given:
        if not isinstance(metric, Metric):
            raise MetricError(f"got a {type(metric).__name__} where a metric belongs; see arrowds.metrics")
        for item in (*metric.requires, metric):
            known = found.setdefault(item.name, item)
            if known is not item and (known.definition() != item.definition() or item is metric):
                raise MetricNameError(f"two metrics are named {item.name!r}; give one of them another name=")
    if not found:
        raise MetricError("there is no metric to compute; pass at least one of arrowds.metrics")
    return tuple(found.values())


def rows_per_part(num_samples: int) -> int:
    """Return how many rows a part aims at: a power of two, for about 64 parts, within 1,024 and 1,048,576.

    It depends on nothing but the number of samples, so that any number of workers cuts the same parts.

    >>> rows_per_part(100), rows_per_part(1_000_000), rows_per_part(10**9)
    (1024, 16384, 1048576)
    """
    wanted = -(-num_samples // _PARTS_WANTED)
    return min(_MOST_ROWS, max(_FEWEST_ROWS, 1 << (wanted - 1).bit_length()))


def cut(boundaries: Sequence[int]) -> tuple[PartRange, ...]:
    """Number the ranges between ascending boundaries."""
    return tuple(
        PartRange(number=number, start=int(start), stop=int(stop))
        for number, (start, stop) in enumerate(pairwise(boundaries))
    )
