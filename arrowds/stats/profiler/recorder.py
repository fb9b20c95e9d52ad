"""From events to the rank's file: buffer, device timings, stream, and when to flush."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from arrowds.errors import ConfigError, ProfilerError, StorageError
from arrowds.stats.profiler.buffer import EVENT_SCHEMA, EventBuffer
from arrowds.stats.profiler.device import DeviceEvent, DeviceTimings
from arrowds.stats.profiler.files import PARQUET_SUFFIX, EventStream, compact, rank_folder, read_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecorderOptions:
    """How a rank's events are kept.

    Attributes:
        rank: written into every row.
        path: folder of the run; the rank writes below ``rank=N`` in it. None: a temporary folder, removed with the
            recorder.
        element_size: bytes of one element; None leaves ``bytes`` null.
        device_events: returns a new device event that keeps time; None: the host's clock.
        flush_rows: rows after which a step boundary flushes; the buffer holds four times as many.
        flush_seconds: seconds after which a step boundary flushes, regardless of the number of rows.
    """

    rank: int = 0
    path: Path | None = None
    element_size: int | None = None
    device_events: Callable[[], DeviceEvent] | None = None
    flush_rows: int = 16384
    flush_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.rank < 0 or self.flush_rows < 1 or self.flush_seconds < 0:
            raise ConfigError(
                f"rank must be at least 0, flush_rows at least 1 and flush_seconds at least 0, "
                f"got {self.rank}, {self.flush_rows} and {self.flush_seconds}"
            )
        if self.element_size is not None and self.element_size < 1:
            raise ConfigError(f"element_size must be the bytes of one element or None, got {self.element_size}")


class EventRecorder:
    """Keeps the events of one rank: in memory up to ``4 * flush_rows``, the rest in files.

    A file that can't be written (a full disk) never stops the profiled run: the error is logged once, and ``dropped``
    counts the lost events.
    """

    def __init__(self, options: RecorderOptions) -> None:
        self._options = options
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._epoch_offset = time.time_ns() - time.perf_counter_ns()
        self.device = None if options.device_events is None else DeviceTimings(options.device_events)
        self._buffer = EventBuffer(
            4 * options.flush_rows,
            rank=options.rank,
            element_size=options.element_size,
            clock=0 if self.device is None else 1,
        )
        self._folder = None if options.path is None else rank_folder(options.path, options.rank).absolute()
        self._temporary: str | None = None
        self._stream: EventStream | None = None
        self._files: list[Path] = []
        self._flushed_at = time.perf_counter_ns()
        self._failure: OSError | None = None
        self.dropped = 0
        self.code_of = self._buffer.code_of

    def begin_step(self, step: int, micro_step: int) -> None:
        """Set the step of the events that follow; flush if enough rows or seconds have accumulated."""
        self._buffer.step = step
        self._buffer.micro_step = micro_step
        options = self._options
        waited = time.perf_counter_ns() - self._flushed_at
        if self._buffer.rows >= options.flush_rows or waited >= options.flush_seconds * 1e9:
            with self._lock:
                self._flush_safely(wait=0)

    def record(self, start: int, duration: int, elements: int, code: int) -> None:
        """Keep an event timed by the host, in ns of the monotonic clock."""
        with self._lock:
            self._buffer.append(start, duration, elements, code)
            if self._buffer.rows == self._buffer.capacity:
                self._flush_safely(wait=0)

    def record_on_device(self, start: int, pair: tuple[DeviceEvent, DeviceEvent], elements: int, code: int) -> None:
        """Keep an event that started at ``start`` by the host's clock and is timed by a pair of device events."""
        if self.device is None:
            raise ProfilerError("this recorder has no device_events")
        with self._lock:
            self.device.add(*pair)
            self._buffer.append(start, -1, elements, code)
            if self._buffer.rows == self._buffer.capacity:
                self._flush_safely(wait=self._buffer.capacity // 2)

    def _flush_safely(self, *, wait: int) -> None:
        try:
            self._flush(wait=wait)
        except OSError as error:
            if self._failure is None:
                logger.error("can't write profiler events, they are dropped from now on; the run continues: %s", error)
            self._failure = error

    def _flush(self, *, wait: int) -> None:
        """Write the rows whose durations are known; the caller holds the lock."""
        self._flushed_at = time.perf_counter_ns()
        if os.getpid() != self._pid:  # a forked child, such as a loader worker: the parent writes these rows
            self._buffer.rows = 0
            return
        durations = None if self.device is None else self.device.durations(wait=wait)
        rows = self._buffer.rows if durations is None else len(durations)
        if rows == 0:
            return
        batch = self._buffer.take(rows, epoch_offset=self._epoch_offset, durations=durations)
        if self._failure is not None:
            self.dropped += rows
            return
        try:
            self._open_stream().write(batch)
        except OSError:
            self.dropped += rows
            raise

    def _open_stream(self) -> EventStream:
        if self._stream is None:
            if self._folder is None:
                self._temporary = tempfile.mkdtemp(prefix="arrowds-events-")
                self._folder = rank_folder(Path(self._temporary), self._options.rank)
            self._stream = EventStream(self._folder)
            self._files.append(self._stream.path)
        return self._stream

    def flush(self) -> None:
        """Write all rows; wait for those that the device has not finished.

        Raises:
            StorageError: when events were dropped, now or earlier.
        """
        with self._lock:
            self._flush_safely(wait=self._buffer.rows)
        if self._failure is not None:
            raise StorageError(
                f"{self.dropped} profiler events were dropped, because the file can't be written: {self._failure}"
            ) from self._failure

    def close(self) -> None:
        """Write all rows and end the stream; later events start a new file."""
        with self._lock:
            self._flush_safely(wait=self._buffer.rows)
            self._end_stream()

    def finish(self) -> None:
        """Close, and remove the temporary folder, if there is one."""
        if self._options.path is not None:
            self.close()
            return
        self._end_stream()
        if self._temporary is not None and os.getpid() == self._pid:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _end_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is None:
            return
        if os.getpid() != self._pid:
            stream.abandon()
            return
        try:
            stream.close()
        except OSError as error:
            logger.error("can't finish %s, which stays readable up to the last flush: %s", stream.path, error)

    def read(self) -> pa.Table:
        """Return all events recorded so far."""
        with self._lock:
            self._flush_safely(wait=self._buffer.rows)
        tables = [read_file(path) for path in self._files]
        return pa.concat_tables(tables).unify_dictionaries() if tables else EVENT_SCHEMA.empty_table()

    def write(self, path: Path) -> list[Path]:
        """Compact all events to Parquet files below ``path``; in the recorder's own folder they replace the streams."""
        self.close()
        target = rank_folder(path, self._options.rank).absolute()
        written = []
        for position, source in enumerate(self._files):
            parquet = target / f"{source.stem}{PARQUET_SUFFIX}"
            if source != parquet:
                compact(source, parquet)
            if source != parquet and source.parent == target:
                source.unlink()
                self._files[position] = parquet
            written.append(parquet)
        return written
