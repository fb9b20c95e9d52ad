"""Near duplicates beside rensa's signatures: processor seconds, and the peak of memory of a process of its own.

python tests/benchmarks/bench_duplicates.py [--documents 100000] [--exact]

Documents of about 1 kB are drawn from the words of the Python standard library; every tenth is a copy of another with
two words changed. One peer reads the same texts, cuts them into shingles of five words as Python does, and lets rensa
make the signatures, with as many values; of the other only rensa's own work is timed, on shingles that are cut.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sysconfig
import tempfile
import time
from pathlib import Path

import polars as pl
from measure import in_a_process, peak_mib
from rensa import RMinHash

import arrowds
from arrowds.duplicates.near import NUM_PERM


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--run", choices=["arrowds", "rensa", "alone"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        work = {"arrowds": near_duplicates, "rensa": signatures, "alone": signatures_alone}[given.run]
        result, took = work(given.folder, None if given.exact else 0.8)
        print(json.dumps({"cpu": took, "mib": peak_mib(), "result": result}))
        return
    with tempfile.TemporaryDirectory() as folder:
        size = write_documents(Path(folder, "data.parquet"), given.documents)
        arrowds.analyze(f"{folder}/data.parquet", arrowds.metrics.column("number"), f"{folder}/index", progress=False)
        print(f"{given.documents:,} documents, {size / 1e6:,.0f} MB")
        options = ["--folder", folder, *(["--exact"] if given.exact else [])]
        costs = {name: in_a_process(__file__, "--run", name, *options) for name in ("rensa", "alone", "arrowds")}
    for name, cost in costs.items():
        print(f"{name:8} {cost['cpu']:8.1f} s of a processor {cost['mib']:8.0f} MiB")
    whole = costs["arrowds"]["cpu"]
    ratios = ", ".join(f"arrowds / {name} {whole / costs[name]['cpu']:.2f}" for name in ("rensa", "alone"))
    print(f"{ratios}; found {costs['arrowds']['result']:,}")


def write_documents(path: Path, count: int) -> int:
    draw = random.Random(0)
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    words = [word for source in sources for word in re.findall(r"\w+", source.read_text(encoding="utf-8"))]
    documents: list[str] = []
    for number in range(count):
        if number % 10 == 9:
            copy = documents[draw.randrange(number)].split(" ")
            for _ in range(2):
                copy[draw.randrange(len(copy))] = draw.choice(words)
            documents.append(" ".join(copy))
        else:
            start = draw.randrange(len(words) - 150)
            documents.append(" ".join(draw.sample(words[start : start + 150], 150)))
    pl.DataFrame({"text": documents, "number": range(count)}).write_parquet(path)
    return sum(map(len, documents))


def near_duplicates(folder: str, near: float | None) -> tuple[int, float]:
    began = time.process_time()
    found = arrowds.find_duplicates(f"{folder}/index", near=near)["duplicate_of"].num_valid
    return found, time.process_time() - began


def signatures(folder: str, near: float | None) -> tuple[int, float]:
    made, began = 0, time.process_time()
    for batch in pl.read_parquet(f"{folder}/data.parquet", columns=["text"]).iter_slices(10_000):
        found = [shingles(text) for text in batch["text"]]
        made += RMinHash.digest_matrix_from_token_sets(found, NUM_PERM, 42).len()
    return made, time.process_time() - began


def signatures_alone(folder: str, near: float | None) -> tuple[int, float]:
    made, took = 0, 0.0
    for batch in pl.read_parquet(f"{folder}/data.parquet", columns=["text"]).iter_slices(10_000):
        found = [shingles(text) for text in batch["text"]]
        began = time.process_time()
        made += RMinHash.digest_matrix_from_token_sets(found, NUM_PERM, 42).len()
        took += time.process_time() - began
    return made, took


def shingles(text: str) -> list[str]:
    words = re.findall(r"\w+", text.lower())
    return [" ".join(words[at : at + 5]) for at in range(max(len(words) - 4, 1))]


if __name__ == "__main__":
    main()
