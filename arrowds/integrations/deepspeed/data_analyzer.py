"""DataAnalyzer: DeepSpeed's constructor and methods over an arrowds index."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from arrowds.build.plan import BuildPlan, make_plan
from arrowds.build.progress import ProgressCallback, reporting
from arrowds.build.shared import map_share, reduce_shares
from arrowds.errors import ConfigError
from arrowds.index import Index, open_index
from arrowds.index.manifest import PartRange
from arrowds.index.paths import Layout
from arrowds.integrations.deepspeed import sample_order
from arrowds.integrations.deepspeed.custom_map import CustomMap, run_threads, split
from arrowds.integrations.deepspeed.ranks import is_initialized, together
from arrowds.integrations.deepspeed.sample_order import SampleOrder
from arrowds.integrations.deepspeed.stored_values import index_stored_values
from arrowds.metrics import Kind, Metric, function
from arrowds.sources import TorchSource

logger = logging.getLogger(__name__)

_KINDS: dict[str, Kind] = {"single_value_per_sample": "per_sample", "accumulate_value_over_samples": "total"}
_BY_ROW = ".by_row"


class DataAnalyzer:
    """Measure every sample of a torch dataset, as DeepSpeed's class of this name, and write an arrowds index.

    Arguments and their order are DeepSpeed's. Several workers (processes or nodes that share a file system) call
    ``run_map`` each with its own ``worker_id``; when all are done, one calls ``run_reduce``. With torch.distributed
    initialised, every rank calls ``run_map_reduce``. The index is the same for any number of workers and threads.

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
            result is handed to the two below. The three replace the map together.
        custom_map_update: ``f(batch, metric_types, metric_dtypes, metric_functions, results, first_row)``.
        custom_map_finalize: ``f(metric_types, metric_dtypes, results)``.
        custom_reduce: ``f(dataset, metric_names, metric_types, save_path, num_workers, num_threads,
            num_threads_reduce)``; replaces the reduce.
        sample_indices: the sample id of each row of the dataset, where it is not the row's number. A field ``index``
            of the batches, as Megatron-DeepSpeed's datasets have it, counts before it.
        overwrite: replace an index of other data or metrics at ``save_path``.
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
        progress: bool | ProgressCallback | None = None,
    ) -> None:
        self._metrics = _as_metrics(metric_names, metric_functions, metric_types, metric_dtypes)
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
        self.progress = progress

    def run_map(self) -> None:
        """Measure this worker's share of the dataset; what an earlier run finished is not measured again."""
        custom = self._custom_map()
        if custom is not None:
            run_threads(custom, self._rows_of_threads(), most_workers=self.num_threads)
            return
        plan, _ = self._plan()
        shares = split(0, len(plan.parts), self.num_workers * self.num_threads)
        mine = [shares[self.worker_id * self.num_threads + thread] for thread in self._threads()]
        numbers = [number for start, stop in mine for number in range(start, stop)]
        rows = sum(len(plan.parts[number]) for number in numbers)
        with reporting(rows, self.progress) as report:
            done = 0
            for part in map_share(plan, numbers, overwrite=self.overwrite, most_workers=self.num_threads):
                done += len(part)
                report(done, rows)

    def run_reduce(self) -> Index | None:
        """Finish the index from what all workers have measured and return it; None after ``custom_reduce``.

        Raises:
            IndexNotFoundError: when a worker has not finished its share.
        """
        if self.custom_reduce is not None:
            self.custom_reduce(
                self.dataset,
                self.metric_names,
                self.metric_types,
                self.save_path,
                self.num_workers,
                self.num_threads,
                self.num_threads_reduce,
            )
            return None
        if self._custom_map() is not None:
            raise ConfigError("a custom map writes a store of its own, so its reduce must be given too: custom_reduce")
        plan, order = self._plan()
        if order is None:
            return reduce_shares(plan, overwrite=self.overwrite)
        return self._in_sample_order(reduce_shares(plan), order)

    def run_map_reduce(self, comm_group: Any = None) -> Index | None:
        """Map, wait for all workers, reduce on worker 0 and return the index, on every worker.

        Args:
            comm_group: the torch.distributed group of the workers; by default all ranks.

        Raises:
            ConfigError: for several workers without torch.distributed.
            WorkerDiedError: when another worker failed.
        """
        if self.num_workers > 1 and not is_initialized():
            raise ConfigError(
                f"{self.num_workers} workers can wait for each other only where torch.distributed is initialised; "
                "call run_map() on each, and run_reduce() on one when all have ended"
            )
        together(self.run_map, comm_group)
        together(lambda: self.run_reduce() if self.worker_id == 0 else None, comm_group)
        return None if self.custom_reduce is not None else open_index(self.save_path)

    def _threads(self) -> Sequence[int]:
        return self.specific_threads or range(self.num_threads)

    def _source(self) -> TorchSource:
        return TorchSource(self.dataset, batch_size=self.batch_size, collate_fn=self.collate_fn)

    def _plan(self) -> tuple[BuildPlan, SampleOrder | None]:
        """Return what is to be built, and the order of the samples where it is not that of the rows.

        In that case the values are first indexed by row, beside ``save_path``, and then by sample id.
        """
        source, root = self._source(), Path(self.save_path)
        order = sample_order.find(source, self.sample_indices)
        if order is None:
            return make_plan(source, self._metrics, Layout(root)), None
        by_row = root.absolute().with_name(f"{root.absolute().name}{_BY_ROW}")
        return make_plan(source, [*self._metrics, *order.metrics], Layout(by_row)), order

    def _in_sample_order(self, by_row: Index, order: SampleOrder) -> Index:
        values, totals = order.reordered(by_row)
        index = index_stored_values(
            values, totals, self.save_path, num_samples=by_row.num_samples, overwrite=self.overwrite, progress=False
        )
        shutil.rmtree(by_row.path)
        return index

    def _custom_map(self) -> CustomMap | None:
        hooks = (self.custom_map_init, self.custom_map_update, self.custom_map_finalize)
        if not any(hooks):
            return None
        init, update, finalize = hooks
        if init is None or update is None or finalize is None:
            raise ConfigError(
                "custom_map_init, custom_map_update and custom_map_finalize replace the map together; give all three"
            )
        return CustomMap(
            init=init,
            update=update,
            finalize=finalize,
            source=self._source(),
            batch_size=self.batch_size,
            names=self.metric_names,
            functions=self.metric_functions,
            types=self.metric_types,
            dtypes=self.metric_dtypes,
            save_path=str(self.save_path),
            worker_id=self.worker_id,
        )

    def _rows_of_threads(self) -> list[PartRange]:
        """Return the rows of each thread of this worker that is to run, cut as DeepSpeed cuts them."""
        start, stop = split(0, len(self.dataset), self.num_workers)[self.worker_id]
        ranges = split(start, stop, self.num_threads)
        return [PartRange(number=n, start=ranges[n][0], stop=ranges[n][1]) for n in self._threads()]


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
    return [function(name, fn, kind=_KINDS[kind], dtype=dtype) for name, fn, kind, dtype in columns]


def _checked_count(name: str, count: int) -> int:
    if count < 1:
        raise ConfigError(f"{name} must be at least 1; got {count}")
    return count


def _checked_member(name: str, number: int, count: int) -> int:
    if not 0 <= number < count:
        raise ConfigError(f"{name}: {number} is not among the {count} that there are, counted from 0")
    return number
