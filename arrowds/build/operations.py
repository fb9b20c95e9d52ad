"""What each operation on an index sets out to do: which rows become segments, with which metrics."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from arrowds.batch import as_arrow
from arrowds.build.lineage import definitions
from arrowds.build.plan import (
    MOST_SEGMENT_ROWS,
    BuildPlan,
    Operation,
    SegmentPlan,
    checked_metrics,
    cut_parts,
    cut_segments,
    rows_per_part,
    with_required,
)
from arrowds.errors import ArrowdsWarning, IndexExistsError, MetricError, SourceError
from arrowds.index import manifest as manifests
from arrowds.index import paths
from arrowds.index.data import source_files
from arrowds.index.manifest import Manifest
from arrowds.index.totals import read_total
from arrowds.metrics import Metric, Values, from_spec
from arrowds.sources.base import Source
from arrowds.sources.opening import open_new_files
from arrowds.sources.tables import TableSource
from arrowds.store import LocalStore, Store


def plan_analysis(
    store: Store, source: Source, metrics: Metric | Iterable[Metric], *, overwrite: bool
) -> BuildPlan | Manifest:
    """Plan to measure a whole dataset; or return the newest snapshot where it is just that already.

    Raises:
        EmptyDatasetError: when the source has no rows.
        IndexExistsError: when the folder is not empty and not an index, or holds an index of other data or metrics.
        MetricError, MissingColumnError: when the metrics are wrong, or do not fit the source.
    """
    refuse_foreign(store)
    wanted = checked_metrics(source, metrics)
    base = manifests.latest(store)
    if base is not None and not overwrite:
        _refuse_other(store, base, source, wanted)
        return base
    return _plan_segments(store, "analyze", source, wanted, basis={}, overwrite=overwrite)


def plan_append(
    store: Store,
    base: Manifest,
    source: Any,
    metrics: Metric | Iterable[Metric] | None,
    *,
    compare_content: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> BuildPlan | Manifest:
    """Plan to add the rows of a source that an index does not have; or return its snapshot where it has all.

    Raises:
        MetricError: when a metric can't be rebuilt and is not given, or is given with another definition.
        SourceError: when a file that the index has was changed or is missing.
    """
    known = source_files(store, base)
    opened = open_new_files(source, known, compare_content=compare_content, storage_options=storage_options)
    if opened is None:
        return base
    _warn_of_given(store, base)
    base = base.without_given()
    wanted = checked_metrics(opened, metrics_of(base, metrics))
    basis = {
        name: read_total(store, name, item.total)
        for entry in base.metrics.values()
        for name, item in entry.basis.items()
    }
    return _plan_segments(store, "append", opened, wanted, basis=basis)


def _warn_of_given(store: Store, base: Manifest) -> None:
    """Warn of the metrics whose values were handed over, which an append leaves out.

    Raises:
        MetricError: when there are no others.
    """
    given = [name for name, entry in base.metrics.items() if entry.is_given]
    if given and len(given) == len(base.metrics):
        raise MetricError(f"{store.url} has only metrics whose values were handed over; analyze all of the data again")
    if given:
        warnings.warn(
            f"{', '.join(given)} can't be measured of more samples, so the new version of {store.url} is without; "
            "find duplicates again (arrowds.find_duplicates), or hand over values of all samples (arrowds.add_values)",
            ArrowdsWarning,
            stacklevel=2,
        )


def plan_more_metrics(
    store: Store, base: Manifest, source: Source, metrics: Metric | Iterable[Metric], *, refresh: bool
) -> BuildPlan | Manifest:
    """Plan to measure more metrics of the samples of an index; or return its snapshot where it has all of them.

    Raises:
        IndexExistsError: when the index has a metric of that name, without ``refresh``.
        SourceError: when the source is not the data of the index.
    """
    wanted = checked_metrics(source, metrics)
    _check_same_data(store, base, source)
    return _plan_columns(store, base, source, wanted, refresh=refresh)


def plan_values(store: Store, base: Manifest, values: Mapping[str, Any], *, refresh: bool) -> BuildPlan | Manifest:
    """Plan to add values that were computed elsewhere; or return the snapshot where it has just these.

    Raises:
        IndexExistsError: when the index has a metric of that name, without ``refresh``.
        MetricError: when there are none, or not one for each sample.
    """
    if not values:
        raise MetricError("there are no values to add; pass a dict of names and arrays")
    columns = {name: as_arrow(given) for name, given in values.items()}
    for name, column in columns.items():
        if len(column) != base.num_samples:
            raise MetricError(f"got {len(column)} values of {name!r}, but {store.url} has {base.num_samples} samples")
    source = TableSource(pa.table(columns))
    digests = {name: TableSource(pa.table({name: column})).fingerprint() for name, column in columns.items()}
    wanted = [Values(name=name, column=name, nulls="keep", digest=digest) for name, digest in digests.items()]
    if all(definitions(base).get(metric.name) == metric.definition() for metric in wanted):
        return base
    return _plan_columns(store, base, source, checked_metrics(source, wanted), refresh=refresh)


def _plan_columns(
    store: Store, base: Manifest, source: Source, metrics: Sequence[Metric], *, refresh: bool
) -> BuildPlan | Manifest:
    """Plan to measure metrics of a source that has a row for each sample of an index."""
    known = definitions(base)
    taken = [metric.name for metric in metrics if metric.name in known]
    if taken and not refresh:
        if all(known.get(metric.name) == metric.definition() for metric in metrics):
            return base
        raise IndexExistsError(
            f"{store.url} has {', '.join(taken)} already; choose other names, or pass refresh=True to measure them anew"
        )
    bounds = [*base.first_ids, base.num_samples]
    segments = tuple(
        SegmentPlan(number, start, stop, segment.fingerprint, segment.pieces)
        for number, (segment, (start, stop)) in enumerate(zip(base.segments, pairwise(bounds), strict=True))
    )
    names = ",".join(f"{metric.name}={metric.definition()}" for metric in metrics)
    return BuildPlan(
        store=store,
        operation="add_metrics",
        key=build_key(store, "add_metrics", base.lineage, names),
        source=source,
        fingerprint=base.lineage,
        segments=segments,
        parts=cut_parts(source, bounds[1:]),
        metrics=tuple(metrics),
        basis={},
    )


def refuse_foreign(store: Store) -> None:
    """Raise IndexExistsError when a folder is not empty and is neither an index nor an unfinished one."""
    if not isinstance(store, LocalStore) or not store.root.exists():
        return
    if store.root.is_file():
        raise IndexExistsError(f"{store.url} is a file; an index needs a folder of its own")
    entries = {entry.name for entry in store.root.iterdir()}
    if entries and not entries & {paths.MANIFESTS, paths.BUILDS}:
        listed = ", ".join(sorted(entries)[:5])
        raise IndexExistsError(
            f"{store.url} is not empty and is not an arrowds index ({listed}); choose another folder"
        )


def _refuse_other(store: Store, base: Manifest, source: Source, metrics: Sequence[Metric]) -> None:
    """Raise IndexExistsError, saying what differs, unless a snapshot has just these samples and metrics."""
    wanted = {metric.name: metric.definition() for metric in metrics}
    known = definitions(base)
    if not _has_data_of(store, base, source):
        difference = (
            f"of other data: {base.segments[0].description}, {base.num_samples} samples "
            f"(this is {source.description}, {len(source)} samples)"
        )
    elif wanted != known:
        changed = sorted(name for name in wanted.keys() & known.keys() if wanted[name] != known[name])
        difference = f"with the metrics {sorted(known)}" + (
            f", of which {changed} were defined otherwise" if changed else ""
        )
    elif unknown := [metric for metric in metrics if metric.unknown]:
        difference = (
            f"with these metrics, but it can't be told whether {unknown[0].name!r} would give the same values now: its "
            f"function reaches {unknown[0].unknown}; name a version of it, metrics.function(..., version=...)"
        )
    else:
        return
    raise IndexExistsError(f"{store.url} holds an index {difference}; choose another path, or pass overwrite=True")


def _check_same_data(store: Store, base: Manifest, source: Source) -> None:
    if not _has_data_of(store, base, source):
        raise SourceError(
            f"{store.url} has {base.num_samples} samples of other data than this ({source.description}, {len(source)} "
            "samples); pass all of the data of the index, in its order"
        )


def _has_data_of(store: Store, base: Manifest, source: Source) -> bool:
    """Whether the samples of a snapshot are the rows of a source, in their order: piece by piece."""
    if len(source) != base.num_samples:
        return False
    indexed = [file.digest for file in source_files(store, base)]
    if indexed:
        return indexed == [file.digest for file in source.files]
    pieces = [piece for segment in base.segments for piece in segment.pieces]
    bounds = pairwise(accumulate((piece.num_samples for piece in pieces), initial=0))
    return all(
        piece.fingerprint in (source.fingerprint_of(start, stop), part_fingerprint(source.fingerprint(), start, stop))
        for piece, (start, stop) in zip(pieces, bounds, strict=True)
    )


def metrics_of(base: Manifest, given: Metric | Iterable[Metric] | None) -> list[Metric]:
    """Return the metrics of an index, from what it has stored and what the caller gives.

    Raises:
        MetricError: when one can't be rebuilt and is not given, is given with another definition, or is unknown.
    """
    found = {metric.name: metric for metric in (() if given is None else with_required(given))}
    known = definitions(base)
    for name, definition in known.items():
        if name in found and found[name].definition() != definition:
            raise MetricError(
                f"the index defines metric {name!r} otherwise; append with the metric that it was made with"
            )
    untold = [metric for metric in found.values() if metric.unknown]
    if untold:
        raise MetricError(
            f"it can't be told whether metric {untold[0].name!r} measures as it did before: its function reaches "
            f"{untold[0].unknown}; name a version of it, metrics.function(..., version=...)"
        )
    if unknown := sorted(found.keys() - known.keys()):
        raise MetricError(f"the index has no metric {unknown[0]!r}; measure it with arrowds.add_metrics first")
    specs = {name: entry.spec for name, entry in base.metrics.items()}
    specs |= {name: entry.spec for name, entry in base.totals.items()}
    missing = [name for name in known if name not in found and specs[name] is None]
    if missing:
        raise MetricError(
            f"the index can't rebuild {', '.join(missing)}, which only the code that made it can measure; pass "
            "metrics=[...] with the same metric"
        )
    rebuilt = [found[name] if name in found else from_spec(specs[name] or {}) for name in known]
    changed = [metric.name for metric in rebuilt if metric.definition() != known[metric.name]]
    if changed:
        raise MetricError(
            f"metric {changed[0]!r} is not what the index was made with any more: a model has changed, or Polars; "
            "restore it, or measure the metric of all samples under another name"
        )
    required = {item.name for metric in rebuilt for item in metric.requires}
    return [metric for metric in rebuilt if metric.name not in required]


def _plan_segments(
    store: Store,
    operation: Operation,
    source: Source,
    metrics: Sequence[Metric],
    *,
    basis: Mapping[str, np.ndarray],
    overwrite: bool = False,
) -> BuildPlan:
    """Plan a build that makes new segments of a source."""
    fingerprint = source.fingerprint()
    ends = cut_segments(source.part_boundaries(rows_per_part(len(source))), MOST_SEGMENT_ROWS)
    whole = len(ends) == 1
    segments = tuple(
        SegmentPlan(number, start, stop, fingerprint if whole else part_fingerprint(fingerprint, start, stop))
        for number, (start, stop) in enumerate(pairwise([0, *ends]))
    )
    return BuildPlan(
        store=store,
        operation=operation,
        key=build_key(store, operation, fingerprint, str(len(source))),
        source=source,
        fingerprint=fingerprint,
        segments=segments,
        parts=cut_parts(source, ends),
        metrics=tuple(metrics),
        basis=basis,
        overwrite=overwrite,
    )


def part_fingerprint(fingerprint: str, start: int, stop: int) -> str:
    """The fingerprint of the rows [start, stop) of a source that is longer than a segment."""
    return manifests.extended(fingerprint, str(start), str(stop))


def build_key(store: Store, operation: str, *content: str) -> str:
    """Name a build after what goes in and how many snapshots there were before it, so that no finished file is touched.

    An unfinished build of the same content is taken up again.
    """
    digest = xxhash.xxh3_64_hexdigest("|".join((operation, *content)).encode())[:12]
    unfinished = re.compile(rf"{paths.BUILDS}/({digest}-\d+)/plan\.json")
    for name in store.names(paths.BUILDS):
        if (found := unfinished.fullmatch(name)) is not None:
            return found[1]
    versions = manifests.numbers(store)
    return f"{digest}-{versions[-1] if versions else 0}"
