"""Event files: an Arrow IPC stream per rank during a run, Parquet partitioned by rank afterwards."""

from __future__ import annotations

import logging
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from arrowds.errors import ProfilerError
from arrowds.stats.profiler.buffer import EVENT_SCHEMA, EVENTS_VERSION, VERSION_KEY
from arrowds.store import replacing

logger = logging.getLogger(__name__)

STREAM_SUFFIX = ".arrows"
PARQUET_SUFFIX = ".parquet"
_ROW_GROUP = 1 << 18
_STORED_SCHEMA: pa.Schema = EVENT_SCHEMA.remove(0)  # the folder rank=N holds the rank of a Parquet file
_DELTAS = dict.fromkeys(("step", "micro_step", "start_ns"), "DELTA_BINARY_PACKED")


def rank_folder(folder: Path, rank: int) -> Path:
    """Return the hive folder of a rank.

    >>> rank_folder(Path("profile"), 3).name
    'rank=3'
    """
    return folder / f"rank={rank}"


class EventStream:
    """One IPC stream file that is readable up to the last batch written, whatever happens to the process.

    Args:
        folder: the rank's folder; it is created, and no file in it is ever overwritten.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"events-{time.time_ns()}-{uuid.uuid4().hex[:8]}{STREAM_SUFFIX}"
        # A buffer in front of the file makes each batch one write, so that a kill rarely cuts one in two.
        self._file: BinaryIO = self.path.open("xb", buffering=1 << 20)
        options = pa.ipc.IpcWriteOptions(compression="zstd", use_threads=False)
        self._writer = pa.ipc.new_stream(self._file, EVENT_SCHEMA, options=options)

    def write(self, batch: pa.RecordBatch) -> None:
        """Append a batch and flush it to the operating system, so that it survives a kill of this process."""
        self._writer.write_batch(batch)
        self._file.flush()

    def close(self) -> None:
        """Mark the end of the stream."""
        try:
            self._writer.close()
        finally:
            self._file.close()

    def abandon(self) -> None:
        """Close the file without an end mark: a forked child shares it with the process that still writes."""
        self._file.close()


def stream_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a stream file up to its end, or up to where a killed process stopped writing.

    Raises:
        ProfilerError: when the file is a complete stream of something else, or of a newer version.
    """
    rows = 0
    with pa.OSFile(str(path)) as file:
        try:
            reader = pa.ipc.open_stream(file)
        except (OSError, pa.ArrowException) as error:
            logger.warning("%s has no readable events: %s", path, error)
            return
        _check_schema(reader.schema, EVENT_SCHEMA, path)
        while True:
            try:
                batch = reader.read_next_batch()
                batch.validate(full=True)
            except StopIteration:
                return
            except (OSError, pa.ArrowException) as error:
                logger.warning("%s is truncated; read the first %d events: %s", path, rows, error)
                return
            rows += batch.num_rows
            yield batch


def compact(source: Path, target: Path) -> None:
    """Copy an event file to a Parquet file, atomically and in row groups, so memory stays bounded."""
    with replacing(target) as draft:
        if source.suffix == PARQUET_SUFFIX:
            shutil.copyfile(source, draft.path)
            return
        writer = pq.ParquetWriter(
            draft.path,
            _STORED_SCHEMA,
            compression="zstd",
            use_dictionary=["phase", "event", "elements_of", "clock"],
            column_encoding=_DELTAS,
        )
        with writer:
            for table in _row_groups(source):
                writer.write_table(table, row_group_size=_ROW_GROUP)


def _row_groups(source: Path) -> Iterator[pa.Table]:
    pending: list[pa.RecordBatch] = []
    for batch in stream_batches(source):
        pending.append(batch)
        if sum(held.num_rows for held in pending) >= _ROW_GROUP:
            yield _stored(pending)
            pending = []
    if pending:
        yield _stored(pending)


def _stored(batches: list[pa.RecordBatch]) -> pa.Table:
    return pa.Table.from_batches(batches).unify_dictionaries().select(_STORED_SCHEMA.names)


def read_file(path: Path) -> pa.Table:
    """Return the events of one stream or Parquet file with the columns of ``EVENT_SCHEMA``."""
    if path.suffix == PARQUET_SUFFIX:
        return _parquet_table(path)
    return pa.Table.from_batches(list(stream_batches(path)), EVENT_SCHEMA).unify_dictionaries()


def _parquet_table(path: Path) -> pa.Table:
    try:
        table = pq.read_table(path, partitioning=None)
    except (OSError, pa.ArrowException) as error:
        raise ProfilerError(f"{path} can't be read as Parquet: {error}; delete it to read the other files") from error
    _check_schema(table.schema, _STORED_SCHEMA, path)
    rank = int(path.parent.name.removeprefix("rank="))
    column = pa.repeat(pa.scalar(rank, pa.int32()), table.num_rows)
    return table.add_column(0, EVENT_SCHEMA.field(0), column).cast(EVENT_SCHEMA)


def _check_schema(schema: pa.Schema, expected: pa.Schema, path: Path) -> None:
    version = (schema.metadata or {}).get(VERSION_KEY)
    try:
        names = schema.names
    except UnicodeDecodeError as error:
        raise ProfilerError(f"{path} is damaged: the names of its columns are no text") from error
    if version is None or not version.isdigit() or names != expected.names:
        raise ProfilerError(f"{path} is not a file of profiler events: got {names}, expected {expected.names}")
    if int(version) > EVENTS_VERSION:
        raise ProfilerError(
            f"{path} has format version {int(version)}, this arrowds reads up to {EVENTS_VERSION}: update arrowds"
        )


def event_files(folder: Path) -> list[Path]:
    """Return the event files below ``folder``, by rank and age; the Parquet file where a stream was compacted."""
    files: dict[tuple[int, str], Path] = {}
    for path in sorted(folder.glob("rank=*/events-*")):
        rank = path.parent.name.removeprefix("rank=")
        if rank.isdigit() and path.suffix in (STREAM_SUFFIX, PARQUET_SUFFIX):
            key = (int(rank), path.stem)
            if key not in files or path.suffix == PARQUET_SUFFIX:
                files[key] = path
    return [files[key] for key in sorted(files)]


def read_events(folder: str | Path) -> pa.Table:
    """Read the events that profilers recorded into ``folder``, of every rank, finished, running or killed.

    Args:
        folder: the folder passed to ``attach_profiler`` or ``write``.

    Returns:
        A row per event: rank, step, micro_step, phase, event, start_ns (since the Unix epoch), duration_ns,
        num_elements, bytes (null when the element size is unknown), elements_of (what ``num_elements`` counts:
        ``partition``, ``full`` or null), clock (``host`` or ``device``).

    Raises:
        ProfilerError: when there are no event files, or one has another format.
    """
    files = event_files(Path(folder))
    if not files:
        raise ProfilerError(
            f"no profiler events in {folder}: expected files rank=N/events-*{STREAM_SUFFIX} or "
            f"rank=N/events-*{PARQUET_SUFFIX}; give the folder that was passed to attach_profiler or write"
        )
    return pa.concat_tables([read_file(path) for path in files]).unify_dictionaries()
