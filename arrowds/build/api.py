"""The composer: source -> plan -> map -> reduce -> commit. Everything else in this package is used from here."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import pairwise
from os import PathLike
from typing import Any

import numpy as np
import xxhash

from arrowds.build.commit import (Measured, begin, build_key, collect, column_lineage, discard, lineage_of, plan_columns, publish, run_reduce)
from arrowds.build.engines import Engine, engine_named
from arrowds.build.engines.base import Work
from arrowds.build.map import map_part, sum_of_parts
from arrowds.build.plan import (
    MOST_SEGMENT_ROWS,
    BuildPlan,
    SegmentPlan,
    checked_metrics,
    cut_parts,
    cut_segments,
    rows_per_part,
    with_required,
)
from arrowds.build.progress import ProgressCallback, reporting
from arrowds.build.reduce import ColumnPlan, ReduceTask, reduce_task
from arrowds.errors import ConfigError, IndexChangedError, IndexExistsError, IndexNotFoundError, MetricError, SourceError
from arrowds.index import Index, open_index, paths
from arrowds.index import manifest as manifests
from arrowds.index.manifest import Manifest, MetricEntry, Segment
from arrowds.index.totals import read_total
from arrowds.metrics import Metric, from_spec
from arrowds.sources import open_source
from arrowds.sources.base import Source
from arrowds.store import LocalStore, ObjectStore, Store, open_store

logger = logging.getLogger(__name__)

Progress = bool | ProgressCallback | None


def analyze(
    source: Any,
    metrics: Metric | Iterable[Metric],
    path: str | PathLike[str],
    *,
    workers: int | None = None,
    engine: str | Engine = "local",
    resume: bool = True,
    overwrite: bool = False,
    progress: Progress = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Index:
    """Measure every sample of a dataset and write the index that lookups, queries and samplers read.

    Run again after an interruption, it skips what is finished; run again on a finished index of the same data and
    metrics, it opens it. The files are the same for any engine and any number of workers.

    Args:
        source: files (a path, a glob, a list), a table or data frame, a Hugging Face or torch dataset, or a
            :class:`arrowds.sources.Source`; see :func:`arrowds.sources.open_source`.
        metrics: what to measure, see :mod:`arrowds.metrics`.
        path: the folder or URL of the index; created if missing.
        workers: None: chosen automatically; 1 stays in this process.
        engine: where tasks run: ``"local"``, ``"torch"`` (the ranks of torch.distributed), ``"ray"``, or an
            :class:`arrowds.build.engines.Engine` with options of its own.
        resume: keep the finished parts of an interrupted run over the same data and metrics.
        overwrite: commit a new snapshot in place of the current one, which stays readable until it is vacuumed.
        progress: None shows a bar on a terminal and logs elsewhere; False is silent; a callable gets (done, total).
        storage_options: for a URL, keys such as ``aws_endpoint_url``; see :func:`arrowds.store.open_store`.

    Returns:
        The open index.

    Raises:
        EmptyDatasetError: when there are no samples.
        MissingColumnError: when a metric reads a column that the data does not have.
        MetricError: when a metric fails or returns something wrong; names the metric and the sample.
        IndexExistsError: when the folder is not empty and not an index, or holds an index of other data or metrics.
        StorageError: when a file can't be written; what is finished is kept.

    >>> import arrowds, pyarrow as pa, tempfile
    >>> table = pa.table({"input_ids": [[1, 2, 3], [1], [2, 2]]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     index = arrowds.analyze(table, [arrowds.metrics.seqlen("input_ids")], folder)
    ...     index["seqlen"].sample_ids(above=1, up_to=3)
    array([2, 0], dtype=uint32)
    """
    running = engine_named(engine, workers)
    store = open_store(path, storage_options)
    refuse_foreign(store)
    opened = open_source(source)
    wanted = checked_metrics(opened, metrics)
    base = manifests.latest(store)
    if base is not None and not overwrite:
        return _opened_if_same(store, base, opened, wanted)
    plan = plan_segments(store, "analyze", opened, wanted)
    measured = measure(plan, running, resume=resume, progress=progress)

    def first_snapshot(newest: Manifest | None) -> Manifest:
        if newest is not None and not overwrite:
            _refuse_other(store, newest, opened, wanted)
            raise IndexChangedError("another run has finished the same index")
        version = 1 if newest is None else newest.version + 1
        return snapshot_of(measured, version)

    return _committed(plan, running, measured, first_snapshot)


def append(
    source: Any,
    path: str | PathLike[str],
    *,
    metrics: Metric | Iterable[Metric] | None = None,
    workers: int | None = None,
    engine: str | Engine = "local",
    resume: bool = True,
    progress: Progress = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Index:
    """Measure more samples with the metrics of an index, and commit a snapshot that has them, too.

    Nothing that the index has is read or measured again. The new samples' ids follow the old ones. Of two appends at once
    both are committed, in some order.

    Args:
        source: as for :func:`analyze`. Where it is files, those that the index has already are left out.
        path: the folder or URL of the index.
        metrics: the index's metrics once more, where it has functions, which it can't rebuild from what it has stored.
        workers, engine, resume, progress, storage_options: as for :func:`analyze`.

    Returns:
        The newest snapshot, open.

    Raises:
        IndexNotFoundError: when there is no index.
        MetricError: when a metric can't be rebuilt and is not given, or is given with another definition.
        SourceError: when a file that the index has was changed or is missing, or new data has other columns.

    >>> import arrowds, pyarrow as pa, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     metric = arrowds.metrics.seqlen("input_ids")
    ...     _ = arrowds.analyze(pa.table({"input_ids": [[1, 2, 3], [1]]}), metric, folder)
    ...     index = arrowds.append(pa.table({"input_ids": [[7, 7]]}), folder)
    ...     index.version, index["seqlen"].values.tolist(), index["seqlen"].sample_ids(above=1).tolist()
    (2, [3, 1, 2], [2, 0])
    """
    running = engine_named(engine, workers)
    store = open_store(path, storage_options)
    base = manifests.load(store)
    opened = _new_rows(source, base)
    if opened is None:
        logger.info("nothing to append: %s has all of the data already", store.url)
        return open_index(path, storage_options=storage_options)
    while True:
        wanted = checked_metrics(opened, metrics_of(base, metrics))
        plan = plan_segments(store, "append", opened, wanted, basis=basis_of(store, base))
        measured = measure(plan, running, resume=resume, progress=progress)

        def with_more_samples(newest: Manifest | None, measured: Measured = measured) -> Manifest:
            if newest is None or definitions(newest) != definitions_of(measured):
                raise IndexChangedError("its metrics were changed by another run")
            return appended(newest, measured)

        try:
            return _committed(plan, running, measured, with_more_samples)
        except IndexChangedError as error:
            logger.info("measuring the metrics that were added meanwhile (%s)", error)
            base = manifests.load(store)


def add_metrics(
    source: Any,
    metrics: Metric | Iterable[Metric],
    path: str | PathLike[str],
    *,
    refresh: bool = False,
    workers: int | None = None,
    engine: str | Engine = "local",
    resume: bool = True,
    progress: Progress = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Index:
    """Measure more metrics of the samples of an index, and commit a snapshot that has them, too.

    Nothing else is measured again, and no file of the index is touched.

    Args:
        source: the data of the index, all of it, in its order.
        metrics: what to measure.
        path: the folder or URL of the index.
        refresh: measure metrics anew that the index has, for instance ``vocab_rarity`` with the token counts of all
            samples after an append.
        workers, engine, resume, progress, storage_options: as for :func:`analyze`.

    Returns:
        The newest snapshot, open.

    Raises:
        IndexNotFoundError: when there is no index.
        IndexExistsError: when the index has a metric of that name, without ``refresh``.
        SourceError: when the data is not that of the index.

    >>> import arrowds, polars as pl, pyarrow as pa, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = pa.table({"x": [3, 1]})
    ...     _ = arrowds.analyze(table, arrowds.metrics.expr("x", pl.col("x")), folder)
    ...     index = arrowds.add_metrics(table, arrowds.metrics.expr("double", pl.col("x") * 2), folder)
    ...     index.metrics, index["double"].values.tolist()
    (['x', 'double'], [6, 2])
    """
    running = engine_named(engine, workers)
    store = open_store(path, storage_options)
    base = manifests.load(store)
    opened = open_source(source)
    wanted = checked_metrics(opened, metrics)
    known = {**definitions(base)}
    taken = [metric.name for metric in with_required(metrics) if metric.name in known]
    if taken and not refresh:
        same = all(known[metric.name] == metric.definition() for metric in wanted if metric.name in known)
        if same and len(taken) == len(wanted):
            return open_index(path, storage_options=storage_options)
        raise IndexExistsError(
            f"{store.url} has {', '.join(taken)} already; choose other names, or pass refresh=True to measure them anew"
        )
    plan = plan_more_metrics(store, opened, wanted, base)
    measured = measure(plan, running, resume=resume, progress=progress)

    def with_more_metrics(newest: Manifest | None) -> Manifest:
        if newest is None or newest.lineage != base.lineage or len(newest.segments) != len(base.segments):
            raise IndexChangedError(
                f"samples were added to {store.url} while its metrics were measured; run again with all of the data"
            )
        return extended_by(newest, measured)

    return _committed(plan, running, measured, with_more_metrics)


def refuse_foreign(store: Store) -> None:
    """Raise IndexExistsError when a folder is not empty and is neither an index nor an unfinished one."""
    if not isinstance(store, LocalStore) or not store.root.exists():
        return
    if store.root.is_file():
        raise IndexExistsError(f"{store.url} is a file; an index needs a folder of its own")
    entries = {entry.name for entry in store.root.iterdir()}
    if entries and not entries & {paths.MANIFESTS, paths.BUILDS}:
        listed = ", ".join(sorted(entries)[:5])
        raise IndexExistsError(f"{store.url} is not empty and is not an arrowds index ({listed}); choose another folder")


def _opened_if_same(store: Store, base: Manifest, source: Source, metrics: Sequence[Metric]) -> Index:
    """Open the finished index if it is what would be built."""
    _refuse_other(store, base, source, metrics)
    index = Index(store, base)
    manifests.check_sizes(store, base.files)
    for name in paths.BUILDS, :
        for plan in {found.split("/")[1] for found in store.names(name) if found.endswith("/plan.json")}:
            if any(key_of_column(base, plan)):
                discard(store, plan)  # what a run that was killed right after its commit has left
    return index


def key_of_column(manifest: Manifest, build: str) -> Iterable[str]:
    """The keys of a snapshot's columns that a build has made."""
    return (
        column.key
        for segment in manifest.segments
        for column in (*segment.columns.values(), *segment.totals.values())
        if column.key.startswith(f"{build}.")
    )


def _refuse_other(store: Store, base: Manifest, source: Source, metrics: Sequence[Metric]) -> None:
    """Raise IndexExistsError, saying what differs, unless a snapshot has just these samples and metrics."""
    same_data = fingerprint_of(base.segments) == source.fingerprint()
    wanted = {metric.name: metric.definition() for metric in metrics}
    known = definitions(base)
    if same_data and wanted == known:
        return
    if not same_data:
        difference = (
            f"of other data: {base.segments[0].description}, {base.num_samples} samples "
            f"(this is {source.description}, {len(source)} samples)"
        )
    else:
        changed = sorted(name for name in wanted.keys() & known.keys() if wanted[name] != known[name])
        difference = f"with the metrics {sorted(known)}" + (f", of which {changed} were defined otherwise" if changed else "")
    raise IndexExistsError(f"{store.url} holds an index {difference}; choose another path, or pass overwrite=True")


def fingerprint_of(segments: Sequence[Segment]) -> str | None:
    """The fingerprint of the data of some segments, where it is known: that of one, or of parts of one source."""
    found = {segment.fingerprint for segment in segments}
    return found.pop().partition("@")[0] if len({name.partition("@")[0] for name in found}) == 1 else None


def definitions(manifest: Manifest) -> dict[str, str]:
    """The definition of every metric and total of a snapshot, by name."""
    return {name: entry.definition for name, entry in (*manifest.metrics.items(), *manifest.totals.items())}


def definitions_of(measured: Measured) -> dict[str, str]:
    """The definition of every metric and total that a build has measured, by name."""
    return {name: entry.definition for name, entry in (*measured.metrics.items(), *measured.totals.items())}


def _new_rows(source: Any, base: Manifest) -> Source | None:
    """The rows of a source that an index does not have yet; None where there are none."""
    return open_source(source)


def metrics_of(base: Manifest, given: Metric | Iterable[Metric] | None) -> list[Metric]:
    """The metrics of an index, from what it has stored and what the caller gives.

    Raises:
        MetricError: when one can't be rebuilt and is not given, or is given with another definition, or is not there.
    """
    found = {metric.name: metric for metric in (() if given is None else with_required(given))}
    known = definitions(base)
    for name, definition in known.items():
        if name in found and found[name].definition() != definition:
            raise MetricError(f"the index defines metric {name!r} otherwise; append with the metric that it was made with")
    if unknown := sorted(found.keys() - known.keys()):
        raise MetricError(f"the index has no metric {unknown[0]!r}; measure it with arrowds.add_metrics first")
    specs = {name: entry.spec for name, entry in (*base.metrics.items(), *base.totals.items())}
    missing = [name for name in known if name not in found and specs[name] is None]
    if missing:
        raise MetricError(
            f"the index can't rebuild {', '.join(missing)} from what it has stored, as it was made by a Python function; "
            "pass metrics=[...] with the same function"
        )
    rebuilt = [found[name] if name in found else from_spec(specs[name] or {}) for name in known]
    required = {item.name for metric in rebuilt for item in metric.requires}
    return [metric for metric in rebuilt if metric.name not in required]


def basis_of(store: Store, base: Manifest) -> dict[str, np.ndarray]:
    """The totals that the metrics of an index were defined with, by name."""
    return {
        name: read_total(store, name, basis.total)
        for entry in base.metrics.values()
        for name, basis in entry.basis.items()
    }


def plan_segments(
    store: Store,
    operation: str,
    source: Source,
    metrics: Sequence[Metric],
    *,
    basis: Mapping[str, np.ndarray] | None = None,
) -> BuildPlan:
    """Plan a build that makes new segments of a source."""
    fingerprint = source.fingerprint()
    boundaries = source.part_boundaries(rows_per_part(len(source)))
    ends = cut_segments(boundaries, MOST_SEGMENT_ROWS)
    segments = tuple(
        SegmentPlan(number, start, stop, fingerprint if len(ends) == 1 else f"{fingerprint}@{start}")
        for number, (start, stop) in enumerate(pairwise([0, *ends]))
    )
    return BuildPlan(
        store=store,
        key=build_key(store, operation, fingerprint, str(len(source))),
        source=source,
        fingerprint=fingerprint,
        segments=segments,
        parts=cut_parts(source, ends),
        metrics=tuple(metrics),
        basis=basis or {},
    )


def plan_more_metrics(store: Store, source: Source, metrics: Sequence[Metric], base: Manifest) -> BuildPlan:
    """Plan a build that measures more metrics of the segments of a snapshot.

    Raises:
        SourceError: when the source is not the data of the snapshot.
    """
    if len(source) != base.num_samples:
        raise SourceError(
            f"{store.url} has {base.num_samples} samples, but this data ({source.description}) has {len(source)}; pass all "
            "of its data, in its order"
        )
    bounds = [*base.first_ids, base.num_samples]
    segments = tuple(
        SegmentPlan(number, start, stop, segment.fingerprint)
        for number, (segment, (start, stop)) in enumerate(zip(base.segments, pairwise(bounds), strict=True))
    )
    _check_same_data(store, source, base)
    names = ",".join(f"{metric.name}={metric.definition()}" for metric in metrics)
    return BuildPlan(
        store=store,
        key=build_key(store, "add_metrics", base.lineage, names),
        source=source,
        fingerprint=base.lineage,
        segments=segments,
        parts=cut_parts(source, bounds[1:]),
        metrics=tuple(metrics),
        basis={},
    )


def _check_same_data(store: Store, source: Source, base: Manifest) -> None:
    whole = fingerprint_of(base.segments)
    if whole is not None and whole != source.fingerprint():
        raise SourceError(f"{store.url} was made of other data than {source.description}; pass the data of the index")


def measure(plan: BuildPlan, engine: Engine, *, resume: bool, progress: Progress) -> Measured | None:
    """Run every task of a build that is not finished, first the map's, then the reduce's, and collect what they made.

    Returns:
        What was made, in the process that is to commit it; None in the others.
    """
    engine.agree(facts_of(plan))
    engine.once(partial(begin, plan.store, plan.key, facts_of(plan), resume=resume))
    totals = map_all(plan, engine, progress)
    columns = plan_columns(plan, totals)
    run_reduce([column for planned in columns for column in planned], engine)
    return engine.once(lambda: collect(plan, columns, totals))


def facts_of(plan: BuildPlan) -> dict[str, str]:
    """What all processes of a build must have in common, by the name of it."""
    return {
        "data": f"{plan.source.description}, {plan.num_samples} samples, {plan.fingerprint}",
        "metrics": ", ".join(metric.name for metric in plan.metrics),
        "code of the metrics": "; ".join(f"{metric.name}: {metric.definition()}" for metric in plan.metrics),
        "index": plan.key,
    }


def map_all(plan: BuildPlan, engine: Engine, progress: Progress) -> dict[str, np.ndarray]:
    """Compute every part of every pass, and return the totals that metrics are defined with."""
    totals = dict(plan.basis)
    total = plan.num_samples * len(plan.passes)
    with reporting(total, progress) as report:
        done = 0
        for metrics in plan.passes:
            required = {item.name: item for metric in metrics for item in metric.requires if item.name not in totals}
            totals |= {name: sum_of_parts(plan.task([item], {}), item, plan.parts) for name, item in required.items()}
            in_threads = plan.source.concurrent and all(metric.in_threads for metric in metrics)
            work = Work(partial(map_part, plan.task(metrics, totals)), in_threads, "samples")
            # Closed at once, not when the traceback of an interrupt is dropped: no worker outlives the run.
            with closing(engine.run(work, plan.parts)) as finished:
                for part in finished:
                    done += len(part)
                    report(done, total)
    return totals


def _committed(
    plan: BuildPlan, engine: Engine, measured: Measured | None, based_on: Callable[[Manifest | None], Manifest]
) -> Index:
    """Commit in one process, wait for it in the others, and open what is then the newest snapshot."""
    try:
        if measured is not None:
            engine.once(lambda: publish(plan.store, plan.key, measured.files, based_on))
        else:
            engine.once(lambda: None)
    finally:
        engine.close()
    return Index(plan.store, manifests.load(plan.store))


def snapshot_of(measured: Measured, version: int) -> Manifest:
    """The snapshot of a dataset that was measured as a whole."""
    return Manifest(
        version=version,
        operation="analyze",
        lineage=lineage_of("", measured.segments),
        metrics=measured.entries(version),
        totals=dict(measured.totals),
        segments=measured.segments,
    )


def appended(base: Manifest, measured: Measured) -> Manifest:
    """The snapshot of another one's samples and more of them.

    Raises:
        MetricError: when a metric has values of another type for the new samples.
    """
    entries: dict[str, MetricEntry] = {}
    for name, entry in base.metrics.items():
        if measured.metrics[name].logical_type != entry.logical_type:
            raise MetricError(
                f"metric {name!r} gives {measured.metrics[name].logical_type} for the new samples but {entry.logical_type} "
                "for those of the index; declare its dtype"
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


def extended_by(base: Manifest, measured: Measured) -> Manifest:
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
