"""Text metrics: MB/s of each and of all in one pass, beside the zstandard package and datatrove's filters.

python tests/benchmarks/bench_text.py [--repeats 3] [--megabytes 100] [--corpus licences]

The text is the source of the Python standard library, a file a document, or the licences and copyright files of
Debian's packages, as often as it takes, in one table; one process. CPU seconds count, of all threads. One peer
compresses each text with the same level; the other applies datatrove's filters of the same names to the first
megabytes, with its own tokenizer, and with words split at white space.
"""

from __future__ import annotations

import argparse
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pyarrow as pa
import zstandard

import arrowds
from arrowds.metrics import text

RULES = ["gopher_repetition", "gopher_quality", "fineweb_quality"]
RULES_TOGETHER = "Gopher and FineWeb together"


def library() -> list[str]:
    return [path.read_text("utf-8") for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))]


def licences() -> list[str]:
    paths = [*Path("/usr/share/common-licenses").iterdir(), *Path("/usr/share/doc").glob("*/copyright")]
    return [path.read_text("utf-8", errors="replace") for path in sorted(paths)]


CORPORA = {"library": library, "licences": licences}


def datatrove_speed(documents: list[str], most: float, splitting: str) -> float:
    """MB/s of datatrove's filters; each document goes through all of them, as it does here."""
    from datatrove.data import Document
    from datatrove.pipeline import filters
    from datatrove.utils import text as words

    if splitting != "spaCy":
        for module in (filters.gopher_repetition_filter, filters.gopher_quality_filter, filters.fineweb_quality_filter):
            module.split_into_words = lambda value, language: value.split()
    kinds = [filters.GopherRepetitionFilter(), filters.GopherQualityFilter(), filters.FineWebQualityFilter()]
    chosen, size = [], 0
    for document in documents:
        if size < most:
            chosen.append(document)
            size += len(document.encode())
    kinds[0].filter(Document(text=chosen[0], id="0"))  # the tokenizer is made
    words.split_into_parts.cache_clear()
    began = time.process_time()
    for document in chosen:
        for kind in kinds:
            kind.filter(Document(text=document, id="0"))
    return size / 1e6 / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--corpus", choices=["library", "licences"], default="library")
    parser.add_argument("--only", metavar="MEASURE", help="nothing but this one")
    parser.add_argument("--datatrove-megabytes", type=float, default=2)
    given = parser.parse_args()
    sources = CORPORA[given.corpus]()
    documents = sources * (given.megabytes * 1_000_000 // sum(map(len, sources)) + 1)
    table = pa.table({"text": documents})
    size = sum(len(document.encode()) for document in documents) / 1e6
    print(f"{len(documents):,} documents, {size:.0f} MB")
    compressor = zstandard.ZstdCompressor(level=3)

    def alone() -> None:
        for document in documents:
            compressor.compress(document.encode())

    peer = cpu_seconds(alone, given.repeats)
    print(f"{'zstandard alone':30} {size / peer:8.1f} MB/s")
    every = list(text.measures.MEASURES)
    speeds = {}
    contenders = {**{name: [name] for name in every}, RULES_TOGETHER: RULES, "all in one pass": every}
    if given.only:
        contenders = {given.only: [given.only]}
    for name, chosen in contenders.items():
        metrics = [getattr(text, each)() for each in chosen]

        def analyze(metrics: list[arrowds.metrics.Metric] = metrics) -> None:
            with tempfile.TemporaryDirectory() as folder:
                arrowds.analyze(table, metrics, folder, workers=1, progress=False)

        took = cpu_seconds(analyze, given.repeats)
        beside = f", {took / peer:.2f} of zstandard's time" if name == "compression_ratio" else ""
        speeds[name] = size / took
        print(f"{name:30} {size / took:8.1f} MB/s{beside}", flush=True)
    for splitting in () if given.only else ("spaCy", "white space"):
        theirs = datatrove_speed(sources, given.datatrove_megabytes * 1e6, splitting)
        times = speeds[RULES_TOGETHER] / theirs
        print(f"datatrove, words by {splitting:11} {theirs:7.2f} MB/s; arrowds {times:.1f} times")


def cpu_seconds(work: Callable[[], None], repeats: int) -> float:
    found = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return median(found)


if __name__ == "__main__":
    main()
