"""An index in an object store (SeaweedFS on loopback): requests and MiB/s against plain obstore downloads of the files.

python tests/benchmarks/bench_cloud.py [samples, default 10000000]
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).parents[1] / "cloud"))
from proxy import proxy_to
from servers import BUCKET, Server, seaweedfs

import arrowds
from arrowds.metrics import expr
from arrowds.store import ObjectStore

MIB = 1 << 20


def seconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def download(url: str, options: dict[str, object], names: list[str], folder: Path) -> None:
    """The peer: every file, eight at a time, to a local disk, with nothing checked or decoded."""
    import obstore
    from obstore.store import from_url

    store = from_url(url, config=options, client_options={"allow_http": True})

    def fetch(name: str) -> None:
        (folder / name.replace("/", "-")).write_bytes(obstore.get(store, name).bytes())

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(fetch, names))


def measure(server: Server, samples: int) -> None:
    rng = np.random.default_rng(0)
    columns = {
        "uint16": rng.integers(0, 60_000, samples, dtype=np.uint16),
        "float64": rng.normal(size=samples),
    }
    print(f"{samples:,} samples; truth = bytes of the Parquet files, maps = bytes of the view")
    for name, values in columns.items():
        measure_column(server, name, values)


def measure_column(server: Server, name: str, values: np.ndarray) -> None:
    url = f"s3://{BUCKET}/{name}"
    data, metric = pa.table({"m": values}), expr("m", pl.col("m"))
    written = seconds(lambda: arrowds.analyze(data, metric, url, storage_options=server.options, progress=False))
    with TemporaryDirectory() as folder:
        local = seconds(lambda: arrowds.analyze(data, metric, Path(folder) / "i", progress=False))
    files = [
        entry for entry in ObjectStore(url, server.options).entries("metrics") if "/distribution/" not in entry.name
    ]
    names, truth = [entry.name for entry in files], sum(entry.size for entry in files)
    rates, processor, peers, maps = [], [], [], 0
    for _ in range(3):
        with TemporaryDirectory() as folder:
            peers.append(seconds(lambda: download(url, server.options, names, Path(folder))))
        with TemporaryDirectory() as cache:
            m = arrowds.open_index(url, storage_options=server.options, cache_dir=cache)["m"]
            began = time.process_time()
            rates.append(seconds(lambda m=m: (m.values, m.order)))
            processor.append(time.process_time() - began)
            maps = sum(path.stat().st_size for path in Path(cache).rglob("*.arrow"))
    ours, peer = min(rates), min(peers)
    print(
        f"{name:<8} build {written:5.1f} s ({written / local:.2f} x a local one); view {ours:5.2f} s "
        f"({min(processor):.2f} s of processor time): {truth / MIB / ours:.0f} MiB/s of the truth, "
        f"{maps / MIB / ours:.0f} MiB/s of maps; obstore download {truth / MIB / peer:.0f} MiB/s; "
        f"ratio {ours / peer:.2f}"
    )
    with proxy_to(server.endpoint) as proxy, TemporaryDirectory() as cache:
        options = server.through(proxy.endpoint).options
        with proxy.counting() as opening:
            index = arrowds.open_index(url, storage_options=options, cache_dir=cache)
        low, high = index["m"].quantile([0.15, 0.85]).tolist()
        with proxy.counting() as reading:
            in_place = seconds(lambda: index["m"].sample_ids(above=low, up_to=high))
        with proxy.counting() as query:
            sql = seconds(lambda: index.sql("select avg(m) from samples where m > 0"))
        print(
            f"         open {len(opening)} requests; {index['m'].count(low, high):,} ids {len(reading)} requests, "
            f"{in_place:.2f} s; SQL over all {len(query)} requests, {sql:.2f} s (through a proxy in Python)"
        )


if __name__ == "__main__":
    logging.disable()
    with TemporaryDirectory() as folder, seaweedfs(Path(folder)) as running:
        measure(running, int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000)
