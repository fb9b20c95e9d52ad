"""seqlen of a Parquet file of token lists, against Polars computing the list lengths of that column.

python tests/benchmarks/bench_seqlen.py [--samples 10000000] [--rounds 3]

The lists have lognormal lengths of mean 20. The stages are timed apart; the fingerprint of the file belongs to the
plan. The two programs take turns, in one process, with the file in the page cache.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

import arrowds
from arrowds.arrays import arrow_view
from arrowds.build.api import map_all
from arrowds.build.commit import begin, commit, plan_columns, run_reduce
from arrowds.build.engines import LocalEngine
from arrowds.build.operations import plan_analysis
from arrowds.build.plan import BuildPlan
from arrowds.sources import open_source
from arrowds.store import open_store

_MEAN = 20
_SIGMA = 0.8


def write_lists(path: Path, samples: int) -> None:
    """A million lists at a time."""
    schema = pa.schema({"input_ids": pa.list_(pa.uint16())})
    random = np.random.default_rng(0)
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, samples, 1_000_000):
            rows = min(1_000_000, samples - first)
            lengths = np.rint(random.lognormal(np.log(_MEAN) - _SIGMA**2 / 2, _SIGMA, rows)).astype(np.int64)
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            tokens = random.integers(0, 50_000, offsets[-1], dtype=np.uint16)
            lists = pa.ListArray.from_arrays(arrow_view(offsets), arrow_view(tokens))
            writer.write_table(pa.table([lists], schema=schema))


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result


def planned(path: Path, folder: Path) -> BuildPlan:
    plan = plan_analysis(open_store(folder), open_source(path), arrowds.metrics.seqlen("input_ids"), overwrite=False)
    if not isinstance(plan, BuildPlan):
        raise SystemExit(f"{folder} holds an index")
    return plan


def reduced(plan: BuildPlan) -> None:
    columns = plan_columns(plan, {})
    run_reduce([column for of_segment in columns for column in of_segment], LocalEngine())
    commit(plan, columns, {})


def one_round(path: Path, folder: Path) -> dict[str, float]:
    planning, plan = timed(lambda: planned(path, folder))
    begin(plan.store, plan.key, plan.to_json(), resume=True)
    mapping, _ = timed(lambda: map_all(plan, LocalEngine(), progress=False))
    reducing, _ = timed(lambda: reduced(plan))
    index = arrowds.open_index(folder)
    viewing, lengths = timed(lambda: index["seqlen"].values)
    polars, peer = timed(lambda: pl.scan_parquet(path).select(pl.col("input_ids").list.len()).collect())
    if not np.array_equal(lengths, peer["input_ids"].to_numpy()):
        raise SystemExit("the lengths differ")
    return {"plan": planning, "map": mapping, "reduce": reducing, "view": viewing, "polars": polars}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with TemporaryDirectory() as base:
        path = Path(base) / "lists.parquet"
        write_lists(path, given.samples)
        print(f"{given.samples:,} lists, {path.stat().st_size >> 20:,} MiB of Parquet")
        one_round(path, Path(base) / "warm")
        rounds = [one_round(path, Path(base) / f"index-{number}") for number in range(given.rounds)]
    for name in rounds[0]:
        print(f"{name:<8} {median(each[name] for each in rounds):8.2f} s")
    for name, stages in {
        "map": ["map"],
        "plan + map": ["plan", "map"],
        "all": ["plan", "map", "reduce", "view"],
    }.items():
        ratio = median(sum(each[stage] for stage in stages) / each["polars"] for each in rounds)
        print(f"{name} / Polars: {ratio:.2f}")


if __name__ == "__main__":
    main()
