"""The composer: source -> plan -> map -> reduce -> commit. Everything else in this package is used from here."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from contextlib import closing
from functools import partial
from os import PathLike
from typing import Any

import numpy as np

from arrowds.build.commit import begin, commit, discard, has_build, plan_columns, run_reduce, tidy
from arrowds.build.engines import Engine, engine_named
from arrowds.build.lineage import definitions
from arrowds.build.map import map_work, sum_of_parts
from arrowds.build.operations import plan_analysis, plan_append, plan_more_metrics, plan_values
from arrowds.build.plan import BuildPlan
from arrowds.build.progress import ProgressCallback, reporting
from arrowds.errors import IndexChangedError, IndexCorruptError, IndexNotFoundError, StorageError
from arrowds.index import Index
from arrowds.index import manifest as manifests
from arrowds.index.manifest import Manifest
from arrowds.metrics import Metric
from arrowds.sources import open_source
from arrowds.store import LocalStore, Store, open_store, options_for

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
        storage_options: for URLs, those of the data as well, keys such as ``aws_endpoint_url``; see
            :func:`arrowds.store.open_store`.

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
    with engine_named(engine, workers) as running:
        for_source, for_index = options_for(storage_options, source, path)
        store = open_store(path, for_index)
        opened = open_source(source, storage_options=for_source)
        plan = plan_analysis(store, opened, metrics, overwrite=overwrite)
        return run(plan, store, running, resume=resume, progress=progress)


def append(
    source: Any,
    path: str | PathLike[str],
    *,
    metrics: Metric | Iterable[Metric] | None = None,
    compare_content: bool = False,
    workers: int | None = None,
    engine: str | Engine = "local",
    resume: bool = True,
    progress: Progress = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Index:
    """Measure more samples with the metrics of an index, and commit a snapshot that has them, too.

    Nothing that the index has is read or measured again. The new samples' ids follow the old ones. Of two appends at
    once both are committed, in some order; two of the same rows are one.

    Args:
        source: as for :func:`analyze`. Where it is files, those that the index has already are left out.
        path: the folder or URL of the index.
        metrics: the index's metrics once more, where it has functions, which it can't rebuild from what it has stored.
        compare_content: recognise the files that the index has by their content, not by path, size and time alone.
        workers: as for :func:`analyze`.
        engine: as for :func:`analyze`.
        resume: as for :func:`analyze`.
        progress: as for :func:`analyze`.
        storage_options: as for :func:`analyze`.

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
    with engine_named(engine, workers) as running:
        for_source, for_index = options_for(storage_options, source, path)
        store = open_store(path, for_index)
        while True:
            base = manifests.load(store)
            plan = plan_append(
                store, base, source, metrics, compare_content=compare_content, storage_options=for_source
            )
            try:
                return run(plan, store, running, resume=resume, progress=progress)
            except IndexChangedError as error:
                logger.info("measuring the metrics that another run has added (%s)", error)


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
        workers: as for :func:`analyze`.
        engine: as for :func:`analyze`.
        resume: as for :func:`analyze`.
        progress: as for :func:`analyze`.
        storage_options: as for :func:`analyze`.

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
    with engine_named(engine, workers) as running:
        for_source, for_index = options_for(storage_options, source, path)
        store = open_store(path, for_index)
        opened = open_source(source, storage_options=for_source)
        plan = plan_more_metrics(store, manifests.load(store), opened, metrics, refresh=refresh)
        return run(plan, store, running, resume=resume, progress=progress)


def add_values(
    values: Mapping[str, Any],
    index: str | PathLike[str] | Index,
    *,
    refresh: bool = False,
    workers: int | None = None,
    progress: Progress = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Index:
    """Add metrics whose values were computed elsewhere, such as scores or clusters, without reading the data.

    An append can't measure them: it leaves them out of the new snapshot, with a warning.

    Args:
        values: by name, one value for each sample in the order of ids: numbers, bools, or strings as categories, in an
            array, a masked array, a Polars series or an Arrow array. Null, NaN and masked samples have no value.
        index: its folder or URL; or the open index that the values were computed for, so that they are refused when
            other samples were committed meanwhile.
        refresh: replace metrics that the index has already.
        workers: as for :func:`analyze`.
        progress: as for :func:`analyze`.
        storage_options: as for :func:`analyze`.

    Returns:
        The open index.

    Raises:
        IndexExistsError: when the index has a metric of that name, without ``refresh``.
        MetricError: when there is not one value for each sample.
        IndexChangedError: when the index has other samples now than the open one.

    >>> import arrowds, polars as pl, pyarrow as pa, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = arrowds.analyze(pa.table({"x": [3, 1]}), arrowds.metrics.column("x"), folder)
    ...     index = arrowds.add_values({"score": np.array([0.5, 0.25])}, folder)
    ...     index.metrics, index["score"].sample_ids(up_to=0.3).tolist()
    (['x', 'score'], [1])
    """
    with engine_named("local", workers) as running:
        if isinstance(index, Index):
            store, base = index.store, index.manifest
        else:
            store = open_store(index, options_for(storage_options, index)[0])
            base = manifests.load(store)
        plan = plan_values(store, base, values, refresh=refresh)
        return run(plan, store, running, resume=True, progress=progress)


def run(plan: BuildPlan | Manifest, store: Store, engine: Engine, *, resume: bool, progress: Progress) -> Index:
    """Run every task of a build that is not finished, first the map's, then the reduce's, and commit what they made.

    Where there is nothing to do, open the snapshot that is given instead of a plan.
    """
    if isinstance(plan, BuildPlan):
        try:
            engine.agree(plan.facts)
            engine.once(partial(begin, store, plan.key, plan.to_json(), resume=resume, again=plan.not_reusable))
            totals = map_all(plan, engine, progress if engine.leads else False)
            columns = plan_columns(plan, totals)
            run_reduce([column for planned in columns for column in planned], engine)
            engine.once(partial(commit, plan, columns, totals))
        except (IndexCorruptError, IndexNotFoundError, StorageError):
            if not _is_committed(plan):
                raise
            logger.info("another run has finished the same build")
        except IndexChangedError:
            if plan.operation == "add_metrics":  # an append takes up its work again, this does not
                discard(store, plan.key)
            raise
    newest = manifests.load(store)
    tidy(store, newest)
    if isinstance(store, LocalStore):
        manifests.check_sizes(store, newest.files)
    return Index(store, newest)


def _is_committed(plan: BuildPlan) -> bool:
    """Whether another process has committed a build, and removed what this one was working with."""
    newest = manifests.latest(plan.store)
    measured = {metric.name: metric.definition() for metric in plan.metrics}
    return has_build(newest, plan.key) and measured.items() <= definitions(newest).items()


def map_all(plan: BuildPlan, engine: Engine, progress: Progress) -> dict[str, np.ndarray]:
    """Compute every part of every pass, and return the totals that metrics are defined with."""
    totals = dict(plan.basis)
    total = plan.num_samples * len(plan.passes)
    with reporting(total, progress) as report:
        done = 0
        for metrics in plan.passes:
            required = {item.name: item for metric in metrics for item in metric.requires if item.name not in totals}
            totals |= {name: sum_of_parts(plan.task([item], {}), item, plan.parts) for name, item in required.items()}
            work = map_work(plan, metrics, totals)
            # Closed at once, not when the traceback of an interrupt is dropped: no worker outlives the run.
            with closing(engine.run(work, plan.parts)) as finished:
                for part in finished:
                    done += len(part)
                    report(done, total)
    return totals
