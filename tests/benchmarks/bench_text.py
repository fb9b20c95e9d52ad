"""Text metrics: MB/s of each and of all in one pass, and compression beside the zstandard package alone.

python tests/benchmarks/bench_text.py [--repeats 3] [--megabytes 100]

The text is the source of the Python standard library, a file a document, as often as it takes, in one table; one
process. CPU seconds count, of all threads. The peer compresses each text with the same level.
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=100)
    given = parser.parse_args()
    sources = [path.read_bytes() for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))]
    documents = [source.decode() for source in sources] * (given.megabytes * 1_000_000 // sum(map(len, sources)) + 1)
    table = pa.table({"text": documents})
    size = sum(len(document.encode()) for document in documents) / 1e6
    print(f"{len(documents):,} documents, {size:.0f} MB")
    compressor = zstandard.ZstdCompressor(level=3)

    def alone() -> None:
        for document in documents:
            compressor.compress(document.encode())

    peer = cpu_seconds(alone, given.repeats)
    print(f"{'zstandard alone':22} {size / peer:8.1f} MB/s")
    for name in [*text.measures.MEASURES, "all in one pass"]:
        metrics = [
            getattr(text, each)() for each in (text.measures.MEASURES if name not in text.measures.MEASURES else [name])
        ]

        def analyze(metrics: list[arrowds.metrics.Metric] = metrics) -> None:
            with tempfile.TemporaryDirectory() as folder:
                arrowds.analyze(table, metrics, folder, workers=1, progress=False)

        took = cpu_seconds(analyze, given.repeats)
        beside = f", {took / peer:.2f} of zstandard's time" if name == "compression_ratio" else ""
        print(f"{name:22} {size / took:8.1f} MB/s{beside}")


def cpu_seconds(work: Callable[[], None], repeats: int) -> float:
    found = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        found.append(time.process_time() - began)
    return median(found)


if __name__ == "__main__":
    main()
