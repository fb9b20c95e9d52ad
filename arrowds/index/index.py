"""Open an index: its metrics and totals by name. No sampling, no SQL.

Nothing but the manifest is read until a metric is used: an index is cheap to open, to pickle and to carry over a fork.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from arrowds.errors import IndexCorruptError, UnknownMetricError, VersionNotFoundError
from arrowds.index import manifest as manifests
from arrowds.index.cache import HostCache
from arrowds.index.manifest import Manifest
from arrowds.index.metric import MetricIndex
from arrowds.index.totals import read_total, sum_of_segments
from arrowds.index.view import View, ViewSpec, find_view, open_view
from arrowds.parallel import computed_once
from arrowds.store import LocalStore, Store, open_store

if TYPE_CHECKING:
    import duckdb
    import polars as pl

    from arrowds.index.data import DataRows

_MOST_SAMPLES_AT_A_GLANCE = 1 << 24
"""A notebook shows quantiles of larger indexes only where they have memory maps: making these would take too long."""


def open_index(
    path: str | PathLike[str],
    *,
    version: int | None = None,
    verify: bool = False,
    cache_dir: str | PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Index:
    """Open a snapshot of an index; this takes milliseconds, whatever its size.

    Args:
        path: the folder or URL that ``arrowds.analyze`` wrote.
        version: which snapshot; by default the newest. It stays what it is while newer ones are committed.
        verify: read every file and compare its digest with the manifest. Without it, only the sizes are compared; those
            of an index in an object store when a file is read.
        cache_dir: where this host keeps the memory maps of an index in an object store, or on a disk that can't be
            written; by default ``ARROWDS_CACHE_DIR``, else ``arrowds`` in the user's cache folder. They take at most
            half of the disk, or ``ARROWDS_CACHE_LIMIT`` (such as "200GB"); the least recently used leave first.
        storage_options: for a URL, keys such as ``aws_endpoint_url``; see :func:`arrowds.store.open_store`.

    Raises:
        IndexNotFoundError: when there is no finished index.
        VersionNotFoundError: when that version was vacuumed, or never existed.
        IndexVersionError: when a newer arrowds wrote it.
        IndexCorruptError: naming every file that is missing or has another size (or other content, with ``verify``).

    >>> import arrowds, polars as pl, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data = pl.DataFrame({"text": ["to be", "or", "not to be"]})
    ...     metric = arrowds.metrics.expr("n_chars", pl.col("text").str.len_chars())
    ...     _ = arrowds.analyze(data, metric, folder)
    ...     index = open_index(folder)
    ...     index.metrics, index["n_chars"][2].item(), index["n_chars"].sample_ids(up_to=5).tolist()
    (['n_chars'], 9, [1, 0])
    """
    store = open_store(path, storage_options)
    index = Index(store, manifests.load(store, version), None if cache_dir is None else Path(cache_dir))
    if verify:
        index.verify()
    elif isinstance(store, LocalStore):
        manifests.check_sizes(store, index.manifest.files)
    return index


class Index:
    """An open snapshot of an index: per-sample metrics by name, and totals. Made by :func:`open_index`.

    Pickling keeps the path and the version; the snapshot is opened again where it is unpickled, and must be the same.
    """

    def __init__(self, store: Store, manifest: Manifest, cache_dir: Path | None = None) -> None:
        self.store = store
        self.manifest = manifest
        self.totals: Mapping[str, np.ndarray] = Totals(store, manifest)
        self._cache_dir = cache_dir
        self._metrics: dict[str, MetricIndex] = {}

    @property
    def path(self) -> Any:
        """The folder of the index (a ``Path``), or its URL (a string)."""
        return self.store.root if isinstance(self.store, LocalStore) else self.store.url

    @property
    def version(self) -> int:
        """The number of this snapshot."""
        return self.manifest.version

    @property
    def num_samples(self) -> int:
        """How many samples the dataset has."""
        return self.manifest.num_samples

    def __len__(self) -> int:
        return self.manifest.num_samples

    @property
    def metrics(self) -> list[str]:
        """The names of the per-sample metrics."""
        return list(self.manifest.metrics)

    @computed_once
    def fingerprint(self) -> str:
        """A digest (32 hexadecimal digits) of the data and of every metric's values; compaction does not change it."""
        return self.manifest.fingerprint()

    def fingerprint_of(self, metrics: Iterable[str]) -> str:
        """Return a digest of the data and of the values of some metrics: it stays the same when others are added."""
        return self.manifest.fingerprint(metrics)

    def had_fingerprint(self, version: int, fingerprint: str, metrics: Iterable[str]) -> bool | None:
        """Tell whether a version of this index had this fingerprint of some metrics; None where it was vacuumed."""
        if version not in manifests.numbers(self.store):
            return False
        then = manifests.load_unless_vacuumed(self.store, version)
        return (
            None if then is None else then.metrics.keys() >= set(metrics) and then.fingerprint(metrics) == fingerprint
        )

    def __getitem__(self, name: str) -> MetricIndex:
        if name not in self._metrics:
            if name not in self.manifest.metrics:
                raise UnknownMetricError(self._unknown(name))
            self._metrics[name] = MetricIndex(self, name)
        return self._metrics[name]

    def _unknown(self, name: object) -> str:
        if name in self.manifest.totals:
            return f"{name!r} is a total, not a per-sample metric; read it with index.totals[{name!r}]"
        return f"the index {self.path} has no metric {name!r}; it has {_listed(self.manifest.metrics)}"

    def __contains__(self, name: object) -> bool:
        return name in self.manifest.metrics

    def __iter__(self) -> Iterator[str]:
        return iter(self.manifest.metrics)

    def __repr__(self) -> str:
        totals = f", totals={list(self.manifest.totals)}" if self.manifest.totals else ""
        return f"Index({str(self.path)!r}, num_samples={self.num_samples}, metrics={self.metrics}{totals})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: quantiles as well, where they need no memory maps of a large index."""
        from arrowds.index import notebook

        totals = f"; totals: {_listed(self.manifest.totals)}" if self.manifest.totals else ""
        title = f"{self.path}: version {self.version}, {self.num_samples:,} samples{totals}"
        small = self.num_samples <= _MOST_SAMPLES_AT_A_GLANCE
        quick = [small or self._found_view(self[name].spec) is not None for name in self]
        levels = [notebook.levels_of if at_once else notebook.ends_of for at_once in quick]
        rows = [(self[name], describe(self[name])) for name, describe in zip(self, levels, strict=True)]
        return notebook.metrics_table(title, rows)

    def __reduce__(self) -> tuple[Callable[..., Index], tuple[Store, int, str, Path | None]]:
        return _reopened, (self.store, self.version, self.manifest.xxh3, self._cache_dir)

    def verify(self) -> None:
        """Read every file of this snapshot and compare it with the manifest, the memory maps of this host as well.

        Raises:
            IndexCorruptError: naming every file that is missing, truncated or changed.
        """
        manifests.check_digests(self.store, self.manifest.files, self._view_faults())

    def _view_faults(self) -> list[str]:
        views = (self._found_view(self[name].spec) for name in self)
        return [fault for view in views if view is not None for fault in view.faults()]

    def open_view(self, spec: ViewSpec) -> View:
        """Return the memory maps of a metric: those that this host has, or new ones."""
        beside = self._beside
        if beside is not None and (found := find_view(beside, spec)) is not None:
            return found  # nothing is noted of its use: an index that is read stays as it is
        cached = find_view(self._cache.folder(self.store.url), spec)
        if cached is not None and cached.hold():
            return cached
        try:
            if beside is not None and _is_writable(beside):
                return open_view(beside, spec)
            return open_view(self._cache.folder(self.store.url), spec, self._cache)
        except IndexCorruptError:
            manifests.load(self.store, self.version)  # says so where this version was vacuumed since it was opened
            raise

    def reads_in_place(self, spec: ViewSpec) -> bool:
        """Whether lookups should read the index's own files, as this host has no maps of them yet."""
        return not isinstance(self.store, LocalStore) and self._found_view(spec) is None

    def _found_view(self, spec: ViewSpec) -> View | None:
        beside = None if self._beside is None else find_view(self._beside, spec)
        return beside or find_view(self._cache.folder(self.store.url), spec)

    @property
    def _beside(self) -> Path | None:
        """The folder of a local index, where its memory maps are, unless they are to be elsewhere."""
        return self.store.root if isinstance(self.store, LocalStore) and self._cache_dir is None else None

    @computed_once
    def _cache(self) -> HostCache:
        return HostCache.at(self._cache_dir)

    def scan(self) -> pl.LazyFrame:
        """Return ``sample_id`` and a column per metric, lazily; see :func:`arrowds.index.query.scan`."""
        from arrowds.index import query

        return query.scan(self)

    @computed_once
    def data_rows(self) -> DataRows:
        """The rows of the samples, opened where they lie; see :class:`arrowds.index.data.DataRows`."""
        from arrowds.index.data import DataRows

        return DataRows(self.store, self.manifest)

    def samples(self, ids: npt.ArrayLike, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """Return the rows of the data that some samples are, in the order of ``ids``.

        They are read from the files that the index has recorded.

        Args:
            ids: any number of sample ids, in any order, also several times.
            columns: which columns, by default all.

        Raises:
            ConfigError: for an id that the index does not have.
            SourceError: when the data did not come from files, or has no such column.
            UnreadableFileError: when a file is missing, or is not what was indexed.

        >>> import arrowds, polars as pl, tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = pathlib.Path(folder, "data.parquet")
        ...     pl.DataFrame({"text": ["to be", "or", "not to be"]}).write_parquet(path)
        ...     metric = arrowds.metrics.expr("n_chars", pl.col("text").str.len_chars())
        ...     index = arrowds.analyze(path, metric, f"{folder}/index")
        ...     index.samples(index["n_chars"].sample_ids(above=4))["text"].to_list()
        ['to be', 'not to be']
        """
        return self.data_rows.take(ids, columns)

    def head(
        self,
        n: int = 20,
        *,
        metric: str | None = None,
        between: tuple[float, float] | None = None,
        largest: bool = False,
        where: str | None = None,
        columns: Sequence[str] | None = None,
    ) -> pl.DataFrame:
        """Return some samples with their values and their rows of the data; see :func:`arrowds.index.looking.head`."""
        from arrowds.index import looking

        return looking.head(self, n, metric=metric, between=between, largest=largest, where=where, columns=columns)

    def scan_data(self) -> pl.LazyFrame:
        """Return ``sample_id`` and the columns of the data, lazily; see :func:`arrowds.index.data.scan_data`."""
        from arrowds.index import data

        return data.scan_data(self.data_rows)

    def connect(self) -> duckdb.DuckDBPyConnection:
        """Return a DuckDB connection with ``samples`` and ``data``; see :func:`arrowds.index.query.connect`."""
        from arrowds.index import query

        return query.connect(self)

    def sql(self, statement: str, *, allow_files: bool = False) -> pl.DataFrame:
        """Answer a DuckDB query over the views ``samples`` and ``data``; see :func:`arrowds.index.query.sql`."""
        from arrowds.index import query

        return query.sql(self, statement, allow_files=allow_files)


def _reopened(store: Store, version: int, digest: str, cache_dir: Path | None) -> Index:
    manifest = manifests.load(store, version)
    if manifest.xxh3 != digest:
        raise VersionNotFoundError(
            f"version {version} of {store.url} is of another index than the one that was pickled; open the index again"
        )
    return Index(store, manifest, cache_dir)


def _is_writable(root: Path) -> bool:
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    return os.access(existing, os.W_OK)


class Totals(Mapping[str, np.ndarray]):
    """The accumulated metrics of an index by name: read-only arrays, read when they are first asked for."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store = store
        self._manifest = manifest
        self._arrays: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            if name not in self._manifest.totals:
                known = _listed(self._manifest.totals)
                raise UnknownMetricError(f"the index {self._store.url} has no total {name!r}; it has {known}")
            self._arrays[name] = self._sum(name)
        return self._arrays[name]

    def _sum(self, name: str) -> np.ndarray:
        parts = (read_total(self._store, name, segment.totals[name]) for segment in self._manifest.segments)
        return sum_of_segments(name, parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._manifest.totals)

    def __len__(self) -> int:
        return len(self._manifest.totals)

    def __repr__(self) -> str:
        return f"Totals({list(self)})"


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(names) if names else "none"
