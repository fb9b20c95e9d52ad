"""Write an index as the `.bin`/`.idx` files of DeepSpeed's data analyzer, byte for byte."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from arrowds.errors import ConfigError, UnsupportedError
from arrowds.index import Index
from arrowds.index.metric import MetricIndex
from arrowds.indexed_dataset import write_indexed_dataset
from arrowds.schema import COUNT, VALUE, narrowed, numpy_dtype

_CHUNK = 1 << 22
_Integers = npt.NDArray[np.integer]


@dataclass(frozen=True, kw_only=True, slots=True)
class AnalyzerRun:
    """The run of DeepSpeed's analyzer whose files are reproduced.

    The counts only change the document index at the end of the `.idx` files, where DeepSpeed leaves a mark for each
    process of its reduce. No reader of these files uses it.
    """

    num_workers: int = 1
    num_threads: int = 1
    num_threads_reduce: int = 1

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1; got {getattr(self, name)}")


def export_index(
    index: Index,
    folder: str | os.PathLike[str],
    *,
    metrics: Sequence[str] | None = None,
    like: AnalyzerRun | None = None,
) -> None:
    """Write the files that DeepSpeed's ``DataAnalyzer`` writes for the same data, so that its sampler reads them.

    A per-sample metric ``m`` becomes ``m/m_sample_to_metric``, ``m_index_to_metric``, ``m_index_to_sample`` and
    ``m_index_to_sample_percentile_merged``, a total ``m/m_metric_value``: each a `.bin` and an `.idx` file.
    Values and ids are stored as the smallest integers that hold them, bools as 0 and 1. Existing files are replaced.

    Args:
        index: an open index.
        folder: where to write; DeepSpeed's ``save_path``.
        metrics: names of the metrics and totals to write; by default all.
        like: the run of DeepSpeed's analyzer to reproduce, down to the document marks; by default one process.

    Raises:
        ConfigError: for a name that the index does not have.
        UnsupportedError: for floats, for samples without a value, and for more than 2^31 - 1 samples of one value:
            the files can't express them. Nothing is written then.
        StorageError: when writing fails.

    >>> import tempfile, arrowds, pyarrow as pa, polars as pl
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     table = pa.table({"n": [3, 1, 3]})
    ...     index = arrowds.analyze(table, [arrowds.metrics.expr("n", pl.col("n"))], f"{folder}/index")
    ...     export_index(index, f"{folder}/deepspeed")
    ...     sorted(path.name for path in Path(folder, "deepspeed", "n").glob("n_index_*c.*"))
    ['n_index_to_metric.bin', 'n_index_to_metric.idx']
    """
    names = [*index.metrics, *index.totals] if metrics is None else list(metrics)
    _check_expressible(index, names)
    for name in names:
        target = Path(folder) / name
        target.mkdir(parents=True, exist_ok=True)
        if name in index.totals:
            _export_total(np.asarray(index.totals[name]), target / f"{name}_metric_value")
        else:
            _export_metric(index[name], target / name, like or AnalyzerRun())


def _check_expressible(index: Index, names: Sequence[str]) -> None:
    known = {*index.metrics, *index.totals}
    if unknown := sorted(set(names) - known):
        raise ConfigError(f"the index has no metric {unknown[0]!r}; it has {', '.join(sorted(known))}")
    for name in names:
        if name in index.metrics and index[name].is_categorical:
            raise UnsupportedError(
                f"DeepSpeed's files hold numbers only, and metric {name!r} is categorical; leave it out with "
                "metrics=[...]"
            )
    floats = [name for name in names if stored_dtype(index, name).kind not in "iub"]
    if floats:
        left = [name for name in names if name not in floats]
        raise UnsupportedError(
            f"DeepSpeed's files hold integers only, but {', '.join(floats)} is of type "
            f"{stored_dtype(index, floats[0])}; leave it out with metrics={left}, or analyze an integer version of it"
        )
    for name in names:
        if name in index.metrics and (missing := index.num_samples - index[name].num_valid):
            raise UnsupportedError(
                f"metric {name!r} has no value for {missing} samples, which DeepSpeed's files can't express; "
                "leave it out with metrics=[...]"
            )


def stored_dtype(index: Index, name: str) -> np.dtype[np.generic]:
    """Return the dtype of a metric or a total of an index."""
    return np.asarray(index.totals[name]).dtype if name in index.totals else index[name].dtype


def _export_total(total: npt.NDArray[np.generic], prefix: Path) -> None:
    flat = total.reshape(-1)
    write_indexed_dataset(prefix, flat, np.array([flat.size]), dtype=fitting_integer(flat.min(), flat.max()))


def _export_metric(metric: MetricIndex, prefix: Path, like: AnalyzerRun) -> None:
    """Write the four pairs of one per-sample metric: its values, and the samples of each distinct value."""
    distribution = metric.distribution()
    distinct, counts = distribution[VALUE].to_numpy(), distribution[COUNT].to_numpy()
    value_type, id_type = fitting_integer(distinct[0], distinct[-1]), fitting_integer(0, len(metric) - 1)
    ids = metric.order
    by_value = _marks(_split(0, len(distinct), like.num_threads_reduce))
    per_percentile = np.add.reduceat(counts, np.arange(0, len(counts), max(1, len(counts) // 100)))
    pairs: Iterable[tuple[str, _Integers, _Integers, np.dtype[np.generic], _Integers | None]] = (
        ("sample_to_metric", metric.values, _ones(len(metric)), value_type, _marks(_sample_ends(len(metric), like))),
        ("index_to_metric", distinct, _ones(len(distinct)), value_type, by_value),
        ("index_to_sample", ids, counts, id_type, by_value),
        ("index_to_sample_percentile_merged", ids, per_percentile, id_type, None),
    )
    for kind, values, sizes, dtype, marks in pairs:
        write_indexed_dataset(
            prefix.with_name(f"{prefix.name}_{kind}"), _chunks(values), sizes, dtype=dtype, document_index=marks
        )


def fitting_integer(low: Any, high: Any) -> np.dtype[np.generic]:
    """Return the smallest integer type for a range of values: unsigned where none is negative."""
    return numpy_dtype(narrowed(pa.uint64() if low >= 0 else pa.int64(), int(low), int(high)))


def _ones(rows: int) -> _Integers:
    return np.broadcast_to(np.int32(1), rows)


def _chunks(values: _Integers) -> Iterator[_Integers]:
    """Cut a memory-mapped column, so that its conversion never needs more than a few MiB."""
    return (values[start : start + _CHUNK] for start in range(0, len(values), _CHUNK))


def _split(start: int, stop: int, pieces: int) -> _Integers:
    """Return the bounds of nearly equal pieces, rounded down as NumPy's linspace does; the oracle rounds likewise."""
    return np.linspace(start, stop, pieces + 1, dtype=np.int64)


def _sample_ends(num_samples: int, like: AnalyzerRun) -> _Integers:
    """Return the first sample of each process of the reduce, and the end: it merges whole map threads."""
    workers = _split(0, num_samples, like.num_workers)
    threads = [_split(start, stop, like.num_threads)[1:] for start, stop in pairwise(workers)]
    ends = np.concatenate([[0], *threads])
    return ends[_split(0, like.num_workers * like.num_threads, like.num_threads_reduce)]


def _marks(bounds: _Integers) -> _Integers:
    """Return the document index: the end of every merged piece, and the end once more for the merged file."""
    return np.append(bounds, bounds[-1])
