"""Durations by device events: read when the device has passed them, without waiting for each."""

from dataclasses import dataclass, field
from pathlib import Path

from arrowds.stats.profiler import NoTimers, PartitionedParameterProfiler, read_events


@dataclass
class Device:
    """A device that runs behind the host: it passes events when ``run`` says so, a millisecond apart."""

    recorded: list["Event"] = field(default_factory=list)
    passed: int = 0
    waits: int = 0
    made: int = 0

    def event(self) -> "Event":
        self.made += 1
        return Event(self)

    def run(self, events: int) -> None:
        for event in self.recorded[self.passed : self.passed + events]:
            event.time_ms = float(self.passed)
            self.passed += 1


@dataclass(eq=False)
class Event:
    device: Device
    time_ms: float | None = None

    def record(self) -> None:
        self.time_ms = None
        self.device.recorded.append(self)

    def query(self) -> bool:
        return self.time_ms is not None

    def synchronize(self) -> None:
        if self.time_ms is None:
            self.device.waits += 1
            self.device.run(self.device.recorded.index(self, self.device.passed) + 1 - self.device.passed)

    def elapsed_time(self, end: "Event") -> float:
        assert self.time_ms is not None
        assert end.time_ms is not None
        return end.time_ms - self.time_ms


def nested(profiler: PartitionedParameterProfiler) -> None:
    profiler.start_event("forward_fetch_submit")
    profiler.start_event("forward_all_gather")
    profiler.stop_event("forward_all_gather", 4)
    profiler.stop_event("forward_fetch_submit", 2)


def test_rows_wait_for_the_device_without_stopping_the_host(tmp_path: Path) -> None:
    device = Device()
    profiler = PartitionedParameterProfiler(NoTimers(), path=tmp_path, device_events=device.event, flush_seconds=0)
    nested(profiler)
    nested(profiler)
    profiler.reset_events()
    assert list(tmp_path.iterdir()) == []
    device.run(4)
    profiler.reset_events()
    rows = read_events(tmp_path)
    assert rows["event"].to_pylist() == ["forward_all_gather", "forward_fetch_submit"]
    assert rows["duration_ns"].to_pylist() == [1_000_000, 3_000_000]
    assert set(rows["clock"].to_pylist()) == {"device"}
    assert device.waits == 0
    profiler.close()
    assert read_events(tmp_path)["duration_ns"].to_pylist() == [1_000_000, 3_000_000] * 2


def test_a_full_buffer_waits_for_half_of_it_at_once() -> None:
    device = Device()
    profiler = PartitionedParameterProfiler(NoTimers(), device_events=device.event, flush_rows=4)
    for position in range(100):
        profiler.start_event("forward_fetch_wait")
        profiler.stop_event("forward_fetch_wait", position)
    assert device.waits <= 2 * 100
    assert device.passed < len(device.recorded)
    rows = profiler.to_arrow()
    assert rows["num_elements"].to_pylist() == list(range(100))
    assert set(rows["duration_ns"].to_pylist()) == {1_000_000}


def test_device_events_are_used_again() -> None:
    device = Device()
    profiler = PartitionedParameterProfiler(NoTimers(), device_events=device.event)
    for _ in range(20):
        nested(profiler)
        profiler.flush()
    assert device.made == 4
    assert profiler.to_arrow().num_rows == 40
