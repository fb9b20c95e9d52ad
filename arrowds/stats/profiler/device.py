"""Timing by device events: recorded on the device's own stream, read later, without a synchronize per event."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import numpy as np


class DeviceEvent(Protocol):
    """What ``torch.cuda.Event(enable_timing=True)`` and the events of other accelerators offer."""

    def record(self) -> object:
        """Put the event on the current stream."""

    def query(self) -> bool:
        """Return whether the device has passed the event."""

    def synchronize(self) -> object:
        """Wait until the device has passed the event."""

    def elapsed_time(self, end: DeviceEvent) -> float:
        """Return the milliseconds from this event to ``end``; both must have passed."""


class DeviceTimings:
    """Pairs of device events, as they were stopped, and a pool of events for reuse.

    Args:
        new_event: returns a device event that keeps time, such as ``lambda: torch.cuda.Event(enable_timing=True)``.
    """

    def __init__(self, new_event: Callable[[], DeviceEvent]) -> None:
        self._new_event = new_event
        self._pool: list[DeviceEvent] = []
        self._pairs: deque[tuple[DeviceEvent, DeviceEvent]] = deque()

    def mark(self) -> DeviceEvent:
        """Record an event on the current stream and return it."""
        try:  # checking first would be a race between the threads of a backward pass
            event = self._pool.pop()
        except IndexError:
            event = self._new_event()
        event.record()
        return event

    def add(self, start: DeviceEvent, end: DeviceEvent) -> None:
        """Keep a pair until the device has passed both of its events."""
        self._pairs.append((start, end))

    def durations(self, *, wait: int = 0) -> np.ndarray:
        """Remove the oldest pairs that the device has passed and return their durations, int64 ns.

        Args:
            wait: how many of the oldest pairs to wait for; by default none.
        """
        done: list[float] = []
        while self._pairs:
            start, end = self._pairs[0]
            if len(done) < wait:
                start.synchronize()
                end.synchronize()
            elif not (end.query() and start.query()):
                break
            done.append(start.elapsed_time(end))
            self._pairs.popleft()
            self._pool += (start, end)
        return np.rint(np.array(done, dtype=np.float64) * 1e6).astype(np.int64)
