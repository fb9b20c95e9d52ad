"""Loader overhead over torch's DataLoader with a list of batches made before, and samples per second beside datasets.

Both loaders, with torch's own collate function, read the same dataset. They are driven alternately, and the median of
the ratios of neighbours is what counts. Run it with `python tests/benchmarks/bench_loader.py [--rounds 31]`.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable
from itertools import islice
from statistics import median
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from torch.utils.data import DataLoader

import arrowds

SAMPLES, MICRO, BATCHES = 40_000, 8, 1000
CURRICULUM = {
    "seqlen": {
        "difficulty_type": "value",
        "clustering_type": "schedule_based",
        "min_difficulty": 64,
        "max_difficulty": 512,
        "schedule_type": "fixed_linear",
        "schedule_config": {"total_curriculum_step": 200, "difficulty_step": 8},
    }
}


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(
    title: str,
    ours: Callable[[], object],
    peer: Callable[[], object],
    *,
    per: int,
    rounds: int,
    clock: Callable[[Callable[[], object]], float] = cpu_seconds,
) -> None:
    """Run both in turn and print the medians and the median of the ratios of neighbours."""
    times = [(clock(ours), clock(peer)) for _ in range(rounds)]
    mine, theirs = (median(column) / per * 1e6 for column in zip(*times, strict=True))
    ratio = median(a / b for a, b in times)
    print(f"{title}: {mine:.2f} us against {theirs:.2f} us, ratio {ratio:.3f}")


def consume(batches: Iterable[Any]) -> None:
    for _ in batches:
        pass


def wall_seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=31)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    lengths = pa.table({"seqlen": rng.integers(1, 513, SAMPLES)})
    with tempfile.TemporaryDirectory() as folder:
        metric = arrowds.metrics.expr("seqlen", pl.col("seqlen"))
        index = arrowds.analyze(lengths, metric, f"{folder}/index", workers=1, progress=False)
        for tokens in (512, 2048):
            table = rows_of_tokens(tokens, rng)
            for workers in (0, 2):
                compare_loaders(table, index, "stateless", workers, rounds)
        compare_loaders(table, index, "deepspeed", 0, rounds)
    compare_datasets(rows_of_tokens(512, rng), rng, rounds)


def rows_of_tokens(length: int, rng: np.random.Generator) -> pa.Table:
    tokens = rng.integers(0, 50_000, SAMPLES * length, dtype=np.uint16)
    offsets = np.arange(0, SAMPLES * length + 1, length, dtype=np.int32)
    return pa.table({"input_ids": pa.ListArray.from_arrays(offsets, tokens)})


def compare_loaders(table: pa.Table, index: arrowds.Index, order: Any, workers: int, rounds: int) -> None:
    """Draw from both in turn, from other rows: the second would find those of the first in the caches."""
    sampler, precomputed = (
        arrowds.CurriculumSampler(index, CURRICULUM, micro_batch_size=MICRO, num_epochs=9, order=order, seed=seed)
        for seed in (1, 2)
    )
    dataset = arrowds.ArrowDataset(table)
    options: dict[str, Any] = {"num_workers": workers}
    bare = iter(DataLoader(dataset, batch_sampler=list(islice(precomputed, (rounds + 1) * BATCHES + 100)), **options))
    ours = iter(arrowds.CurriculumDataLoader(dataset, sampler, **options))
    for batches in (ours, bare):
        consume(islice(batches, BATCHES))
    clock = wall_seconds if workers else cpu_seconds
    title = (
        f"batch of {MICRO} x {len(dataset[0]['input_ids'])} tokens, order {order}, {workers} workers, {clock.__name__}"
    )
    compare(
        title,
        lambda: consume(islice(ours, BATCHES)),
        lambda: consume(islice(bare, BATCHES)),
        per=BATCHES,
        rounds=rounds,
        clock=clock,
    )


def compare_datasets(table: pa.Table, rng: np.random.Generator, rounds: int) -> None:
    try:
        import datasets
    except ImportError:
        print("datasets is not installed")
        return
    dataset = arrowds.ArrowDataset(table)
    other = datasets.Dataset(datasets.table.InMemoryTable(table)).with_format("torch")
    batches = rng.integers(0, SAMPLES, (100, MICRO)).tolist()
    compare(
        f"fetch of {MICRO} rows, ArrowDataset against datasets with_format('torch')",
        lambda: consume(map(dataset.__getitems__, batches)),
        lambda: consume(map(other.__getitems__, batches)),
        per=len(batches),
        rounds=rounds,
    )


if __name__ == "__main__":
    main()
