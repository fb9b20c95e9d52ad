"""What keeps an index tidy: compact merges segments, vacuum removes old snapshots, versions lists them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import xxhash

from arrowds.arrays import numpy_view
from arrowds.build.commit import begin, discard, has_build, publish, run_reduce, tidy
from arrowds.build.engines import Engine, engine_named
from arrowds.build.operations import build_key
from arrowds.build.plan import MOST_SEGMENT_ROWS
from arrowds.build.reduce import ColumnPlan, cuts_of, finished_column
from arrowds.build.runs import sampled_rows
from arrowds.errors import ConfigError, IndexChangedError
from arrowds.index import Index, open_index, paths
from arrowds.index import manifest as manifests
from arrowds.index.manifest import Manifest, Segment
from arrowds.index.ranges import ROWS_PER_FILE
from arrowds.index.totals import read_total, sum_of_segments, write_total
from arrowds.index.view import ViewSpec, columns_of, remove_dead_drafts, view_key
from arrowds.schema import mapped_type, numpy_dtype
from arrowds.store import TEMPORARY, LocalStore, Store, open_store


def versions(path: str | PathLike[str], *, storage_options: Mapping[str, Any] | None = None) -> pl.DataFrame:
    """Return a row for each snapshot that can be opened, newest first.

    Columns: ``version`` (int64), ``operation`` (what made it), ``num_samples`` (int64), ``num_segments`` (int64),
    ``metrics`` (list of names) and ``committed`` (when, by the clock of the disk or store; UTC).

    Raises:
        IndexNotFoundError: when there is no index.

    >>> import arrowds, pyarrow as pa, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = pa.table({"input_ids": [[1, 2], [3]]})
    ...     _ = arrowds.analyze(table, arrowds.metrics.seqlen(), folder)
    ...     _ = arrowds.append(table, folder)
    ...     versions(folder).select("version", "operation", "num_samples").rows()
    [(2, 'append', 4), (1, 'analyze', 2)]
    """
    store = open_store(path, storage_options)
    manifests.load(store)
    times = {entry.name: entry.modified for entry in store.entries(paths.MANIFESTS)}
    rows = [
        {
            "version": found.version,
            "operation": found.operation,
            "num_samples": found.num_samples,
            "num_segments": len(found.segments),
            "metrics": list(found.metrics),
            "committed": times[paths.manifest(found.version)],
        }
        for found in _snapshots(store)
    ]
    schema: dict[str, pl.DataType | type[pl.DataType]] = {
        "version": pl.Int64,
        "operation": pl.String,
        "num_samples": pl.Int64,
        "num_segments": pl.Int64,
        "metrics": pl.List(pl.String),
        "committed": pl.Datetime("us", "UTC"),
    }
    return pl.DataFrame(rows[::-1], schema=schema)


def _snapshots(store: Store) -> list[Manifest]:
    """Every snapshot that was not vacuumed, oldest first."""
    found = (manifests.load_unless_vacuumed(store, version) for version in manifests.numbers(store))
    return [manifest for manifest in found if manifest is not None]


def compact(
    path: str | PathLike[str],
    *,
    workers: int | None = None,
    engine: str | Engine = "local",
    storage_options: Mapping[str, Any] | None = None,
) -> Index:
    """Merge the segments of an index into one, and commit a snapshot that names it.

    Answers stay the same; the files become those of one analysis of all the data. The source is not read. What was
    appended meanwhile stays a segment of its own. Older snapshots can be opened until they are vacuumed.

    Args:
        path: the folder or URL of the index.
        workers: as for :func:`arrowds.analyze`.
        engine: as for :func:`arrowds.analyze`.
        storage_options: as for :func:`arrowds.analyze`.

    Returns:
        The newest snapshot, open.

    Raises:
        IndexNotFoundError: when there is no index.
        IndexChangedError: when its metrics were changed meanwhile.

    >>> import arrowds, pyarrow as pa, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = pa.table({"input_ids": [[1, 2], [3]]})
    ...     _ = arrowds.analyze(table, arrowds.metrics.seqlen(), folder)
    ...     _ = arrowds.append(table, folder)
    ...     index = compact(folder)
    ...     index.version, len(index.manifest.segments), index["seqlen"].values.tolist()
    (3, 1, [2, 1, 2, 1])
    """
    with engine_named(engine, workers) as running:
        _merge_segments(open_store(path, storage_options), running)
    return open_index(path, storage_options=storage_options)


def _merge_segments(store: Store, running: Engine) -> None:
    """Commit a snapshot with as few segments as possible, unless the newest one is that already."""
    base = manifests.load(store)
    if len(base.segments) == 1:
        running.once(partial(tidy, store, base))
        return
    key = build_key(store, "compact", *(column.key for segment in base.segments for column in segment.columns.values()))
    running.agree({"index": key})
    running.once(partial(begin, store, key, {"operation": "compact", "version": base.version}, resume=True))
    groups = _grouped(base.segments)
    columns = [[_plan_column(store, key, base, name, group) for name in base.metrics] for group in groups]
    run_reduce([column for planned in columns for column in planned], running)

    def commit() -> Manifest:
        segments = [_merged(store, key, base, group, planned) for group, planned in zip(groups, columns, strict=True)]
        files = [name for segment in segments for name in segment.files]

        def with_fewer_segments(newest: Manifest | None) -> Manifest:
            if newest is None or newest.segments[: len(base.segments)] != base.segments or newest.totals != base.totals:
                discard(store, key)
                raise IndexChangedError(f"{store.url} was changed by another run; compact it again")
            return newest.model_copy(
                update={
                    "version": newest.version + 1,
                    "operation": "compact",
                    "segments": (*segments, *newest.segments[len(base.segments) :]),
                }
            )

        return publish(store, key, files, with_fewer_segments)

    running.once(commit)


def _grouped(segments: Sequence[Segment]) -> list[list[int]]:
    """The numbers of the segments that become one: as few groups as ids of 32 bits allow."""
    groups: list[list[int]] = []
    rows = MOST_SEGMENT_ROWS
    for number, segment in enumerate(segments):
        if rows + segment.num_samples > MOST_SEGMENT_ROWS:
            groups.append([])
            rows = 0
        groups[-1].append(number)
        rows += segment.num_samples
    return groups


def _plan_column(store: Store, build: str, base: Manifest, metric: str, group: Sequence[int]) -> ColumnPlan:
    """Plan one column of the merged segment, as the map's runs of the whole would have had it planned."""
    merged = base.model_copy(update={"segments": tuple(base.segments[number] for number in group)})
    spec = ViewSpec.of(store, merged, metric)
    content = "|".join(column.column.key for column in spec.columns)
    digest = xxhash.xxh3_128_hexdigest(content.encode())
    return ColumnPlan(
        store=store,
        build=build,
        metric=metric,
        key=f"{build}.{digest[:8]}",
        rows=spec.columns,
        num_samples=spec.num_samples,
        logical=spec.logical,
        stored=spec.stored,
        nullable=base.metrics[metric].nulls == "keep",
        cuts=cuts_of(_sampled(spec), spec.num_samples),
        digest=digest,
        names=spec.names,
    )


def _sampled(spec: ViewSpec) -> np.ndarray:
    """The values of those rows that decide where buckets are cut, in the order of the rows and of the declared type."""
    kind = mapped_type(spec.logical)
    rows = sampled_rows(spec.num_samples)
    found = []
    for column in spec.columns:
        for number in range(len(column.column.values)):
            chunk = column.chunk(number)
            if rows is not None:
                first = column.first_id + number * ROWS_PER_FILE
                low, high = np.searchsorted(rows, [first, first + len(chunk)])
                chunk = chunk.take(pa.array(rows[low:high] - first))
            found.append(chunk.drop_null().cast(kind))
    return np.concatenate([numpy_view(chunk) for chunk in found]) if found else np.empty(0, numpy_dtype(kind))


def _merged(store: Store, build: str, base: Manifest, group: Sequence[int], planned: Sequence[ColumnPlan]) -> Segment:
    segments = [base.segments[number] for number in group]
    totals = {
        name: write_total(
            store,
            name,
            f"{build}.{group[0]}",
            sum_of_segments(name, [read_total(store, name, segment.totals[name]) for segment in segments]),
        )
        for name in base.totals
    }
    return Segment(
        description="; ".join(dict.fromkeys(segment.description for segment in segments)),
        pieces=tuple(piece for segment in segments for piece in segment.pieces),
        columns={column.metric: finished_column(column) for column in planned},
        totals=totals,
    )


def vacuum(
    path: str | PathLike[str],
    *,
    keep: int = 1,
    unfinished: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> list[int]:
    """Remove all snapshots but the newest, and every file that no snapshot that is kept needs.

    What unfinished builds have left stays, so that they can be resumed and no running one is disturbed.

    Args:
        path: the folder or URL of the index.
        keep: how many snapshots stay.
        unfinished: remove what unfinished builds have left, too; only where none is running.
        storage_options: as for :func:`arrowds.analyze`.

    Returns:
        The versions that can no longer be opened.

    Raises:
        ConfigError: when ``keep`` is below 1.
        IndexNotFoundError: when there is no index.

    >>> import arrowds, pyarrow as pa, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = pa.table({"input_ids": [[1, 2], [3]]})
    ...     _ = arrowds.analyze(table, arrowds.metrics.seqlen(), folder)
    ...     _ = arrowds.append(table, folder)
    ...     vacuum(folder), versions(folder)["version"].to_list()
    ([1], [2])
    """
    if keep < 1:
        raise ConfigError(f"keep must be at least 1; got {keep}")
    store = open_store(path, storage_options)
    manifests.load(store)
    # The files are listed first, then the builds, then the snapshots: a file of a build that starts or commits
    # meanwhile is not in the first list, or named by one of the others.
    listed = [entry.name for entry in store.entries("")]
    builds = {name.split("/")[1] for name in store.names(paths.BUILDS) if name.endswith("/plan.json")}
    snapshots = _snapshots(store)
    old, kept = snapshots[:-keep], snapshots[-keep:]
    for manifest in old:
        manifests.retire(store, manifest.version)
    named = {name for manifest in kept for name in manifest.files}
    views = {
        paths.view(name, view_key(columns_of(store, manifest, name))) for manifest in kept for name in manifest.metrics
    }
    finished = {build for build in builds if any(has_build(manifest, build) for manifest in snapshots)}
    for build in finished:
        discard(store, build)  # it was killed between its commit and the end
    running = set() if unfinished else builds - finished
    store.delete(name for name in listed if name not in named and not _is_needed(name, views, running))
    if isinstance(store, LocalStore):
        remove_dead_drafts(store.root)
    return [manifest.version for manifest in old]


def _is_needed(name: str, views: set[str], running: Any) -> bool:
    """Whether a file that no snapshot names belongs to a view that is used, or to a build that may be running."""
    folders = name.split("/")
    if folders[0] == paths.MANIFESTS:
        return not name.endswith(TEMPORARY)  # a writer that is alive makes another draft
    if folders[0] == paths.VIEWS:
        return "/".join(folders[:2]) in views or (folders[1].startswith(".") and not folders[1].endswith(".old"))
    if folders[0] not in (paths.METRICS, paths.TOTALS, paths.SOURCES, paths.BUILDS):
        return True
    return any(build in name for build in running)
