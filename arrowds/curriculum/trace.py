"""The audit trail: which samples a step draws, with their values, and which samples a run consumed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from arrowds.arrays import arrow_view
from arrowds.errors import ConfigError, StorageError, UnreadableFileError

if TYPE_CHECKING:
    import polars as pl

    from arrowds.curriculum.sampler import GroupSampler
    from arrowds.index import Index

RECORD_SCHEMA = pa.schema(
    {
        "step": pa.int64(),
        "micro_batch": pa.int32(),
        "rank": pa.int32(),
        "sample_id": pa.uint64(),
        "loss": pa.float32(),
    }
)
INDEX_FILE = "index.json"
"""Which index the samples are of: its path and version, beside the records."""

Row = tuple[int, int, list[int]]
"""A microbatch of one rank: step, microbatch within it, sample ids."""

logger = logging.getLogger(__name__)

_SAMPLES_PER_WRITE = 4096
CONSUMED = "consumed"
"""The folder of the records in the output of a run."""


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
        if names := getattr(metric, "names", ()):
            codes = pa.array(np.ma.getdata(drawn), mask=np.ma.getmaskarray(drawn))
            columns[name] = pa.DictionaryArray.from_arrays(codes, pa.array(names)).dictionary_decode()
            continue
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
        self._losses: list[np.ndarray | None] = []
        self._count = 0
        self.index: Mapping[str, Any] | None = None
        self._process = os.getpid()

    def add(self, row: Row) -> None:
        """Add a microbatch; it is written after its losses can have come."""
        if self._count >= _SAMPLES_PER_WRITE:
            self.flush()
        self._rows.append(row)
        self._losses.append(None)
        self._count += len(row[2])

    def add_losses(self, losses: npt.ArrayLike) -> None:
        """Add the losses of the samples of the microbatch that was added last.

        Raises:
            ConfigError: when there are not as many, or that microbatch was written already.
        """
        if not self._rows:
            raise ConfigError(
                "there is no microbatch that losses could be of: record them after it was handed out, and before the "
                "state is saved"
            )
        given = np.asarray(losses, np.float32)
        if given.shape != (len(self._rows[-1][2]),):
            raise ConfigError(
                f"the microbatch has {len(self._rows[-1][2])} samples, but losses have the shape {given.shape}; give "
                "one for each"
            )
        self._losses[-1] = given

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
        arrays = [pa.array(column).cast(field.type) for column, field in zip(columns, RECORD_SCHEMA, strict=False)]
        pairs = zip(self._losses, lengths, strict=True)
        arrays.append(
            pa.concat_arrays(
                [pa.nulls(length, pa.float32()) if found is None else arrow_view(found) for found, length in pairs]
            )
        )
        if self._writer is None:
            self._writer = pa.ipc.new_stream(pa.OSFile(str(self._new_file()), "wb"), RECORD_SCHEMA)
        self._writer.write_batch(pa.record_batch(arrays, schema=RECORD_SCHEMA))
        self._rows, self._losses, self._count = [], [], 0

    def _new_file(self) -> Path:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._rank == 0 and self.index is not None:
                (self._folder / INDEX_FILE).write_text(json.dumps(self.index))
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
    """Return what all ranks and all starts of a run consumed, file by file: a row for each sample.

    Columns: ``step`` (int64), ``micro_batch`` and ``rank`` (int32), ``sample_id`` (uint64), and ``loss`` (float32),
    null where none was recorded.

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


def why(
    folder: str | PathLike[str],
    steps: Iterable[int],
    *,
    index: Index | None = None,
    columns: Sequence[str] | None = None,
) -> pl.DataFrame:
    """Return the samples that all ranks saw at some steps of a recorded run, with what is known of each.

    Columns: ``step``, ``micro_batch``, ``rank``, ``sample_id``, ``loss`` where the run recorded any, each metric with
    ``percentile_NAME`` (the share of samples up to its value, 0 to 100), and the columns of the data. A step that a
    resumed run repeated is there as often as it was seen. Of a name that occurs twice, the later column is
    ``index_NAME`` or ``data_NAME``.

    Args:
        folder: where a sampler recorded, or the output of ``arrowds run``.
        steps: the steps; the first one of a run is 1.
        index: the index of the run; by default the one that the record names.
        columns: which columns of the data; by default all, none for an empty list.

    Raises:
        ConfigError: when none of the steps is recorded, or the record names no index.
        UnreadableFileError: when there is no record.

    >>> import arrowds, polars as pl, tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "data.parquet")
    ...     pl.DataFrame({"text": ["to be", "or", "not to be", "that"]}).write_parquet(path)
    ...     metric = arrowds.metrics.expr("n_chars", pl.col("text").str.len_chars())
    ...     index = arrowds.analyze(path, metric, f"{folder}/index")
    ...     sampler = arrowds.CurriculumSampler(index, {}, micro_batch_size=2, record=f"{folder}/record")
    ...     _ = list(sampler)
    ...     found = why(f"{folder}/record", [2])
    ...     found.columns, found.height
    (['step', 'micro_batch', 'rank', 'sample_id', 'n_chars', 'percentile_n_chars', 'text'], 2)
    """
    import polars as pl

    from arrowds.index import open_index
    from arrowds.index.looking import beside, looked_up

    place = Path(folder)
    place = place / CONSUMED if (place / CONSUMED).is_dir() else place
    wanted = sorted(set(steps))
    records = pl.DataFrame(read_records(place))
    rows = records.filter(pl.col("step").is_in(wanted)).sort("step", "micro_batch", "rank", maintain_order=True)
    if rows.is_empty():
        there = records["step"].unique().sort().to_list()
        raise ConfigError(f"{place} has no record of step {wanted[0]}; it has the steps {there[0]} to {there[-1]}")
    if index is None:
        if not (place / INDEX_FILE).exists():
            raise ConfigError(
                f"{place} does not say which index its samples are of; pass index=arrowds.open_index(...)"
            )
        index = open_index(**json.loads((place / INDEX_FILE).read_text()))
    known = looked_up(index, rows["sample_id"].to_numpy(), list(index), columns)
    return beside(rows if rows["loss"].count() else rows.drop("loss"), known.drop("sample_id"), "index_")


def simulate(sampler: GroupSampler, points: int = 20) -> pl.DataFrame:
    """Return what some steps of a run draw, from the first to the last; the position of the sampler stays.

    Columns: ``step``; ``samples``; ``tokens`` and ``fill`` (their share of the budgets), under a token budget;
    ``difficulty_NAME`` for each metric of a curriculum; ``mean_NAME`` and ``max_NAME`` of each metric that is a number;
    and, in a mixture, the share of the samples of each group, ``share_NAME``.

    Args:
        sampler: a :class:`arrowds.CurriculumSampler` or :class:`arrowds.MixtureSampler`.
        points: how many steps, evenly spread.

    Raises:
        ConfigError: when ``points`` is below 1.

    >>> import arrowds, polars as pl, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data = pl.DataFrame({"seqlen": [1 + row % 64 for row in range(1000)]})
    ...     index = arrowds.analyze(data, arrowds.metrics.column("seqlen"), folder, progress=False)
    ...     curriculum = {"seqlen": {"difficulty_type": "value", "clustering_type": "schedule_based",
    ...         "min_difficulty": 8, "max_difficulty": 64, "schedule_type": "fixed_linear",
    ...         "schedule_config": {"total_curriculum_step": 20, "difficulty_step": 8}}}
    ...     sampler = arrowds.CurriculumSampler(index, curriculum, micro_batch_size=20)
    ...     found = simulate(sampler, 3)
    ...     found.select("step", "samples", "difficulty_seqlen", "max_seqlen").rows()
    [(1, 20, 8, 8.0), (26, 20, 64, 64.0), (50, 20, 64, 64.0)]
    """
    import polars as pl

    if points < 1:
        raise ConfigError(f"points must be at least 1, got {points}")
    steps = np.unique(np.linspace(1, sampler.num_steps, points).round().astype(np.int64)).tolist()
    drawn = pl.DataFrame(sampler.trace(steps))
    difficulties = [name for name in drawn.columns if name.startswith("difficulty_")]
    places = ("step", "micro_batch", "rank", "sample_id", "group", *difficulties)
    numbers = [name for name in drawn.columns if name not in places and drawn[name].dtype.is_numeric()]
    told: list[pl.Expr] = [pl.len().alias("samples"), *(pl.col(name).first() for name in difficulties)]
    for name in numbers:
        told += [pl.col(name).mean().alias(f"mean_{name}"), pl.col(name).max().cast(pl.Float64).alias(f"max_{name}")]
    if "group" in drawn.columns:
        told += [(pl.col("group") == name).mean().alias(f"share_{name}") for name in sampler.groups]  # type: ignore[attr-defined]
    found = drawn.group_by("step", maintain_order=True).agg(told)
    if sampler.max_tokens is not None:
        tokens = [sampler.tokens_at(step) for step in steps]
        found.insert_column(2, pl.Series("tokens", [int(each.sum()) for each in tokens]))
        found.insert_column(3, pl.Series("fill", [float(each.mean()) / sampler.max_tokens for each in tokens]))
    return found
