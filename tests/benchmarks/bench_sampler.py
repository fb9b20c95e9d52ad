"""Curriculum sampling against the installed DeepSpeed sampler, and at 1 G samples.

Run `python tests/benchmarks/bench_sampler.py`. It writes order files of 4 bytes per sample to the temporary folder.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import resource
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "curriculum"))

from memory_index import MemoryIndex, linear

from arrowds.curriculum.sampler import CurriculumSampler

STEPS, SAMPLES, DISTINCT, MICRO = 150, 1_000_000, 200_000, 8
CURRICULA = {
    "value": {"metric": linear(DISTINCT // STEPS, DISTINCT, total=STEPS)},
    "percentile": {"metric": linear(1, 100, total=STEPS, difficulty_type="percentile")},
}


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def deepspeed_sampler(values: np.ndarray, curriculum: dict[str, Any], folder: str) -> Any:
    import deepspeed.comm as dist
    from deepspeed.runtime.data_pipeline.data_sampling.data_sampler import DeepSpeedDataSampler

    paths = {"index_to_sample_path": f"{folder}/metric_s", "index_to_metric_path": f"{folder}/metric_m"}
    metrics = {name: config | paths for name, config in curriculum.items()}
    learning = {
        "enabled": True,
        "data_cluster_path": tempfile.mkdtemp(dir=folder),
        "curriculum_metrics": metrics,
    }
    config = {"seed": 1234, "data_sampling": {"num_epochs": 1, "curriculum_learning": learning}}
    return DeepSpeedDataSampler(config, len(values), MICRO, 0, 1, dist.get_world_group(), 1, 0)


def take(stream: Iterator[object], count: int) -> None:
    for _ in range(count):
        next(stream)


def contest(index: MemoryIndex, curriculum: dict[str, Any], theirs: Iterator[object], steps: int) -> str:
    def curriculum_steps() -> None:
        take(iter(CurriculumSampler(index, curriculum, micro_batch_size=MICRO)), steps)

    slow, fast = seconds(lambda: take(theirs, steps)), statistics.median(seconds(curriculum_steps) for _ in range(9))
    mine = iter(CurriculumSampler(index, curriculum, micro_batch_size=MICRO))
    take(mine, 20_000)
    pairs = [(seconds(lambda: take(theirs, 300)) / 300, seconds(lambda: take(mine, 30_000)) / 30_000) for _ in range(3)]
    one, other = (statistics.median(times) * 1e6 for times in zip(*pairs, strict=True))
    return (
        f"{steps} steps: DeepSpeed {slow:.2f} s, arrowds {1e3 * fast:.1f} ms: {slow / fast:.0f} x; "
        f"one microbatch of {MICRO}: DeepSpeed {one:.0f} us, arrowds {other:.2f} us: {one / other:.0f} x"
    )


def compare(values: np.ndarray, deepspeed_steps: int) -> None:
    from sampler_oracle import write_index

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    import deepspeed.comm as dist
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    dist.init_distributed(dist_backend="gloo", verbose=False)
    index = MemoryIndex(metric=values)
    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as quiet:
        answers, sys.stdout = sys.stdout, quiet
        write_index(Path(folder), "metric", values)
        for kind, curriculum in CURRICULA.items():
            theirs = iter(deepspeed_sampler(values, curriculum, folder))
            print(f"{kind}: {contest(index, curriculum, theirs, deepspeed_steps)}", file=answers)
        sys.stdout = answers


class HugeMetric:
    """A metric of which only the order exists, as a file: sample i has the value i / n * 2048."""

    def __init__(self, path: Path, count: int) -> None:
        self.order = np.asarray(np.memmap(path, np.uint32, "r", shape=(count,)))
        self._items = memoryview(self.order)
        self.values = np.broadcast_to(np.uint16(2048), (count,))

    def rank(self, value: float, *, side: str = "right") -> int:
        low, high = 0, len(self.order)
        while low < high:
            middle = (low + high) // 2
            fits = self._items[middle] * 2048 / len(self.order) <= value
            low, high = (middle + 1, high) if fits else (low, middle)
        return low


class HugeIndex:
    metrics = ("metric",)
    fingerprint = "0" * 32

    def __init__(self, path: Path, count: int) -> None:
        self.num_samples = count
        self._metric = HugeMetric(path, count)

    def __getitem__(self, name: str) -> HugeMetric:
        return self._metric


def private_mebibytes() -> float:
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def huge(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "order"
        with path.open("wb") as file:
            for start in range(0, count, 1 << 24):
                np.arange(start, min(start + (1 << 24), count), dtype=np.uint32).tofile(file)
        for kind, curriculum in {
            "value": {"metric": linear(8, 2048, total=100_000, multiple=8)},
            "percentile": {"metric": linear(1, 100, total=100_000, difficulty_type="percentile")},
        }.items():
            print(f"{count:,} samples, {kind}: {measure(HugeIndex(path, count), curriculum)}")


def measure(index: HugeIndex, curriculum: dict[str, Any]) -> str:
    before = private_mebibytes()
    started = time.perf_counter()
    sampler = CurriculumSampler(index, curriculum, micro_batch_size=MICRO, world_size=8, gradient_accumulation_steps=2)
    next(iter(sampler))
    first = time.perf_counter() - started
    steps = np.random.default_rng(0).integers(1, index.num_samples // 128, 300).tolist()
    times = [seconds(lambda step=step: sampler.global_batch_at(step)) for step in steps]
    alone = CurriculumSampler(index, curriculum, micro_batch_size=MICRO)
    alone.load_state_dict(alone.state_dict() | {"consumed_samples": index.num_samples // 16 * MICRO})
    stream = iter(alone)
    take(stream, 20_000)
    steady = seconds(lambda: take(stream, 40_000)) / 40_000
    return (
        f"first batch {1e3 * first:.1f} ms; "
        f"global_batch_at (128 samples) median {1e3 * statistics.median(times):.2f} ms; "
        f"one microbatch of {MICRO} {1e6 * steady:.2f} us; state {len(json.dumps(alone.state_dict()))} bytes; "
        f"private memory {private_mebibytes() - before:.0f} MiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--deepspeed-steps", type=int, default=STEPS, help="fewer where all of them take too long")
    parser.add_argument("--skip-deepspeed", action="store_true")
    parser.add_argument(
        "--samples", type=int, default=SAMPLES, help="of the comparison with DeepSpeed; at least 1,000,000"
    )
    parser.add_argument("--huge", type=int, default=1_000_000_000, help="samples where arrowds is alone")
    arguments = parser.parse_args()
    for count in (arguments.samples, arguments.huge):
        huge(count)
    if not arguments.skip_deepspeed:
        values = np.random.default_rng(0).integers(0, DISTINCT, arguments.samples)
        compare(values, arguments.deepspeed_steps)


if __name__ == "__main__":
    main()
