"""A CPU-bound metric in one process, against two of each kind: local workers, torch ranks, Ray workers, shards.

python tests/benchmarks/bench_engines.py [--samples 1000000] [--rounds 3] [--engines local,torch,ray,shards]

The metric is Python code that holds the interpreter lock. Two figures each: the analysis alone, once Python has
started, packages are imported and Ray runs; and the command as a whole. Shards are two processes that each map half of
a planned build, and one that reduces it. An engine that fails is left out, with a line that says why.

What two processors gain depends on the machine: two threads of one core share it. So the metric's function runs
without arrowds as well, over all numbers in one process and over half of them in each of two; the last column is the
speed-up of the analysis over that of these.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import arrowds
from arrowds.arrays import arrow_view
from arrowds.build.shards import map_shard, plan_build, reduce_build

_ENGINES = ("local", "torch", "ray", "shards")


def steps_to_one(batch: pa.RecordBatch) -> np.ndarray:
    """How many steps the Collatz sequence of each number takes: some 20 microseconds of Python."""
    found = []
    for start in batch["x"].to_pylist():
        number, steps = start, 0
        while number != 1:
            number = number // 2 if number % 2 == 0 else 3 * number + 1
            steps += 1
        found.append(steps)
    return np.array(found, np.int64)


def analyze(data: str, folder: str, engine: str) -> float:
    """One process, or this rank or driver of an engine; return the seconds of the analysis."""
    metric = arrowds.metrics.function("steps", steps_to_one, dtype="int64")
    options: dict[str, Any] = {"engine": engine} if engine in ("torch", "ray") else {}
    if engine in ("one", "local"):
        options["workers"] = {"one": 1, "local": 2}[engine]
    if engine == "torch":
        __import__("torch")
    if engine == "ray":
        import ray

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    began = time.perf_counter()
    arrowds.analyze(data, metric, folder, progress=False, **options)
    return time.perf_counter() - began


def shard(data: str, folder: str, stage: str) -> float:
    """One of the processes of a build in shards."""
    metric = arrowds.metrics.function("steps", steps_to_one, dtype="int64")
    if "/" in stage:
        number, processes = map(int, stage.split("/"))
        return without_arrowds(data, processes, number)
    began = time.perf_counter()
    if stage == "plan":
        plan_build(data, metric, folder)
    elif stage == "reduce":
        reduce_build(folder, metrics=metric)
    else:
        map_shard(folder, int(stage), 2, metrics=metric, workers=1, progress=False)
    return time.perf_counter() - began


def without_arrowds(data: str, processes: int, number: int) -> float:
    """The metric alone, over one of so many shares of the numbers."""
    (batch,) = pq.read_table(data).combine_chunks().to_batches()
    share = len(batch) // processes
    began = time.perf_counter()
    steps_to_one(batch.slice(number * share, share))
    return time.perf_counter() - began


def gain_without_arrowds(data: str) -> float:
    """How many times as fast as one process two are."""
    (one,), two = (
        answers([command(data, "", "--stage", f"{number}/{processes}") for number in range(processes)])
        for processes in (1, 2)
    )
    return one / max(two)


def command(data: str, folder: str, *arguments: str, launcher: Sequence[str] = ()) -> list[str]:
    return [sys.executable, *launcher, __file__, "--data", data, "--index", folder, *arguments]


def run(data: str, folder: str, engine: str) -> tuple[float, float] | None:
    """Seconds of the analysis and of the whole command, or None where the engine is absent."""
    began = time.perf_counter()
    if engine == "shards":
        (planning,) = answers([command(data, folder, "--stage", "plan")])
        mapping = answers([command(data, folder, "--stage", number) for number in ("1", "2")])
        (reducing,) = answers([command(data, folder, "--stage", "reduce")])
        return planning + max(mapping) + reducing, time.perf_counter() - began
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2") if engine == "torch" else ()
    try:
        (inside,) = answers([command(data, folder, "--engine", engine, launcher=launcher)])
    except subprocess.CalledProcessError as error:
        said = [line for line in error.stderr.splitlines() if "Error" in line] or error.stderr.splitlines()
        print(f"{engine} is left out: {said[0] if said else error.returncode}")
        return None
    return inside, time.perf_counter() - began


def answers(commands: list[list[str]]) -> list[float]:
    """Start commands at once, wait for all, and return what each has printed last."""
    with one_thread_each():
        running = [
            subprocess.Popen(each, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for each in commands
        ]
    found = []
    for process in running:
        printed, said = process.communicate()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args, printed, said)
        found.append(max(json.loads(line) for line in printed.splitlines() if line))
    return found


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Two processes on two processors: none of them needs more threads."""
    before = os.environ.copy()
    os.environ.update(OMP_NUM_THREADS="1", POLARS_MAX_THREADS="1", RAY_DEDUP_LOGS="0")
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--engines", default=",".join(_ENGINES), help="of " + ", ".join(_ENGINES))
    for name in ("--engine", "--stage", "--data", "--index"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage or given.engine:
        took = (shard, given.stage) if given.stage else (analyze, given.engine)
        found = took[0](given.data, given.index, took[1])
        sys.stdout.write(f"{found}\n")  # at once: two ranks write to one pipe
        return
    engines = ["one", *given.engines.split(",")]
    with TemporaryDirectory() as base:
        data = f"{base}/numbers.parquet"
        numbers = np.random.default_rng(0).integers(1, 1 << 20, given.samples)
        pq.write_table(pa.table({"x": arrow_view(numbers)}), data, row_group_size=1 << 14)  # a part begins at one
        times: dict[str, list[tuple[float, float]]] = {}
        possible = []
        for number in range(given.rounds):
            possible.append(gain_without_arrowds(data))
            for engine in list(engines):
                found = run(data, f"{base}/{engine}-{number}", engine)
                if found is None:
                    engines.remove(engine)
                else:
                    times.setdefault(engine, []).append(found)
        check(base, list(times))
    print(f"two processes without arrowds: {median(possible):.2f} times as fast as one")
    head = f"{'analysis [s]':>16} {'speed-up':>9} {'command [s]':>12} {'speed-up':>9} {'of that':>8}"
    print(f"{given.samples:,} samples; {head}")
    for engine, found in times.items():
        inside, whole = (median(column) for column in zip(*found, strict=True))
        pairs = list(zip(times["one"], found, strict=True))
        gains = [median(one[part] / each[part] for one, each in pairs) for part in (0, 1)]
        title = "one process" if engine == "one" else f"two, {engine}"
        share = gains[0] / median(possible)
        print(f"{title:24} {inside:10.2f} {gains[0]:9.2f} {whole:12.2f} {gains[1]:9.2f} {share:8.2f}")


def check(base: str, engines: list[str]) -> None:
    """The metric's files must be the same, whatever computed them."""
    contents = {}
    for engine in engines:
        files = sorted((Path(base) / f"{engine}-0" / "metrics").rglob("*.parquet"))
        contents[engine] = [file.read_bytes() for file in files]
    if any(content != contents["one"] for content in contents.values()):
        raise SystemExit(f"the files differ between {', '.join(engines)}")


if __name__ == "__main__":
    main()
