"""Open an index: its metrics and totals by name. No sampling, no SQL.

Nothing but the manifest is read until a metric is used: an index is cheap to open, to pickle and to carry over a fork.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from arrowds.errors import IndexCorruptError, IndexReplacedError, UnknownMetricError, UnsupportedError
from arrowds.index import files as storage
from arrowds.index import manifest as manifests
from arrowds.index.manifest import Manifest
from arrowds.index.metric import MetricIndex
from arrowds.schema import VALUE, numpy_dtype

if TYPE_CHECKING:
    import duckdb
    import polars as pl


def open_index(
    path: str | PathLike[str], *, verify: bool = False, cache_dir: str | PathLike[str] | None = None
) -> Index:
    """Open the index in a folder; this takes milliseconds, whatever its size.

    Args:
        path: the folder that ``arrowds.analyze`` wrote.
        verify: read every file and compare its digest with the manifest. Without it, only the sizes are compared.
        cache_dir: where to keep local copies of a remote index; a local index needs none.

    Raises:
        IndexNotFoundError: when there is no finished index.
        IndexVersionError: when a newer arrowds wrote it.
        IndexCorruptError: naming every file that is missing or has another size (or other content, with ``verify``).
        UnsupportedError: for a URL.

    >>> import arrowds, polars as pl, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data = pl.DataFrame({"text": ["to be", "or", "not to be"]})
    ...     metric = arrowds.metrics.expr("n_chars", pl.col("text").str.len_chars())
    ...     _ = arrowds.analyze(data, metric, folder)
    ...     index = open_index(folder)
    ...     index.metrics, index["n_chars"][2].item(), index["n_chars"].sample_ids(up_to=5).tolist()
    (['n_chars'], 9, [1, 0])
    """
    if "://" in str(path):
        raise UnsupportedError(f"{path}: this version opens local folders only; copy the index to a local disk first")
    root = Path(path).expanduser().absolute()
    manifest = manifests.load(root)
    _check_complete(root, manifest)
    try:
        (manifests.check_digests if verify else manifests.check_sizes)(root, manifest.files)
    except IndexReplacedError:
        return open_index(root, verify=verify)
    return Index(root, manifest)


def _check_complete(root: Path, manifest: Manifest) -> None:
    layout = manifest.layout(root)
    needed = [path(name) for name in manifest.metrics for path in (layout.values, layout.order, layout.distribution)]
    needed += [layout.total(name) for name in manifest.totals]
    missing = [key for key in map(layout.relative, needed) if key not in manifest.files]
    if missing:
        raise IndexCorruptError(f"{layout.manifest} does not list {', '.join(missing)}; analyze the dataset again")


class Index:
    """An open index: per-sample metrics by name, and totals. Made by :func:`open_index`.

    Pickling keeps the path; the index is opened again where it is unpickled.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.totals: Mapping[str, np.ndarray] = Totals(path, manifest)
        self._metrics: dict[str, MetricIndex] = {}

    @property
    def num_samples(self) -> int:
        """How many samples the dataset has."""
        return self.manifest.dataset.num_samples

    @property
    def metrics(self) -> list[str]:
        """The names of the per-sample metrics."""
        return list(self.manifest.metrics)

    @cached_property
    def fingerprint(self) -> str:
        """A digest (32 hexadecimal digits) of the dataset and of every metric's values."""
        return self.manifest.fingerprint

    def __getitem__(self, name: str) -> MetricIndex:
        if name not in self._metrics:
            if name not in self.manifest.metrics:
                raise UnknownMetricError(self._unknown(name))
            self._metrics[name] = MetricIndex(self.path, self.manifest, name)
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

    def __reduce__(self) -> tuple[Callable[[Path], Index], tuple[Path]]:
        return open_index, (self.path,)

    def verify(self) -> None:
        """Read every file and compare it with the manifest.

        Raises:
            IndexCorruptError: naming every file that is missing, truncated or changed.
        """
        manifests.check_digests(self.path, self.manifest.files)

    def scan(self) -> pl.LazyFrame:
        """Return ``sample_id`` and a column per metric, lazily; see :func:`arrowds.index.query.scan`."""
        from arrowds.index import query

        return query.scan(self)

    def connect(self) -> duckdb.DuckDBPyConnection:
        """Return a DuckDB connection with the view ``samples``; see :func:`arrowds.index.query.connect`."""
        from arrowds.index import query

        return query.connect(self)

    def sql(self, statement: str) -> pl.DataFrame:
        """Answer a DuckDB query over the view ``samples``; see :func:`arrowds.index.query.sql`."""
        from arrowds.index import query

        return query.sql(self, statement)


class Totals(Mapping[str, np.ndarray]):
    """The accumulated metrics of an index by name: read-only arrays, read when they are first asked for."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self._path = path
        self._manifest = manifest
        self._arrays: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            if name not in self._manifest.totals:
                known = _listed(self._manifest.totals)
                raise UnknownMetricError(f"the index {self._path} has no total {name!r}; it has {known}")
            self._arrays[name] = self._read(name)
        return self._arrays[name]

    def _read(self, name: str) -> np.ndarray:
        entry = self._manifest.totals[name]
        path = self._manifest.layout(self._path).total(name)
        column = storage.read_parquet(path, columns=[VALUE]).column(VALUE)
        if len(column) != math.prod(entry.shape):
            raise IndexCorruptError(f"{path} has {len(column)} values, not the shape {entry.shape} of the manifest")
        array: np.ndarray = column.to_numpy().astype(numpy_dtype(pa.type_for_alias(entry.type))).reshape(entry.shape)
        array.flags.writeable = False
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._manifest.totals)

    def __len__(self) -> int:
        return len(self._manifest.totals)

    def __repr__(self) -> str:
        return f"Totals({list(self)})"


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(names) if names else "none"
