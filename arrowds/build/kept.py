"""Columns that are costly to compute, such as token ids, kept by the first pass over a part for the second one."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pyarrow as pa
import xxhash

from arrowds.build.plan import MapTask, Part
from arrowds.index import files, paths


def keeping(task: MapTask, part: Part, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a part after writing the columns to be kept: a file each, and last a record of all."""
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    digests = []
    for number, batch in enumerate(batches):
        kept = batch.select(task.kept)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, kept.schema, options=options) as writer:
            writer.write_batch(kept)
        content = sink.getvalue()
        task.store.write(paths.kept_batch(task.build, part.number, number), content)
        digests.append(xxhash.xxh3_128_hexdigest(memoryview(content)))
        yield batch
    record = {"made_from": task.kept_digest(part), "batches": digests}
    task.store.write(paths.kept_record(task.build, part.number), json.dumps(record).encode())


def kept_batches(task: MapTask, part: Part) -> Iterator[pa.RecordBatch]:
    """Yield what the first pass has kept of a part, in the same batches.

    Raises:
        IndexCorruptError: when it is missing, damaged, or of other data or columns; perhaps after some batches.
    """
    name = paths.kept_record(task.build, part.number)
    with files.naming(task.store, name):
        record = json.loads(task.store.read(name).to_pybytes())
        if record["made_from"] != task.kept_digest(part):
            raise ValueError("it is of other data")
        digests = list(record["batches"])
    for number, digest in enumerate(digests):
        name = paths.kept_batch(task.build, part.number, number)
        with files.naming(task.store, name):
            content = task.store.read(name)
            if xxhash.xxh3_128_hexdigest(memoryview(content)) != digest:
                raise ValueError("it has changed since it was written")
            batch = pa.ipc.open_stream(content).read_next_batch()
        yield batch
