"""The steps of DeepSpeed's analyzer by their own names, over its own files: for hooks and subclasses that call them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from arrowds.batch import Batch, as_numpy
from arrowds.errors import ConfigError, IndexNotFoundError, MetricError, MetricValueError, UnsupportedError
from arrowds.indexed_dataset import IndexedDataset, is_indexed_dataset, write_indexed_dataset
from arrowds.integrations.deepspeed.export import fitting_integer
from arrowds.integrations.deepspeed.sample_order import ids_of_batch
from arrowds.schema import numpy_dtype, value_type

logger = logging.getLogger(__name__)

PER_SAMPLE, TOTAL = "single_value_per_sample", "accumulate_value_over_samples"
_Array = npt.NDArray[Any]
_DIALECT: Final = "deepspeed"
_MERGED = ("sample_to_metric", "index_to_sample", "index_to_metric")


class AnalyzerFiles:
    """DeepSpeed's map and merge over files, one pair per worker, thread and kind.

    A thread's results are a list with a dictionary per metric. ``finalize_metric_results`` writes them to
    ``SAVE_PATH/METRIC/workerW_threadT/``, and the ``merge_*`` methods make DeepSpeed's final pairs of them in
    ``SAVE_PATH/METRIC/``, byte for byte. Sample ids lie in a pair ``METRIC_metric_to_sample``, in the order of the
    values, where DeepSpeed writes a CSV file for every distinct value.
    """

    sample_indices: Any = None

    def init_metric_results(  # noqa: PLR0917  # the order is DeepSpeed's
        self,
        thread_id: int,
        metric_names: Sequence[str],
        metric_types: Sequence[str],
        metric_dtypes: Sequence[Any],
        save_path: str | os.PathLike[str],
        worker_id: int,
    ) -> list[dict[str, Any]]:
        """Make the folders of a thread and return its results, which are empty: a dictionary per metric.

        Raises:
            UnsupportedError: for a dtype that is no integer, which DeepSpeed's files can't hold.
        """
        results: list[dict[str, Any]] = []
        for name, kind, dtype in zip(
            metric_names, metric_types, metric_dtypes or [None] * len(metric_names), strict=True
        ):
            if dtype is not None and _numpy(dtype).kind not in "iu":
                raise UnsupportedError(
                    f"metric {name!r} is of type {_numpy(dtype)}; DeepSpeed's files hold integers only"
                )
            folder = _thread_folder(Path(save_path) / name, worker_id, thread_id)
            folder.mkdir(parents=True, exist_ok=True)
            if kind == TOTAL:
                results.append({"metric_value": None, "metric_value_fname": f"{folder / name}_metric_value"})
            else:
                files = {
                    f"{part}_fname": f"{folder / name}_{part}" for part in ("sample_to_metric", "metric_to_sample")
                }
                results.append({**files, "values": [], "sample_ids": []})
        return results

    def update_metric_results(  # noqa: PLR0917  # the order is DeepSpeed's
        self,
        data: Batch,
        metric_types: Sequence[str],
        metric_dtypes: Sequence[Any],
        metric_functions: Sequence[Callable[[Any], Any]],
        metric_results: Sequence[MutableMapping[str, Any]],
        batch_start_idx: int = 0,
    ) -> None:
        """Measure a batch and add what comes out to the results of a thread.

        Args:
            data: a collated batch; its field ``index``, where it has one, gives the ids of the samples.
            metric_types: of each metric.
            metric_dtypes: of each metric; may be empty.
            metric_functions: of each metric, from a batch to a tensor or array.
            metric_results: from :meth:`init_metric_results`.
            batch_start_idx: the row of the dataset at which the batch starts.

        Raises:
            MetricError: when a function returns neither a tensor nor an array.
            MetricValueError: for a value that the dtype can't hold.
        """
        dtypes = metric_dtypes or [None] * len(metric_types)
        for kind, dtype, function, result in zip(metric_types, dtypes, metric_functions, metric_results, strict=True):
            values = _as_integers(function(data), dtype)
            if kind == TOTAL:
                total = result["metric_value"]
                result["metric_value"] = values.copy() if total is None else total + values
            else:
                result["values"].append(values.reshape(-1))
                result["sample_ids"].append(self._sample_ids(data, batch_start_idx, len(result["values"][-1])))

    def _sample_ids(self, data: Batch, start: int, count: int) -> _Array:
        if isinstance(data, Mapping) and "index" in data:
            return ids_of_batch(data)
        if self.sample_indices is None:
            return np.arange(start, start + count)
        return np.array([int(self.sample_indices[row]) for row in range(start, start + count)], np.int64)

    def finalize_metric_results(
        self,
        metric_types: Sequence[str],
        metric_dtypes: Sequence[Any],
        metric_results: Sequence[MutableMapping[str, Any]],
    ) -> None:
        """Write the results of a thread to its files."""
        for kind, dtype, result in zip(
            metric_types, metric_dtypes or [None] * len(metric_types), metric_results, strict=True
        ):
            stored = np.dtype(np.int64) if dtype is None else _numpy(dtype)
            if kind == TOTAL:
                if result["metric_value"] is not None:
                    _write_row(result["metric_value_fname"], result["metric_value"].reshape(-1), stored)
            else:
                values, ids = (_joined(result[part]) for part in ("values", "sample_ids"))
                _write_ones(result["sample_to_metric_fname"], values, stored)
                _write_ones(result["metric_to_sample_fname"], ids, np.int64)

    def merge_gather_map_stats(  # noqa: PLR0917  # the order is DeepSpeed's
        self,
        num_workers: int,
        num_threads: int,
        num_threads_reduce: int,
        t_idx_reduce: int,
        metric_save_path: str | os.PathLike[str],
        metric_name: str,
        return_dict: MutableMapping[int, Any],
    ) -> None:
        """Note, under ``t_idx_reduce``, the distinct values and the number of samples of every n-th thread's files."""
        threads = _all_threads(num_workers, num_threads)[t_idx_reduce::num_threads_reduce]
        found = [_open(metric_save_path, metric_name, thread, "sample_to_metric") for thread in threads]
        return_dict[t_idx_reduce] = [[np.unique(rows.tokens).tolist(), len(rows)] for rows in found]

    def merge_sample_to_metric(
        self,
        t_idx_reduce: int,
        metric_save_path: str | os.PathLike[str],
        metric_name: str,
        metric_value_dtype: Any,
        map_worker_thread: Sequence[Sequence[int]],
    ) -> None:
        """Write the values of some threads, given as (worker, thread), one after another to a pair of files."""
        found = [
            _open(metric_save_path, metric_name, thread, "sample_to_metric").tokens for thread in map_worker_thread
        ]
        target = _chunk(metric_save_path, metric_name, "sample_to_metric", t_idx_reduce)
        _write_ones(target, _joined(found), metric_value_dtype)

    def merge_metric_to_sample(  # noqa: PLR0917  # the order is DeepSpeed's
        self,
        t_idx_reduce: int,
        metric_save_path: str | os.PathLike[str],
        metric_name: str,
        sample_idx_dtype: Any,
        metric_value_dtype: Any,
        unique_metric_values: Sequence[int],
        num_workers: int,
        num_threads: int,
    ) -> None:
        """Write some distinct values, and for each a row of the ids of its samples, to two pairs of files."""
        threads = _all_threads(num_workers, num_threads)
        values, ids = (
            _joined([_open(metric_save_path, metric_name, thread, part).tokens for thread in threads])
            for part in ("sample_to_metric", "metric_to_sample")
        )
        by_value = np.argsort(values, kind="stable")
        wanted = np.asarray(unique_metric_values, np.int64)
        first, last = (np.searchsorted(values[by_value], wanted, side=side) for side in ("left", "right"))
        rows = [ids[by_value[start:stop]] for start, stop in zip(first, last, strict=True)]
        samples, metric = (
            _chunk(metric_save_path, metric_name, part, t_idx_reduce) for part in ("index_to_sample", "index_to_metric")
        )
        write_indexed_dataset(samples, _joined(rows), last - first, dtype=sample_idx_dtype)
        _write_ones(metric, wanted, metric_value_dtype)

    def merge_thread_files(  # noqa: PLR0917  # as DeepSpeed's merge_map_results has them
        self,
        dataset: Any,
        metric_names: Sequence[str],
        metric_types: Sequence[str],
        save_path: str | os.PathLike[str],
        num_workers: int,
        num_threads: int,
        num_threads_reduce: int,
    ) -> None:
        """Make DeepSpeed's final pairs of the files that all threads have written.

        Raises:
            IndexNotFoundError: when a thread's files are missing, or do not hold every sample.
        """
        for name, kind in zip(metric_names, metric_types, strict=True):
            folder, threads = Path(save_path) / name, _all_threads(num_workers, num_threads)
            if kind == TOTAL:
                sums = [
                    _open(folder, name, thread, "metric_value")
                    for thread in threads
                    if _has_total(folder, name, thread)
                ]
                if not sums:
                    raise IndexNotFoundError(
                        f"no thread has written {name}_metric_value below {folder}; run the map first"
                    )
                total = np.sum([rows.tokens.astype(np.int64) for rows in sums], axis=0)
                _write_row(folder / f"{name}_metric_value", total, fitting_integer(total.min(), total.max()))
                continue
            stats: dict[int, Any] = {}
            for piece in range(num_threads_reduce):
                self.merge_gather_map_stats(num_workers, num_threads, num_threads_reduce, piece, folder, name, stats)
            gathered = [found for piece in stats.values() for found in piece]
            distinct = sorted({value for values, _ in gathered for value in values})
            if (count := sum(rows for _, rows in gathered)) != len(dataset):
                raise IndexNotFoundError(
                    f"the threads' files of {name!r} below {folder} hold {count} samples, the dataset {len(dataset)}: "
                    "run the map of every worker to its end, then reduce"
                )
            value_type = fitting_integer(distinct[0], distinct[-1])
            id_type = fitting_integer(0, len(dataset) - 1)
            for piece, (start, stop) in enumerate(_pieces(len(threads), num_threads_reduce)):
                self.merge_sample_to_metric(piece, folder, name, value_type, threads[start:stop])
            for piece, (start, stop) in enumerate(_pieces(len(distinct), num_threads_reduce)):
                self.merge_metric_to_sample(
                    piece, folder, name, id_type, value_type, distinct[start:stop], num_workers, num_threads
                )
            for part in _MERGED:
                _merge(
                    [_chunk(folder, name, part, piece) for piece in range(num_threads_reduce)],
                    folder / f"{name}_{part}",
                )
            per_value = self.output_index_to_sample_percentile(
                f"{folder / name}_index_to_sample",
                f"{folder / name}_index_to_metric",
                name,
                folder,
                len(dataset),
                id_type,
            )
            self.get_metric_value_percentiles(name, per_value, len(dataset))

    def get_metric_value_percentiles(
        self, metric_name: str, num_sample_per_value: Mapping[Any, int], total_num_samples: int
    ) -> dict[int, Any]:
        """Log and return the value at every fifth percentile: the smallest up to which so many samples lie.

        >>> AnalyzerFiles().get_metric_value_percentiles("n", {1: 50, 7: 45, 9: 5}, 100)[95]
        7
        """
        values = sorted(num_sample_per_value)
        upto = np.cumsum([num_sample_per_value[value] for value in values])
        percentiles = np.arange(5, 101, 5)
        places = np.searchsorted(upto * 100, percentiles * total_num_samples, side="left")
        found = {
            int(percentile): values[place]
            for percentile, place in zip(percentiles, places.tolist(), strict=True)
            if place < len(values)
        }
        for percentile, value in found.items():
            logger.info("metric %s, percentile %d: %s", metric_name, percentile, value)
        return found

    @staticmethod
    def output_index_to_sample_percentile(  # noqa: PLR0917  # the order is DeepSpeed's
        index_to_sample_fname: str | os.PathLike[str],
        index_to_metric_fname: str | os.PathLike[str],
        metric_name: str,
        metric_save_path: str | os.PathLike[str],
        total_num_samples: int,
        sample_idx_dtype: Any,
    ) -> dict[int, int]:
        """Write ``index_to_sample_percentile_merged`` and return the number of samples of each distinct value.

        Raises:
            ConfigError: when the two pairs do not belong together, or do not have so many samples.
        """
        samples, values = (
            IndexedDataset.open(index_to_sample_fname, _DIALECT),
            IndexedDataset.open(index_to_metric_fname, _DIALECT),
        )
        if len(samples) != len(values) or len(samples.tokens) != total_num_samples:
            raise ConfigError(
                f"{index_to_sample_fname} has {len(samples)} rows of {len(samples.tokens)} samples; expected a row for "
                f"each of the {len(values)} values and {total_num_samples} samples"
            )
        starts = np.arange(0, len(samples), max(1, len(samples) // 100))
        sizes = np.add.reduceat(samples.sizes.astype(np.int64), starts)
        target = Path(metric_save_path) / f"{metric_name}_index_to_sample_percentile_merged"
        write_indexed_dataset(target, samples.tokens, sizes, dtype=sample_idx_dtype)
        return dict(zip(values.tokens.tolist(), samples.sizes.tolist(), strict=True))


def has_thread_files(
    metric_names: Sequence[str], metric_types: Sequence[str], save_path: str | os.PathLike[str]
) -> bool:
    """Whether the first thread's files of the first metric are there, as ``finalize_metric_results`` writes them."""
    if not metric_names:
        return False
    part = "metric_value" if metric_types[0] == TOTAL else "metric_to_sample"
    return is_indexed_dataset(_thread_folder(Path(save_path) / metric_names[0], 0, 0) / f"{metric_names[0]}_{part}")


def _numpy(dtype: Any) -> np.dtype[Any]:
    return np.dtype(numpy_dtype(value_type(dtype)))


def _as_integers(result: Any, dtype: Any) -> _Array:
    values = as_numpy(result)
    if values is None:
        raise MetricError(f"a metric function must return a tensor or an array, got a {type(result).__name__}")
    if dtype is None:
        if values.dtype.kind not in "iu":
            raise UnsupportedError(f"a metric function returned {values.dtype}; DeepSpeed's files hold integers only")
        return values
    with np.errstate(invalid="ignore"):
        converted = values.astype(_numpy(dtype))
    if not np.array_equal(converted, values):
        raise MetricValueError(f"a metric function returned values that {_numpy(dtype)} can't hold")
    return converted


def _thread_folder(metric: Path, worker: int, thread: int) -> Path:
    return metric / f"worker{worker}_thread{thread}"


def _all_threads(num_workers: int, num_threads: int) -> list[tuple[int, int]]:
    return [(worker, thread) for worker in range(num_workers) for thread in range(num_threads)]


def _has_total(folder: Path, name: str, thread: Sequence[int]) -> bool:
    """A thread without samples has no sum."""
    return is_indexed_dataset(_thread_folder(folder, *thread) / f"{name}_metric_value")


def _open(metric: str | os.PathLike[str], name: str, thread: Sequence[int], part: str) -> IndexedDataset:
    prefix = _thread_folder(Path(metric), *thread) / f"{name}_{part}"
    if not is_indexed_dataset(prefix):
        raise IndexNotFoundError(
            f"there is no {prefix}: worker {thread[0]} has not finished thread {thread[1]}, or has written an index"
        )
    return IndexedDataset.open(prefix, _DIALECT)


def _chunk(metric: str | os.PathLike[str], name: str, part: str, piece: int) -> Path:
    return Path(metric) / f"{name}_{part}_thread{piece}"


def _pieces(count: int, pieces: int) -> list[tuple[int, int]]:
    return list(pairwise(np.linspace(0, count, pieces + 1, dtype=np.int64).tolist()))


def _joined(arrays: Sequence[_Array]) -> _Array:
    return np.concatenate([array.astype(np.int64) for array in arrays]) if arrays else np.zeros(0, np.int64)


def _write_row(prefix: str | os.PathLike[str], row: _Array, dtype: Any) -> None:
    write_indexed_dataset(prefix, row, np.array([len(row)]), dtype=dtype)


def _write_ones(prefix: str | os.PathLike[str], values: _Array, dtype: Any) -> None:
    """Write values one to a row."""
    write_indexed_dataset(prefix, values, np.ones(len(values), np.int32), dtype=dtype)


def _merge(chunks: Sequence[Path], target: Path) -> None:
    """Write some pairs as one, with DeepSpeed's marks of where each ends and the end once more, and remove them."""
    found = [IndexedDataset.open(chunk, _DIALECT) for chunk in chunks]
    sizes = np.concatenate([rows.sizes for rows in found])
    ends = np.cumsum([0, *(len(rows) for rows in found)])
    tokens = [rows.tokens for rows in found]
    write_indexed_dataset(target, tokens, sizes, dtype=found[0].dtype, document_index=np.append(ends, ends[-1]))
    for chunk in chunks:
        for suffix in (".bin", ".idx"):
            chunk.with_name(chunk.name + suffix).unlink()
