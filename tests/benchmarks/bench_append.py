"""One percent more samples: append against an analysis of all, and lookups after eight appends against one segment.

python tests/benchmarks/bench_append.py [--samples 100000000] [--rounds 3] [--appends 8] [--folder FOLDER]

uint16 values and one cheap metric. Each measurement is a process of its own. "View" is the memory maps, which a host
brings up to date once. Bytes are those of metrics/, the truth. The lookups of the index after its appends take turns
with those of the same samples as one segment, after compact.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from generated import METRIC, Generated, make_view
from lookups import compare, lookups
from measure import Cost, disk_mib, in_a_process, measuring

import arrowds


def run(stage: str, folder: str, samples: int, number: int) -> Cost:
    """Be one of the processes."""
    if stage == "view":
        return make_view(folder)
    with measuring() as cost:
        if stage == "analyze":
            arrowds.analyze(Generated(samples, "uint16"), METRIC, folder, progress=False)
        elif stage == "append":
            arrowds.append(Generated(max(samples // 100, 1), "uint16", seed=number), folder, progress=False)
        else:
            arrowds.compact(folder)
    return cost


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=100_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--appends", type=int, default=8)
    parser.add_argument("--folder", help="where there is room; by default the temporary folder")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--number", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        print(json.dumps(run(given.stage, given.folder, given.samples, given.number)))
        return
    with TemporaryDirectory(dir=given.folder) as scratch:
        rounds = []
        for number in range(given.rounds):
            folder = Path(scratch) / f"index-{number}"
            rounds.append(one_round(folder, given.samples))
            if number < given.rounds - 1:
                shutil.rmtree(folder)
        report(rounds, given.samples)
        for number in range(2, given.appends + 1):
            stage(folder, given.samples, "append", number)
        after = stage(folder, given.samples, "view")["seconds"]
        print(f"\nview after {given.appends - 1} more appends: {after:.2f} s; lookups:")
        stage(folder, given.samples, "compact")
        version = given.appends + 1
        names = {f"{given.appends} appends": version, "one segment": version + 1}
        compare({name: lookups(str(folder), found) for name, found in names.items()}, rounds=15)


def stage(folder: Path, samples: int, name: str, number: int = 0) -> Cost:
    found: Cost = in_a_process(__file__, "--stage", name, "--folder", folder, "--samples", samples, "--number", number)
    return found


def one_round(folder: Path, samples: int) -> dict[str, float]:
    full, full_view = (stage(folder, samples, name) for name in ("analyze", "view"))
    size = disk_mib(folder / "metrics")
    append = stage(folder, samples, "append", 1)
    grown = disk_mib(folder / "metrics")
    view = stage(folder, samples, "view")
    return {
        "analysis": full["seconds"],
        "analysis + view": full["seconds"] + full_view["seconds"],
        "append": append["seconds"],
        "view update": view["seconds"],
        "append / analysis": append["seconds"] / full["seconds"],
        "append / analysis, CPU": append["cpu"] / full["cpu"],
        "view update / (analysis + view)": view["seconds"] / (full["seconds"] + full_view["seconds"]),
        "view update / (analysis + view), CPU": view["cpu"] / (full["cpu"] + full_view["cpu"]),
        "MiB of the analysis": size,
        "bytes of the append / those of the analysis": (grown - size) / size,
        "peak anonymous MiB, append": append["anonymous"],
        "peak anonymous MiB, view update": view["anonymous"],
    }


def report(rounds: list[dict[str, float]], samples: int) -> None:
    print(f"{samples:,} uint16, appended by 1 %, medians of {len(rounds)} rounds; seconds, MiB, ratios")
    for name in rounds[0]:
        print(f"{name:44} {median(each[name] for each in rounds):10.3f}")


if __name__ == "__main__":
    main()
