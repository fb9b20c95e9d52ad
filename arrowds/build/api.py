"""The composer: source -> plan -> parts -> index -> commit. Everything else in this package is used from here."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from arrowds.index import files as storage
from arrowds.index import lock, manifest
from arrowds.build.engines.local import check_workers, run_local
from arrowds.build.map import read_sum
from arrowds.build.plan import BuildPlan, make_plan
from arrowds.build.progress import ProgressCallback, reporting
from arrowds.build.reduce import reduce_metric
from arrowds.build.results import added, stored_sum
from arrowds.errors import ConfigError, IndexExistsError, IndexLockedError, StorageError, UnsupportedError
from arrowds.index import Index, open_index
from arrowds.index.paths import Layout
from arrowds.index.manifest import Dataset, Manifest, MetricEntry, PartRange, TotalEntry
from arrowds.metrics import Metric
from arrowds.schema import VALUE, sample_id_type
from arrowds.sources import open_source
from arrowds.arrays import arrow_view

logger = logging.getLogger(__name__)

_ENGINES = ("local",)
_COMING_ENGINES = ("torch", "ray")


def analyze(
    source: Any,
    metrics: Metric | Iterable[Metric],
    path: str | Path,
    *,
    workers: int | None = None,
    engine: str = "local",
    resume: bool = True,
    overwrite: bool = False,
    progress: bool | ProgressCallback | None = None,
) -> Index:
    """Measure every sample of a dataset and write the index that lookups, queries and samplers read.

    Run again after an interruption, it skips what is finished; run again on a finished index of the same data and
    metrics, it opens it. The files are the same for any number of workers.

    Args:
        source: files (a path, a glob, a list), a table or data frame, a Hugging Face or torch dataset, or a
            :class:`arrowds.sources.Source`; see :func:`arrowds.sources.open_source`.
        metrics: what to measure, see :mod:`arrowds.metrics`.
        path: the folder of the index; made if it is not there.
        workers: None chooses by the work there is; 1 stays in this process.
        engine: where parts are computed; ``"local"`` for now.
        resume: keep finished parts of an interrupted run over the same data and metrics.
        overwrite: replace an index that is there. It stays whole and readable until the new one is complete.
        progress: None shows a bar on a terminal and logs elsewhere; False is silent; a callable gets (done, total).

    Returns:
        The open index.

    Raises:
        EmptyDatasetError: when there are no samples.
        MissingColumnError: when a metric reads a column that is not there.
        MetricError: when a metric fails or returns something wrong; names the metric and the sample.
        IndexExistsError: when the folder holds something else, or an index of other data or metrics.
        IndexLockedError: when another run is writing there.
        StorageError: when a file can't be written; what is finished is kept.

    >>> import arrowds, pyarrow as pa, tempfile
    >>> table = pa.table({"input_ids": [[1, 2, 3], [1], [2, 2]]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     index = arrowds.analyze(table, [arrowds.metrics.seqlen("input_ids")], folder)
    ...     index["seqlen"].sample_ids(above=1, up_to=3)
    array([2, 0], dtype=uint32)
    """
    _check_engine(engine)
    check_workers(workers)
    root = _local_path(path)
    plan = make_plan(open_source(source), metrics, Layout(root))
    if not overwrite and Layout(root).manifest.exists():
        return opened_if_same(root, plan)
    with building(plan, resume=resume, overwrite=overwrite) as plan:
        map_all(plan, workers=workers, progress=progress)
        commit_index(plan)
    return open_index(root)


def append(
    source: Any,
    path: str | Path,
    *,
    workers: int | None = None,
    engine: str = "local",
    progress: bool | ProgressCallback | None = None,
) -> Index:
    """Refuse to add samples to an index: this version can't yet.

    Raises:
        UnsupportedError: always; says what to do instead.
    """
    raise UnsupportedError(
        f"this version can't append to {path}; analyze the old and the new data together, with overwrite=True"
    )


def _check_engine(engine: str) -> None:
    if engine in _COMING_ENGINES:
        raise UnsupportedError(f'engine {engine!r} is not in this version; use engine="local"')
    if engine not in _ENGINES:
        raise ConfigError(f"there is no engine {engine!r}; the engines are {', '.join(_ENGINES)}")


def _local_path(path: str | Path) -> Path:
    # A Path has but one slash left of "s3://"; a single letter before the colon is a drive.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)):
        raise UnsupportedError(f"{path} is not a local folder; this version writes an index to local disks only")
    return Path(path).expanduser().absolute()  # workers may have another working directory


def opened_if_same(root: Path, plan: BuildPlan) -> Index:
    """Open the finished index if it is what the plan would build.

    Raises:
        IndexExistsError: when it has other data or other metrics; says which.
    """
    found = manifest.load(root)
    wanted = {metric.name: metric.definition() for metric in plan.metrics}
    entries: dict[str, MetricEntry | TotalEntry] = {**found.metrics, **found.totals}
    there = {name: entry.definition for name, entry in entries.items()}
    if found.dataset.fingerprint == plan.fingerprint and wanted == there:
        _tidy(root, found)
        return open_index(root)
    if found.dataset.fingerprint != plan.fingerprint:
        difference = (
            f"of other data: {found.dataset.description}, {found.dataset.num_samples} samples "
            f"(this is {plan.source.description}, {plan.num_samples} samples)"
        )
    else:
        changed = sorted(name for name in wanted.keys() & there.keys() if wanted[name] != there[name])
        difference = f"with the metrics {sorted(there)}" + (
            f", of which {changed} were defined otherwise" if changed else ""
        )
    raise IndexExistsError(f"{root} holds an index {difference}; choose another path, or pass overwrite=True")


@contextmanager
def building(plan: BuildPlan, *, resume: bool, overwrite: bool) -> Iterator[BuildPlan]:
    """Hold the index for writing, and give the plan with the generation that it is to build.

    Raises:
        IndexExistsError: when the folder holds something that is no index.
        IndexLockedError: when another run is writing there.
    """
    root = plan.layout.root
    refuse_foreign(root)
    with lock.writing(plan.layout.lock):
        current = manifest.load(root).generation if plan.layout.manifest.exists() else 0
        if current and not overwrite:
            raise IndexExistsError(f"{root} was finished by another run just now; open it, or pass overwrite=True")
        plan = replace(plan, layout=Layout(root, current + 1))
        storage.remove_temporaries(plan.layout.data)
        if not resume:
            _remove_data(plan.layout)
        storage.write_text(plan.layout.plan, f"unfinished index of {plan.source.description}; run again to finish\n")
        yield plan


def refuse_foreign(root: Path) -> None:
    """Raise IndexExistsError when a folder holds something else than an index or a build of one."""
    if root.is_file():
        raise IndexExistsError(f"{root} is a file; an index needs a folder of its own")
    if not root.exists():
        return
    lock_name = Layout(root).lock.name
    found = sorted(entry.name for entry in root.iterdir())
    foreign = [name for name in found if lock_name not in name and not name.endswith(storage.TEMPORARY)]
    # Asked last: another worker of the same build may be making the folder's first files right now.
    if foreign and not (Layout(root).manifest.exists() or Layout(root).plan.exists()):
        raise IndexExistsError(
            f"{root} holds something that is no index ({', '.join(foreign[:5])}); choose an empty or new folder"
        )


def _remove_data(layout: Layout) -> None:
    for folder in (layout.data / "metrics", layout.data / "totals"):
        shutil.rmtree(folder, ignore_errors=True)


def map_all(plan: BuildPlan, *, workers: int | None, progress: bool | ProgressCallback | None) -> None:
    """Compute every part of every pass that is not finished."""
    total = plan.num_samples * len(plan.passes)
    with reporting(total, progress) as report:
        done = 0
        for metrics in plan.passes:
            # Closed at once, not when the traceback of an interrupt is dropped: no worker outlives the run.
            with closing(map_parts(plan, metrics, plan.parts, workers=workers)) as finished:
                for part in finished:
                    done += len(part)
                    report(done, total)


def map_parts(
    plan: BuildPlan,
    metrics: Sequence[Metric],
    parts: Sequence[PartRange],
    *,
    workers: int | None = None,
    most_workers: int | None = None,
) -> Generator[PartRange, None, None]:
    """Compute some parts of some metrics, and yield each part when its files are written.

    Several machines that share the folder may each take other parts; what the metrics require must be finished.
    """
    required = {total.name: total for metric in metrics for total in metric.requires}
    totals = {name: sum_of_parts(plan, total) for name, total in required.items()}
    yield from run_local(plan.task(metrics, totals), parts, workers=workers, most_workers=most_workers)


def sum_of_parts(plan: BuildPlan, metric: Metric) -> np.ndarray:
    """Return the sum of a total metric over all parts, added in the order of the parts."""
    task = plan.task([metric], {})
    total: np.ndarray | None = None
    for part in plan.parts:
        total = added(metric, total, read_sum(task, metric, part))
    return stored_sum(metric, np.zeros(0) if total is None else total)


def commit_index(plan: BuildPlan) -> Manifest:
    """Reduce the parts of every metric and make the result the index.

    Raises:
        IndexCorruptError: when a part is missing or can't be read.
    """
    layout = plan.layout
    metrics = {metric.name: reduce_metric(layout, metric, plan.parts) for metric in plan.per_sample}
    totals = {metric.name: _reduce_total(plan, metric) for metric in plan.totals}
    committed = Manifest(
        generation=layout.generation,
        dataset=Dataset(
            description=plan.source.description, fingerprint=plan.fingerprint, num_samples=plan.num_samples
        ),
        sample_id_type="uint32" if sample_id_type(plan.num_samples) == pa.uint32() else "uint64",
        parts=plan.parts,
        metrics=metrics,
        totals=totals,
        files=manifest.file_entries(layout, _files_of(plan)),
    )
    manifest.commit(layout.root, committed)
    _remove_unlisted(layout.root, committed)
    return committed


def _reduce_total(plan: BuildPlan, metric: Metric) -> TotalEntry:
    total = sum_of_parts(plan, metric)
    flat = arrow_view(total.reshape(-1))
    storage.write_parquet(plan.layout.total(metric.name), pa.table({VALUE: flat}))
    return TotalEntry(definition=metric.definition(), type=str(flat.type), shape=total.shape)


def _files_of(plan: BuildPlan) -> Iterator[Path]:
    for metric in plan.per_sample:
        yield from (plan.layout.part(metric.name, part.number) for part in plan.parts)
        yield plan.layout.values(metric.name)
        yield plan.layout.order(metric.name)
        yield plan.layout.distribution(metric.name)
        yield from plan.layout.buckets(metric.name).glob("*/*.parquet")
    yield from (plan.layout.total(metric.name) for metric in plan.totals)


def _tidy(root: Path, committed: Manifest) -> None:
    """Remove what a run that was killed after its commit left, unless another run is at work."""
    layout = committed.layout(root)
    if not layout.lock.exists() and not _unlisted(root, committed):
        return
    try:
        with lock.writing(layout.lock):
            if manifest.load(root) == committed:
                _remove_unlisted(root, committed)
    except (IndexLockedError, StorageError) as error:
        logger.info("left as it is: %s", error)


def _remove_unlisted(root: Path, committed: Manifest) -> None:
    """Remove what earlier generations and unfinished runs left; the index does not name it."""
    for path in _unlisted(root, committed):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _unlisted(root: Path, committed: Manifest) -> list[Path]:
    """Return the files and folders of this generation and of earlier ones that are no part of the index.

    A later generation is an overwriting run that was interrupted and may go on.
    """
    current = committed.layout(root)
    listed = {root / name for name in committed.files}
    needed = listed | {folder for path in listed for folder in path.parents}
    older = [path for number in range(2, committed.generation) if (path := Layout(root, number).data).exists()]
    drafts = [*root.glob(f".{current.manifest.name}.*{storage.TEMPORARY}"), *current.data.glob(current.plan.name)]
    data = {folder / name for folder in (root, current.data) for name in ("metrics", "totals")}
    found = [path for folder in data if folder.exists() for path in (folder, *folder.rglob("*"))]
    return [*older, *drafts, *(path for path in found if path not in needed)]
