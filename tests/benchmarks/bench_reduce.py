"""Reduce of samples that are already mapped, against Polars' in-memory group_by + agg of the ids of the same frame.

python tests/benchmarks/bench_reduce.py [--samples 100000000] [--shape uint16|half|floats] [--rounds 3] [--keep FOLDER]

From the sorted runs of the map to a committed snapshot, and then the memory maps. Each measurement is a process of its
own, arrowds and Polars in turn. Memory is the peak of the anonymous pages, what a process keeps beside the maps of its
files, and of all resident pages, which include those of the files as far as there is room.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
from generated import SHAPES, Generated, make_view, map_parts, reduce_parts, same_parts
from measure import Cost, disk_mib, in_a_process, measuring, medians

_PEER = "Polars group_by + agg"


def run(stage: str, folder: str, source: Generated) -> dict[str, Cost]:
    """Be one of the processes."""
    if stage == "map":
        return {"map": map_parts(folder, source)}
    if stage == "reduce":
        return reduce_parts(folder, source)
    if stage == "view":
        return {"view": make_view(folder)}
    values = source.values()
    frame = pl.DataFrame({"value": values, "sample_id": np.arange(len(values), dtype=np.uint32)})
    del values
    with measuring() as cost:
        frame.group_by("value").agg(pl.col("sample_id"))
    return {_PEER: cost}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000_000)
    parser.add_argument("--shape", choices=SHAPES, default="uint16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", metavar="FOLDER", help="keep the mapped parts here, and use those that are here")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        print(json.dumps(run(given.stage, given.folder, Generated(given.samples, given.shape))))
        return
    options = ("--samples", given.samples, "--shape", given.shape)
    rounds: list[dict[str, Cost]] = []
    if given.keep:
        Path(given.keep).mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=given.keep) as scratch:
        mapped = Path(given.keep or scratch) / f"mapped-{given.shape}-{given.samples}"
        made = in_a_process(__file__, "--stage", "map", "--folder", mapped, *options)["map"]
        print(f"{given.samples:,} samples, {given.shape}")
        print(f"{disk_mib(mapped):,.0f} MiB of mapped parts, made in {made['seconds']:.1f} s")
        for number in range(given.rounds):
            folder = Path(scratch) / f"index-{number}"
            same_parts(mapped, folder)
            found: dict[str, Cost] = {}
            for stage in ("reduce", "view", "polars"):
                found |= in_a_process(__file__, "--stage", stage, "--folder", folder, *options)
            rounds.append(found)
            size, whole = disk_mib(folder / "metrics"), disk_mib(folder)
            shutil.rmtree(folder)
    print(f"{'':24} {'seconds':>8} {'CPU s':>8} {'anonymous MiB':>14} {'resident MiB':>13}")
    for name in rounds[0]:
        cost = medians([each[name] for each in rounds])
        print(
            f"{name:24} {cost['seconds']:8.2f} {cost['cpu']:8.2f} {cost['anonymous']:14,.0f} {cost['resident']:13,.0f}"
        )
    for title, stages in {
        "parts to snapshot": ["parts to snapshot"],
        "with the view": ["parts to snapshot", "view"],
    }.items():
        ratios = [sum(each[name]["seconds"] for name in stages) / each[_PEER]["seconds"] for each in rounds]
        print(f"{title} / {_PEER}: {median(ratios):.2f}")
    print(f"Parquet {size:,.0f} MiB, with the view {whole:,.0f} MiB")


if __name__ == "__main__":
    main()
