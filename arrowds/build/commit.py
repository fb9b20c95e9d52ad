"""From finished tasks to a snapshot: collect, sync, and create the next manifest on top of the newest one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import Any, TypeGuard

import numpy as np
import xxhash

from arrowds.build.engines import Engine, Work
from arrowds.build.lineage import Measured, next_snapshot
from arrowds.build.map import run_of, sum_of_parts
from arrowds.build.plan import BuildPlan, SegmentPlan, digest_of_total
from arrowds.build.reduce import ColumnPlan, ReduceTask, finished_column, plan_column, reduce_task
from arrowds.index import manifest as manifests
from arrowds.index import paths
from arrowds.index.manifest import Basis, File, Manifest, MetricEntry, Piece, Segment, SourceRecord, Total, TotalEntry
from arrowds.index.totals import write_total
from arrowds.metrics import Metric
from arrowds.sources.opening import record_of
from arrowds.store import ObjectStore, Store

logger = logging.getLogger(__name__)


def begin(
    store: Store, key: str, content: Mapping[str, Any], *, resume: bool, again: Mapping[str, str] | None = None
) -> None:
    """Leave a plan where others, and a vacuum, find it.

    Without ``resume``, what an earlier run has left is removed. So are the results of the metrics in ``again``, by what
    their functions reach that has no content: it can't be told whether they would be the same now.
    """
    if not resume:
        discard(store, key)
    for metric, unknown in (again or {}).items():
        left = [name for prefix in paths.results(key, metric) for name in store.names(prefix)]
        if left:
            logger.warning(
                "metric %r is measured again: its function reaches %s, which can't be compared", metric, unknown
            )
        store.delete(left)
    if isinstance(store, ObjectStore):
        store.check_conditional_put()
    store.write(paths.plan(key), json.dumps(dict(content), indent=1).encode() + b"\n")


def run_reduce(columns: Sequence[ColumnPlan], engine: Engine, *, share: tuple[int, int] = (0, 1)) -> None:
    """Run every task of every column, or every n-th from the i-th on for a ``share`` of (i, n).

    The files of a share are on disk when this ends: a shard that was killed is run again and checks them, but one that
    has ended is not, and another process commits them.
    """
    first, step = share
    tasks = [(number, task) for number, column in enumerate(columns) for task in column.tasks][first::step]
    work = Work(partial(_reduce_one, columns), releases_gil=True, name="bucket")
    with closing(engine.run(work, tasks)) as finished:
        for _ in finished:
            pass
    if step > 1 and tasks:
        columns[0].store.sync([name for number, task in tasks for name in columns[number].written(task)])


def _reduce_one(columns: Sequence[ColumnPlan], item: tuple[int, ReduceTask]) -> None:
    number, task = item
    reduce_task(columns[number], task)


def plan_columns(plan: BuildPlan, totals: Mapping[str, np.ndarray]) -> list[list[ColumnPlan]]:
    """Plan every column of every segment from the runs of the map: a list for each segment."""
    return [[_plan_column(plan, segment, metric, totals) for metric in plan.per_sample] for segment in plan.segments]


def _plan_column(plan: BuildPlan, segment: SegmentPlan, metric: Metric, totals: Mapping[str, np.ndarray]) -> ColumnPlan:
    task = plan.task([metric], totals)
    return plan_column(
        plan.store,
        plan.key,
        metric.name,
        file_key(plan, segment, metric, totals),
        [run_of(task, metric, part) for part in plan.parts_of(segment)],
        num_samples=len(segment),
        nullable=metric.nulls == "keep",
    )


def file_key(plan: BuildPlan, segment: SegmentPlan, metric: Metric, totals: Mapping[str, np.ndarray]) -> str:
    """Name the files of one metric of one segment after what goes in: the build, the rows, and the metric."""
    needs = [digest_of_total(totals[total.name]) for total in metric.requires]
    text = "|".join([str(segment.number), metric.definition(), *needs])
    return f"{plan.key}.{xxhash.xxh3_64_hexdigest(text.encode())[:8]}"


def collect(plan: BuildPlan, columns: Sequence[Sequence[ColumnPlan]], totals: Mapping[str, np.ndarray]) -> Measured:
    """Collect what the tasks of a build have written.

    Args:
        plan: the build.
        columns: for each segment its columns, all of whose tasks are finished.
        totals: what metrics were defined with.

    Raises:
        IndexNotFoundError: when a task is not finished.
    """
    segments = []
    for segment, planned in zip(plan.segments, columns, strict=True):
        segments.append(
            Segment(
                description=plan.source.description,
                pieces=segment.pieces or (_new_piece(plan, segment),),
                columns={column.metric: finished_column(column) for column in planned},
                totals={metric.name: _total_of(plan, segment, metric) for metric in plan.totals},
            )
        )
    kinds = {column.metric: str(column.logical) for planned in columns for column in planned}
    metrics = {
        metric.name: MetricEntry(
            definition=metric.definition(),
            lineage="",
            logical_type=kinds[metric.name],
            nulls=metric.nulls,
            spec=metric.spec(),
            basis={
                total.name: _basis(plan, total, totals[total.name])
                for total in metric.requires
                if total.name not in plan.basis
            },
        )
        for metric in plan.per_sample
    }
    entries = {metric.name: TotalEntry(definition=metric.definition(), spec=metric.spec()) for metric in plan.totals}
    return Measured(segments=tuple(segments), metrics=metrics, totals=entries)


def _new_piece(plan: BuildPlan, segment: SegmentPlan) -> Piece:
    content = json.dumps(record_of(plan.source)).encode()
    written = plan.store.write(paths.source(plan.key), content)
    return Piece(
        fingerprint=segment.fingerprint,
        num_samples=len(segment),
        source=SourceRecord(key=plan.key, file=File.of(written)),
        first_row=segment.start,
    )


def _total_of(plan: BuildPlan, segment: SegmentPlan, metric: Metric) -> Total:
    total = sum_of_parts(plan.task([metric], {}), metric, plan.parts_of(segment))
    return write_total(plan.store, metric.name, file_key(plan, segment, metric, {}), total)


def _basis(plan: BuildPlan, metric: Metric, total: np.ndarray) -> Basis:
    key = f"{plan.key}.basis-{digest_of_total(total)[:8]}"
    return Basis(version=0, total=write_total(plan.store, metric.name, key, total))


def commit(plan: BuildPlan, columns: Sequence[Sequence[ColumnPlan]], totals: Mapping[str, np.ndarray]) -> Manifest:
    """Make what the tasks of a build have written the next snapshot of the index.

    Raises:
        IndexNotFoundError: when a task is not finished.
        IndexChangedError: when another writer has committed what this build can't be based on.
    """
    measured = collect(plan, columns, totals)
    return publish(plan.store, plan.key, measured.files, partial(next_snapshot, plan, measured))


def publish(store: Store, key: str, files: Sequence[str], based_on: Callable[[Manifest | None], Manifest]) -> Manifest:
    """Commit a snapshot that names ``files``, and remove what the build left for itself.

    The files and the folders that name them are on disk before the manifest appears. What another process has committed
    already is not committed again.
    """
    store.sync(files)

    def proposed(newest: Manifest | None) -> Manifest:
        return newest if newest is not None and newest.files.keys() >= set(files) else based_on(newest)

    committed = manifests.commit(store, proposed)
    discard(store, key)
    return committed


def has_build(manifest: Manifest | None, key: str) -> TypeGuard[Manifest]:
    """Whether a snapshot has what a build has made."""
    made = f"{key}."
    return manifest is not None and any(
        key.startswith(made)
        for segment in manifest.segments
        for key in (*(item.key for item in segment.columns.values()), *(item.key for item in segment.totals.values()))
    )


def tidy(store: Store, newest: Manifest) -> None:
    """Remove what builds have left that were killed between their commit and the end."""
    for name in store.names(paths.BUILDS):
        if name.endswith("/plan.json") and has_build(newest, key := name.split("/")[1]):
            discard(store, key)


def discard(store: Store, key: str) -> None:
    """Remove what a build has left for itself; its plan goes last, so that an interrupted removal is repeated."""
    plan = paths.plan(key)
    store.delete([name for name in store.names(paths.build(key)) if name != plan])
    store.delete([plan])
