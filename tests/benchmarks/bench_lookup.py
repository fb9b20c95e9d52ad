"""Lookups against the NumPy memory map under them: one id, 100 k random ids, ranges, percentiles, opening.

python tests/benchmarks/bench_lookup.py [samples, default 10000000]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

import arrowds


def seconds(action: Callable[[], object], *, repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        action()
    return (time.perf_counter() - began) / repeats


def compare(name: str, ours: Callable[[], object], peer: Callable[[], object], *, repeats: int, unit: float) -> None:
    """Print medians of alternating rounds and their ratio."""
    rounds = [(seconds(ours, repeats=repeats), seconds(peer, repeats=repeats)) for _ in range(15)]
    mine, theirs = (median(column) for column in zip(*rounds, strict=True))
    print(f"{name:<44} {mine * unit:10.3f} {theirs * unit:10.3f} {mine / theirs:8.2f}")


def main(samples: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 60_000, samples, dtype=np.uint16)
    with TemporaryDirectory() as folder:
        metric = arrowds.metrics.expr("m", pl.col("m"))
        arrowds.analyze(pl.DataFrame({"m": values}), metric, folder, progress=False)
        np.save(Path(folder) / "peer.npy", values)
        peer = np.load(Path(folder) / "peer.npy", mmap_mode="r")
        m = arrowds.open_index(folder)["m"]
        ids = rng.integers(0, samples, 100_000)
        assert np.array_equal(m[ids], peer[ids])
        ordered = np.sort(values)
        bounds = iter(np.tile(rng.integers(0, 60_000, 1000), 1000).tolist())
        peer_bounds = iter(np.tile(rng.integers(0, 60_000, 1000), 1000).astype(np.uint16))
        print(f"{samples:,} samples{'':<27} {'arrowds':>10} {'NumPy':>10} {'ratio':>8}")
        compare("one id [ns]", lambda: m[777], lambda: peer[777], repeats=20_000, unit=1e9)
        compare("100 k random ids [us]", lambda: m[ids], lambda: peer[ids], repeats=20, unit=1e6)
        compare(
            "range of values (NumPy: searchsorted twice) [us]",
            lambda: m.sample_ids(above=next(bounds), up_to=50_000),
            lambda: ordered.searchsorted(next(peer_bounds)) + ordered.searchsorted(np.uint16(50_000)),
            repeats=1000,
            unit=1e6,
        )
        compare(
            "between percentiles (NumPy: a slice) [us]",
            lambda: m.sample_ids_between_percentiles(10.5, 60),
            lambda: ordered[samples // 10 : samples // 2],
            repeats=1000,
            unit=1e6,
        )
        compare("histogram of 50 bins [us]", m.histogram, lambda: np.histogram(values, 50), repeats=1, unit=1e6)
        compare(
            "open [us] (NumPy: np.load)",
            lambda: arrowds.open_index(folder),
            lambda: np.load(Path(folder) / "peer.npy", mmap_mode="r"),
            repeats=20,
            unit=1e6,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000)
