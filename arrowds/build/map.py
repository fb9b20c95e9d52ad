"""One row range and some metrics -> one Parquet file per metric. Runs anywhere; knows no worker and no other part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from arrowds.arrays import arrow_view, numpy_view
from arrowds.build.engines.base import Work
from arrowds.build.kept import keeping, kept_batches
from arrowds.build.plan import BuildPlan, MapTask, Part, columns_of, digest_of_total
from arrowds.build.results import checked_sum, checked_values
from arrowds.build.runs import Run, write_run
from arrowds.errors import ArrowdsError, IndexCorruptError, MetricFailedError, MetricValueError, SourceError
from arrowds.index import files, paths
from arrowds.index.totals import added, stored_sum
from arrowds.metrics import Metric
from arrowds.parallel import stop_if_told
from arrowds.schema import VALUE

_DIGEST = b"arrowds.part"
_SHAPE = b"arrowds.shape"
_CONTENT = b"arrowds.content"


def is_finished(task: MapTask, metric: Metric, part: Part) -> bool:
    """Tell whether the part's file of one metric is there and made from the same data, rows and metric."""
    try:
        if metric.kind == "per_sample":
            return run_of(task, metric, part).digest == task.part_digest(metric, part)
        return _read_sum(task, metric, part)[1] == task.part_digest(metric, part)
    except IndexCorruptError:
        return False


def _can_be_kept(task: MapTask, metric: Metric, part: Part) -> bool:
    """Tell whether a finished part was not damaged since."""
    return is_finished(task, metric, part) and (metric.kind == "total" or run_of(task, metric, part).is_whole())


def run_of(task: MapTask, metric: Metric, part: Part) -> Run:
    """The sorted run of one metric for one part."""
    return Run(
        task.store,
        paths.run(task.build, metric.name, part.number),
        paths.part_values(task.build, metric.name, part.number),
        first_id=part.start - task.segment_of(part).start,
        num_rows=len(part),
    )


def map_work(plan: BuildPlan, metrics: Sequence[Metric], totals: Mapping[str, np.ndarray]) -> Work:
    """One pass over the parts of a build, which measures some metrics, for an engine."""
    task = plan.task(metrics, totals)
    in_threads = plan.source.concurrent and all(metric.in_threads for metric in metrics)
    begin = partial(measure_part, task)
    alone = any(metric.alone for metric in metrics)
    return Work(partial(map_part, task), in_threads, "samples", runs_metrics=True, begin=begin, alone=alone)


def map_part(task: MapTask, part: Part) -> None:
    """Compute the metrics of one part that are not finished, and write each as one file; see :func:`measure_part`."""
    measure_part(task, part)()


def measure_part(task: MapTask, part: Part) -> Callable[[], None]:
    """Compute the metrics of one part that are not finished; return what writes each as one file.

    Writing sorts, and leaves the interpreter lock while it does, so that the next part may be measured meanwhile.

    Raises:
        MetricFailedError: when a metric raises; names it and the sample.
        MetricValueError: when a metric returns something wrong.
        SourceError: when the source can't be read.
        StorageError: when a file can't be written.
    """
    metrics = [metric for metric in task.metrics if not _can_be_kept(task, metric, part)]
    if not metrics:
        return lambda: None
    if task.later and task.kept:
        with suppress(IndexCorruptError):  # the source is read again
            return _measure(task, part, metrics, kept_batches(task, part))
    batches = task.source.read(part.start, part.stop, task.columns)
    return _measure(task, part, metrics, keeping(task, part, batches) if task.kept and not task.later else batches)


def _measure(task: MapTask, part: Part, metrics: Sequence[Metric], batches: Iterator[Any]) -> Callable[[], None]:
    """Compute metrics of the batches of one part; return what writes each as one file."""
    values: dict[str, list[pa.Array]] = {metric.name: [] for metric in metrics}
    sums: dict[str, np.ndarray] = {}
    for start, rows, batch in _numbered(task, part, batches):
        for metric, result in _computed(task, metrics, batch, start, rows):
            if start == part.start:
                metric.check(batch)
            if metric.kind == "per_sample":
                found = checked_values(metric, result, start=start, rows=rows)
                _refuse_other_type(metric, values[metric.name], found, part=part, start=start)
                values[metric.name].append(found)
            else:
                sums[metric.name] = added(metric.name, sums.get(metric.name), checked_sum(metric, result))

    def write() -> None:
        for metric in metrics:
            if metric.kind == "per_sample":
                _write_values(task, metric, part, values.pop(metric.name))
            else:
                _write_sum(task, metric, part, sums.pop(metric.name))

    return write


def _numbered(task: MapTask, part: Part, batches: Iterator[Any]) -> Iterator[tuple[int, int, Any]]:
    """Yield first row, number of rows and content of each batch of a part.

    All columns of the pass are read, also where only some metrics are left to compute: the batches of a file depend on
    its columns, and sums of floats on the batches.
    """
    start = part.start
    for batch in batches:
        stop_if_told()
        rows = batch.num_rows if isinstance(batch, pa.RecordBatch) else min(task.source.batch_size, part.stop - start)
        if rows:
            yield start, rows, batch
        start += rows
    if start != part.stop:
        raise SourceError(
            f"the source ({task.source.description}) gave {start - part.start} of the {len(part)} rows "
            f"{part.start} to {part.stop - 1}; was it changed during the run?"
        )


def _computed(
    task: MapTask, metrics: Sequence[Metric], batch: Any, start: int, rows: int
) -> Iterator[tuple[Metric, Any]]:
    """Yield each metric with its result for a batch; those of one class are computed together."""
    for kind in dict.fromkeys(map(type, metrics)):
        alike = [metric for metric in metrics if type(metric) is kind]
        results = alike[0].compute_together(alike, batch, task.totals)
        for metric in alike:
            yield metric, _result(task, metric, results, start, rows)


def _result(task: MapTask, metric: Metric, results: Iterator[Any], start: int, rows: int) -> Any:
    try:
        return next(results)
    except Exception as error:
        if isinstance(error, ArrowdsError):
            raise
        sample = _failing_sample(task, metric, start, start + rows)
        where = f"samples {start} to {start + rows - 1}" if sample is None else f"sample {sample}"
        raise MetricFailedError(f"metric {metric.name!r} raised {type(error).__name__} on {where}: {error}") from error


def _failing_sample(task: MapTask, metric: Metric, start: int, stop: int) -> int | None:
    """Return the first sample found, by halving, that makes the metric raise on its own; None when none does."""
    if not _fails(task, metric, start, stop):
        return None
    if stop - start == 1:
        return start
    middle = (start + stop) // 2
    left = _failing_sample(task, metric, start, middle)
    return left if left is not None else _failing_sample(task, metric, middle, stop)


def _fails(task: MapTask, metric: Metric, start: int, stop: int) -> bool:
    try:
        for batch in task.source.read(start, stop, columns_of([metric])):
            metric.compute(batch, task.totals)
    except Exception:
        return True
    return False


def _refuse_other_type(metric: Metric, before: list[pa.Array], found: pa.Array, *, part: Part, start: int) -> None:
    if before and before[0].type != found.type:
        raise MetricValueError(
            f"metric {metric.name!r} gave {before[0].type} for sample {part.start} but {found.type} for sample "
            f"{start}; declare its dtype"
        )


def _write_values(task: MapTask, metric: Metric, part: Part, arrays: list[pa.Array]) -> None:
    write_run(
        run_of(task, metric, part),
        pa.concat_arrays(arrays),
        num_samples=len(task.segment_of(part)),
        digest=task.part_digest(metric, part),
    )


def _write_sum(task: MapTask, metric: Metric, part: Part, total: np.ndarray) -> None:
    metadata = {
        _DIGEST: task.part_digest(metric, part).encode(),
        _SHAPE: ",".join(map(str, total.shape)).encode(),
        _CONTENT: digest_of_total(total).encode(),
    }
    table = pa.table({VALUE: arrow_view(total.reshape(-1))}).replace_schema_metadata(metadata)
    files.write_parquet(task.store, paths.part_sum(task.build, metric.name, part.number), table)


def _read_sum(task: MapTask, metric: Metric, part: Part) -> tuple[np.ndarray, str]:
    """Return the sum of one part, and the digest of what it was made from.

    Raises:
        IndexCorruptError: when it is missing or damaged.
    """
    name = paths.part_sum(task.build, metric.name, part.number)
    table = files.read_parquet(task.store, name)
    metadata = table.schema.metadata or {}
    with files.naming(task.store, name):
        shape = [int(size) for size in metadata[_SHAPE].decode().split(",") if size]
        total = numpy_view(table.column(VALUE).combine_chunks()).reshape(shape)
        if digest_of_total(total).encode() != metadata[_CONTENT]:
            raise ValueError("its content has changed")
        return total, metadata[_DIGEST].decode()


def sum_of_parts(task: MapTask, metric: Metric, parts: Sequence[Part]) -> np.ndarray:
    """Return the sum of a total metric over some parts, added in their order, in the type that is stored.

    Raises:
        IndexCorruptError: when the sum of a part is missing or can't be read.
        MetricValueError: when the declared type can't hold the sum.
    """
    total: np.ndarray | None = None
    for part in parts:
        total = added(metric.name, total, _read_sum(task, metric, part)[0])
    return stored_sum(metric.name, np.zeros(0) if total is None else total, metric.dtype)
