"""Reduce of samples that are already mapped, against Polars' in-memory group_by + agg of the same frame.

python tests/benchmarks/bench_reduce.py [--samples 100000000] [--half | --floats] [--rounds 3]

Each measurement is a process of its own, the two in turn. Memory is the peak of the anonymous pages, what a process
keeps beside the maps of its files, and of all resident pages, which include those of the files as far as there is room.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pyarrow as pa

import arrowds
from arrowds.build.api import commit_index, map_all
from arrowds.build.plan import BuildPlan, make_plan
from arrowds.index.paths import Layout

_BLOCK = 1 << 20


class Generated(arrowds.sources.Source):
    """Random values that need no memory: block by block, each from a seed of its own."""

    concurrent = True
    description = "generated"

    def __init__(self, samples: int, shape: str) -> None:
        self.samples, self.shape = samples, shape

    def __len__(self) -> int:
        return self.samples

    @property
    def schema(self) -> pa.Schema:
        return pa.schema({"m": pa.float64() if self.shape == "floats" else pa.uint16()})

    def fingerprint(self) -> str:
        return "0" * 32

    def block(self, number: int) -> np.ndarray:
        random = np.random.default_rng(number)
        if self.shape == "floats":
            return random.random(_BLOCK)
        values = random.integers(0, 1 << 16, _BLOCK, dtype=np.uint16)
        if self.shape == "half":
            values[random.random(_BLOCK) < 0.5] = 2048
        return values

    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        for number in range(start // _BLOCK, -(-stop // _BLOCK)):
            first = number * _BLOCK
            values = self.block(number)[max(start - first, 0) : stop - first]
            yield pa.record_batch([pa.array(values)], schema=self.schema)


def planned(folder: str, samples: int, shape: str) -> BuildPlan:
    return make_plan(Generated(samples, shape), arrowds.metrics.expr("m", pl.col("m")), Layout(Path(folder)))


def frame_of(source: Generated) -> pl.DataFrame:
    values = np.concatenate([batch["m"].to_numpy() for batch in source.read(0, len(source))])
    return pl.DataFrame({"value": values, "sample_id": np.arange(len(values), dtype=np.uint32)})


def resident() -> dict[str, int]:
    """Resident pages of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = {
        key: int(value.split()[0]) // 1024 for key, value in (line.split(":\t", 1) for line in lines) if "kB" in value
    }
    return {"anonymous": found["RssAnon"], "all": found["VmRSS"]}


def measured(action: Callable[[], object]) -> dict[str, float]:
    """Seconds and peak memory in MiB, looked at every 10 ms, and what was there before."""
    peak = before = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            now = resident()
            peak = {name: max(peak[name], now[name]) for name in peak}

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    action()
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    return {"seconds": seconds, "anonymous": peak["anonymous"], "all": peak["all"], "before": before["anonymous"]}


def run(stage: str, folder: str, samples: int, shape: str) -> None:
    """Be one of the processes."""
    plan = planned(folder, samples, shape)
    if stage == "map":
        found = measured(lambda: map_all(plan, workers=None, progress=False))
    elif stage == "reduce":
        found = measured(lambda: commit_index(plan))
    else:
        frame = frame_of(plan.source)
        found = measured(lambda: frame.group_by("value").agg(pl.col("sample_id")))
    print(json.dumps(found))


def process(*arguments: str) -> dict[str, float]:
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000_000)
    parser.add_argument("--half", action="store_true", help="one value fills half of the samples")
    parser.add_argument("--floats", action="store_true", help="distinct float64 values")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    shape = "floats" if given.floats else "half" if given.half else "uniform"
    if given.stage:
        run(given.stage, given.folder, given.samples, shape)
        return
    options = ["--samples", str(given.samples), *(f"--{name}" for name in ("half", "floats") if name == shape)]
    with TemporaryDirectory() as folder:
        mapped = process("--stage", "map", "--folder", folder, *options)
        print(f"{given.samples:,} samples, {shape}; mapped in {mapped['seconds']:.1f} s")
        rounds = [
            [process("--stage", stage, "--folder", folder, *options) for stage in ("reduce", "polars")]
            for _ in range(given.rounds)
        ]
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    print(f"{'':<28} {'seconds':>8} {'anonymous MiB':>14} {'resident MiB':>13}")
    for number, name in enumerate(("arrowds reduce", "Polars group_by + agg")):
        found = {key: median(each[number][key] for each in rounds) for key in rounds[0][0]}
        print(f"{name:<28} {found['seconds']:8.2f} {found['anonymous']:14,.0f} {found['all']:13,.0f}")
    ratio = median(ours["seconds"] / peer["seconds"] for ours, peer in rounds)
    print(f"ratio of the times {ratio:.2f}; the index takes {size >> 20:,} MiB")


if __name__ == "__main__":
    main()
