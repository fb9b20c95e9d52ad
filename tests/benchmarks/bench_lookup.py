"""Lookups against the NumPy memory map under them, in an index of one segment and in one that was appended to.

python tests/benchmarks/bench_lookup.py [--samples 10000000] [--appends 8] [--rounds 15]

NumPy answers what it can: one id and many from a mapped array, a range by two binary searches in sorted values, a
slice, a histogram by counting, opening by mapping.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
from lookups import Action, compare, lookups

import arrowds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--appends", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    values = np.random.default_rng(0).integers(0, 60_000, given.samples, dtype=np.uint16)
    metric = arrowds.metrics.expr("m", pl.col("m"))
    with TemporaryDirectory() as base:
        one, many = f"{base}/one", f"{base}/many"
        arrowds.analyze(pl.DataFrame({"m": values}), metric, one, progress=False)
        cuts = np.linspace(given.samples // 2, given.samples, given.appends + 1, dtype=np.int64).tolist()
        for start, stop in pairwise([0, *cuts]):
            piece = pl.DataFrame({"m": values[start:stop]})
            if start == 0:
                arrowds.analyze(piece, metric, many, progress=False)
            else:
                arrowds.append(piece, many, progress=False)
        for path in (one, many):
            found = arrowds.open_index(path)["m"]
            if not np.array_equal(found.values, values) or len(found.sample_ids()) != len(values):
                raise SystemExit(f"{path} is wrong")
        print(f"{given.samples:,} samples")
        segments = f"{given.appends + 1} segments"
        contenders = {segments: lookups(many), "one segment": lookups(one), "NumPy": peers(Path(base), values)}
        compare(contenders, rounds=given.rounds)


def peers(folder: Path, values: np.ndarray) -> dict[str, tuple[Action, int]]:
    """The same lookups where NumPy has them."""
    np.save(folder / "peer.npy", values)
    mapped = np.load(folder / "peer.npy", mmap_mode="r")
    ordered = np.sort(values)
    random = np.random.default_rng(0)
    ids = random.integers(0, len(values), 100_000)
    bounds = iter(np.tile(random.integers(0, 50_000, 1000), 10_000).astype(np.uint16))
    top = np.uint16(50_000)
    return {
        "open": (lambda: np.load(folder / "peer.npy", mmap_mode="r"), 20),
        "one id": (lambda: mapped[777], 10_000),
        "100,000 random ids": (lambda: mapped[ids], 10),
        "ids of a range of values": (lambda: ordered.searchsorted(next(bounds)) + ordered.searchsorted(top), 500),
        "ids between percentiles": (lambda: ordered[len(values) // 10 : len(values) // 2], 500),
        "quantile": (lambda: ordered[len(values) * 9 // 10], 500),
        "histogram of 50 bins": (lambda: np.histogram(values, 50), 1),
    }


if __name__ == "__main__":
    main()
