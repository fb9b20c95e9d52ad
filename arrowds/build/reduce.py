"""Sorted runs of a metric -> the Parquet files of one column of a segment. Runs anywhere, bucket by bucket.

A column is planned from the runs' metadata alone: the type that holds its values, and where the order is cut into
buckets. Then each task writes files of its own: the values of a fixed range of ids, in the order of the ids, or a
bucket of the order, sorted, with its distribution. What a task reports lies beside the runs, so that whoever commits
finds it, whatever process did the work.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, Protocol

import numpy as np
import polars as pl
import pyarrow as pa
import xxhash

from arrowds.arrays import arrow_view
from arrowds.build.runs import Run
from arrowds.errors import IndexNotFoundError, MetricValueError
from arrowds.index import files, paths
from arrowds.index.manifest import Bucket, Column, File, digest_fault
from arrowds.index.ranges import ROWS_PER_FILE, Cut, cut_buckets, is_single_value, merged, rows_per_bucket
from arrowds.index.view import codes_in
from arrowds.parallel import ordered_map, stop_if_told
from arrowds.schema import CATEGORY, COUNT, MOST_NAMES, VALUE, mapped_type, narrowed, numpy_dtype
from arrowds.store import Store


class SortedRows(Protocol):
    """Rows of a column, sorted by (value, sample_id): a run of a build, or a segment that is compacted."""

    def between(self, after: Cut | None, up_to: Cut | None) -> Iterator[pa.Table]:
        """The rows after one cut and up to another, in order."""

    def scatter(self, values: np.ndarray, present: np.ndarray | None, start: int) -> None:
        """Write the values of the ids from ``start`` on into their rows, and mark them as present."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnPlan:
    """One column of one segment before it is reduced; a pure function of its values.

    Attributes:
        store: the index.
        build: the key of the build, for what its tasks report.
        metric: name of the metric.
        key: names the column's files.
        rows: its rows in sorted pieces, in the order of their ids.
        num_samples: rows of the segment.
        logical: the type that the metric declares.
        stored: the smallest integer type that holds the values, or the declared type.
        nullable: whether samples may have no value.
        names: of a categorical metric, those that occur, sorted: each value is the place of its name.
        cuts: where the order is cut into buckets.
        digest: of what goes in; what tasks report of other input is not used.
    """

    store: Store
    build: str
    metric: str
    key: str
    rows: tuple[SortedRows, ...]
    num_samples: int
    logical: pa.DataType
    stored: pa.DataType
    nullable: bool
    cuts: tuple[Cut, ...]
    digest: str
    names: tuple[str, ...] = ()

    @property
    def tasks(self) -> list[ReduceTask]:
        """What is to be done, in any order."""
        chunks = range(-(-self.num_samples // ROWS_PER_FILE))
        return [
            *(ReduceTask("values", number) for number in chunks),
            *(ReduceTask("bucket", number) for number in range(len(self.cuts) + 1)),
            *([ReduceTask("names", 0)] if self.logical == CATEGORY else []),
        ]

    def outcome(self, task: ReduceTask) -> str:
        """The name of what a task reports."""
        return paths.outcome(self.build, self.metric, f"{self.key}-{task.kind}-{task.number:05d}")

    def reported(self, task: ReduceTask) -> dict[str, Any] | None:
        """What a finished task has reported, if it had the same input and its report was not damaged."""
        try:
            report = json.loads(self.store.read(self.outcome(task)).to_pybytes())
        except (FileNotFoundError, ValueError, RecursionError):
            return None
        whole = isinstance(report, dict) and report.get("digest") == _digest_of(self, report.get("written"))
        return report if whole else None

    def written(self, task: ReduceTask) -> dict[str, File]:
        """The files that a task has reported, by name; none where it is not finished."""
        report = self.reported(task)
        if report is None or report["written"] is None:
            return {}
        if task.kind == "values":
            return {paths.values(self.metric, self.key, task.number): File.model_validate(report["written"])}
        if task.kind == "names":
            return {paths.names(self.metric, self.key): File.model_validate(report["written"])}
        bucket = Bucket.model_validate(report["written"])
        return Column(key=self.key, stored_type=str(self.stored), values=(), buckets=(bucket,)).files(self.metric)


@dataclass(frozen=True, slots=True)
class ReduceTask:
    """One file of values in sample order, one bucket, or the names of a category."""

    kind: Literal["values", "bucket", "names"]
    number: int


def plan_column(
    store: Store, build: str, metric: str, key: str, runs: Sequence[Run], *, num_samples: int, nullable: bool
) -> ColumnPlan:
    """Plan a column from its runs.

    Raises:
        IndexCorruptError: when a run can't be read.
        MetricValueError: when runs have different types, or there are too many names.
    """
    for _ in ordered_map(lambda run: run.kind, runs, threads=store.files_at_once or 1):
        pass  # now each has its metadata
    logical = runs[0].kind
    for run in runs:
        if run.kind != logical:
            raise MetricValueError(
                f"metric {metric!r} gave {logical} for some samples but {run.kind} for others; declare its dtype"
            )
    names: list[str] = []
    if logical == CATEGORY:
        names = sorted(set().union(*(run.names for run in runs)))
        refuse_too_many(metric, names)
        runs = [replace(run, codes=codes_in(names, run.names)) for run in runs]
    ends = [end for run in runs if len(run.fences) for end in (run.fences[0].item(), run.fences[-1].item())]
    ends = [0, max(len(names) - 1, 0)] if logical == CATEGORY else ends
    return ColumnPlan(
        store=store,
        build=build,
        metric=metric,
        key=key,
        names=tuple(names),
        rows=tuple(replace(run) for run in runs),  # without what was read of them
        num_samples=num_samples,
        logical=logical,
        stored=narrowed(logical, min(ends), max(ends)) if ends else logical,
        nullable=nullable,
        cuts=cuts_of(np.concatenate([run.sampled for run in runs]), num_samples),
        digest=xxhash.xxh3_128_hexdigest("|".join(run.digest for run in runs).encode()),
    )


def refuse_too_many(metric: str, names: Sequence[str]) -> None:
    """Raise MetricValueError where a categorical metric has more names than make sense of one."""
    if len(names) > MOST_NAMES:
        raise MetricValueError(
            f"metric {metric!r} has {len(names)} different names, more than the {MOST_NAMES:,} of a categorical "
            "metric; measure a number instead, such as pl.col(...).hash()"
        )


def cuts_of(sampled: np.ndarray, num_samples: int) -> tuple[Cut, ...]:
    """Return where the order of ``num_samples`` is cut, of which some values are known."""
    if len(sampled) == 0:
        return ()
    target = rows_per_bucket(num_samples) * min(1.0, len(sampled) / num_samples)
    return tuple(cut_buckets(np.sort(sampled), target))


def reduce_task(column: ColumnPlan, task: ReduceTask) -> None:
    """Write the files of one task, and what it reports, unless that was done.

    Raises:
        IndexCorruptError: when a run can't be read.
        StorageError: when a file can't be written.
    """
    if _can_be_kept(column, task):
        return
    written = _WRITERS[task.kind](column, task.number)
    said = None if written is None else json.loads(written.model_dump_json())
    report = {"digest": _digest_of(column, said), "written": said}
    column.store.write(column.outcome(task), json.dumps(report).encode())


def _digest_of(column: ColumnPlan, said: Any) -> str:
    """The digest of a task's input and of what it reports."""
    return xxhash.xxh3_128_hexdigest(f"{column.digest}|{json.dumps(said)}".encode())


def _can_be_kept(column: ColumnPlan, task: ReduceTask) -> bool:
    """Whether a task was finished, and none of its files was damaged since, as by a power cut."""
    return column.reported(task) is not None and not any(
        digest_fault(column.store, name, file) for name, file in column.written(task).items()
    )


def finished_column(plan: ColumnPlan) -> Column:
    """Collect what all tasks of a column have reported.

    Raises:
        IndexNotFoundError: when a task is not finished; names it.
    """
    values, buckets, names = [], [], None
    reports = ordered_map(plan.reported, plan.tasks, threads=plan.store.files_at_once or 1)
    for task, report in zip(plan.tasks, reports, strict=True):
        if report is None:
            raise IndexNotFoundError(
                f"{plan.store.url}: {task.kind} {task.number} of metric {plan.metric!r} is not reduced yet; run the "
                "reduce to its end, then commit"
            )
        if task.kind == "values":
            values.append(File.model_validate(report["written"]))
        elif task.kind == "names":
            names = File.model_validate(report["written"])
        elif report["written"] is not None:
            buckets.append(Bucket.model_validate(report["written"]))
    return Column(key=plan.key, stored_type=str(plan.stored), values=tuple(values), buckets=tuple(buckets), names=names)


def _write_values(column: ColumnPlan, number: int) -> File:
    """Write the values of a fixed range of ids, in the order of the ids."""
    start = number * ROWS_PER_FILE
    rows = min(ROWS_PER_FILE, column.num_samples - start)
    values = np.zeros(rows, numpy_dtype(mapped_type(column.stored)))
    present = np.zeros(rows, np.bool_) if column.nullable else None
    # Pieces have rows of their own, so that several may be read at once.
    threads = column.store.files_at_once or 1
    for _ in ordered_map(lambda piece: piece.scatter(values, present, start), column.rows, threads=threads):
        pass
    missing = None if present is None or present.all() else ~present
    plain = values.view(np.bool_) if pa.types.is_boolean(column.stored) else values
    table = pa.table({VALUE: arrow_view(plain, missing=missing)})
    return File.of(files.write_parquet(column.store, paths.values(column.metric, column.key, number), table))


def _write_bucket(column: ColumnPlan, number: int) -> Bucket | None:
    """Write one bucket, sorted by (value, sample_id), and its distribution; None where it has no rows."""
    after = column.cuts[number - 1] if number else None
    up_to = column.cuts[number] if number < len(column.cuts) else None
    frames = merged(_slices(column, after, up_to), column.stored, single_value=is_single_value(after, up_to))
    written, counts, rows = [], [], 0
    for part, frame in enumerate(frames):
        stop_if_told()
        name = paths.bucket(column.metric, column.key, number, part)
        written.append(File.of(files.write_parquet(column.store, name, frame.to_arrow())))
        counts.append(_distribution(frame[VALUE]))
        rows += frame.height
    if not written:
        return None
    distribution = counts[0]
    if len(counts) > 1:  # a value that ends one file and begins the next is counted in both
        distribution = pl.concat(counts).group_by(VALUE, maintain_order=True).agg(pl.col(COUNT).sum())
    name = paths.distribution(column.metric, column.key, number)
    return Bucket(
        number=number,
        rows=rows,
        low=distribution[VALUE][0],
        high=distribution[VALUE][-1],
        num_distinct=distribution.height,
        files=tuple(written),
        distribution=File.of(files.write_parquet(column.store, name, distribution.to_arrow())),
    )


def _write_names(column: ColumnPlan, number: int) -> File:
    """Write the names of a category, in the order of their codes."""
    table = pa.table({VALUE: pa.array(column.names, CATEGORY)})
    return File.of(files.write_parquet(column.store, paths.names(column.metric, column.key), table))


_WRITERS = {"values": _write_values, "bucket": _write_bucket, "names": _write_names}


def _slices(column: ColumnPlan, after: Cut | None, up_to: Cut | None) -> Iterator[pa.Table]:
    """Yield the rows of a range, piece by piece; runs in an object store are read ahead, as each is a request."""
    if all(isinstance(piece, Run) for piece in column.rows):
        threads = column.store.files_at_once or 1
        runs = ordered_map(lambda run: list(run.between(after, up_to)), column.rows, threads=threads, ahead=0)
        return chain.from_iterable(runs)
    return chain.from_iterable(piece.between(after, up_to) for piece in column.rows)


def _distribution(values: pl.Series) -> pl.DataFrame:
    """Return each distinct value of a sorted column and how often it occurs; of 0.0 and -0.0, that of the first."""
    runs = values.rechunk().rle().struct
    return pl.DataFrame({VALUE: runs.field("value"), COUNT: runs.field("len").cast(pl.Int64)})
