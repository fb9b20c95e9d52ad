"""What the benchmarks measure with: processes of their own, wall and processor seconds, peaks of memory and disk."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

Cost = dict[str, float]
"""``seconds`` and ``cpu`` seconds; ``anonymous`` and ``resident`` memory at the peak, in MiB."""


def in_a_process(script: str, *arguments: object) -> Any:
    """Run a script of this folder in a process of its own; return what its last line of JSON says."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def measuring(**peaks: Callable[[], float]) -> Iterator[Cost]:
    """Measure a block: its seconds when it ends, and the peaks of memory and of what ``peaks`` return, as it runs."""
    watched = {"anonymous": anonymous_mib, "resident": resident_mib, **peaks}
    cost: Cost = dict.fromkeys(watched, 0.0)
    done = threading.Event()

    def watch() -> None:
        slow = 0.0
        while True:
            began = time.perf_counter()
            for name, look in watched.items():
                if name in ("anonymous", "resident") or began >= slow:
                    cost[name] = max(cost[name], look())
            if began >= slow:
                slow = time.perf_counter() + 20 * (time.perf_counter() - began)
            if done.wait(0.01):
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    began, busy = time.perf_counter(), time.process_time()
    try:
        yield cost
    finally:
        cost["seconds"], cost["cpu"] = time.perf_counter() - began, time.process_time() - busy
        done.set()
        watcher.join()


def anonymous_mib() -> float:
    """Pages that this process keeps beside the maps of its files."""
    return _status("RssAnon")


def resident_mib() -> float:
    """All resident pages, those of mapped files included, as far as there is room."""
    return _status("VmRSS")


def peak_mib() -> float:
    """The most resident pages that this process has had."""
    return _status("VmHWM")


def _status(key: str) -> float:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(text.split(f"{key}:")[1].split()[0]) / 1024


def disk_mib(folder: str | Path) -> float:
    """What the files below a folder take on the disk; a file with several names counts once."""
    blocks: dict[int, int] = {}
    for path in Path(folder).rglob("*"):
        with suppress(FileNotFoundError):  # a build removes its files meanwhile
            status = path.stat()
            blocks[status.st_ino] = status.st_blocks
    return sum(blocks.values()) / 2048


def seconds(action: Callable[[], object], *, repeats: int = 1) -> float:
    """The mean over a few repeats."""
    began = time.perf_counter()
    for _ in range(repeats):
        action()
    return (time.perf_counter() - began) / repeats


def alternating(contenders: dict[str, Callable[[], object]], *, rounds: int, repeats: int = 1) -> dict[str, float]:
    """Let contenders take turns; return the median of each, in seconds."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, action in contenders.items():
            times[name].append(seconds(action, repeats=repeats))
    return {name: median(found) for name, found in times.items()}


def medians(rounds: list[Cost]) -> Cost:
    """The median of each figure over rounds that have the same ones."""
    return {name: median(each[name] for each in rounds) for name in rounds[0]}
