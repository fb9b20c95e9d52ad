"""A build by several workers that share a folder: each maps some of the parts, then one reduces them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from arrowds.index import files as storage
from arrowds.index import manifest
from arrowds.build.api import building, commit_index, map_parts, opened_if_same, refuse_foreign
from arrowds.build.map import is_finished
from arrowds.build.plan import BuildPlan
from arrowds.errors import IndexNotFoundError
from arrowds.index import Index, open_index
from arrowds.index.paths import Layout
from arrowds.index.manifest import PartRange


def map_share(
    plan: BuildPlan, numbers: Sequence[int], *, overwrite: bool = False, most_workers: int = 1
) -> Iterator[PartRange]:
    """Compute some parts of a plan whose metrics need one pass, and yield each when its files are written.

    No lock is held, so any number of processes and machines may do this at a time; each part should have one of them. A
    finished index of the same data and metrics leaves nothing to do.

    Args:
        plan: the same for all workers.
        numbers: the parts that are this worker's.
        overwrite: build the next generation beside an index that is there.
        most_workers: how many local processes may be started, where that saves time.

    Raises:
        IndexExistsError: when the folder holds something else.
    """
    layout = plan.layout
    if layout.manifest.exists() and not overwrite:
        opened_if_same(layout.root, plan)
        return
    refuse_foreign(layout.root)
    current = manifest.load(layout.root).generation if layout.manifest.exists() else 0
    plan = replace(plan, layout=Layout(layout.root, current + 1))
    if not plan.layout.plan.exists():
        storage.write_text(plan.layout.plan, f"unfinished index of {plan.source.description}; run again to finish\n")
    for metrics in plan.passes:
        yield from map_parts(plan, metrics, [plan.parts[number] for number in numbers], most_workers=most_workers)


def reduce_shares(plan: BuildPlan, *, overwrite: bool = False) -> Index:
    """Make an index of the parts that all workers have mapped.

    Raises:
        IndexNotFoundError: when parts are missing; names their samples.
        IndexExistsError: when the folder holds something else.
        IndexLockedError: when another run is writing there.
    """
    root = plan.layout.root
    if plan.layout.manifest.exists() and not overwrite:
        return opened_if_same(root, plan)
    with building(plan, resume=True, overwrite=overwrite) as begun:
        _require_finished(begun)
        commit_index(begun)
    return open_index(root)


def _require_finished(plan: BuildPlan) -> None:
    task = plan.task(plan.metrics, {})
    missing = [part for part in plan.parts if not all(is_finished(task, metric, part) for metric in plan.metrics)]
    if missing:
        first = missing[0]
        raise IndexNotFoundError(
            f"{len(missing)} of {len(plan.parts)} parts in {plan.layout.root} are not mapped yet, the first one "
            f"samples {first.start} to {first.stop - 1}: a worker has failed or is still running, or maps "
            "other data or metrics; run the map of every worker to its end, then reduce"
        )
