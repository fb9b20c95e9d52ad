"""Read the `.bin`/`.idx` files of DeepSpeed's data analyzer into an index."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from arrowds.errors import ConfigError, SourceError, UnreadableFileError
from arrowds.index import Index
from arrowds.indexed_dataset import IndexedDataset, is_indexed_dataset
from arrowds.integrations.deepspeed.stored_values import index_stored_values

logger = logging.getLogger(__name__)

_Array = npt.NDArray[np.generic]


def import_index(
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    metrics: Sequence[str] | None = None,
    num_samples: int | None = None,
    workers: int | None = None,
    overwrite: bool = False,
) -> Index:
    """Read what DeepSpeed's ``DataAnalyzer`` or ``DistributedDataAnalyzer`` wrote into an index.

    A metric needs its ``index_to_metric`` and ``index_to_sample`` files or its ``sample_to_metric`` file, a total its
    ``metric_value`` file; the other files are not read. Files written before DeepSpeed renumbered its types are told
    apart by their size. If both kinds of a metric exist and disagree, as after a run with ``sample_indices``, the
    sample ids of ``index_to_sample`` count.

    Args:
        folder: DeepSpeed's ``save_path``, which has a folder for each metric, or one of these folders.
        path: folder of the new index.
        metrics: names of the metrics and totals to read; by default all.
        num_samples: number of samples; needed only if the folder has totals only.
        workers: number of processes, as in ``arrowds.analyze``.
        overwrite: replace an existing index.

    Raises:
        UnreadableFileError: for files that are missing, truncated or of another kind, and sample ids that are not the
            numbers from 0 on, each once.
        SourceError: when ``folder`` has no metric, or its metrics have different numbers of samples.
        ConfigError: for an unknown metric, or a missing or wrong ``num_samples``.

    >>> import tempfile, arrowds, pyarrow as pa, polars as pl
    >>> from arrowds.integrations import deepspeed as ads
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = pa.table({"n": [3, 1, 3]})
    ...     index = arrowds.analyze(table, [arrowds.metrics.expr("n", pl.col("n"))], f"{folder}/index")
    ...     ads.export_index(index, f"{folder}/deepspeed")
    ...     import_index(f"{folder}/deepspeed", f"{folder}/again")["n"].values.tolist()
    [3, 1, 3]
    """
    prefixes = _find_metrics(Path(folder))
    names = sorted(prefixes) if metrics is None else list(metrics)
    if unknown := [name for name in names if name not in prefixes]:
        raise ConfigError(f"{folder} has no metric {unknown[0]!r}; it has {', '.join(sorted(prefixes)) or 'none'}")
    if not names:
        raise SourceError(
            f"{folder} contains no metric of DeepSpeed's analyzer: expected NAME/NAME_index_to_sample.idx, "
            "NAME/NAME_sample_to_metric.idx or NAME/NAME_metric_value.idx"
        )
    totals = {name: _read_total(prefixes[name]) for name in names if _has(prefixes[name], "metric_value")}
    values = {name: _read_metric(prefixes[name]) for name in names if name not in totals}
    columns = {name: pa.array(column) for name, column in values.items()}
    length = _agreed_length(values, num_samples, folder)
    return index_stored_values(columns, totals, path, num_samples=length, workers=workers, overwrite=overwrite)


def _find_metrics(folder: Path) -> dict[str, Path]:
    """Return the prefix of the files of every metric, by name."""
    if not folder.is_dir():
        raise UnreadableFileError(f"{folder} is not a folder")
    candidates = {
        path.name: path / path.name for path in (folder.resolve(), *sorted(folder.iterdir())) if path.is_dir()
    }
    return {name: prefix for name, prefix in candidates.items() if any(_has(prefix, kind) for kind in _KINDS)}


_KINDS = ("metric_value", "index_to_sample", "index_to_metric", "sample_to_metric")


def _pair(prefix: Path, kind: str) -> Path:
    return prefix.with_name(f"{prefix.name}_{kind}")


def _has(prefix: Path, kind: str) -> bool:
    """Return whether one file of a pair exists; if the other is missing, opening it raises."""
    pair = _pair(prefix, kind)
    return any(pair.with_name(pair.name + suffix).exists() for suffix in (".idx", ".bin"))


def open_analyzer_file(path: str | os.PathLike[str]) -> IndexedDataset:
    """Open one pair of the analyzer's files, in today's numbering of types or, where its size tells, the older one.

    Args:
        path: of the pair, without ``.bin`` and ``.idx``.

    Raises:
        UnreadableFileError: when they are missing, truncated or something else.
    """
    try:
        return IndexedDataset.open(path, "deepspeed")
    except UnreadableFileError as error:
        if not is_indexed_dataset(path):
            raise
        try:
            return IndexedDataset.open(path, "deepspeed-legacy")
        except UnreadableFileError:
            raise error from None


def _read_total(prefix: Path) -> _Array:
    rows = open_analyzer_file(_pair(prefix, "metric_value"))
    if len(rows) != 1:
        raise UnreadableFileError(f"{_pair(prefix, 'metric_value')}.idx has {len(rows)} rows; a total has one")
    return _native(rows.tokens)


def _read_metric(prefix: Path) -> _Array:
    """Return a metric's values in the order of the sample ids."""
    if not (_has(prefix, "index_to_sample") or _has(prefix, "index_to_metric")):
        return _read_column(prefix, "sample_to_metric")
    by_value = _read_lists(prefix)
    if _has(prefix, "sample_to_metric") and not np.array_equal(_read_column(prefix, "sample_to_metric"), by_value):
        logger.warning(
            "%s: sample_to_metric is in another order than the sample ids, as DeepSpeed writes it where ids are "
            "remapped; the values are taken from index_to_metric and index_to_sample",
            prefix.parent,
        )
    return by_value


def _read_column(prefix: Path, kind: str) -> _Array:
    rows = open_analyzer_file(_pair(prefix, kind))
    if (wrong := np.flatnonzero(rows.sizes != 1)).size:
        raise UnreadableFileError(
            f"{_pair(prefix, kind)}.idx: row {wrong[0]} has {rows.sizes[wrong[0]]} values instead of one"
        )
    return _native(rows.tokens)


def _read_lists(prefix: Path) -> _Array:
    """Scatter each distinct value to its samples."""
    samples = open_analyzer_file(_pair(prefix, "index_to_sample"))
    distinct = _read_column(prefix, "index_to_metric")
    if len(samples) != len(distinct):
        raise UnreadableFileError(
            f"{prefix}: index_to_sample has {len(samples)} rows and index_to_metric {len(distinct)}; "
            "these files do not match"
        )
    ids = _native(samples.tokens)
    _check_ids(ids, prefix)
    values = np.empty(len(ids), distinct.dtype)
    values[ids] = np.repeat(distinct, samples.sizes)
    return values


def _check_ids(ids: _Array, prefix: Path) -> None:
    where = f"{_pair(prefix, 'index_to_sample')}.bin"
    if ids.dtype.kind not in "iu":
        raise UnreadableFileError(f"{where} holds {ids.dtype} instead of sample ids")
    if ids.size and (ids.min() < 0 or ids.max() >= len(ids)):
        bad = ids.min() if ids.min() < 0 else ids.max()
        raise UnreadableFileError(
            f"{where} has {len(ids)} sample ids, so they should end at {len(ids) - 1}; found {bad}"
        )
    seen = np.zeros(len(ids), bool)
    seen[ids] = True
    if not seen.all():
        raise UnreadableFileError(f"{where}: sample {int(np.argmin(seen))} is missing and another occurs twice")


def _native(values: _Array) -> _Array:
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _agreed_length(values: Mapping[str, _Array], num_samples: int | None, folder: str | os.PathLike[str]) -> int:
    """Return the number of samples that all metrics have."""
    lengths = {name: len(column) for name, column in values.items()}
    if not lengths and num_samples is None:
        raise ConfigError(f"{folder} holds totals only, which do not tell the number of samples; pass num_samples")
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise SourceError(
            f"the metrics in {folder} have different numbers of samples ({listed}); choose with metrics=[...]"
        )
    length = next(iter(lengths.values()), num_samples)
    if num_samples not in (None, length):
        raise ConfigError(f"num_samples is {num_samples}, but the metrics in {folder} have {length} samples")
    return int(length or 0)
