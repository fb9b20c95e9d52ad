"""Cost of one start/stop pair: the timer alone, DeepSpeed's profiler, and arrowds' with its row kept and flushed.

    python tests/benchmarks/bench_profiler.py [--pairs 100000] [--rounds 9] [--disk-rows 10000000]

The three alternate; each figure is the median over the rounds. The last lines write many rows and report the size of
the stream and of the Parquet file, and the memory that recording added.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

from deepspeed.runtime.zero.partitioned_param_profiler import PartitionedParameterProfiler as DeepSpeedProfiler
from deepspeed.utils.timer import SynchronizedWallClockTimer

from arrowds.stats.profiler import NoTimers, PartitionedParameterProfiler

EVENTS = ("forward_fetch_submit", "forward_all_gather", "forward_fetch_wait", "backward_fetch_wait")
STEP = 2000  # pairs between two step boundaries


def timers_alone(timers: SynchronizedWallClockTimer, pairs: int) -> None:
    for position in range(pairs):
        name = EVENTS[position & 3]
        timers(name).start()
        timers(name).stop()


def profiled(profiler: DeepSpeedProfiler | PartitionedParameterProfiler, pairs: int) -> None:
    for begin in range(0, pairs, STEP):
        profiler.reset_events()
        for position in range(begin, min(begin + STEP, pairs)):
            name = EVENTS[position & 3]
            profiler.start_event(name)
            profiler.stop_event(name, position)


def nanoseconds(work: Callable[[], None], pairs: int) -> float:
    begin = perf_counter()
    work()
    return (perf_counter() - begin) / pairs * 1e9


def pair_costs(pairs: int, rounds: int) -> dict[str, float]:
    costs: dict[str, list[float]] = {"timer alone": [], "DeepSpeed": [], "arrowds": [], "arrowds, NoTimers": []}
    with tempfile.TemporaryDirectory() as folder:
        kept = PartitionedParameterProfiler(None, path=Path(folder) / "timed", element_size=2)
        bare = PartitionedParameterProfiler(NoTimers(), path=Path(folder) / "bare", element_size=2)
        for _ in range(rounds):
            timers = SynchronizedWallClockTimer()
            costs["timer alone"].append(nanoseconds(lambda t=timers: timers_alone(t, pairs), pairs))
            theirs = DeepSpeedProfiler(SynchronizedWallClockTimer())
            costs["DeepSpeed"].append(nanoseconds(lambda t=theirs: profiled(t, pairs), pairs))
            kept.timers = SynchronizedWallClockTimer()
            costs["arrowds"].append(nanoseconds(lambda: (profiled(kept, pairs), kept.flush())[0], pairs))
            costs["arrowds, NoTimers"].append(nanoseconds(lambda: (profiled(bare, pairs), bare.flush())[0], pairs))
        kept.close()
        bare.close()
    return {name: median(values) for name, values in costs.items()}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def disk(rows: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        before = peak_mib()
        profiler = PartitionedParameterProfiler(NoTimers(), path=folder, element_size=2)
        seconds = nanoseconds(lambda: profiled(profiler, rows), 1) / 1e9
        profiler.close()
        recorded = peak_mib()
        stream = sum(path.stat().st_size for path in Path(folder).rglob("*.arrows"))
        parquet = sum(path.stat().st_size for path in profiler.write(folder))
        print(f"{rows} events in {seconds:.1f} s: stream {stream / 1e6:.1f} MB, Parquet {parquet / 1e6:.1f} MB")
        print(f"peak memory: +{recorded - before:.0f} MiB recording, +{peak_mib() - before:.0f} MiB with compaction")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--disk-rows", type=int, default=10_000_000)
    arguments = parser.parse_args()
    costs = pair_costs(arguments.pairs, arguments.rounds)
    timer = costs["timer alone"]
    for name, cost in costs.items():
        print(f"{name:20} {cost:7.0f} ns a pair, {cost - timer:+7.0f} ns above the timer, {cost / timer:5.2f} x")
    disk(arguments.disk_rows)


if __name__ == "__main__":
    main()
