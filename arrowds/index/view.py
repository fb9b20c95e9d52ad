"""The memory maps of one metric: values by sample and samples by value, made from the Parquet files of all segments.

A view is a folder with ``values.arrow``, ``order.arrow`` and ``view.json``, written last, with their digests.
It is derived: it can be deleted at any time, and is made again where it is needed, once per host.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import xxhash

from arrowds.arrays import arrow_view, numpy_view
from arrowds.errors import IndexCorruptError, StorageError
from arrowds.index import files, paths
from arrowds.index.cache import HostCache, held
from arrowds.index.manifest import Bucket, Manifest
from arrowds.index.ranges import ROWS_PER_FILE, Cut, is_single_value, merged
from arrowds.index.segments import SegmentColumn
from arrowds.parallel import ordered_map
from arrowds.schema import (
    CATEGORY,
    FORMAT_VERSION,
    SAMPLE_ID,
    VALUE,
    mapped_type,
    narrowed,
    numpy_dtype,
    sample_id_type,
    type_named,
)
from arrowds.store import TEMPORARY, LocalStore, Store, explained, one_at_a_time, record, sync_path

logger = logging.getLogger(__name__)

_MOST_INSERTED_ROWS = 1 << 23
_VALUES, _ORDER, _SUMMARY = "values.arrow", "order.arrow", "view.json"


@dataclass(frozen=True, slots=True)
class ViewSpec:
    """What a view of one metric is made of; a pure function of the manifest.

    Attributes:
        metric: name of the metric.
        columns: that metric of every segment.
        num_samples: samples of all segments.
        num_valid: samples that have a value.
        logical: the type that the metric declares.
        stored: the smallest type that holds the values of all segments.
        key: names the view; a digest of the segments' columns.
        names: of a categorical metric, those of all segments, sorted; the columns have their places as codes.
    """

    metric: str
    columns: tuple[SegmentColumn, ...]
    num_samples: int
    num_valid: int
    logical: pa.DataType
    stored: pa.DataType
    key: str
    names: tuple[str, ...] = ()

    @classmethod
    def of(cls, store: Store, manifest: Manifest, metric: str) -> ViewSpec:
        """What the view of a metric of a snapshot is made of."""
        return cls.over(metric, columns_of(store, manifest, metric), type_named(manifest.metrics[metric].logical_type))

    @classmethod
    def over(cls, metric: str, columns: tuple[SegmentColumn, ...], logical: pa.DataType) -> ViewSpec:
        """What the view of some columns of a metric is made of."""
        names: list[str] = []
        ends: list[Any] = []
        if logical == CATEGORY:
            names, columns = _with_common_codes(columns)
            ends = [0, max(len(names) - 1, 0)]
        elif pa.types.is_integer(logical):
            ends = [end for item in columns for bucket in item.buckets for end in (bucket.low, bucket.high)]
        return cls(
            metric=metric,
            columns=columns,
            num_samples=sum(item.num_samples for item in columns),
            num_valid=sum(item.column.num_valid for item in columns),
            logical=logical,
            stored=narrowed(logical, int(min(ends)), int(max(ends))) if ends else logical,
            key=view_key(columns),
            names=tuple(names),
        )

    def before(self, columns: int) -> ViewSpec:
        """The view of the first segments alone."""
        return ViewSpec.over(self.metric, self.columns[:columns], self.logical)

    def codes_of(self, base: ViewSpec) -> np.ndarray:
        """The codes that the names of another view have in this one."""
        return codes_in(self.names, base.names)

    @property
    def id_type(self) -> pa.DataType:
        """The type of the ids in ``order.arrow``."""
        return sample_id_type(self.num_samples)

    @property
    def threads(self) -> int:
        """How many files are worth reading at once; 0: one for each processor."""
        return self.columns[0].store.files_at_once

    @property
    def nbytes(self) -> int:
        """About how many bytes the view takes."""
        values, ids = numpy_dtype(mapped_type(self.stored)).itemsize, numpy_dtype(self.id_type).itemsize
        return self.num_samples * values + self.num_samples // 8 + self.num_valid * ids


def columns_of(store: Store, manifest: Manifest, metric: str) -> tuple[SegmentColumn, ...]:
    """Return one metric of every segment of a snapshot."""
    return tuple(
        SegmentColumn(store, metric, segment.columns[metric], first, segment.num_samples)
        for segment, first in zip(manifest.segments, manifest.first_ids, strict=True)
    )


def view_key(columns: Iterable[SegmentColumn]) -> str:
    """Return the name of the view of some columns, which follows from the manifest alone."""
    # The digests as well: an index that was deleted and made again may have the same keys.
    keys = "|".join("|".join([item.column.key, *item.column.digests]) for item in columns)
    return xxhash.xxh3_64_hexdigest(f"{FORMAT_VERSION}|{keys}".encode())


def _with_common_codes(columns: Sequence[SegmentColumn]) -> tuple[list[str], tuple[SegmentColumn, ...]]:
    """Return the names of all segments, and their columns with the places of these as codes."""
    names_of = [item.names for item in columns]
    names = sorted(set().union(*names_of))
    pairs = zip(columns, names_of, strict=True)
    return names, tuple(replace(item, codes=None if mine == names else codes_in(names, mine)) for item, mine in pairs)


def codes_in(names: Sequence[str], some: Sequence[str]) -> np.ndarray:
    """Return the places of some of these names, all of which are sorted: uint32; one place where there is no name.

    >>> codes_in(["de", "en", "fr"], ["en", "fr"])
    array([1, 2], dtype=uint32)
    """
    place = {name: number for number, name in enumerate(names)}
    return np.array([place[name] for name in some] or [0], np.uint32)  # a row without a value has the code 0, too


class View:
    """The two mapped columns of a metric, which :func:`open_view` has found or made."""

    def __init__(self, folder: Path, spec: ViewSpec) -> None:
        self.folder = folder
        self.spec = spec
        self._descriptor: int | None = None

    def hold(self) -> bool:
        """Keep the view in the host's cache as long as this object lives, and note its use; False where it is gone."""
        self._descriptor = held(self.folder)
        if self._descriptor is None:
            return False
        with suppress(OSError):  # a disk that can only be read
            os.utime(self.folder / _SUMMARY)
        return True

    def __del__(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)

    def values(self) -> pa.Array:
        """Map the values: the stored type, bool as uint8, nulls in the bitmap, NaN in floats."""
        return self._mapped(_VALUES, mapped_type(self.spec.stored), self.spec.num_samples)

    def order(self) -> pa.Array:
        """Map the ids of all samples with a value, sorted by (value, id)."""
        return self._mapped(_ORDER, self.spec.id_type, self.spec.num_valid)

    def _mapped(self, name: str, kind: pa.DataType, length: int) -> pa.Array:
        path = self.folder / name
        size = _summary(self.folder).get(name, {}).get("bytes")
        with files.naming(LocalStore(self.folder), name):
            found = path.stat().st_size
        if size != found:
            raise IndexCorruptError(f"{path} has {found} bytes instead of {size}; delete {self.folder}")
        return files.read_map(path, files.MappedColumn(kind, length))

    def faults(self) -> list[str]:
        """Compare the files with the digests taken when they were made; say what is wrong."""
        found = []
        for name, entry in _summary(self.folder).items():
            path = self.folder / name
            written = record(path) if path.exists() else None
            if written is None or (written.bytes, written.xxh3) != (entry["bytes"], entry["xxh3"]):
                found.append(f"{path}: its content has changed")
        return found


def _summary(folder: Path) -> dict[str, dict[str, object]]:
    """The size and digest of each file of a view; empty where its summary is missing or damaged."""
    try:
        content = json.loads((folder / _SUMMARY).read_text())
        entries = {name: content[name] for name in (_VALUES, _ORDER)}
        return {name: {"bytes": int(entry["bytes"]), "xxh3": entry["xxh3"]} for name, entry in entries.items()}
    except (OSError, ValueError, TypeError, LookupError, OverflowError, RecursionError):
        return {}


def find_view(root: Path, spec: ViewSpec) -> View | None:
    """Return the view below ``root`` if it is complete: every file has the size that was recorded."""
    folder = root / paths.view(spec.metric, spec.key)
    summary = _summary(folder)
    try:
        whole = bool(summary) and all(
            (folder / name).stat().st_size == entry["bytes"] for name, entry in summary.items()
        )
    except OSError:
        whole = False
    return View(folder, spec) if whole else None


def open_view(root: Path, spec: ViewSpec, cache: HostCache | None = None) -> View:
    """Return the view below ``root``, after making it where it is missing.

    Of several processes on a host, one makes it and the others wait.

    Args:
        root: the folder of the index, or of its views in ``cache``.
        spec: what the view is made of.
        cache: the host's cache; it makes room, and keeps the view while the object that is returned lives.

    Raises:
        StorageError: when it can't be written.
        IndexCorruptError: when a file that it is made from can't be read, or is not the one that the manifest names.
    """
    while True:
        found = find_view(root, spec) or _made(root, spec, cache)
        if cache is None or found.hold():
            return found


def _made(root: Path, spec: ViewSpec, cache: HostCache | None) -> View:
    folder = root / paths.view(spec.metric, spec.key)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # This only spares other processes of the host the same work: folders are renamed whole.
        with one_at_a_time(folder.with_name(f".{folder.name}.lock")):
            if find_view(root, spec) is None:
                if cache is not None:
                    for other in cache.folders:
                        remove_dead_drafts(other)
                    cache.make_room(spec.nbytes, f"metric {spec.metric!r}")
                _make(folder, spec, _largest_part(root, spec))
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        if cache is not None and error.errno == errno.ENOSPC:
            raise cache.is_full(spec.nbytes, f"metric {spec.metric!r}") from error
        hint = "" if cache is None else "; pass cache_dir=... to keep memory maps elsewhere"
        raise StorageError(error.errno, f"{folder} could not be written: {explained(error)}{hint}") from error
    return View(folder, spec)


def _largest_part(root: Path, spec: ViewSpec) -> View | None:
    """The view of as many of the first segments as there is one of, if the rest is small enough to be inserted."""
    rows = 0
    for columns in range(len(spec.columns) - 1, 0, -1):
        rows += spec.columns[columns].num_samples
        if rows > _MOST_INSERTED_ROWS:
            return None
        found = find_view(root, spec.before(columns))
        # What is damaged would get a digest of its own.
        if found is not None and found.hold() and not found.faults():
            return found
    return None


def remove_dead_drafts(root: Path) -> None:
    """Remove what killed processes have left of views that they were making below ``root``; live ones hold a lock."""
    for left in (root / paths.VIEWS).glob(".*"):
        lock = left.with_name(f"{left.name.rsplit('.', 2)[0]}.lock") if left.suffix == TEMPORARY else left
        with suppress(OSError), one_at_a_time(lock, wait=False) as held:
            if held:
                shutil.rmtree(left, ignore_errors=True)


def _make(folder: Path, spec: ViewSpec, base: View | None) -> None:
    draft = folder.with_name(f".{folder.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{TEMPORARY}")
    damaged = draft.with_suffix(".old")
    try:
        draft.mkdir()
        _write_values(draft / _VALUES, spec, base)
        _write_order(draft / _ORDER, spec, base)
        summary = {name: asdict(record(draft / name)) for name in (_VALUES, _ORDER)}
        (draft / _SUMMARY).write_text(json.dumps(summary))
        for name in (_VALUES, _ORDER, _SUMMARY):
            sync_path(draft / name)
        with suppress(FileNotFoundError):
            folder.rename(damaged)
        with suppress(OSError):  # another process was faster, on a file system without locks
            draft.rename(folder)
        sync_path(folder.parent)
    finally:
        for left in (draft, damaged):
            shutil.rmtree(left, ignore_errors=True)


def _write_values(path: Path, spec: ViewSpec, base: View | None) -> None:
    """Copy the values of all segments into one map, in the type that holds them all."""
    physical = mapped_type(spec.stored)
    floating = pa.types.is_floating(spec.stored)
    nullable = spec.num_valid < spec.num_samples and not floating
    present = np.ones(spec.num_samples, np.bool_) if nullable else None
    copied = 0 if base is None or nullable else len(base.spec.columns)
    chunks = [(column, number) for column in spec.columns[copied:] for number in range(len(column.column.values))]

    def copy(chunk: tuple[SegmentColumn, int]) -> None:
        column, number = chunk
        array = column.chunk(number)
        first = column.first_id + number * ROWS_PER_FILE
        rows = slice(first, first + len(array))
        if array.null_count:
            if present is not None:
                present[rows] = numpy_view(array.is_valid())
            array = array.fill_null(float("nan") if floating else pa.scalar(0).cast(array.type))
        values[rows] = numpy_view(array.cast(physical))

    if present is None:
        with files.allocated_map(path, spec.stored, spec.num_samples, name=VALUE) as values:
            if base is not None:
                before = numpy_view(base.values())
                values[: base.spec.num_samples] = spec.codes_of(base.spec)[before] if spec.names else before
            for _ in ordered_map(copy, chunks, threads=spec.threads):
                pass
    else:  # a bitmap can't be filled in place; these columns pass through memory
        values = np.zeros(spec.num_samples, numpy_dtype(physical))
        for _ in ordered_map(copy, chunks, threads=spec.threads):
            pass
        files.write_map(path, arrow_view(values, missing=~present), name=VALUE)


def _write_order(path: Path, spec: ViewSpec, base: View | None) -> None:
    with files.allocated_map(path, spec.id_type, spec.num_valid, name=SAMPLE_ID) as order:
        if len(spec.columns) == 1:
            _copy_order(order, spec.columns[0])
        elif base is not None:
            _insert_ids(order, spec, base)
        else:
            _merge_orders(order, spec)


def _copy_order(order: np.ndarray, column: SegmentColumn) -> None:
    """Copy the ids of one segment's buckets, whose order is that of the index."""
    starts = np.cumsum([0, *(bucket.rows for bucket in column.buckets)])
    parts = [
        (bucket, number, int(start) + number * ROWS_PER_FILE)
        for bucket, start in zip(column.buckets, starts, strict=False)
        for number in range(len(bucket.files))
    ]

    def copy(part: tuple[Bucket, int, int]) -> None:
        bucket, number, start = part
        ids = column.ids(bucket, number)
        order[start : start + len(ids)] = ids

    for _ in ordered_map(copy, parts, threads=column.store.files_at_once):
        pass


def _insert_ids(order: np.ndarray, spec: ViewSpec, base: View) -> None:
    """Insert the ids of the last segments into the order of the first ones, which was made before."""
    old, new = spec.columns[: len(base.spec.columns)], spec.columns[len(base.spec.columns) :]
    rows = chain.from_iterable(column.between(None, None, spec.id_type) for column in new)
    frames = list(merged(rows, mapped_type(spec.stored), single_value=False))
    if not frames:
        order[:] = numpy_view(base.order())
        return
    inserted = pl.concat(frames, rechunk=True)
    at = _ranks(old, inserted[VALUE].to_numpy()) + np.arange(inserted.height)
    ids, before = inserted[SAMPLE_ID].to_numpy(), numpy_view(base.order())
    for start in range(0, len(order), ROWS_PER_FILE):
        block = order[start : start + ROWS_PER_FILE]
        first, last = np.searchsorted(at, [start, start + len(block)])
        kept = np.ones(len(block), np.bool_)
        kept[at[first:last] - start] = False
        block[kept] = before[start - first : start + len(block) - last]
        block[at[first:last] - start] = ids[first:last]


def _ranks(columns: Sequence[SegmentColumn], ascending: np.ndarray) -> np.ndarray:
    """Return how many rows of some segments have a value up to each of ``ascending``, as int64.

    Only buckets within whose range a value lies are read.
    """

    def within(part: tuple[SegmentColumn, Bucket, int]) -> tuple[int, int, np.ndarray | int]:
        column, bucket, number = part
        low, high = (np.searchsorted(ascending, _as(ascending, end), side="left") for end in (bucket.low, bucket.high))
        if low == high:
            return int(low), int(high), 0
        values = column.sorted_values(bucket, number).astype(ascending.dtype, copy=False)
        return int(low), int(high), np.searchsorted(values, ascending[low:high], side="right")

    parts = [
        (column, bucket, number)
        for column in columns
        for bucket in column.buckets
        for number in range(len(bucket.files))
    ]
    ranks = np.zeros(len(ascending), np.int64)
    whole = np.zeros(len(ascending) + 1, np.int64)
    for (_, bucket, number), (low, high, found) in zip(
        parts, ordered_map(within, parts, threads=columns[0].store.files_at_once), strict=True
    ):
        ranks[low:high] += found
        whole[high] += bucket.rows if number == 0 else 0  # values from the bucket's highest on are above all its rows
    return ranks + np.cumsum(whole[:-1])


def _as(values: np.ndarray, number: float) -> Any:
    return values.dtype.type(number)


def _merge_orders(order: np.ndarray, spec: ViewSpec) -> None:
    """Merge the buckets of all segments, range of values by range of values."""

    def merge(bounds: tuple[Cut | None, Cut | None]) -> Iterable[pl.DataFrame]:
        slices = chain.from_iterable(column.between(*bounds, spec.id_type) for column in spec.columns)
        single = is_single_value(*bounds)
        frames = merged(slices, mapped_type(spec.stored), single_value=single)
        return frames if single else list(frames)  # one value streams, as it may fill half the dataset

    start = 0
    for frames in ordered_map(merge, list(pairwise([None, *_cuts(spec), None])), threads=spec.threads):
        for frame in frames:
            order[start : start + frame.height] = frame[SAMPLE_ID].to_numpy()
            start += frame.height
    if start != spec.num_valid:
        raise IndexCorruptError(f"metric {spec.metric!r}: the buckets have {start} rows instead of {spec.num_valid}")


def _cuts(spec: ViewSpec) -> list[Cut]:
    """Where the largest segment is cut into buckets."""
    largest = max(spec.columns, key=lambda item: item.column.num_valid)
    cuts: list[Cut] = []
    for bucket in largest.buckets:
        if bucket.low == bucket.high:
            cuts.append(Cut(bucket.low, inclusive=False))
        cuts.append(Cut(bucket.high))
    return cuts
