"""Events of the profiler, logs and tables of benchmarks, records of samplers, files of DeepSpeed's analyzer."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import polars as pl

import arrowds
from arrowds.curriculum.trace import read_records
from arrowds.errors import ArrowdsError
from arrowds.integrations.deepspeed import export_index, import_index
from arrowds.stats import aio, profiler
from arrowds.stats.profiler.buffer import EventBuffer
from arrowds.stats.profiler.files import PARQUET_SUFFIX, EventStream, compact
from fuzzed.damage import damaged
from fuzzed.states import CURRICULUM, make_index


def events(folder: Path) -> Callable[[random.Random], None]:
    """Prepare to read damaged event streams and Parquet files, those of one rank of two."""
    for rank in range(2):
        buffer = EventBuffer(64, rank=rank, element_size=2, clock=0)
        stream = EventStream(folder / f"rank={rank}")
        for step in range(4):
            buffer.step = step
            for number in range(10):
                buffer.append(
                    time.time_ns(), 100 + number, 7, buffer.code_of(["forward_fetch_wait", "mine"][number % 2])
                )
            stream.write(buffer.take(buffer.rows, epoch_offset=0))
        stream.close()
    path = stream.path
    whole = path.read_bytes()
    packed = path.with_suffix(PARQUET_SUFFIX)
    compact(path, packed)
    files = {path: whole, packed: packed.read_bytes()}
    packed.unlink()
    difficulties = folder / "difficulties"
    difficulties.mkdir()
    frame = pl.DataFrame({"step": [0, 1], "metric": ["a", "a"], "difficulty": [1.0, 2.0]})
    frame.write_parquet(difficulties / "a.parquet")
    frame.write_ipc(difficulties / "a.arrow")
    frame.write_ipc_stream(difficulties / "a.arrows")
    others = {other: other.read_bytes() for other in difficulties.iterdir()}

    def read(rng: random.Random) -> None:
        if rng.random() < 0.3:
            other = rng.choice(sorted(others))
            other.write_bytes(damaged(others[other], rng))
            try:
                profiler.read_difficulties(other)
            finally:
                other.write_bytes(others[other])
            return
        chosen = rng.choice(sorted(files))
        chosen.write_bytes(damaged(files[chosen], rng))
        try:
            _digest_events(folder)
            if chosen == path and rng.random() < 0.3:
                compact(path, packed)
                _digest_events(folder)
        except ArrowdsError as error:
            assert chosen.stem in str(error), f"{error} does not name {chosen.name}"
            raise
        finally:
            packed.unlink(missing_ok=True)
            path.write_bytes(whole)

    return read


def _digest_events(folder: Path) -> None:
    table = profiler.read_events(folder)
    table.validate(full=True)
    summary = profiler.summarize(table, by_rank=True)
    profiler.stragglers(table)
    profiler.with_difficulties(summary, profiler.read_difficulties(folder / "difficulties")).write_csv()


def _write_logs(folder: Path) -> dict[Path, bytes]:
    """Write a log of a read and one of a write, and return their contents."""
    folder.mkdir()
    arguments = {"read": True, "block_size": "1M", "queue_depth": 4, "io_parallel": 1, "single_submit": False}
    arguments |= {"overlap_events": True, "folder": "/mnt/a", "io_size": "1G", "loops": 3, "gpu": False, "handle": True}
    result = "".join(
        f"{scope} {{0}} Latency = 0.5 sec\n{scope} {{0}} Speed = 2.5 GB/sec\n" for scope in ("Task", "E2E")
    )
    texts = {}
    for operation in ("read", "write"):
        namespace = argparse.Namespace(**arguments | {"read": operation == "read"})
        path = folder / f"{operation}_block_overlap_ftd1_d4_bs1M_p1.txt"
        texts[path] = f"Testing DeepNVMe aio\nargs = {namespace}\n{result.format(operation.title())}".encode()
        path.write_bytes(texts[path])
    return texts


def benchmark_logs(folder: Path) -> Callable[[random.Random], None]:
    """Prepare to read damaged logs: each gets a row, and what can't be ranked is said."""
    logs = folder / "logs"
    texts = _write_logs(logs)
    stored = folder / "aio.parquet"

    def read(rng: random.Random) -> None:
        for path, text in texts.items():
            path.write_bytes(damaged(text, rng) if rng.random() < 0.7 else text)
        table = aio.read_logs(logs)
        assert table.num_rows >= 2 and set(table.column("status").to_pylist()) <= set(aio.STATUSES)
        stored.unlink(missing_ok=True)
        aio.append(table, stored)
        json.dumps(aio.deepspeed_config(aio.load(stored), by=rng.choice(aio.RULES)))

    return read


def benchmark_table(folder: Path) -> Callable[[random.Random], None]:
    """Prepare to read and to append to damaged tables of results."""
    _write_logs(folder / "logs")
    table = aio.read_logs(folder / "logs")
    stored = folder / "aio.parquet"
    aio.append(table, stored)
    whole = stored.read_bytes()

    def read(rng: random.Random) -> None:
        stored.write_bytes(damaged(whole, rng))
        try:
            loaded = aio.load(stored)
            aio.append(table, stored)
        except ArrowdsError as error:
            assert stored.name in str(error), f"{error} does not name {stored.name}"
            raise
        json.dumps(aio.deepspeed_config(loaded, by=rng.choice(aio.RULES)))

    return read


def records(folder: Path) -> Callable[[random.Random], None]:
    """Prepare to read damaged records of what a sampler has yielded."""
    record = folder / "record"
    sampler = arrowds.CurriculumSampler(make_index(folder), CURRICULUM, micro_batch_size=3, record=record)
    for _ in islice(sampler, 20):
        sampler.state_dict()
    sampler.close()
    files = sorted(path for path in record.rglob("*") if path.is_file())

    def read(rng: random.Random) -> None:
        path = rng.choice(files)
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, rng))
        try:
            read_records(record).validate(full=True)
        except ArrowdsError as error:
            assert record.name in str(error), f"{error} does not name {record}"
            raise
        finally:
            path.write_bytes(whole)

    return read


def analyzer_files(folder: Path) -> Callable[[random.Random], None]:
    """Prepare to import damaged files of DeepSpeed's analyzer."""
    exported = folder / "exported"
    index = make_index(folder)
    export_index(index, exported, metrics=["seqlen"])
    files = sorted(path for path in exported.rglob("*") if path.is_file())
    imported = folder / "imported"

    def read(rng: random.Random) -> None:
        path = rng.choice(files)
        whole = path.read_bytes()
        path.write_bytes(damaged(whole, rng))
        try:
            values = import_index(exported, imported)["seqlen"].values
            assert len(values) == len(index)
        finally:
            path.write_bytes(whole)
            shutil.rmtree(imported, ignore_errors=True)

    return read


READERS = {
    "profiler events": events,
    "benchmark logs": benchmark_logs,
    "benchmark table": benchmark_table,
    "records of a sampler": records,
    "files of DeepSpeed's analyzer": analyzer_files,
}
