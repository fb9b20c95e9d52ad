"""The event schema and the preallocated rows that a profiler fills before they become a record batch; no I/O."""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa

from arrowds.errors import ProfilerError

EVENTS_VERSION = 1
VERSION_KEY = b"arrowds.events_version"

DEEPSPEED_EVENTS: tuple[str, ...] = tuple(
    f"{phase}_{event}"
    for phase in ("forward", "backward")
    for event in ("fetch_submit", "fetch_wait", "prefetch_submit", "all_gather")
)
PHASES = ("forward", "backward")
MEANINGS = ("partition", "full")
CLOCKS = ("host", "device")


def _coded(index: pa.DataType) -> pa.DataType:
    return pa.dictionary(index, pa.string())


EVENT_SCHEMA: pa.Schema = pa.schema(
    [
        pa.field("rank", pa.int32(), nullable=False),
        pa.field("step", pa.int64(), nullable=False),
        pa.field("micro_step", pa.int32(), nullable=False),
        pa.field("phase", _coded(pa.int8())),
        pa.field("event", _coded(pa.int16()), nullable=False),
        pa.field("start_ns", pa.int64(), nullable=False),
        pa.field("duration_ns", pa.int64(), nullable=False),
        pa.field("num_elements", pa.int64(), nullable=False),
        pa.field("bytes", pa.int64()),
        pa.field("elements_of", _coded(pa.int8())),
        pa.field("clock", _coded(pa.int8()), nullable=False),
    ],
    metadata={VERSION_KEY: str(EVENTS_VERSION).encode()},
)
"""The columns of the table of events; the page on the profiler says what each means."""

_STRUCT = struct.Struct("=qqqqii")
_ROW_BYTES = _STRUCT.size
_pack_into = _STRUCT.pack_into
_ROW = np.dtype(
    [("start", "i8"), ("duration", "i8"), ("elements", "i8"), ("step", "i8"), ("micro_step", "i4"), ("code", "i4")]
)
MAX_NAMES = 2**15 - 1


def phase_code(name: str) -> int:
    """Return the position of an event's phase in ``PHASES``, or -1 for an event that is not one of DeepSpeed's.

    >>> [phase_code(name) for name in ("forward_fetch_wait", "backward_all_gather", "my_event")]
    [0, 1, -1]
    """
    return next((code for code, phase in enumerate(PHASES) if name.startswith(f"{phase}_")), -1)


def meaning_code(name: str) -> int:
    """Return the position in ``MEANINGS`` of what DeepSpeed counts for an event, or -1 if unknown.

    Fetches count the elements of the rank's own partition; prefetches and all-gathers count whole parameters.

    >>> [meaning_code(name) for name in ("forward_fetch_wait", "backward_all_gather", "my_event")]
    [0, 1, -1]
    """
    if name not in DEEPSPEED_EVENTS:
        return -1
    return 0 if "_fetch_" in name else 1


class EventBuffer:
    """Rows of fixed size in memory that is allocated once.

    Args:
        capacity: how many rows fit.
        rank: written into every row.
        element_size: bytes of one element; None: unknown, and ``bytes`` is null.
        clock: 0 when durations are measured by the host, 1 when by device events (see ``CLOCKS``).
    """

    def __init__(self, capacity: int, *, rank: int, element_size: int | None, clock: int) -> None:
        self.capacity = capacity
        self.rows = 0
        self.step = 0
        self.micro_step = 0
        self.names: list[str] = []
        self._rank = rank
        self._element_size = element_size
        self._clock = clock
        self._bytes = bytearray(capacity * _ROW_BYTES)
        self._view = np.frombuffer(self._bytes, _ROW)
        for name in DEEPSPEED_EVENTS:
            self.code_of(name)

    def code_of(self, name: str) -> int:
        """Return the code of an event's name; a new name gets the next code."""
        if name in self.names:
            return self.names.index(name)
        if len(self.names) == MAX_NAMES:
            raise ProfilerError(
                f"can't add the event name {name!r}: {MAX_NAMES} names are in use, the maximum; reuse names"
            )
        self.names.append(name)
        return len(self.names) - 1

    def append(self, start: int, duration: int, elements: int, code: int) -> None:
        """Keep one row of ``step`` and ``micro_step``; the buffer must not be full. Times in ns."""
        rows = self.rows
        step, micro_step = self.step, self.micro_step
        _pack_into(self._bytes, rows * _ROW_BYTES, start, duration, elements, step, micro_step, code)
        self.rows = rows + 1

    def take(self, rows: int, *, epoch_offset: int, durations: np.ndarray | None = None) -> pa.RecordBatch:
        """Remove the oldest ``rows`` rows and return them as a record batch of ``EVENT_SCHEMA``.

        Args:
            rows: how many.
            epoch_offset: ns to add to the start times, so that they count from the Unix epoch.
            durations: int64, ns: the durations measured by a device, which replace those of the rows.
        """
        taken = self._view[:rows].copy()
        rest = self.rows - rows
        self._view[:rest] = self._view[rows : self.rows].copy()
        self.rows = rest
        measured = taken["duration"] if durations is None else durations
        return pa.record_batch(self._columns(taken, epoch_offset, measured), schema=EVENT_SCHEMA)

    def _columns(self, rows: np.ndarray, epoch_offset: int, durations: np.ndarray) -> list[pa.Array]:
        count = len(rows)
        codes = rows["code"].astype(np.int16)
        elements = np.ascontiguousarray(rows["elements"])
        sizes = pa.nulls(count, pa.int64()) if self._element_size is None else pa.array(elements * self._element_size)
        phases = np.array([phase_code(name) for name in self.names], dtype=np.int8)[codes]
        meanings = np.array([meaning_code(name) for name in self.names], dtype=np.int8)[codes]
        return [
            pa.array(np.full(count, self._rank, np.int32)),
            pa.array(np.ascontiguousarray(rows["step"])),
            pa.array(np.ascontiguousarray(rows["micro_step"])),
            _dictionary(phases, PHASES),
            pa.DictionaryArray.from_arrays(pa.array(codes), pa.array(self.names, pa.string())),
            pa.array(rows["start"] + epoch_offset),
            pa.array(np.ascontiguousarray(durations)),
            pa.array(elements),
            sizes,
            _dictionary(meanings, MEANINGS),
            _dictionary(np.full(count, self._clock, np.int8), CLOCKS),
        ]


def _dictionary(codes: np.ndarray, names: tuple[str, ...]) -> pa.Array:
    """Return a dictionary array in which -1 is null."""
    return pa.DictionaryArray.from_arrays(pa.array(codes, mask=codes < 0), pa.array(names, pa.string()))
