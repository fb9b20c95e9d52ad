"""Damaged copies of `.idx`, Arrow IPC, Parquet and text files and of descriptions of sources: only arrowds errors come.

python tests/sources/fuzz_readers.py [cases per format] [seed]    (100,000 cases each is a night's work)

Runs each format in a process of its own, so that a crash of the interpreter is noticed, and prints what failed.
"""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arrowds.errors import ArrowdsError
from arrowds.indexed_dataset import IndexedDataset, write_indexed_dataset
from arrowds.sources import MegatronSource, Source, TokenizedSource, open_source, source_from_spec

TABLE = pa.table(
    {
        "n": range(50),
        "ids": pa.array([[*range(i % 5)] for i in range(50)], pa.list_(pa.int32())),
        "text": [f"text {i}" for i in range(50)],
        "nested": [{"a": [f"w{i}"], "b": None} for i in range(50)],
    }
)


def write_ipc(folder: Path, compression: str | None = None) -> Path:
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_file(folder / "a.arrow", TABLE.schema, options=options) as writer:
        writer.write_table(TABLE, max_chunksize=20)
    return folder / "a.arrow"


def write_stream(folder: Path) -> Path:
    with pa.ipc.new_stream(folder / "b.arrow", TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=20)
    return folder / "b.arrow"


def write_parquet(folder: Path) -> Path:
    pq.write_table(TABLE, folder / "a.parquet", row_group_size=20, compression="none")
    return folder / "a.parquet"


def write_pair(folder: Path) -> Path:
    sizes = np.arange(10)
    write_indexed_dataset(folder / "a", np.arange(sizes.sum()), sizes, dtype="uint16")
    return folder / "a.idx"


def write_gzip(folder: Path) -> Path:
    with gzip.open(folder / "a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in TABLE.to_pylist())
    return folder / "a.jsonl.gz"


def write_text(folder: Path) -> Path:
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in TABLE.to_pylist()))
    return folder / "a.jsonl"


def write_csv(folder: Path) -> Path:
    (folder / "a.csv").write_text("n,text\n" + "".join(f'{i},"t{i} ""x"" "\n' for i in range(50)))
    return folder / "a.csv"


def write_specs(folder: Path) -> Path:
    """The descriptions of three sources, as a plan holds them."""
    sources = [open_source(write_csv(folder)), open_source(write_parquet(folder)), MegatronSource(write_pair(folder))]
    specs = [TokenizedSource(sources[0]).to_spec(), *(source.to_spec() for source in sources)]
    (folder / "specs.json").write_text(json.dumps(specs))
    return folder / "specs.json"


def open_spec(path: Path) -> Source:
    """One of the descriptions; the file says which, so that a case repeats."""
    specs = json.loads(path.read_bytes())
    return source_from_spec(specs[path.stat().st_size % len(specs)])


def open_pair(path: Path) -> Source:
    for row in IndexedDataset.open(path):
        row.sum()
    return MegatronSource(path)


FORMATS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], Source]]] = {
    "idx": (write_pair, open_pair),
    "arrow file": (write_ipc, open_source),
    "arrow file, zstd": (lambda folder: write_ipc(folder, "zstd"), open_source),
    "arrow stream": (write_stream, open_source),
    "parquet": (write_parquet, open_source),
    "json lines": (write_text, open_source),
    "json lines, gzip": (write_gzip, open_source),
    "csv": (write_csv, open_source),
    "description": (write_specs, open_spec),
}
JSON_VALUES = [None, -1, 0, 2**31, 2**63, 2**70, 1.5, True, "", "x", "/", [], [-1], [0, 5, 3], ["x"], {}, {"x": 1}]


def damaged_json(whole: bytes, rng: random.Random) -> bytes:
    """Replace or drop one value anywhere, and add spaces, whose number chooses one of the descriptions."""
    root = json.loads(whole)
    value: Any = root
    while True:
        key = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if rng.random() < 0.2 or not (isinstance(value[key], dict | list) and value[key]):
            break
        value = value[key]
    if rng.random() < 0.2:
        del value[key]
    else:
        value[key] = rng.choice(JSON_VALUES)
    return json.dumps(root).encode() + b" " * rng.randrange(8)


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """Flip bits, set bytes and words to extremes, cut, repeat or drop a stretch; often near the end."""
    raw = bytearray(whole)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(raw)) if rng.random() < 0.5 else max(len(raw) - 1 - rng.randrange(900), 0)
        match rng.randrange(5):
            case 0 | 1:
                raw[at] ^= 1 << rng.randrange(8)
            case 2:
                raw[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
            case 3:
                word = rng.choice([b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\0" * 8])
                raw[at : at + len(word)] = word
            case 4 if len(raw) > 10:
                end = min(at + rng.randrange(1, 40), len(raw) - 1)
                raw[at:end] = rng.choice([b"", bytes(raw[at:end]) * 2])
    return bytes(raw)


def run(name: str, cases: int, seed: int) -> int:
    """Read damaged copies of one format and return how many raised something else than an ArrowdsError."""
    write, opened = FORMATS[name]
    warnings.simplefilter("error")
    failures = refused = 0
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder))
        whole = path.read_bytes()
        for case in range(seed, seed + cases):
            damage = damaged_json if name == "description" else damaged
            path.write_bytes(damage(whole, random.Random(case)))
            try:
                source = opened(path)
                if len(source) > 100_000:
                    source.part_boundaries(1 << 16)
                for batch in source.read(0, min(len(source), 1000)):
                    batch.to_pylist()
                source.fingerprint()
            except ArrowdsError:
                refused += 1
            except Exception as error:  # this is what is looked for
                failures += 1
                print(f"{name}, case {case}: {type(error).__name__}: {str(error)[:200]}", flush=True)
    print(f"{name}: {cases} cases, {refused} refused, {failures} raised something else", flush=True)
    return failures


def main(cases: int, seed: int) -> int:
    """Run all formats in processes of their own; the exit status is 1 where one failed or crashed."""
    failed = 0
    for name in FORMATS:
        command = [sys.executable, __file__, name, str(cases), str(seed)]
        failed |= subprocess.run(command, check=False).returncode != 0
    return int(failed)


if __name__ == "__main__":
    if sys.argv[1:] and sys.argv[1] in FORMATS:
        sys.exit(run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])) > 0)
    given = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(given + [1000, 0][len(given) :])))
