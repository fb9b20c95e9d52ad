"""DataAnalyzer: DeepSpeed's constructor and methods over an arrowds index."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from arrowds.build.api import run
from arrowds.build.commit import begin
from arrowds.build.engines import LocalEngine, TorchEngine
from arrowds.build.operations import plan_analysis, plan_more_metrics
from arrowds.build.plan import BuildPlan
from arrowds.build.progress import ProgressCallback
from arrowds.build.shards import map_parts, reduce_share
from arrowds.errors import ConfigError
from arrowds.index import Index, open_index
from arrowds.index import manifest as manifests
from arrowds.index.manifest import Manifest
from arrowds.integrations.deepspeed import sample_order
from arrowds.integrations.deepspeed.analyzer_files import PER_SAMPLE, TOTAL, AnalyzerFiles, has_thread_files
from arrowds.integrations.deepspeed.custom_map import CustomMap, ThreadRows, run_threads, split
from arrowds.integrations.deepspeed.export import AnalyzerRun, export_index, stored_dtype
from arrowds.integrations.deepspeed.ranks import is_initialized
from arrowds.integrations.deepspeed.sample_order import SampleOrder
from arrowds.integrations.deepspeed.stored_values import index_stored_values
from arrowds.metrics import Kind, Metric, function
from arrowds.sources import TorchSource
from arrowds.store import open_store

logger = logging.getLogger(__name__)

_KINDS: dict[str, Kind] = {PER_SAMPLE: "per_sample", TOTAL: "total"}
_BY_ROW = ".by_row"
_MAP_STEPS = ("init_metric_results", "update_metric_results", "finalize_metric_results")


class DataAnalyzer(AnalyzerFiles):
    """Measure every sample of a torch dataset, as DeepSpeed's class of this name, and write an arrowds index.

    Arguments and their order are DeepSpeed's. Several workers (processes or nodes that share a file system) call
    ``run_map`` each with its own ``worker_id``; when all are done, one calls ``run_reduce``. With torch.distributed
    initialised, every rank calls ``run_map_reduce``. The index is the same for any number of workers and threads.
    Metrics that an index of the same dataset at ``save_path`` does not have are added to it.

    Beside the index, below ``save_path``, DeepSpeed's files are written of all totals, which the second pass of
    Megatron-DeepSpeed's analysis reads, or with ``deepspeed_files=True`` of all metrics.

    With hooks, or where a subclass overrides one of the steps ``init_metric_results``, ``update_metric_results`` and
    ``finalize_metric_results``, the analysis is made of files, as DeepSpeed's is, and no index is written; see
    :class:`AnalyzerFiles`, and ``import_index`` for an index of its result.

    Args:
        dataset: a map-style torch dataset.
        num_workers: number of processes that call ``run_map``.
        worker_id: which of them this is, from 0 on.
        num_threads: number of local processes that ``run_map`` may use.
        num_threads_reduce: accepted; the reduce chooses for itself.
        specific_threads: the only ones of ``num_threads`` whose share is mapped; empty for all.
        batch_size: samples per batch.
        metric_names: names of the metrics.
        metric_functions: for each metric a callable from a collated batch to a tensor or array.
        metric_types: for each metric ``"single_value_per_sample"`` or ``"accumulate_value_over_samples"``.
        metric_dtypes: for each metric its dtype, in NumPy's or torch's spelling; floats and bool too. Results of
            another dtype are converted where that changes no value. Empty: the dtype of the results.
        save_path: folder of the index.
        collate_fn: makes a batch of a list of samples; by default torch's.
        custom_map_init: ``f(thread_id, metric_names, metric_types, metric_dtypes, save_path, worker_id)``; its
            result is handed to the two below. Replaces ``init_metric_results``.
        custom_map_update: ``f(batch, metric_types, metric_dtypes, metric_functions, results, first_row)``; replaces
            ``update_metric_results``.
        custom_map_finalize: ``f(metric_types, metric_dtypes, results)``; replaces ``finalize_metric_results``.
        custom_reduce: ``f(dataset, metric_names, metric_types, save_path, num_workers, num_threads,
            num_threads_reduce)``; replaces the reduce.
        sample_indices: the sample id of each row of the dataset, where it is not the row's number. A field ``index``
            of the batches, as Megatron-DeepSpeed's datasets have it, counts before it.
        overwrite: replace an index of other data or metrics at ``save_path``.
        deepspeed_files: write DeepSpeed's files of the metrics per sample too, where they are integers.
        progress: None shows a bar on a terminal and logs elsewhere; False is silent; a callable gets (done, total).

    Raises:
        ConfigError: for lists of different lengths, unknown metric types, and numbers out of range.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     analyzer = DataAnalyzer(
    ...         torch.utils.data.TensorDataset(torch.tensor([3, 1, 2])), batch_size=2, metric_names=["value"],
    ...         metric_functions=[lambda batch: batch[0]], metric_types=["single_value_per_sample"],
    ...         metric_dtypes=[torch.int64], save_path=folder)
    ...     analyzer.run_map_reduce()["value"].sample_ids(up_to=2).tolist()
    [1, 2]
    """

    def __init__(  # noqa: PLR0917  # the order is DeepSpeed's
        self,
        dataset: Any,
        num_workers: int = 1,
        worker_id: int = 0,
        num_threads: int = 1,
        num_threads_reduce: int = 1,
        specific_threads: Sequence[int] = (),
        batch_size: int = 1,
        metric_names: Sequence[str] = (),
        metric_functions: Sequence[Callable[[Any], Any]] = (),
        metric_types: Sequence[str] = (),
        metric_dtypes: Sequence[Any] = (),
        save_path: str | os.PathLike[str] = "./",
        collate_fn: Callable[[list[Any]], Any] | None = None,
        custom_map_init: Callable[..., Any] | None = None,
        custom_map_update: Callable[..., Any] | None = None,
        custom_map_finalize: Callable[..., Any] | None = None,
        custom_reduce: Callable[..., Any] | None = None,
        sample_indices: Any = None,
        *,
        overwrite: bool = False,
        deepspeed_files: bool = False,
        progress: bool | ProgressCallback | None = None,
    ) -> None:
        self.dataset = dataset
        self.num_workers = _checked_count("num_workers", num_workers)
        self.worker_id = _checked_member("worker_id", worker_id, num_workers)
        self.num_threads = _checked_count("num_threads", num_threads)
        self.num_threads_reduce = num_threads_reduce
        self.specific_threads = [
            _checked_member("specific_threads", thread, num_threads) for thread in specific_threads
        ]
        self.batch_size = _checked_count("batch_size", batch_size)
        self.metric_names = metric_names
        self.metric_functions = metric_functions
        self.metric_types = metric_types
        self.metric_dtypes = metric_dtypes
        self.save_path = save_path
        self.collate_fn = collate_fn
        self.custom_map_init = custom_map_init
        self.custom_map_update = custom_map_update
        self.custom_map_finalize = custom_map_finalize
        self.custom_reduce = custom_reduce
        self.sample_indices = sample_indices
        self.overwrite = overwrite
        self.deepspeed_files = deepspeed_files
        self.progress = progress
        self._described: tuple[tuple[Any, ...], ...] | None = None
        self._made: list[Metric] = []
        _ = self._metrics  # Errors in the metrics are due here, not in every worker.

    def run_map(self) -> None:
        """Measure this worker's share of the dataset; what an earlier run finished is not measured again."""
        if type(self).run_map_helper is not DataAnalyzer.run_map_helper:
            for thread in self._threads():
                self.run_map_helper(thread)
        elif self._by_files:
            run_threads(self._file_map(), self._rows_of(self._threads()), most_workers=self.num_threads)
        else:
            self._map_parts(self._threads())

    def run_map_helper(self, thread_id: int) -> None:
        """Measure the share of one thread, in this process."""
        if self._by_files:
            run_threads(self._file_map(), self._rows_of([thread_id]), most_workers=1)
        else:
            self._map_parts([thread_id])

    def _map_parts(self, threads: Sequence[int]) -> None:
        plan, _ = self._plan()
        if isinstance(plan, Manifest):
            return
        begin(plan.store, plan.key, plan.to_json(), resume=True)
        shares = split(0, len(plan.parts), self.num_workers * self.num_threads)
        mine = [shares[self.worker_id * self.num_threads + thread] for thread in threads]
        parts = [part for start, stop in mine for part in plan.parts[start:stop]]
        map_parts(plan, parts, LocalEngine(most_workers=len(threads)), self.progress)

    def run_reduce(self) -> Index | None:
        """Finish the index from what all workers have measured and return it.

        None where no index is written: after ``custom_reduce``, and where the map wrote files.

        Raises:
            IndexNotFoundError: when a worker has not finished its share.
        """
        arguments = (self.dataset, self.metric_names, self.metric_types, self.save_path)
        reduce = self.custom_reduce or self.merge_map_results
        result = reduce(*arguments, self.num_workers, self.num_threads, self.num_threads_reduce)
        return None if self.custom_reduce is not None else result

    def merge_map_results(  # noqa: PLR0917  # the order is DeepSpeed's
        self,
        dataset: Any,
        metric_names: Sequence[str],
        metric_types: Sequence[str],
        save_path: str | os.PathLike[str],
        num_workers: int,
        num_threads: int,
        num_threads_reduce: int,
    ) -> Index | None:
        """Do what :meth:`run_reduce` does without ``custom_reduce``; one of that kind may call this.

        The arguments count where the map wrote files. An index is made as the constructor says.

        Raises:
            ConfigError: when a custom map has written a store of its own.
            IndexNotFoundError: when a worker has not finished its share.
        """
        if has_thread_files(metric_names, metric_types, save_path):
            self.merge_thread_files(
                dataset, metric_names, metric_types, save_path, num_workers, num_threads, num_threads_reduce
            )
            return None
        if self._by_files:
            raise ConfigError(
                f"the custom map has written none of DeepSpeed's files below {save_path}; a store of its own needs a "
                "custom_reduce"
            )
        plan, order = self._plan()
        if not isinstance(plan, Manifest):
            reduce_share(plan, 1, 1, LocalEngine())
        return self._finished(order)

    def _finished(self, order: SampleOrder | None) -> Index:
        index = open_index(self.save_path) if order is None else self._by_sample(order)
        self._write_deepspeed_files(index)
        return index

    def run_map_reduce(self, comm_group: Any = None) -> Index | None:
        """Map and reduce on the ranks of torch.distributed, or here where there are none; return the index on each.

        With one thread for each rank, the ranks take parts as they get through them. Otherwise each rank maps the share
        of its ``worker_id``, and the first one of the group reduces.

        Args:
            comm_group: the torch.distributed group of the workers; by default all ranks.

        Raises:
            ConfigError: for several workers without torch.distributed, and for ranks with different data or metrics.
            WorkerDiedError: when another rank failed or died; names it.
        """
        if self.num_workers > 1 and not is_initialized():
            raise ConfigError(
                f"{self.num_workers} workers can wait for each other only where torch.distributed is initialised; "
                "call run_map() on each, and run_reduce() on one when all have ended"
            )
        if not is_initialized():
            self.run_map()
            return self.run_reduce()
        with TorchEngine(comm_group) as engine:
            if self._has_steps_of_its_own or len(self._threads()) > 1:
                self.run_map()
                engine.once(self.run_reduce)
            else:
                plan, order = self._plan()
                if isinstance(plan, BuildPlan):
                    run(plan, plan.store, engine, resume=True, progress=self.progress)
                engine.once(partial(self._finished, order))
        no_index = self.custom_reduce is not None or self._by_files
        return None if no_index else open_index(self.save_path)

    @property
    def _has_steps_of_its_own(self) -> bool:
        """Whether the map or the reduce is not just that of an index."""
        steps = ("run_map", "run_map_helper", "run_reduce", "merge_map_results")
        overridden = any(getattr(type(self), name) is not getattr(DataAnalyzer, name) for name in steps)
        return overridden or self._by_files or self.custom_reduce is not None

    def _threads(self) -> Sequence[int]:
        return self.specific_threads or range(self.num_threads)

    def _source(self) -> TorchSource:
        return TorchSource(self.dataset, batch_size=self.batch_size, collate_fn=self.collate_fn)

    @property
    def _metrics(self) -> list[Metric]:
        """The metrics, made once for what the attributes say: a function's digest may change while it runs."""
        said = self.metric_names, self.metric_functions, self.metric_types, self.metric_dtypes
        if (now := tuple(map(tuple, said))) != self._described:
            self._described, self._made = now, _as_metrics(*said)
        return self._made

    def _plan(self) -> tuple[BuildPlan | Manifest, SampleOrder | None]:
        """Return what is to be built, or the snapshot that has it, and the order of the samples unless it is the rows'.

        With an order the values are first indexed by row, beside ``save_path``, and then by sample id.
        """
        source, metrics = self._source(), self._metrics
        order = sample_order.find(source, self.sample_indices)
        if order is not None:
            beside = open_store(self._by_row)
            return plan_analysis(beside, source, [*metrics, *order.metrics], overwrite=False), order
        store = open_store(self.save_path)
        base = None if self.overwrite else manifests.latest(store)
        if base is not None and {*base.metrics, *base.totals} != set(self.metric_names):
            return plan_more_metrics(store, base, source, metrics, refresh=False), None
        return plan_analysis(store, source, metrics, overwrite=self.overwrite), None

    @property
    def _by_row(self) -> Path:
        root = Path(self.save_path).absolute()
        return root.with_name(f"{root.name}{_BY_ROW}")

    def _by_sample(self, order: SampleOrder) -> Index:
        """Write what was indexed by row to ``save_path`` by sample id, with what the index there has already."""
        by_row = open_index(self._by_row)
        values, totals = order.reordered(by_row)
        known: Index | None = None
        if not self.overwrite and manifests.latest(open_store(self.save_path)) is not None:
            known = open_index(self.save_path)
        if known is None or not _has_all(known, values, totals):
            extended = known is not None and known.num_samples == by_row.num_samples
            if known is not None and extended and {*known.metrics, *known.totals}.isdisjoint(self.metric_names):
                values = {name: _column(known, name) for name in known.metrics} | values
                totals = {**known.totals} | totals
            else:
                extended = False
            how: dict[str, Any] = {"overwrite": self.overwrite or extended, "progress": False}
            known = index_stored_values(values, totals, self.save_path, num_samples=by_row.num_samples, **how)
        shutil.rmtree(self._by_row)
        return known

    def _write_deepspeed_files(self, index: Index) -> None:
        """Write DeepSpeed's files of this analysis's metrics below the folder of the index, if it is one."""
        if "://" in str(self.save_path):
            return
        own = [name for name in self.metric_names if name in index.totals or self.deepspeed_files]
        integers = [name for name in own if stored_dtype(index, name).kind in "iub"]
        if left := sorted(set(own) - set(integers)):
            logger.warning("DeepSpeed's files hold integers only: those of %s are not written", ", ".join(left))
        run = AnalyzerRun(
            num_workers=self.num_workers, num_threads=self.num_threads, num_threads_reduce=self.num_threads_reduce
        )
        export_index(index, self.save_path, metrics=integers, like=run)

    @property
    def _by_files(self) -> bool:
        """Whether the map is made of hooks or overridden steps, and so writes files and no index."""
        hooks = (self.custom_map_init, self.custom_map_update, self.custom_map_finalize)
        overridden = (getattr(type(self), step) is not getattr(AnalyzerFiles, step) for step in _MAP_STEPS)
        return any(hook is not None for hook in hooks) or any(overridden)

    def _file_map(self) -> CustomMap:
        return CustomMap(
            init=self.custom_map_init or self.init_metric_results,
            update=self.custom_map_update or self.update_metric_results,
            finalize=self.custom_map_finalize or self.finalize_metric_results,
            source=self._source(),
            batch_size=self.batch_size,
            names=self.metric_names,
            functions=self.metric_functions,
            types=self.metric_types,
            dtypes=self.metric_dtypes,
            save_path=str(self.save_path),
            worker_id=self.worker_id,
        )

    def _rows_of(self, threads: Sequence[int]) -> list[ThreadRows]:
        """Return the rows of some threads of this worker, cut as DeepSpeed cuts them."""
        start, stop = split(0, len(self.dataset), self.num_workers)[self.worker_id]
        ranges = split(start, stop, self.num_threads)
        return [ThreadRows(n, *ranges[n]) for n in threads]


def _has_all(index: Index, values: Mapping[str, pa.Array], totals: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Whether an index has just these values and totals among its own."""
    return all(
        name in index.metrics and _column(index, name).equals(column) for name, column in values.items()
    ) and all(name in index.totals and np.array_equal(index.totals[name], total) for name, total in totals.items())


def _column(index: Index, name: str) -> pa.Array:
    return pa.array(index[name].values).cast(index[name].arrow_type)


def _as_metrics(
    names: Sequence[str], functions: Sequence[Any], types: Sequence[str], dtypes: Sequence[Any]
) -> list[Metric]:
    if not (len(names) == len(functions) == len(types) and len(dtypes) in (0, len(names))):
        raise ConfigError(
            "metric_names, metric_functions, metric_types and metric_dtypes must have one item for each metric; got "
            f"{len(names)}, {len(functions)}, {len(types)} and {len(dtypes)}"
        )
    for kind in types:
        if kind not in _KINDS:
            raise ConfigError(f"unknown metric type {kind!r}; expected one of {', '.join(_KINDS)}")
    columns = zip(names, functions, types, dtypes or [None] * len(names), strict=True)
    return [function(name, fn, kind=_KINDS[kind], dtype=dtype).prepared() for name, fn, kind, dtype in columns]


def _checked_count(name: str, count: int) -> int:
    if count < 1:
        raise ConfigError(f"{name} must be at least 1; got {count}")
    return count


def _checked_member(name: str, number: int, count: int) -> int:
    if not 0 <= number < count:
        raise ConfigError(f"{name}: {number} is not among the {count} that there are, counted from 0")
    return number
