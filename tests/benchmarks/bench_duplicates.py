"""Near duplicates beside rensa's signatures alone: processor seconds, and the peak of memory of a process of its own.

python tests/benchmarks/bench_duplicates.py [--documents 100000] [--exact]

Documents of about 1 kB are drawn from the words of the Python standard library; every tenth is a copy of another with
two words changed. The peer reads the same texts, cuts them into shingles of five words as Python does, and lets rensa
make the signatures, with as many values.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sysconfig
import tempfile
import time
from collections.abc import Callable
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
    parser.add_argument("--run", choices=["arrowds", "rensa"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.run:
        work = near_duplicates if given.run == "arrowds" else signatures
        print(json.dumps(cost_of(lambda: work(given.folder, None if given.exact else 0.8))))
        return
    with tempfile.TemporaryDirectory() as folder:
        size = write_documents(Path(folder, "data.parquet"), given.documents)
        arrowds.analyze(f"{folder}/data.parquet", arrowds.metrics.column("number"), f"{folder}/index", progress=False)
        print(f"{given.documents:,} documents, {size / 1e6:,.0f} MB")
        options = ["--folder", folder, *(["--exact"] if given.exact else [])]
        costs = {name: in_a_process(__file__, "--run", name, *options) for name in ("rensa", "arrowds")}
    for name, cost in costs.items():
        print(f"{name:8} {cost['cpu']:8.1f} s of a processor {cost['mib']:8.0f} MiB")
    print(
        f"arrowds / rensa {costs['arrowds']['cpu'] / costs['rensa']['cpu']:.2f}; found {costs['arrowds']['result']:,}"
    )


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


def near_duplicates(folder: str, near: float | None) -> int:
    return arrowds.find_duplicates(f"{folder}/index", near=near)["duplicate_of"].num_valid


def signatures(folder: str, near: float | None) -> int:
    made = 0
    for batch in pl.read_parquet(f"{folder}/data.parquet", columns=["text"]).iter_slices(10_000):
        found = [shingles(text) for text in batch["text"]]
        made += RMinHash.digest_matrix_from_token_sets(found, NUM_PERM, 42).len()
    return made


def shingles(text: str) -> list[str]:
    words = re.findall(r"\w+", text.lower())
    return [" ".join(words[at : at + 5]) for at in range(max(len(words) - 4, 1))]


def cost_of(work: Callable[[], int]) -> dict[str, float]:
    began = time.process_time()
    result = work()
    return {"cpu": time.process_time() - began, "mib": peak_mib(), "result": result}


if __name__ == "__main__":
    main()
