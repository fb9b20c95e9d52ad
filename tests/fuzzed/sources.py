"""Files of every format that a source reads, and descriptions of sources."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from arrowds.indexed_dataset import IndexedDataset, write_indexed_dataset
from arrowds.sources import MegatronSource, Source, TokenizedSource, open_source, source_from_spec
from fuzzed.damage import damaged, mutated

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
}


def reader(name: str) -> Callable[[Path], Callable[[random.Random], None]]:
    """Return what prepares to read damaged copies of one format."""
    write, opened = FORMATS[name]

    def prepare(folder: Path) -> Callable[[random.Random], None]:
        path = write(folder)
        whole = path.read_bytes()

        def read(rng: random.Random) -> None:
            path.write_bytes(damaged(whole, rng))
            _read_all(opened(path))

        return read

    return prepare


def descriptions(folder: Path) -> Callable[[random.Random], None]:
    """Prepare to open sources by mutated descriptions, as a plan holds them."""
    opened = [open_source(write_csv(folder)), open_source(write_parquet(folder)), MegatronSource(write_pair(folder))]
    specs = [TokenizedSource(opened[0]).to_spec(), *(source.to_spec() for source in opened)]

    def read(rng: random.Random) -> None:
        _read_all(source_from_spec(mutated(rng.choice(specs), rng)))

    return read


def _read_all(source: Source) -> None:
    if len(source) > 100_000:
        source.part_boundaries(1 << 16)
    for batch in source.read(0, min(len(source), 1000)):
        batch.to_pylist()
    source.fingerprint()


READERS = {**{name: reader(name) for name in FORMATS}, "description of a source": descriptions}
