"""DeepSpeed's own comparison: index a torch dataset of numbers by one per-sample and one accumulated metric.

    python tests/benchmarks/bench_analyzer.py                       10 M ints: bare DataLoader and arrowds
    python tests/benchmarks/bench_analyzer.py --floats              10 M distinct float64 values
    python tests/benchmarks/bench_analyzer.py --deepspeed -n 1000000    and DeepSpeed's DataAnalyzer, once
    python tests/benchmarks/bench_analyzer.py --distributed -n 1000000  and both DistributedDataAnalyzers on one rank

The time of arrowds is that of the analysis and of making its memory maps. Every measurement has a process of its own;
contenders take turns, and medians are compared. Memory is what the process and its largest child needed at the peak
beyond the dataset and the imported libraries.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from measure import in_a_process, resident_mib

BATCH = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--samples", type=int, default=10_000_000)
    parser.add_argument("--floats", action="store_true", help="distinct float64 values instead of ints mod 10,000")
    parser.add_argument("--deepspeed", action="store_true", help="run DeepSpeed's DataAnalyzer too, once")
    parser.add_argument(
        "--distributed",
        action="store_true",
        help="run DeepSpeed's DistributedDataAnalyzer, once, and its drop-in",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--workers", type=int, default=None, help="workers of arrowds.analyze; by default its own choice"
    )
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(measure(arguments)))
        return
    if (arguments.deepspeed or arguments.distributed) and arguments.floats:
        parser.error("DeepSpeed's analyzers take no floats")
    results: dict[str, list[dict[str, float]]] = {"dataloader": [], "arrowds": []}
    if arguments.distributed:
        results["arrowds' DistributedDataAnalyzer"] = []
    for _ in range(arguments.repeats):
        for name, measured in results.items():
            measured.append(in_a_process(__file__, *sys.argv[1:], "--contender", name))
    once = {"DataAnalyzer": arguments.deepspeed, "DistributedDataAnalyzer": arguments.distributed}
    for name in (name for name, wanted in once.items() if wanted):
        results[name] = [in_a_process(__file__, *sys.argv[1:], "--contender", name)]
    report(results, arguments)


def report(results: dict[str, list[dict[str, float]]], arguments: argparse.Namespace) -> None:
    kind = "distinct float64 values" if arguments.floats else "ints"
    print(f"{arguments.samples:,} {kind}, batches of {BATCH}, one metric per sample and one total")
    floor = {key: statistics.median(run[key] for run in results["dataloader"]) for key in ("seconds", "cpu")}
    print(f"{'':34} {'seconds':>9} {'x bare':>8} {'CPU s':>9} {'x bare':>8} {'peak MiB above dataset':>24}")
    middle = {}
    for name, runs in results.items():
        seconds, busy = (statistics.median(run[key] for run in runs) for key in ("seconds", "cpu"))
        memory = max(run["peak_mib"] for run in runs)
        middle[name] = (seconds, memory)
        ratios = (seconds / floor["seconds"], busy / floor["cpu"])
        print(f"{name:34} {seconds:9.2f} {ratios[0]:8.2f} {busy:9.2f} {ratios[1]:8.2f} {memory:24.0f}")
    pairs = {"DataAnalyzer": "arrowds", "DistributedDataAnalyzer": "arrowds' DistributedDataAnalyzer"}
    for theirs, ours in pairs.items():
        if theirs in middle:
            speed, memory = (middle[theirs][part] / middle[ours][part] for part in (0, 1))
            print(f"{ours} is {speed:.0f} times as fast as DeepSpeed's {theirs}, in 1/{memory:.0f} of its memory")


class Numbers:
    """The dataset of DeepSpeed's comparison, or one of distinct floats."""

    def __init__(self, size: int, floats: bool) -> None:
        draw = random.Random(0).random
        self.values = [draw() for _ in range(size)] if floats else [(x + 7) % 10_000 for x in range(size)]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i: int) -> float:
        return self.values[i]


def mod(batch: Any) -> Any:
    return batch


def batch_sum(batch: Any) -> Any:
    return batch.sum()


def run_dataloader(dataset: Numbers, arguments: argparse.Namespace, folder: str) -> None:
    from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

    sampler = BatchSampler(SequentialSampler(dataset), batch_size=BATCH, drop_last=False)
    for batch in DataLoader(dataset, batch_sampler=sampler):
        mod(batch)
        batch_sum(batch)


def run_arrowds(dataset: Numbers, arguments: argparse.Namespace, folder: str) -> None:
    import arrowds

    dtype = "float64" if arguments.floats else "int64"
    metrics = [
        arrowds.metrics.function("mod", mod, dtype=dtype),
        arrowds.metrics.function("batch_sum", batch_sum, dtype=dtype, kind="total"),
    ]
    source = arrowds.sources.TorchSource(dataset, batch_size=BATCH)
    index = arrowds.analyze(source, metrics, folder, workers=arguments.workers, progress=False)
    _ = index["mod"].values


def run_deepspeed(dataset: Numbers, arguments: argparse.Namespace, folder: str) -> None:
    import torch
    from deepspeed.runtime.data_pipeline.data_sampling import data_analyzer

    data_analyzer.logger.setLevel("ERROR")
    analyzer = data_analyzer.DataAnalyzer(
        dataset,
        num_threads=4,
        num_threads_reduce=4,
        batch_size=BATCH,
        metric_names=["mod", "batch_sum"],
        metric_functions=[mod, batch_sum],
        metric_types=["single_value_per_sample", "accumulate_value_over_samples"],
        metric_dtypes=[torch.int64, torch.int64],
        save_path=folder,
    )
    analyzer.run_map()
    analyzer.run_reduce()


def run_deepspeed_distributed(dataset: Numbers, arguments: argparse.Namespace, folder: str) -> None:
    from deepspeed.runtime.data_pipeline.data_sampling import data_analyzer

    data_analyzer.logger.setLevel("ERROR")
    run_distributed(data_analyzer.DistributedDataAnalyzer, dataset, folder)


def run_arrowds_distributed(dataset: Numbers, arguments: argparse.Namespace, folder: str) -> None:
    from arrowds.integrations import deepspeed as ads

    run_distributed(ads.DistributedDataAnalyzer, dataset, folder)


def run_distributed(analyzer: Callable[..., Any], dataset: Numbers, folder: str) -> None:
    """Both classes take the same arguments. One rank, one thread, so that DeepSpeed keeps its ids exact."""
    analyzer(
        dataset,
        batch_size=BATCH,
        metric_names=["mod", "batch_sum"],
        metric_functions=[mod, batch_sum],
        metric_types=["single_value_per_sample", "accumulate_value_over_samples"],
        save_path=folder,
        device="cpu",
    ).run_map_reduce()


def join_one_rank() -> None:
    """Be the only rank of torch.distributed, with gloo."""
    import deepspeed.comm as dist
    from deepspeed.utils import logger

    logger.setLevel("ERROR")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_distributed(dist_backend="gloo", verbose=False)


CONTENDERS: dict[str, tuple[str, Callable[[Numbers, argparse.Namespace, str], None]]] = {
    "dataloader": ("torch", run_dataloader),
    "arrowds": ("arrowds.build.api", run_arrowds),
    "arrowds' DistributedDataAnalyzer": ("arrowds.integrations.deepspeed", run_arrowds_distributed),
    "DataAnalyzer": ("deepspeed", run_deepspeed),
    "DistributedDataAnalyzer": ("deepspeed", run_deepspeed_distributed),
}
"""What each one imports, and what it does."""


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    package, work = CONTENDERS[arguments.contender]
    __import__("torch")
    __import__(package)
    if "Distributed" in arguments.contender:
        join_one_rank()
    dataset = Numbers(arguments.samples, arguments.floats)
    with tempfile.TemporaryDirectory() as folder:
        before, grown_up = resident_mib(), children_mib()
        began, busy = time.perf_counter(), sum(os.times()[:4])
        work(dataset, arguments, f"{folder}/index")
        seconds, busy = time.perf_counter() - began, sum(os.times()[:4]) - busy
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    # Compilers that DeepSpeed's import has started are no part of the work.
    child = children_mib() if children_mib() > grown_up else 0.0
    return {"seconds": seconds, "cpu": busy, "peak_mib": max(own, child)}


def children_mib() -> float:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


if __name__ == "__main__":
    main()
