"""DeepSpeed's own comparison: index a torch dataset of numbers by one per-sample and one accumulated metric.

    python tests/benchmarks/bench_analyzer.py                       10 M ints: bare DataLoader and arrowds
    python tests/benchmarks/bench_analyzer.py --floats              10 M distinct float64 values
    python tests/benchmarks/bench_analyzer.py --deepspeed -n 1000000    and DeepSpeed's DataAnalyzer, once

Every measurement has a process of its own; contenders take turns, and medians are compared. Memory is what the process
and its largest child needed at the peak beyond the dataset and the imported libraries.
"""

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BATCH = 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--samples", type=int, default=10_000_000)
    parser.add_argument("--floats", action="store_true", help="distinct float64 values instead of ints mod 10,000")
    parser.add_argument("--deepspeed", action="store_true", help="run DeepSpeed's DataAnalyzer too, once")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--workers", type=int, default=None, help="workers of arrowds.analyze; by default its own choice"
    )
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(measure(arguments)))
        return
    if arguments.deepspeed and arguments.floats:
        parser.error("DeepSpeed's analyzer takes no floats")
    results: dict[str, list[dict]] = {name: [] for name in ("dataloader", "arrowds")}
    for _ in range(arguments.repeats):
        for name, measured in results.items():
            measured.append(in_a_process(name))
    if arguments.deepspeed:
        results["deepspeed"] = [in_a_process("deepspeed")]
    report(results, arguments)


def in_a_process(contender: str) -> dict:
    command = [sys.executable, __file__, *sys.argv[1:], "--contender", contender]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(results: dict[str, list[dict]], arguments: argparse.Namespace) -> None:
    kind = "distinct float64 values" if arguments.floats else "ints"
    print(f"{arguments.samples:,} {kind}, batches of {BATCH}, one metric per sample and one total")
    floor = statistics.median(run["seconds"] for run in results["dataloader"])
    print(f"{'':12} {'seconds':>9} {'x bare':>8} {'peak MiB above dataset':>24}")
    for name, runs in results.items():
        seconds = statistics.median(run["seconds"] for run in runs)
        memory = max(run["peak_mib"] for run in runs)
        print(f"{name:12} {seconds:9.2f} {seconds / floor:8.2f} {memory:24.0f}")
    if "deepspeed" in results:
        ours = statistics.median(run["seconds"] for run in results["arrowds"])
        print(f"arrowds is {results['deepspeed'][0]['seconds'] / ours:.0f} times as fast as DeepSpeed's DataAnalyzer")


class Numbers:
    """The dataset of DeepSpeed's comparison, or one of distinct floats."""

    def __init__(self, size: int, floats: bool) -> None:
        draw = random.Random(0).random
        self.values = [draw() for _ in range(size)] if floats else [(x + 7) % 10_000 for x in range(size)]

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i: int) -> float:
        return self.values[i]


def mod(batch):
    return batch


def batch_sum(batch):
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
    arrowds.analyze(source, metrics, folder, workers=arguments.workers, progress=False)


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


CONTENDERS = {"dataloader": run_dataloader, "arrowds": run_arrowds, "deepspeed": run_deepspeed}


def measure(arguments: argparse.Namespace) -> dict:
    __import__("torch")
    __import__({"deepspeed": "deepspeed", "arrowds": "arrowds", "dataloader": "torch"}[arguments.contender])
    dataset = Numbers(arguments.samples, arguments.floats)
    with tempfile.TemporaryDirectory() as folder:
        before = resident_mib()
        began = time.perf_counter()
        CONTENDERS[arguments.contender](dataset, arguments, f"{folder}/index")
        seconds = time.perf_counter() - began
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"seconds": seconds, "peak_mib": max(own, child)}


def resident_mib() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


if __name__ == "__main__":
    main()
