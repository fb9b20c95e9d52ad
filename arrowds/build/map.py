"""One row range and some metrics -> one Parquet file per metric. Runs anywhere; knows no worker and no other part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from arrowds.index import files as storage
from arrowds.build.plan import MapTask
from arrowds.build.results import added, checked_sum, checked_values
from arrowds.errors import ArrowdsError, IndexCorruptError, MetricFailedError, MetricValueError, SourceError
from arrowds.index.manifest import PartRange
from arrowds.metrics import Metric
from arrowds.schema import SAMPLE_ID, VALUE, sample_id_type
from arrowds.arrays import arrow_view, numpy_view

_DIGEST = "arrowds.part"
_SHAPE = "arrowds.shape"


def is_finished(task: MapTask, metric: Metric, part: PartRange) -> bool:
    """Tell whether the part's file of one metric is there, whole, and made from the same data, rows and metric."""
    path = part_path(task, metric, part)
    try:
        return path.exists() and storage.read_parquet_metadata(path).get(_DIGEST) == task.part_digest(metric, part)
    except IndexCorruptError:
        return False


def part_path(task: MapTask, metric: Metric, part: PartRange) -> Any:
    """Return the file of one metric for one part."""
    place = task.layout.part if metric.kind == "per_sample" else task.layout.total_part
    return place(metric.name, part.number)


def map_part(task: MapTask, part: PartRange) -> None:
    """Compute the metrics of one part that are not finished, and write each as one file.

    Raises:
        MetricFailedError: when a metric raises; names it and the sample.
        MetricValueError: when a metric returns something wrong.
        SourceError: when the source can't be read.
        StorageError: when a file can't be written.
    """
    metrics = [metric for metric in task.metrics if not is_finished(task, metric, part)]
    if not metrics:
        return
    values: dict[str, list[pa.Array]] = {metric.name: [] for metric in metrics}
    sums: dict[str, np.ndarray] = {}
    for start, rows, batch in _batches(task, part):
        for metric in metrics:
            result = _computed(task, metric, batch, start, rows)
            if start == part.start:
                metric.check(batch)
            if metric.kind == "per_sample":
                found = checked_values(metric, result, start=start, rows=rows)
                _refuse_other_type(metric, values[metric.name], found, part=part, start=start)
                values[metric.name].append(found)
            else:
                sums[metric.name] = added(metric, sums.get(metric.name), checked_sum(metric, result))
    for metric in metrics:
        if metric.kind == "per_sample":
            _write_values(task, metric, part, values.pop(metric.name))
        else:
            _write_sum(task, metric, part, sums.pop(metric.name))


def _batches(task: MapTask, part: PartRange) -> Iterator[tuple[int, int, Any]]:
    """Yield first row, number of rows and content of each batch of a part.

    All columns of the pass are read, also where only some metrics are left to compute: the batches of a file depend on
    its columns, and sums of floats on the batches.
    """
    start = part.start
    for batch in task.source.read(part.start, part.stop, columns_of(task.metrics)):
        rows = batch.num_rows if isinstance(batch, pa.RecordBatch) else min(task.source.batch_size, part.stop - start)
        if rows:
            yield start, rows, batch
        start += rows
    if start != part.stop:
        raise SourceError(
            f"the source ({task.source.description}) gave {start - part.start} of the {len(part)} rows "
            f"{part.start} to {part.stop - 1}; was it changed during the run?"
        )


def columns_of(metrics: Sequence[Metric]) -> list[str] | None:
    """Return the columns that the metrics read together, or None where one reads all."""
    found: dict[str, None] = {}
    for metric in metrics:
        if metric.columns is None:
            return None
        found.update(dict.fromkeys(metric.columns))
    return list(found)


def _computed(task: MapTask, metric: Metric, batch: Any, start: int, rows: int) -> Any:
    try:
        return metric.compute(batch, task.totals)
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


def _refuse_other_type(metric: Metric, before: list[pa.Array], found: pa.Array, *, part: PartRange, start: int) -> None:
    if before and before[0].type != found.type:
        raise MetricValueError(
            f"metric {metric.name!r} gave {before[0].type} for sample {part.start} but {found.type} for sample "
            f"{start}; declare its dtype"
        )


def _write_values(task: MapTask, metric: Metric, part: PartRange, arrays: list[pa.Array]) -> None:
    ids = np.arange(part.start, part.stop, dtype=sample_id_type(len(task.source)).to_pandas_dtype())
    table = pa.table({SAMPLE_ID: arrow_view(ids), VALUE: pa.chunked_array(arrays)})
    storage.write_parquet(part_path(task, metric, part), table, metadata={_DIGEST: task.part_digest(metric, part)})


def _write_sum(task: MapTask, metric: Metric, part: PartRange, total: np.ndarray) -> None:
    shape = ",".join(map(str, total.shape))
    storage.write_parquet(
        part_path(task, metric, part),
        pa.table({VALUE: arrow_view(total.reshape(-1))}),
        metadata={_DIGEST: task.part_digest(metric, part), _SHAPE: shape},
    )


def read_sum(task: MapTask, metric: Metric, part: PartRange) -> np.ndarray:
    """Return the sum that :func:`map_part` wrote for one part."""
    table = storage.read_parquet(part_path(task, metric, part))
    shape = (table.schema.metadata or {}).get(_SHAPE.encode(), b"").decode()
    total = numpy_view(table.column(VALUE).combine_chunks())
    return total.reshape([int(size) for size in shape.split(",") if size])
