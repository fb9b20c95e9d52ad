"""Reading sources beside the tools that people use without arrowds; prints ratios, lower is better.

python tests/benchmarks/bench_sources.py [rows]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq
from torch.utils.data import DataLoader, Dataset

from arrowds.sources import TorchSource, open_source


class Numbers(Dataset[int]):
    def __init__(self, n: int) -> None:
        self.items = list(range(n))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> int:
        return self.items[i]


def exhaust(batches: Any) -> None:
    for _ in batches:
        pass


def compare(name: str, ours: Callable[[], object], theirs: Callable[[], object]) -> None:
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(3):
        for who, run in (("theirs", theirs), ("ours", ours)):
            start = time.perf_counter()
            run()
            times[who].append(time.perf_counter() - start)
    a, b = (statistics.median(times[who]) for who in ("ours", "theirs"))
    print(f"{name:70} {a:7.3f} s / {b:7.3f} s = {a / b:.2f}")


def main(rows: int) -> None:
    numbers = Numbers(rows)
    source = TorchSource(numbers, batch_size=1024)
    compare(
        f"{rows} ints, batches of 1024: TorchSource / DataLoader",
        lambda: exhaust(source.read(0, rows)),
        lambda: exhaust(DataLoader(numbers, batch_size=1024)),
    )
    rng = np.random.default_rng(0)
    lengths = np.maximum(1, rng.lognormal(np.log(20) - 0.5, 1, rows)).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int32)]).astype(np.int32)
    tokens = pa.array(rng.integers(0, 50_000, offsets[-1]).astype(np.int32))
    table = pa.table({"input_ids": pa.ListArray.from_arrays(pa.array(offsets), tokens)})
    with tempfile.TemporaryDirectory() as folder:
        parquet, lines = Path(folder) / "a.parquet", Path(folder) / "a.jsonl"
        pq.write_table(table, parquet)
        pl.from_arrow(table[: rows // 20]).write_ndjson(lines)
        compare(
            f"{rows} token lists in Parquet, lengths: source / Polars",
            lambda: [pc.list_value_length(batch["input_ids"]) for batch in open_source(parquet).read(0, rows)],
            lambda: pl.scan_parquet(parquet).select(pl.col("input_ids").list.len()).collect(),
        )
        compare(
            f"{rows // 20} token lists in JSON Lines: open and read / pyarrow.json",
            lambda: exhaust(open_source(lines).read(0, rows // 20)),
            lambda: pyarrow.json.read_json(lines),
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000)
