"""A build in pieces, by processes that share nothing but the index's folder or bucket: plan once, map, reduce.

Any launcher may start them (a Slurm array, a Kubernetes Job, GNU parallel), on any machines, in any order within a
stage, and again: what is finished is skipped, whatever the number of shards was.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from os import PathLike
from typing import Any

import numpy as np

from arrowds.build.commit import begin, commit, has_build, plan_columns, run_reduce
from arrowds.build.engines import Engine, LocalEngine
from arrowds.build.map import is_finished, map_work, sum_of_parts
from arrowds.build.operations import plan_analysis, plan_append
from arrowds.build.plan import BuildPlan, Part
from arrowds.build.progress import ProgressCallback, reporting
from arrowds.build.reduce import ColumnPlan
from arrowds.errors import ConfigError, IndexNotFoundError, MetricError
from arrowds.index import Index, open_index, paths
from arrowds.index import manifest as manifests
from arrowds.index.manifest import Manifest
from arrowds.metrics import Metric, from_spec
from arrowds.sources import open_source
from arrowds.sources.base import Source
from arrowds.sources.opening import source_from_spec
from arrowds.store import Store, is_url, open_store, options_for

logger = logging.getLogger(__name__)

Progress = bool | ProgressCallback | None


def plan_build(
    source: Any,
    metrics: Metric | Iterable[Metric] | None,
    path: str | PathLike[str],
    *,
    overwrite: bool = False,
    append: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> BuildPlan | Index:
    """Leave the plan of a build in the index's folder, for :func:`map_shard` and :func:`reduce_build`.

    Args:
        source: as for :func:`arrowds.analyze`.
        metrics: what to measure; None with ``append``, for the metrics of the index.
        path: the folder or URL of the index.
        overwrite: as for :func:`arrowds.analyze`.
        append: add the source's rows to an index, as :func:`arrowds.append` does.
        storage_options: as for :func:`arrowds.analyze`.

    Returns:
        The plan; or the index where there is nothing to do.

    Raises:
        ConfigError: when neither metrics nor ``append`` are given.
        ArrowdsError: as :func:`arrowds.analyze` and :func:`arrowds.append`.
    """
    for_source, for_index = options_for(storage_options, source, path)
    store = open_store(path, for_index)
    plan: BuildPlan | Manifest
    if append:
        plan = plan_append(store, manifests.load(store), source, metrics, storage_options=for_source)
    elif metrics is None:
        raise ConfigError("name at least one metric, or append to an index that has some")
    else:
        plan = plan_analysis(store, open_source(source, storage_options=for_source), metrics, overwrite=overwrite)
    if isinstance(plan, Manifest):
        return open_index(path, storage_options=for_index)
    begin(store, plan.key, plan.to_json(), resume=True, again=plan.not_reusable)
    return plan


def map_shard(
    path: str | PathLike[str],
    shard: int,
    of: int,
    *,
    source: Any = None,
    metrics: Metric | Iterable[Metric] | None = None,
    workers: int | None = None,
    progress: Progress = None,
    storage_options: Mapping[str, Any] | None = None,
) -> list[str] | None:
    """Measure one shard of a planned build.

    Metrics that need a total of all samples, such as ``vocab_rarity``, are measured by a second round of shards, after
    the first round has ended everywhere.

    Args:
        path: the folder or URL of the index.
        shard: which share of the parts this is, from 1 to ``of``.
        of: how many shares there are; it may differ between runs.
        source: the data, where the plan can't open it: tables in memory, datasets in Python.
        metrics: the metrics, where the plan can't rebuild them: Python functions.
        workers: as for :func:`arrowds.analyze`.
        progress: as for :func:`arrowds.analyze`.
        storage_options: as for :func:`arrowds.analyze`.

    Returns:
        The names of the metrics that wait for totals: run the shard once more when all others have ended. None where
        the build is committed already, so that nothing is left to measure.

    Raises:
        ConfigError: for a shard out of range, and when data, metrics or code differ from the plan; says which.
        IndexNotFoundError: when there is no plan.
    """
    if not 1 <= shard <= of:
        raise ConfigError(f"a shard is 1/{of} to {of}/{of}; got {shard}/{of}")
    store = _opened(path, storage_options)
    if _is_committed(store):
        return None
    plan = _planned(store, source, metrics, storage_options)
    return map_parts(plan, plan.parts[shard - 1 :: of], LocalEngine(workers), progress)


def map_parts(plan: BuildPlan, parts: Sequence[Part], engine: Engine, progress: Progress) -> list[str]:
    """Measure some parts of a build, in every pass whose totals are known; return the metrics that wait for totals."""
    waiting: list[str] = []
    total = sum(map(len, parts))
    with reporting(total * len(plan.passes), progress) as report:
        done = 0
        for metrics in plan.passes:
            totals = totals_of(plan, metrics)
            if totals is None:
                waiting += [metric.name for metric in metrics]
                continue
            work = map_work(plan, metrics, totals)
            with closing(engine.run(work, parts)) as finished:
                for part in finished:
                    done += len(part)
                    report(done, total * len(plan.passes))
    return waiting


def totals_of(plan: BuildPlan, metrics: Sequence[Metric]) -> dict[str, np.ndarray] | None:
    """Return the totals that metrics are defined with; None while a part of one is not measured yet."""
    totals = dict(plan.basis)
    for item in (item for metric in metrics for item in metric.requires if item.name not in totals):
        task = plan.task([item], {})
        if not all(is_finished(task, item, part) for part in plan.parts):
            return None
        totals[item.name] = sum_of_parts(task, item, plan.parts)
    return totals


def reduce_build(
    path: str | PathLike[str],
    shard: int = 1,
    of: int = 1,
    *,
    source: Any = None,
    metrics: Metric | Iterable[Metric] | None = None,
    workers: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Index | None:
    """Reduce one shard of a planned build whose parts are all measured; the last shard to finish commits.

    Args:
        path: the folder or URL of the index.
        shard: which share of the buckets this is, from 1 to ``of``; by default all.
        of: how many shares there are.
        source: as for :func:`map_shard`.
        metrics: as for :func:`map_shard`.
        workers: as for :func:`map_shard`.
        storage_options: as for :func:`map_shard`.

    Returns:
        The index; None while other shards are not finished.

    Raises:
        ConfigError: for a shard out of range, and when data, metrics or code differ from the plan; says which.
        IndexNotFoundError: when there is no plan, or samples are not measured yet; names them.
    """
    if not 1 <= shard <= of:
        raise ConfigError(f"a shard is 1/{of} to {of}/{of}; got {shard}/{of}")
    store = _opened(path, storage_options)
    if _is_committed(store):
        return Index(store, manifests.load(store))
    plan = _planned(store, source, metrics, storage_options)
    return reduce_share(plan, shard, of, LocalEngine(workers))


def reduce_share(plan: BuildPlan, shard: int, of: int, engine: Engine) -> Index | None:
    """Run a share of a build's reduce tasks, and commit if those of all shares are done."""
    totals = _all_mapped(plan)
    columns = plan_columns(plan, totals)
    flat = [column for planned in columns for column in planned]
    run_reduce(flat, engine, share=(shard - 1, of))
    if not all(_is_reduced(column) for column in flat):
        return None
    try:
        commit(plan, columns, totals)
    except IndexNotFoundError:
        if not has_build(manifests.load(plan.store), plan.key):  # another shard was faster
            raise
    return Index(plan.store, manifests.load(plan.store))


def _is_reduced(column: ColumnPlan) -> bool:
    return all(column.reported(task) is not None for task in column.tasks)


def _all_mapped(plan: BuildPlan) -> dict[str, np.ndarray]:
    """Return the totals of a build after checking that every part of every metric is measured."""
    totals = totals_of(plan, plan.metrics)
    for metrics in plan.passes:
        for metric in metrics:
            known = totals_of(plan, [metric]) if totals is None else totals
            task = plan.task([metric], known or {})
            missing = [part for part in plan.parts if known is None or not is_finished(task, metric, part)]
            if missing:
                raise IndexNotFoundError(
                    f"metric {metric.name!r} is not measured for {len(missing)} of {len(plan.parts)} parts in "
                    f"{plan.store.url}, the first one samples {missing[0].start} to {missing[0].stop - 1}: a shard has "
                    "failed or is still running; run the map of every shard to its end, then reduce"
                )
    return totals or {}


def _is_committed(store: Store) -> bool:
    """Whether the build of an index is finished: nothing is planned any more, and there is a snapshot."""
    return not _plans(store) and bool(manifests.numbers(store))


def _plans(store: Store) -> list[str]:
    names = store.names(paths.BUILDS)
    return sorted(name.split("/")[1] for name in names if name.endswith("/plan.json"))


def _opened(path: str | PathLike[str], storage_options: Mapping[str, Any] | None) -> Store:
    """The store of an index whose data may be at a URL where the index is not."""
    return open_store(path, storage_options if is_url(path) else None)


def _planned(
    store: Store, source: Any, metrics: Metric | Iterable[Metric] | None, storage_options: Mapping[str, Any] | None
) -> BuildPlan:
    """Open the one unfinished build of an index again, from its plan and what the caller gives."""
    contents = {key: _read_plan(store, key) for key in _plans(store)}
    found = {key: content for key, content in contents.items() if content.get("operation") in ("analyze", "append")}
    if len(found) != 1:
        hint = (
            "make one with arrowds plan"
            if not found
            else "finish one, or remove them with arrowds.vacuum(unfinished=True)"
        )
        raise IndexNotFoundError(f"{store.url} has {len(found)} planned builds; expected one: {hint}")
    content = next(iter(found.values()))
    if source is None:
        opened = _source_of(store, content, storage_options)
    else:
        opened = open_source(source, storage_options=options_for(storage_options, source, store.url)[0])
    wanted = _metrics_of(store, content) if metrics is None else metrics
    plan: BuildPlan | Manifest
    if content["operation"] == "append":
        plan = plan_append(store, manifests.load(store), opened, wanted)
    else:
        plan = plan_analysis(store, opened, wanted, overwrite=bool(content.get("overwrite")))
    if isinstance(plan, Manifest):
        raise IndexNotFoundError(f"{store.url} has all of this data already; there is nothing to do")
    differing = [name for name, fact in plan.facts.items() if content["facts"].get(name) != fact]
    if differing:
        told = "; ".join(
            f"{name}: planned {content['facts'].get(name)!r}, here {plan.facts[name]!r}" for name in differing
        )
        raise ConfigError(f"this shard differs from the plan of {store.url} in {', '.join(differing)} ({told})")
    return plan


def _read_plan(store: Store, key: str) -> dict[str, Any]:
    try:
        content = json.loads(store.read(paths.plan(key)).to_pybytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) and isinstance(content.get("facts"), dict) else {}


def _source_of(store: Store, content: Mapping[str, Any], options: Mapping[str, Any] | None) -> Source:
    if content.get("source") is None:
        raise ConfigError(f"the data of the plan in {store.url} can't be opened from its description; pass source=...")
    return source_from_spec(content["source"], storage_options=options)


def _metrics_of(store: Store, content: Mapping[str, Any]) -> list[Metric]:
    specs = content.get("metrics") or []
    if any(spec is None for spec in specs):
        raise MetricError(
            f"the plan in {store.url} has a Python function, which only its code can run; pass metrics=[...]"
        )
    return [from_spec(spec) for spec in specs]
