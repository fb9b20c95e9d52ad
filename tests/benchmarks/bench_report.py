"""A report on an index of 10 M samples with 6 metrics: seconds of the whole process, its memory, the size of the page.

python tests/benchmarks/bench_report.py [--samples 10000000] [--rounds 5]

The first round has no memory maps and makes them, as the first lookup of an index does. The data are Parquet files on
the disk, so that the lowest and the highest samples are read with their text. Memory includes pages of mapped files.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

import arrowds

ROWS_PER_FILE = 1_000_000
COMMAND = [sys.executable, "-c", "from arrowds.cli import main; main()", "report"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        base = Path(folder)
        for number in range(-(-given.samples // ROWS_PER_FILE)):
            rows = min(ROWS_PER_FILE, given.samples - number * ROWS_PER_FILE)
            generated(rows, number).write_parquet(base / f"{number:04}.parquet", row_group_size=100_000)
        names = ["seqlen", "loss", "rarity", "quality", "clean", "language"]
        metrics = [arrowds.metrics.column(name) for name in names]
        arrowds.analyze(f"{base}/*.parquet", metrics, base / "index", progress=False)
        rounds = [reported(base) for _ in range(given.rounds + 1)]
        print(f"{given.samples:,} samples, {len(names)} metrics")
        for name, found in (
            ("first, makes the memory maps", rounds[:1]),
            (f"again, median of {given.rounds}", rounds[1:]),
        ):
            wall, cpu, peak = (median(values) for values in zip(*found, strict=True))
            print(f"{name:30} {wall:5.1f} s, {cpu:5.1f} s of processors, {peak:5.0f} MiB")
        print(f"page: {(base / 'report.html').stat().st_size / 1e6:.2f} MB")


def reported(base: Path) -> tuple[float, float, float]:
    """Run the command; return its seconds, those of processors, and its peak of resident memory in MiB."""
    began = time.perf_counter()
    process = subprocess.Popen([*COMMAND, base / "index", "-o", base / "report.html"], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("the report failed")
    return time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def generated(rows: int, seed: int) -> pl.DataFrame:
    """Rows with a text and six columns: skewed integers, floats of both kinds, few values, a bool, a category."""
    random = np.random.default_rng(seed)
    return pl.DataFrame(
        {
            "text": [f"document {row} " + "lorem ipsum dolor sit amet " * 8 for row in range(1000)]
            * (rows // 1000 + 1),
        }
    )[:rows].with_columns(
        seqlen=pl.Series(random.lognormal(6, 1, rows).astype(np.int64) + 1),
        loss=pl.Series(random.gamma(3, 1, rows)),
        rarity=pl.Series(random.normal(0, 1, rows).astype(np.float32)),
        quality=pl.Series(random.integers(1, 6, rows)),
        clean=pl.Series(random.random(rows) < 0.9),
        language=pl.Series(np.array(["de", "en", "es", "fr", "zh"])[random.integers(0, 5, rows)]),
    )


if __name__ == "__main__":
    main()
