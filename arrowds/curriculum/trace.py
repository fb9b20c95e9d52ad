"""The audit trail: which samples a step draws, with their values, and which samples a run consumed."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from arrowds.errors import StorageError, UnreadableFileError

RECORD_SCHEMA = pa.schema({"step": pa.int64(), "micro_batch": pa.int32(), "rank": pa.int32(), "sample_id": pa.uint64()})
Row = tuple[int, int, list[int]]
"""A microbatch of one rank: step, microbatch within it, sample ids."""

logger = logging.getLogger(__name__)

_SAMPLES_PER_WRITE = 4096


def trace_table(
    batches: Mapping[int, npt.NDArray[np.int64]],
    difficulties: Mapping[int, Mapping[str, Any]],
    places: Mapping[int, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]],
    values: Mapping[str, Any],
) -> pa.Table:
    """Return one row per sample of each step: ``step``, ``micro_batch``, ``rank``, ``sample_id``, difficulties, values.

    Args:
        batches: the ids that are drawn, by step.
        difficulties: by step and metric; they become the columns ``difficulty_NAME``.
        places: the microbatch and the rank of each of these ids, by step.
        values: the metrics whose values become columns of their names.
    """
    steps = np.repeat(list(batches), [len(ids) for ids in batches.values()])
    ids = np.concatenate([np.zeros(0, np.int64), *batches.values()])
    columns: dict[str, Any] = {
        "step": pa.array(steps, pa.int64()),
        "micro_batch": pa.array(np.concatenate([[], *(micro for micro, _ in places.values())]), pa.int32()),
        "rank": pa.array(np.concatenate([[], *(rank for _, rank in places.values())]), pa.int32()),
        "sample_id": pa.array(ids, pa.uint64()),
    }
    for name in next(iter(difficulties.values()), {}):
        columns[f"difficulty_{name}"] = np.repeat(
            [by_metric[name] for by_metric in difficulties.values()], [len(ids) for ids in batches.values()]
        )
    for name, metric in values.items():
        drawn = metric.values[ids]
        # Stored integers may be narrower than the metric declares: differences would wrap around.
        declared = getattr(metric, "dtype", drawn.dtype)
        columns[name] = pa.array(np.ma.getdata(drawn).astype(declared, copy=False), mask=np.ma.getmaskarray(drawn))
    return pa.table(columns)


class Recorder:
    """Write what one rank consumed as an Arrow stream: a new file of the folder for every start of the run."""

    def __init__(self, folder: str | PathLike[str], *, rank: int) -> None:
        self._folder = Path(folder)
        self._rank = rank
        self._writer: Any = None
        self._rows: list[Row] = []
        self._count = 0
        self._process = os.getpid()

    def add(self, row: Row) -> None:
        """Add a microbatch."""
        self._rows.append(row)
        self._count += len(row[2])
        if self._count >= _SAMPLES_PER_WRITE:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are still in memory."""
        if not self._rows:
            return
        lengths = [len(ids) for _, _, ids in self._rows]
        columns = [
            np.repeat([step for step, _, _ in self._rows], lengths),
            np.repeat([micro for _, micro, _ in self._rows], lengths),
            np.full(sum(lengths), self._rank),
            np.concatenate([np.asarray(ids, np.uint64) for _, _, ids in self._rows]),
        ]
        arrays = [pa.array(column).cast(field.type) for column, field in zip(columns, RECORD_SCHEMA, strict=True)]
        if self._writer is None:
            self._writer = pa.ipc.new_stream(pa.OSFile(str(self._new_file()), "wb"), RECORD_SCHEMA)
        self._writer.write_batch(pa.record_batch(arrays, schema=RECORD_SCHEMA))
        self._rows, self._count = [], 0

    def _new_file(self) -> Path:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            for start in range(1, 1 << 20):
                path = self._folder / f"rank-{self._rank:05}-start-{start:05}.arrows"
                if not path.exists():
                    return path
        except OSError as error:
            raise StorageError(f"can't write the record of this run to {self._folder}: {error}") from error
        raise StorageError(f"{self._folder} contains too many records; choose another folder")

    def close(self) -> None:
        """Write the remaining rows and end the file; the next row starts a new one."""
        self.flush()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def finish(self) -> None:
        """Close, unless this is a fork of the recording process, which has the same rows in memory."""
        if os.getpid() == self._process:
            self.close()


def read_records(folder: str | PathLike[str]) -> pa.Table:
    """Return what all ranks and all starts of a run consumed: step, micro_batch, rank, sample_id, file by file.

    If a run was killed, rows after its last saved state may be missing; the files stay readable. Steps that a run
    repeated, because it resumed from an earlier state, appear twice: they were consumed twice.

    What follows a damaged place of a file is left out, with a warning.

    Raises:
        UnreadableFileError: when the folder contains no record, or a file of something else.
    """
    batches = [batch for path in sorted(Path(folder).glob("rank-*.arrows")) for batch in _read(path)]
    if not batches:
        raise UnreadableFileError(
            f"{folder} contains no record of a run; record one with CurriculumSampler(record=...)"
        )
    return pa.Table.from_batches(batches)


def _read(path: Path) -> list[pa.RecordBatch]:
    batches: list[pa.RecordBatch] = []
    with pa.OSFile(str(path), "rb") as file:
        try:
            for batch in pa.ipc.open_stream(file):
                if batch.schema != RECORD_SCHEMA:
                    raise UnreadableFileError(f"{path} is not the record of a run: it has other columns")
                batch.validate(full=True)
                batches.append(batch)
        except (OSError, pa.ArrowException) as error:
            rows = sum(batch.num_rows for batch in batches)
            logger.warning("%s is truncated; read the first %d samples: %s", path, rows, error)
    return batches
