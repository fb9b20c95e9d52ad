"""The ZeRO-3 parameter profiler: DeepSpeed's methods, and a row per event."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns
from types import TracebackType
from typing import Any, Protocol, Self

import polars as pl
import pyarrow as pa

from arrowds.errors import ProfilerError
from arrowds.stats.profiler.device import DeviceEvent
from arrowds.stats.profiler.recorder import EventRecorder, RecorderOptions
from arrowds.stats.profiler.summary import summarize

logger = logging.getLogger(__name__)


class Timer(Protocol):
    """One named timer, such as those of DeepSpeed."""

    def start(self) -> object:
        """Start it."""

    def stop(self) -> object:
        """Stop it."""


class Timers(Protocol):
    """A group of timers: DeepSpeed's ``SynchronizedWallClockTimer`` or ``NoopTimer``, or ``NoTimers``."""

    def __call__(self, name: str) -> Timer:
        """Return the timer of an event."""

    def log(self, names: list[str]) -> object:
        """Log the named timers."""


class NoTimers:
    """Timers that do nothing: the profiler then keeps only its rows.

    >>> NoTimers()("forward_all_gather").start()
    """

    def __call__(self, name: str) -> NoTimers:
        """Return itself: the timer of every event."""
        return self

    def start(self) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""

    def log(self, names: list[str]) -> None:
        """Do nothing."""


@dataclass(slots=True)
class EventCounter:
    """How often an event occurred since the last ``reset_events``, and the elements it counted."""

    name: str
    count: int = 0
    num_elem: int = 0
    code: int = field(default=0, repr=False)
    begun: list[Any] = field(default_factory=list, repr=False)  # when it started: host ns, or (host ns, device event)

    def reset(self) -> None:
        """Set the counts to zero."""
        self.count = 0
        self.num_elem = 0

    def increment(self, numel: int) -> None:
        """Count one event of ``numel`` elements."""
        self.count += 1
        self.num_elem += numel


class PartitionedParameterProfiler:
    """A profiler of ZeRO-3's parameter fetches: DeepSpeed's class of that name, plus a table of all events.

    Each pair of ``start_event`` and ``stop_event`` becomes a row. Rows are kept in a fixed buffer and flushed in
    batches to an Arrow IPC stream, which stays readable up to the last flush if the process is killed. Durations come
    from the host's monotonic clock, without the timers' own cost, or from device events if ``device_events`` is
    given. A file that can't be written never stops the run: ``dropped`` counts the lost events.

    Args:
        timers: DeepSpeed's timers, ``NoTimers()`` for the rows alone, or None: every method does nothing.
        rank: rank of this process, written into every row.
        path: folder of the run; None keeps the rows in a temporary folder until ``write``.
        element_size: bytes of one element, for ``bytes`` and GB/s; None leaves both null.
        step_of: returns the number of the step that starts, called by ``reset_events``; by default each call of
            ``reset_events`` starts one step. Events before the first call belong to the step at construction (or 0).
        device_events: returns a new timing device event, such as ``lambda: torch.cuda.Event(enable_timing=True)``.
        log: whether ``log_events`` logs anything.
        flush_rows: rows after which a step boundary flushes. The buffer holds four times as many, at 40 bytes each.
        flush_seconds: seconds after which a step boundary flushes, regardless of the number of rows.

    Raises:
        ConfigError: for a negative rank or other invalid options.

    >>> profiler = PartitionedParameterProfiler(NoTimers(), element_size=2)
    >>> profiler.reset_events()
    >>> profiler.start_event("forward_all_gather")
    >>> profiler.stop_event("forward_all_gather", 1024)
    >>> profiler.to_arrow().select(["rank", "step", "event", "num_elements", "bytes", "elements_of"]).to_pylist()[0]
    {'rank': 0, 'step': 1, 'event': 'forward_all_gather', 'num_elements': 1024, 'bytes': 2048, 'elements_of': 'full'}
    """

    EventCounter = EventCounter

    def __init__(
        self,
        timers: Timers | None,
        *,
        rank: int = 0,
        path: str | Path | None = None,
        element_size: int | None = None,
        step_of: Callable[[], int] | None = None,
        device_events: Callable[[], DeviceEvent] | None = None,
        log: bool = True,
        flush_rows: int = 16384,
        flush_seconds: float = 10.0,
    ) -> None:
        self.timers = timers
        self.event_counters: dict[str, EventCounter] = {}
        self._log = log
        self._rank = rank
        self._step_of = step_of
        self._step = 0 if step_of is None else step_of()
        self._micro_step = 0
        self._resets = 0
        self._recorder = EventRecorder(
            RecorderOptions(
                rank=rank,
                path=None if path is None else Path(path),
                element_size=element_size,
                device_events=device_events,
                flush_rows=flush_rows,
                flush_seconds=flush_seconds,
            )
        )
        self._device = self._recorder.device
        self._recorder.begin_step(self._step, 0)
        weakref.finalize(self, self._recorder.finish)  # a run that ends without close() loses no rows

    @property
    def dropped(self) -> int:
        """How many events were lost because their file can't be written."""
        return self._recorder.dropped

    def start_event(self, name: str) -> None:
        """Start to time an event."""
        timers = self.timers
        if timers is None:
            return
        counter = self.event_counters.get(name)
        if counter is None:
            counter = self.event_counters[name] = EventCounter(name, code=self._recorder.code_of(name))
        timers(name).start()
        if self._device is None:
            counter.begun.append(perf_counter_ns())
        else:
            counter.begun.append((perf_counter_ns(), self._device.mark()))

    def stop_event(self, name: str, num_elem: int) -> None:
        """Stop an event and keep its row.

        Args:
            name: the event; if several of this name are open, the one started last.
            num_elem: the elements that it fetched or gathered.

        Raises:
            ProfilerError: when no event of this name has been started.
        """
        now = perf_counter_ns()
        timers = self.timers
        if timers is None:
            return
        counter = self.event_counters.get(name)
        if counter is None or not counter.begun:
            raise ProfilerError(
                f"stop_event({name!r}) without a start_event of that name; "
                f"open events: {sorted(c.name for c in self.event_counters.values() if c.begun)}"
            )
        begun = counter.begun.pop()
        counter.count += 1
        counter.num_elem += num_elem
        if self._device is None:
            timers(name).stop()
            self._recorder.record(begun, now - begun, num_elem, counter.code)
        else:
            start, start_event = begun
            pair = (start_event, self._device.mark())
            timers(name).stop()
            self._recorder.record_on_device(start, pair, num_elem, counter.code)

    def reset_events(self) -> None:
        """Set the counters to zero: a forward pass, and so a step or a micro-step, starts."""
        for counter in self.event_counters.values():
            counter.reset()
        self._resets += 1
        step = self._resets if self._step_of is None else self._step_of()
        same = step == self._step and self._resets > 1
        self._micro_step = self._micro_step + 1 if same else 0
        self._step = step
        self._recorder.begin_step(step, self._micro_step)

    def log_events(self) -> None:
        """Log the counters, on rank 0, and the timers."""
        if self.timers is None or not self._log:
            return
        if self._rank == 0:
            for counter in self.event_counters.values():
                logger.info("%s: count = %d, numel = %d", counter.name, counter.count, counter.num_elem)
        self.timers.log(names=list(self.event_counters))

    def flush(self) -> None:
        """Write the rows in memory to the stream.

        Raises:
            StorageError: when events were dropped, now or earlier.
        """
        self._recorder.flush()

    def to_arrow(self) -> pa.Table:
        """Return the events recorded so far, as ``read_events`` describes them."""
        return self._recorder.read()

    def summary(self) -> pl.DataFrame:
        """Return count, elements, times and GB/s per step and event, as ``summarize`` describes them."""
        return summarize(self.to_arrow())

    def write(self, path: str | Path) -> list[Path]:
        """Write all events as Parquet below ``path``, in the folder ``rank=N``, and return the files.

        In the profiler's own folder the Parquet files replace the streams. Each rank writes its own;
        ``read_events(path)``, Polars and DuckDB (hive partitioning) read them together.
        """
        return self._recorder.write(Path(path))

    def close(self) -> None:
        """Write the remaining rows and end the stream; later events start a new file."""
        self._recorder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
