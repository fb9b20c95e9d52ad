"""Parse 10,000 benchmark logs: arrowds against DeepSpeed's own parser on the same files.

DeepSpeed's parser keeps one number per log; arrowds keeps every parameter and all four results. Run with
``python tests/benchmarks/bench_aio.py``.
"""

from __future__ import annotations

import itertools
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from arrowds.stats.aio import parse_aio_stats, read_logs

FIXTURES = Path(__file__).parents[1] / "stats" / "aio" / "fixtures" / "sweep"
LOGS = 10_000
ROUNDS = 3


def write_logs(folder: Path) -> None:
    """Write copies of a real log, each with parameters and a speed of its own."""
    log = FIXTURES / "_aio_bench_read_logs" / "read_block_overlap_ftd1_d8_bs1M_p1.txt"
    text = log.read_text()
    space = itertools.product(("single", "block"), range(1, 51), (2**k for k in range(10)), range(1, 11))
    for number, (submit, depth, size, parallel) in enumerate(space):
        changed = text.replace("queue_depth=8", f"queue_depth={depth}").replace(
            "block_size='1M'", f"block_size='{size}M'"
        )
        changed = changed.replace("io_parallel=1", f"io_parallel={parallel}")
        changed = changed.replace("single_submit=False", f"single_submit={submit == 'single'}")
        changed = changed.replace("E2E Read Speed = 1.5", f"E2E Read Speed = {number}.5")
        (folder / f"read_{submit}_overlap_ftd1_d{depth}_bs{size}M_p{parallel}.txt").write_text(changed)


def main() -> None:
    """Print medians and ratios of alternating runs."""
    from deepspeed.nvme import parse_nvme_stats

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_logs(folder)
        table = read_logs(folder)
        if table.num_rows != LOGS or set(table["status"].to_pylist()) != {"ok"}:
            raise SystemExit(f"expected {LOGS} good logs, got {table.num_rows}: {table['error'].to_pylist()[:3]}")
        runs: dict[str, Callable[[], object]] = {
            "DeepSpeed's get_sorted_results": lambda: parse_nvme_stats.get_sorted_results(name, "read_speed"),
            "arrowds' get_sorted_results": lambda: parse_aio_stats.get_sorted_results(name, "read_speed"),
            "arrowds' read_logs": lambda: read_logs(folder),
        }
        seconds: dict[str, list[float]] = {label: [] for label in runs}
        busy: dict[str, list[float]] = {label: [] for label in runs}
        for label in list(runs) * ROUNDS:
            start, start_busy = time.perf_counter(), time.process_time()
            runs[label]()
            seconds[label].append(time.perf_counter() - start)
            busy[label].append(time.process_time() - start_busy)
    peer = statistics.median(seconds["DeepSpeed's get_sorted_results"])
    for label, times in seconds.items():
        median, cpu = statistics.median(times), statistics.median(busy[label])
        print(f"{label:32} {median:6.2f} s ({cpu:.2f} s CPU) for {LOGS} logs, {median / peer:5.2f} x DeepSpeed's")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
