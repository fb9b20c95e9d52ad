"""How the next snapshot follows from the newest one and from what a build has made; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from arrowds.build.plan import BuildPlan, digest_of_total
from arrowds.errors import IndexChangedError, IndexExistsError, MetricError
from arrowds.index import paths
from arrowds.index.manifest import Column, Manifest, MetricEntry, Segment, TotalEntry, extended


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a build has made of its rows, before a snapshot names it.

    Attributes:
        segments: the rows, with the columns and totals of the metrics that were measured.
        metrics: what they say of each per-sample metric, its lineage aside.
        totals: what they say of each accumulated one.
    """

    segments: tuple[Segment, ...]
    metrics: Mapping[str, MetricEntry]
    totals: Mapping[str, TotalEntry]

    @property
    def files(self) -> list[str]:
        """The names of all files."""
        bases = ((name, basis) for metric in self.metrics.values() for name, basis in metric.basis.items())
        return [
            *(name for segment in self.segments for name in segment.files),
            *(paths.total(name, basis.total.key) for name, basis in bases),
        ]

    def entries(self, version: int) -> dict[str, MetricEntry]:
        """What a new snapshot says of each per-sample metric that was measured."""
        return {
            name: entry.model_copy(
                update={
                    "lineage": column_lineage("", [segment.columns[name] for segment in self.segments]),
                    "basis": {
                        total: basis.model_copy(update={"version": version}) for total, basis in entry.basis.items()
                    },
                }
            )
            for name, entry in self.metrics.items()
        }


def definitions(snapshot: Manifest | Measured) -> dict[str, str]:
    """The definition of every metric and total, by name."""
    return {name: entry.definition for name, entry in snapshot.metrics.items()} | {
        name: entry.definition for name, entry in snapshot.totals.items()
    }


def next_snapshot(plan: BuildPlan, measured: Measured, newest: Manifest | None) -> Manifest:
    """Return the snapshot to commit on top of the newest one.

    Raises:
        IndexChangedError: when another writer has committed what this build can't be based on.
        IndexExistsError: when another writer has committed a first snapshot.
        MetricError: when a metric has values of another type for new samples.
    """
    if plan.operation == "analyze":
        if newest is not None and not plan.overwrite:
            raise IndexExistsError(
                f"{plan.store.url} was finished by another run meanwhile; open it, or pass overwrite=True"
            )
        return _analyzed(measured, 1 if newest is None else newest.version + 1)
    if newest is None:
        raise IndexChangedError(f"{plan.store.url} has no snapshot any more")
    if plan.operation == "append":
        newest = newest.without_given()
        if definitions(newest) != definitions(measured) or not _is_defined_with(newest, plan.basis):
            raise IndexChangedError(f"the metrics of {plan.store.url} were changed by another run")
        return _appended(newest, measured)
    if [segment.fingerprint for segment in newest.segments] != [segment.fingerprint for segment in measured.segments]:
        raise IndexChangedError(
            f"samples were added to {plan.store.url} while its metrics were measured; run again with all of the data"
        )
    return _with_metrics(newest, measured)


def _is_defined_with(snapshot: Manifest, basis: Mapping[str, np.ndarray]) -> bool:
    """Whether the metrics of a snapshot are defined with these totals, and not with those of a later refresh."""
    known = {name: item.total.key for entry in snapshot.metrics.values() for name, item in entry.basis.items()}
    return all(known[name].endswith(digest_of_total(basis[name])[:8]) for name in known if name in basis)


def _analyzed(measured: Measured, version: int) -> Manifest:
    """The snapshot of a dataset that was measured as a whole."""
    return Manifest(
        version=version,
        operation="analyze",
        lineage=lineage_of("", measured.segments),
        metrics=measured.entries(version),
        totals=dict(measured.totals),
        segments=measured.segments,
    )


def _appended(base: Manifest, measured: Measured) -> Manifest:
    """The snapshot of another one's samples and more of them.

    Raises:
        MetricError: when a metric has values of another type for the new samples.
    """
    entries: dict[str, MetricEntry] = {}
    for name, entry in base.metrics.items():
        if measured.metrics[name].logical_type != entry.logical_type:
            raise MetricError(
                f"metric {name!r} gives {measured.metrics[name].logical_type} for the new samples but "
                f"{entry.logical_type} for those of the index; declare its dtype"
            )
        lineage = column_lineage(entry.lineage, [segment.columns[name] for segment in measured.segments])
        entries[name] = entry.model_copy(update={"lineage": lineage})
    return base.model_copy(
        update={
            "version": base.version + 1,
            "operation": "append",
            "lineage": lineage_of(base.lineage, measured.segments),
            "metrics": entries,
            "segments": (*base.segments, *measured.segments),
        }
    )


def _with_metrics(base: Manifest, measured: Measured) -> Manifest:
    """The snapshot of another one's samples with more metrics."""
    version = base.version + 1
    segments = tuple(
        segment.model_copy(
            update={"columns": {**segment.columns, **more.columns}, "totals": {**segment.totals, **more.totals}}
        )
        for segment, more in zip(base.segments, measured.segments, strict=True)
    )
    return base.model_copy(
        update={
            "version": version,
            "operation": "add_metrics",
            "metrics": {**base.metrics, **measured.entries(version)},
            "totals": {**base.totals, **measured.totals},
            "segments": segments,
        }
    )


def lineage_of(before: str, segments: Sequence[Segment]) -> str:
    """Add the data of segments to a digest of data."""
    for segment in segments:
        before = extended(before, segment.fingerprint, str(segment.num_samples))
    return before


def column_lineage(before: str, columns: Sequence[Column]) -> str:
    """Add the values of a metric's columns to a digest of values."""
    for column in columns:
        before = extended(before, *column.digests)
    return before
