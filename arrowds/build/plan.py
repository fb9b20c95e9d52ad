"""What a build sets out to do: row ranges, metrics and passes, as a pure function of the source and the metrics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import xxhash

from arrowds.errors import EmptyDatasetError, MetricError, MetricNameError
from arrowds.index.manifest import Piece
from arrowds.metrics import Metric
from arrowds.schema import FORMAT_VERSION
from arrowds.sources.base import Source
from arrowds.store import Store

MOST_SEGMENT_ROWS = 1 << 32
"""A segment's ids are uint32; a longer source becomes several segments."""

_FEWEST_ROWS = 1 << 10
_MOST_ROWS = 1 << 20
_PARTS_WANTED = 64


Operation = Literal["analyze", "append", "add_metrics"]


@dataclass(frozen=True, slots=True)
class Part:
    """Part ``number`` covers the rows [start, stop) of the source."""

    number: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        """Its samples, as messages name them."""
        return f"{self.start} to {self.stop - 1}"


@dataclass(frozen=True, slots=True)
class SegmentPlan:
    """A segment to be built, or to get more metrics: the rows [start, stop) of the source, which are whole parts.

    ``pieces`` has what a snapshot records of the rows already; it is empty where they are new.
    """

    number: int
    start: int
    stop: int
    fingerprint: str
    pieces: tuple[Piece, ...] = ()

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPlan:
    """A build, before anything is computed.

    Attributes:
        store: where the index is.
        operation: what is done to the index.
        key: names the build's own folder and all files that it makes.
        source: what is measured.
        fingerprint: digest of the source's ordered content.
        segments: what the rows become.
        parts: the row ranges of the map's tasks, in order.
        metrics: what is measured, with the totals that some of them require first.
        basis: totals that are known already, by name: those that metrics were defined with.
        overwrite: whether an analysis takes the place of the newest snapshot, if there is one when it commits.
    """

    store: Store
    operation: Operation
    key: str
    source: Source
    fingerprint: str
    segments: tuple[SegmentPlan, ...]
    parts: tuple[Part, ...]
    metrics: tuple[Metric, ...]
    basis: Mapping[str, np.ndarray]
    overwrite: bool = False

    @property
    def num_samples(self) -> int:
        """Rows of the source."""
        return self.parts[-1].stop

    @property
    def not_reusable(self) -> dict[str, str]:
        """The metrics of which no earlier result is used, with what can't be told of each."""
        return {metric.name: metric.unknown for metric in self.metrics if metric.unknown}

    @property
    def facts(self) -> dict[str, str]:
        """What all processes that work on a build must have in common, by the name of it."""
        return {
            "operation": self.operation,
            "data": f"{self.source.description}, {self.num_samples} samples, {self.fingerprint}",
            "metrics": ", ".join(metric.name for metric in self.metrics),
            "code of the metrics": "; ".join(f"{metric.name}: {metric.definition()}" for metric in self.metrics),
        }

    def to_json(self) -> dict[str, Any]:
        """The plan as plain values, from which another process can take it up."""
        required = {item.name for metric in self.metrics for item in metric.requires}
        return {
            "operation": self.operation,
            "overwrite": self.overwrite,
            "facts": self.facts,
            "source": self.source.to_spec(),
            "metrics": [metric.spec() for metric in self.metrics if metric.name not in required],
        }

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
        """The metrics in the order of computation: those that need totals of this build come after all others."""
        later = [metric for metric in self.metrics if any(total.name not in self.basis for total in metric.requires)]
        first = [metric for metric in self.metrics if metric not in later]
        return [metrics for metrics in (first, later) if metrics]

    @property
    def kept(self) -> tuple[str, ...]:
        """The columns that the first pass leaves for the second: all that this reads, if the source computes them."""
        first, *later = self.passes
        if not later:
            return ()
        columns, read = columns_of(later[0]) or (), columns_of(first)
        shared = set(self.source.computed if read is None else read) & {*self.source.computed}
        return tuple(columns) if {*columns} <= shared else ()

    def parts_of(self, segment: SegmentPlan) -> list[Part]:
        """The parts that lie in a segment."""
        return [part for part in self.parts if segment.start <= part.start < segment.stop]

    def task(self, metrics: Sequence[Metric], totals: Mapping[str, np.ndarray]) -> MapTask:
        """Return what workers need for one pass."""
        later = any(total.name not in self.basis for metric in metrics for total in metric.requires)
        return MapTask(
            store=self.store,
            build=self.key,
            source=self.source,
            fingerprint=self.fingerprint,
            segments=self.segments,
            metrics=tuple(metrics),
            totals=dict(totals),
            columns=columns_of(self.passes[0] if later and self.kept else metrics),
            kept=self.kept,
            later=later,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MapTask:
    """What is the same for all parts of one pass.

    Attributes:
        store: where the index is.
        build: the key of the build.
        source: what is measured.
        fingerprint: digest of the source's ordered content.
        segments: what the rows become.
        metrics: those of the pass.
        totals: what some of them were defined with, by name.
        columns: what is read of the source, None for all. A second pass reads what the first one does, where it reads
            the source because nothing was kept: its batches are the same in either case.
        kept: the columns that the first pass keeps for the second.
        later: whether this is the second pass.
    """

    store: Store
    build: str
    source: Source
    fingerprint: str
    segments: tuple[SegmentPlan, ...]
    metrics: tuple[Metric, ...]
    totals: Mapping[str, np.ndarray]
    columns: list[str] | None
    kept: tuple[str, ...]
    later: bool

    def segment_of(self, part: Part) -> SegmentPlan:
        """The segment that a part lies in."""
        return next(segment for segment in self.segments if segment.start <= part.start < segment.stop)

    def part_digest(self, metric: Metric, part: Part) -> str:
        """Return what a finished part must carry to be kept: the data, the rows and the metric it was made from."""
        segment = self.segment_of(part)
        needs = [digest_of_total(self.totals[total.name]) for total in metric.requires if total.name in self.totals]
        text = "|".join(map(str, (FORMAT_VERSION, self.fingerprint, segment.start, part.start, part.stop, metric.name)))
        return xxhash.xxh3_128_hexdigest("|".join([text, metric.definition(), *needs]).encode())

    def kept_digest(self, part: Part) -> str:
        """Return what the columns that are kept of a part were made from: the data, the rows, and what was read."""
        text = (FORMAT_VERSION, self.fingerprint, part.start, part.stop, self.kept, self.columns)
        return xxhash.xxh3_128_hexdigest(repr(text).encode())


def columns_of(metrics: Sequence[Metric]) -> list[str] | None:
    """Return the columns that the metrics read together, or None where one reads all."""
    found: dict[str, None] = {}
    for metric in metrics:
        if metric.columns is None:
            return None
        found.update(dict.fromkeys(metric.columns))
    return list(found)


def digest_of_total(total: np.ndarray) -> str:
    """Return a digest of an accumulated array: its type, shape and content."""
    return xxhash.xxh3_128_hexdigest(f"{total.dtype.str}{total.shape}".encode() + np.ascontiguousarray(total).tobytes())


def checked_metrics(source: Source, metrics: Metric | Iterable[Metric]) -> tuple[Metric, ...]:
    """Return the metrics with the totals that they require, each once, after checking them against the source.

    Raises:
        EmptyDatasetError: when the source has no rows.
        MetricError: for something that is not a metric, or for none at all.
        MetricNameError: when two metrics have one name.
        MissingColumnError: when a metric reads a column that the source does not have.
    """
    if len(source) == 0:
        raise EmptyDatasetError(f"the dataset ({source.description}) has no samples; there is nothing to index")
    listed = tuple(metric.prepared() for metric in with_required(metrics))
    for metric in listed:
        if metric.columns is not None and source.column_names is not None:
            source.check_columns(metric.columns)
    return listed


def with_required(metrics: Metric | Iterable[Metric]) -> tuple[Metric, ...]:
    """Return the metrics with the totals that they require, each once, in the order given.

    Raises:
        MetricError: for something that is not a metric, or for none at all.
        MetricNameError: when two metrics have one name.
    """
    given = [metrics] if isinstance(metrics, Metric) else list(metrics)
    found: dict[str, Metric] = {}
    for metric in given:
        if not isinstance(metric, Metric):
            raise MetricError(f"expected a Metric, got a {type(metric).__name__}; see arrowds.metrics")
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


def cut_parts(source: Source, segment_ends: Iterable[int] = ()) -> tuple[Part, ...]:
    """Cut a source into parts where reading is cheap, and at the ends of segments."""
    boundaries = source.part_boundaries(rows_per_part(len(source)))
    return tuple(
        Part(number, int(start), int(stop))
        for number, (start, stop) in enumerate(pairwise(sorted({*boundaries, *segment_ends})))
    )


def cut_segments(boundaries: Sequence[int], most_rows: int) -> list[int]:
    """Return the ends of the fewest segments of at most ``most_rows``, at boundaries of parts where those allow it.

    >>> cut_segments([0, 3, 6, 9], 7), cut_segments([0, 9], 4)
    ([6, 9], [4, 8, 9])
    """
    ends: list[int] = []
    last = boundaries[-1]
    while not ends or ends[-1] < last:
        start = ends[-1] if ends else 0
        reached = max((int(cut) for cut in boundaries if start < cut <= start + most_rows), default=start + most_rows)
        ends.append(min(reached, last))
    return ends
