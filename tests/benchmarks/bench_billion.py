"""A billion samples on one machine: mapped, reduced, opened, queried, drawn from and appended to.

python tests/benchmarks/bench_billion.py [--samples 1000000000] [--shape uint16|half|floats] [--folder FOLDER] [--keep]

The data is generated as it is read. Each stage is a process of its own. Memory is the peak of the anonymous pages; disk
is the peak of all that the benchmark has in its folder, mapped parts and old memory maps included. --keep leaves the
mapped parts in the folder, so that the next run begins with the reduce; they need that much more disk until it ends.

Bytes a sample (uint16 and half; floats): mapped parts 8; 20, Parquet 5; 15, memory maps 6; 12. The mapped parts are
removed by the commit; an append makes new memory maps while the old ones are there. So 1 G samples need up to 18 GB;
40 GB, with --keep 26 GB; 60 GB.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
from generated import SHAPES, Generated, make_view, map_parts, reduce_parts, same_parts
from measure import Cost, disk_mib, in_a_process, measuring, seconds

import arrowds

_STEPS = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000_000)
    parser.add_argument("--shape", choices=SHAPES, default="uint16")
    parser.add_argument("--folder", help="where there is room; by default the temporary folder")
    parser.add_argument("--keep", action="store_true", help="leave the mapped parts in --folder for the next run")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    source = Generated(given.samples, given.shape)
    if given.stage:
        with measuring() as whole:
            found = STAGES[given.stage](given.folder, source)
        print(json.dumps(found if given.stage in ("reduce", "append") else {"": {**whole, **found}}))
        return
    if given.keep and not given.folder:
        parser.error("--keep needs a --folder")
    with scratch_folder(given.folder) as base:
        run_all(base, source, keep=given.keep)


def scratch_folder(folder: str | None) -> Any:
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(dir=folder)


def run_all(scratch: str, source: Generated, *, keep: bool) -> None:
    kept = Path(scratch).parent / f"mapped-{source.shape}-{source.samples}"
    index = Path(scratch) / "index"
    print(f"{source.samples:,} samples, {source.shape}")
    print(f"{'':24} {'seconds':>9} {'CPU s':>8} {'anonymous MiB':>14} {'disk MiB':>10}")
    peak = 0.0
    for stage in STAGES:
        folder = kept if stage == "map" and keep else index
        if stage == "reduce" and keep:
            same_parts(kept, index)
        disk = lambda: disk_mib(scratch) + (disk_mib(kept) if keep else 0.0)  # noqa: E731
        with measuring(disk=disk) as watched:
            options = ("--samples", source.samples, "--shape", source.shape, "--folder", folder, "--stage", stage)
            found = in_a_process(__file__, *options)
        peak = max(peak, watched["disk"])
        for name, cost in found.items():
            row = f"{f'{stage} {name}'.strip():24} {cost['seconds']:9.2f} {cost['cpu']:8.2f} {cost['anonymous']:14,.0f}"
            print(f"{row} {watched['disk']:10,.0f}", flush=True)
            for line in cost.get("lines", []):
                print(f"    {line}")
    print(f"disk at the peak {peak / 1024:.1f} GiB")


def read_back(folder: str, source: Generated) -> dict[str, Any]:
    """Open the index, look things up in all ways, and compare with the data where that is cheap."""
    lines = []

    def timed(name: str, action: Callable[[], object], *, repeats: int = 1) -> None:
        first, again = seconds(action), seconds(action, repeats=repeats)
        lines.append(f"{name:44} first {1e3 * first:10.3f} ms, then {1e3 * again:10.3f} ms")

    timed("open", lambda: arrowds.open_index(folder), repeats=20)
    index = arrowds.open_index(folder)
    m = index["m"]
    random = np.random.default_rng(0)
    low, high = (0.25, 0.5) if source.shape == "floats" else (2000, 30_000)
    ids = random.integers(0, len(source), 100_000)
    timed("one id", lambda: m[len(source) // 3], repeats=1000)
    timed("100,000 random ids", lambda: m[ids], repeats=5)
    timed(f"ids in ({low}, {high}]", lambda: m.sample_ids(above=low, up_to=high), repeats=100)
    timed("ids between the percentiles 10 and 60", lambda: m.sample_ids_between_percentiles(10, 60), repeats=100)
    timed("quantile", lambda: m.quantile(0.9), repeats=100)
    timed("histogram of 50 bins", m.histogram)
    where = f"m > {low} and m <= {high}"
    timed("SQL count with that filter", lambda: index.sql(f"select count(*) from samples where {where}"))
    timed("Polars count with that filter", lambda: _counted(index, low, high))
    _check(m, source, low, high, index.sql(f"select count(*) as n from samples where {where}")["n"][0])
    return {"lines": lines}


def _counted(index: arrowds.Index, low: float, high: float) -> int:
    chosen = index.scan().filter((pl.col("m") > low) & (pl.col("m") <= high))
    return int(chosen.select(pl.len()).collect().item())


def _check(m: Any, source: Generated, low: float, high: float, counted: int) -> None:
    """Compare values with the data, the order with the values, and the answers with one another, at random places."""
    random = np.random.default_rng(1)
    for start in random.integers(0, max(len(source) - 1000, 1), 5).tolist():
        stop = min(start + 1000, len(source))
        data = np.concatenate([batch["m"].to_numpy() for batch in source.read(start, stop)])
        ids = m.sample_ids()[start:stop]
        pairs = list(zip(m.values[ids].tolist(), ids.tolist(), strict=True))
        if not np.array_equal(m.values[start:stop], data) or pairs != sorted(pairs):
            raise SystemExit(f"the index is wrong between {start} and {stop}")
    if not m.count(above=low, up_to=high) == len(m.sample_ids(above=low, up_to=high)) == counted:
        raise SystemExit("lookups and SQL count differently")


def draw(folder: str, source: Generated) -> dict[str, Any]:
    """Draw global batches of 128 samples at random steps, as every rank of a training does."""
    index = arrowds.open_index(folder)
    lines = []
    top = 1.0 if source.shape == "floats" else 60_000
    for kind, low, high in (("value", top / 100, top), ("percentile", 1, 100)):
        curriculum = {
            "m": {
                "difficulty_type": kind,
                "clustering_type": "schedule_based",
                "min_difficulty": low,
                "max_difficulty": high,
                "schedule_type": "fixed_linear",
                "schedule_config": {
                    "total_curriculum_step": _STEPS,
                    "difficulty_step": 1 if kind == "percentile" else low,
                },
            }
        }
        sampler = arrowds.CurriculumSampler(
            index, curriculum, micro_batch_size=8, world_size=8, gradient_accumulation_steps=2
        )
        first = seconds(lambda sampler=sampler: sampler.global_batch_at(1))
        steps = np.random.default_rng(0).integers(1, max(len(source) // 128, 2), 300).tolist()
        times = [seconds(lambda step=step, sampler=sampler: sampler.global_batch_at(step)) for step in steps]
        lines.append(f"by {kind}: the first batch {1e3 * first:.2f} ms, global_batch_at {1e3 * median(times):.3f} ms")
    return {"lines": lines}


def grow(folder: str, source: Generated) -> dict[str, Cost]:
    """Append one percent."""
    more = Generated(max(len(source) // 100, 1), source.shape, seed=1)
    with measuring() as cost:
        arrowds.append(more, folder, progress=False)
    return {"": cost, "view": make_view(folder)}


STAGES: dict[str, Callable[[str, Generated], dict[str, Any]]] = {
    "map": lambda folder, source: dict(map_parts(folder, source)),
    "reduce": reduce_parts,
    "view": lambda folder, source: dict(make_view(folder)),
    "read": read_back,
    "draw": draw,
    "append": grow,
}


if __name__ == "__main__":
    main()
