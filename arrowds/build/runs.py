"""Sorted runs: what the map leaves of one part and one metric, and the reduce reads by ranges of values.

A run is an uncompressed IPC file of the part's values with their ids inside the segment, sorted by (value, sample_id),
without the samples that have no value. Its metadata has the first value of each record batch, so that a range of values
is found without reading the others, and the values of the rows that decide where buckets are cut. Of a category the
values are codes: the places of the names that occur in the part, which the metadata has, sorted. The values are left
in the order of the rows as well, for the reduce to copy. Both files have the smallest integer type that holds the part;
the metadata has the type that the metric declares, and values of that type.

The metadata also has a digest of each record batch, of the values' file and of itself, and whatever is read is compared
with them. So the map need not sync what it writes: what a power cut has damaged, the reduce refuses, and the map
measures again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
import polars as pl
import pyarrow as pa
import xxhash

from arrowds.arrays import arrow_view, numpy_view
from arrowds.errors import IndexCorruptError
from arrowds.index import files
from arrowds.index.ranges import Cut, rows_up_to
from arrowds.schema import CATEGORY, SAMPLE_ID, VALUE, mapped_type, narrowed, numpy_dtype, type_named
from arrowds.store import Store

ROWS_PER_BATCH = 1 << 12
"""What a bucket takes of a run is read in whole batches, at most two of them too many."""

SAMPLE_SIZE = 1 << 18
"""Rows that decide where buckets are cut, where there are more; drawn by their number, whatever the parts."""

_DIGEST, _TYPE, _FENCES, _SAMPLE = b"arrowds.part", b"arrowds.type", b"arrowds.fences", b"arrowds.sample"
_BATCHES, _VALUES, _NAMES, _SELF = b"arrowds.batches", b"arrowds.values", b"arrowds.names", b"arrowds.self"
_DIGEST_BYTES = 32
_METADATA = (_DIGEST, _TYPE, _FENCES, _SAMPLE, _BATCHES, _VALUES, _NAMES)


@dataclass(frozen=True)
class Run:
    """The sorted run of a part, whose ids are [first_id, first_id + num_rows); rows are read when they are asked for.

    ``values_name`` is the file of the same values in the order of the ids. ``codes`` gives the code in the segment of
    each of the part's codes; None where values are no codes, or the part's own.
    """

    store: Store
    name: str
    values_name: str
    first_id: int
    num_rows: int
    codes: np.ndarray | None = field(default=None, compare=False)

    @property
    def names(self) -> list[str]:
        """The names of the part's codes, where the metric is categorical."""
        found: list[str] = json.loads(self._metadata[_NAMES])
        return found

    def _coded(self, values: np.ndarray) -> np.ndarray:
        return values if self.codes is None else self.codes[values]

    @cached_property
    def _reader(self) -> files.Batches:
        return files.open_ipc(self.store, self.name)

    @cached_property
    def _metadata(self) -> dict[bytes, bytes]:
        found: dict[bytes, bytes] = self._reader.schema.metadata or {}
        if not found.keys() >= {*_METADATA, _SELF} or found[_SELF] != _digest(*(found[key] for key in _METADATA)):
            raise self._damaged(self.name)
        return found

    def _damaged(self, name: str) -> IndexCorruptError:
        return IndexCorruptError(f"{self.store.url}/{name} is damaged; run the map again")

    @property
    def digest(self) -> str:
        """What the run was made from."""
        return self._metadata[_DIGEST].decode()

    @property
    def kind(self) -> pa.DataType:
        """The type that the metric declares."""
        return type_named(self._metadata[_TYPE].decode())

    @property
    def _dtype(self) -> np.dtype[np.generic]:
        return numpy_dtype(mapped_type(self.kind))

    @cached_property
    def fences(self) -> np.ndarray:
        """The first value of each record batch, and the last value of all; empty where no sample has a value."""
        return self._coded(np.frombuffer(self._metadata[_FENCES], self._dtype))

    @property
    def sampled(self) -> np.ndarray:
        """The values of those rows of the part that decide where buckets are cut."""
        return self._coded(np.frombuffer(self._metadata[_SAMPLE], self._dtype))

    def is_whole(self) -> bool:
        """Whether both files have the content that was written; after a power cut, blocks of theirs may be missing.

        An object store has an object as it was written, or not at all.
        """
        if self.store.path(self.name) is None:
            return True
        try:
            self._read(0, max(len(self.fences) - 1, 0))
            self._values()
        except IndexCorruptError:
            return False
        return True

    def _read(self, start: int, stop: int) -> list[pa.RecordBatch]:
        """Return record batches as they were written.

        Raises:
            IndexCorruptError: when one was damaged.
        """
        try:
            batches = self._reader.read(start, stop)
            read = b"".join(_digest(*map(numpy_view, batch.columns)) for batch in batches)
        except (pa.ArrowException, ValueError) as error:
            raise self._damaged(self.name) from error
        if read != self._metadata[_BATCHES][start * _DIGEST_BYTES : stop * _DIGEST_BYTES]:
            raise self._damaged(self.name)
        return batches

    def _values(self) -> pa.Array:
        """Return the values in the order of the ids as they were written.

        Raises:
            IndexCorruptError: when they were damaged.
        """
        data = files.content(self.store, self.values_name)
        if xxhash.xxh3_128_hexdigest(memoryview(data)).encode() != self._metadata[_VALUES]:
            raise self._damaged(self.values_name)
        return pa.ipc.open_file(pa.BufferReader(data)).get_batch(0).column(0)

    def between(self, after: Cut | None, up_to: Cut | None) -> Iterator[pa.Table]:
        """Yield the rows whose values lie after one cut and up to another, in order; None leaves a side open."""
        firsts = self.fences[:-1]
        start = 0 if after is None else max(rows_up_to(firsts, after) - 1, 0)
        stop = len(firsts) if up_to is None else rows_up_to(firsts, up_to)
        batches = [self._recoded(batch) for batch in self._read(start, stop)]
        if batches and up_to is not None:
            batches[-1] = batches[-1][: rows_up_to(numpy_view(batches[-1].column(0)), up_to)]
        if batches and after is not None:
            batches[0] = batches[0][rows_up_to(numpy_view(batches[0].column(0)), after) :]
        filled = [batch for batch in batches if batch.num_rows]
        if filled:
            yield pa.Table.from_batches(filled).replace_schema_metadata(None)

    def _recoded(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if self.codes is None:
            return batch
        values = arrow_view(self.codes[numpy_view(batch.column(0))])
        return pa.record_batch({VALUE: values, SAMPLE_ID: batch.column(1)})

    def scatter(self, values: np.ndarray, present: np.ndarray | None, start: int) -> None:
        """Write the values of the ids [start, start + len(values)) into their rows, and mark them as present."""
        if self.first_id >= start + len(values) or self.first_id + self.num_rows <= start:
            return
        low, high = max(start - self.first_id, 0), min(start + len(values) - self.first_id, self.num_rows)
        found = self._values()[low:high]
        rows = slice(self.first_id + low - start, self.first_id + high - start)
        missing = missing_values(found)
        plain = numpy_view(found)
        plain = plain.view(np.uint8) if plain.dtype == np.bool_ else self._coded(plain)
        values[rows] = plain if missing is None else np.where(missing, plain.dtype.type(0), plain)
        if present is not None:
            present[rows] = True if missing is None else ~missing


def write_run(run: Run, values: pa.Array, *, num_samples: int, digest: str) -> None:
    """Write the values of one part, in the order of its rows and as a sorted run, which is complete last.

    Args:
        run: where they go.
        values: a value for each row of the part; null or, in floats, NaN where there is none.
        num_samples: the rows of the segment.
        digest: what the run was made from.
    """
    first_id = run.first_id
    missing = missing_values(values)
    names, plain = coded(values) if values.type == CATEGORY else ([], numpy_view(values))
    plain = plain.view(np.uint8) if plain.dtype == np.bool_ else plain
    rows = sampled_rows(num_samples)
    if rows is None:
        sampled = plain if missing is None else plain[~missing]
    else:
        low, high = np.searchsorted(rows, [first_id, first_id + len(values)])
        chosen = rows[low:high] - first_id
        sampled = plain[chosen if missing is None else chosen[~missing[chosen]]]
    narrow = plain.astype(_narrowest(values.type, plain, missing), copy=False)
    in_order = pa.table({VALUE: arrow_view(narrow, missing=missing)})
    written = files.write_ipc(run.store, run.values_name, in_order, rows_per_batch=len(values), metadata={})
    ids = np.arange(first_id, first_id + len(values), dtype=np.uint32)
    if missing is not None:
        narrow, ids = narrow[~missing], ids[~missing]
    # The ids are in order, so that a stable sort by value is one by (value, sample_id), at a third of the time.
    frame = pl.DataFrame({VALUE: narrow, SAMPLE_ID: ids}).sort(VALUE, maintain_order=True, multithreaded=False)
    ordered, ids = frame[VALUE].to_numpy(), frame[SAMPLE_ID].to_numpy()
    fences = np.append(ordered[::ROWS_PER_BATCH], ordered[-1:]).astype(plain.dtype)
    starts = range(0, len(ordered), ROWS_PER_BATCH)
    digests = [_digest(*(column[start : start + ROWS_PER_BATCH] for column in (ordered, ids))) for start in starts]
    metadata = {
        _DIGEST: digest.encode(),
        _TYPE: str(values.type).encode(),
        _FENCES: fences.tobytes(),
        _SAMPLE: np.ascontiguousarray(sampled).tobytes(),
        _BATCHES: b"".join(digests),
        _VALUES: written.xxh3.encode(),
        _NAMES: json.dumps(names).encode(),
    }
    files.write_ipc(
        run.store,
        run.name,
        pa.table({VALUE: arrow_view(ordered), SAMPLE_ID: arrow_view(ids)}),
        rows_per_batch=ROWS_PER_BATCH,
        metadata={**metadata, _SELF: _digest(*metadata.values())},
    )


def _digest(*parts: np.ndarray | bytes) -> bytes:
    """Return a digest of arrays or texts and of their lengths."""
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part if isinstance(part, bytes) else part.view(np.uint8).data)
    return digest.hexdigest().encode()


def _narrowest(kind: pa.DataType, values: np.ndarray, missing: np.ndarray | None) -> np.dtype[np.generic]:
    """Return the smallest type that holds the values of a part: lengths are int64, but fit into two bytes."""
    if not pa.types.is_integer(kind) and kind != CATEGORY:
        return numpy_dtype(mapped_type(kind))
    present = values if missing is None else values[~missing]
    ends = (int(present.min()), int(present.max())) if len(present) else (0, 0)
    return numpy_dtype(narrowed(kind, *ends))


def coded(values: pa.Array) -> tuple[list[str], np.ndarray]:
    """Return the names that occur, sorted by their code points, and of each value the place of its name (uint32)."""
    encoded = values.dictionary_encode()
    names = np.array(encoded.dictionary.to_pylist(), object)
    order = np.argsort(names)
    codes = np.zeros(max(len(names), 1), np.uint32)
    codes[order] = np.arange(len(names), dtype=np.uint32)
    return names[order].tolist(), codes[numpy_view(encoded.indices.fill_null(0))]


def missing_values(values: pa.Array) -> np.ndarray | None:
    """True where a sample has no value; None where all have one."""
    if values.null_count:
        return numpy_view(values.is_null())
    if pa.types.is_floating(values.type):
        missing = np.isnan(numpy_view(values))
        return missing if missing.any() else None
    return None


@lru_cache(maxsize=4)
def sampled_rows(num_samples: int) -> np.ndarray | None:
    """The rows of a segment that decide where buckets are cut, ascending; None for all. A pure function of its size."""
    if num_samples <= SAMPLE_SIZE:
        return None
    return np.sort(np.random.default_rng(0).integers(0, num_samples, SAMPLE_SIZE))
