"""What a snapshot of an index consists of: segments and metrics, and how the next snapshot is committed.

Snapshots are numbered. A commit creates ``manifests/NNNNNNNN.json`` if it is absent: of two writers one wins, and the
other bases its work on the winner's snapshot and tries the next number. Nothing else synchronises writers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import Annotated, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from arrowds.errors import (
    IndexCorruptError,
    IndexNotFoundError,
    IndexVersionError,
    VersionNotFoundError,
)
from arrowds.index import paths
from arrowds.index.ranges import ROWS_PER_FILE
from arrowds.parallel import ordered_map
from arrowds.schema import FORMAT_VERSION, VALUE_TYPE_NAMES, check_metric_name
from arrowds.store import FileRecord, LocalStore, Store

Count = Annotated[int, Field(ge=0, lt=1 << 62)]
Key = Annotated[str, Field(pattern=r"^[0-9a-z][0-9a-z.-]{0,63}$")]
TypeName = Literal[VALUE_TYPE_NAMES]  # type: ignore[valid-type]  # a tuple of literals
Number = bool | int | float


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class File(_Frozen):
    """Size in bytes and XXH3-128 digest of one file."""

    bytes: Count
    xxh3: str

    @classmethod
    def of(cls, record: FileRecord) -> File:
        """The entry of a file that was written."""
        return cls(bytes=record.bytes, xxh3=record.xxh3)


class Bucket(_Frozen):
    """A hive partition: the samples whose value lies in ``low`` to ``high``, in files of a bounded number of rows."""

    number: Count
    rows: Count
    low: Number
    high: Number
    num_distinct: Count
    files: tuple[File, ...]
    distribution: File


class Column(_Frozen):
    """One metric of one segment; its key names its files. ``names`` are those of a categorical metric."""

    key: Key
    stored_type: TypeName
    values: tuple[File, ...]
    buckets: tuple[Bucket, ...]
    names: File | None = None

    @property
    def num_valid(self) -> int:
        """Samples that have a value."""
        return sum(bucket.rows for bucket in self.buckets)

    @property
    def digests(self) -> list[str]:
        """The digests of the files that its values follow from."""
        return [file.xxh3 for file in (*self.values, self.names) if file is not None]

    def files(self, metric: str) -> dict[str, File]:
        """Every file by name."""
        found = {paths.values(metric, self.key, number): file for number, file in enumerate(self.values)}
        for bucket in self.buckets:
            found |= {
                paths.bucket(metric, self.key, bucket.number, part): file for part, file in enumerate(bucket.files)
            }
            found[paths.distribution(metric, self.key, bucket.number)] = bucket.distribution
        if self.names is not None:
            found[paths.names(metric, self.key)] = self.names
        return found

    def bucket_names(self, metric: str) -> list[str]:
        """The names of the bucket files, in the order of their values."""
        return [
            paths.bucket(metric, self.key, bucket.number, part)
            for bucket in self.buckets
            for part in range(len(bucket.files))
        ]


class Total(_Frozen):
    """An accumulated metric over one segment, or over those that another metric was defined with."""

    key: Key
    type: TypeName
    shape: tuple[Count, ...]
    file: File


class SourceRecord(_Frozen):
    """What is recorded of some data, in a file of its own."""

    key: Key
    file: File


class Piece(_Frozen):
    """Rows that were added at once.

    Attributes:
        fingerprint: digest of their ordered content.
        num_samples: how many there are.
        source: where they came from.
        first_row: the row of the source that is the first of them.
    """

    fingerprint: str
    num_samples: Count
    source: SourceRecord
    first_row: Count = 0


class Segment(_Frozen):
    """Samples whose ids count from 0 inside it.

    Attributes:
        description: what the data were, for people.
        pieces: the rows as they were added; several, where a compaction has merged segments.
    """

    description: str
    pieces: Annotated[tuple[Piece, ...], Field(min_length=1)]
    columns: dict[str, Column] = Field(default_factory=dict)
    totals: dict[str, Total] = Field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        """How many samples there are."""
        return sum(piece.num_samples for piece in self.pieces)

    @property
    def fingerprint(self) -> str:
        """A digest of the ordered content of the data."""
        if len(self.pieces) == 1:
            return self.pieces[0].fingerprint
        return extended("", *(f"{piece.fingerprint}:{piece.num_samples}" for piece in self.pieces))

    @property
    def files(self) -> dict[str, File]:
        """Every file by name."""
        found = {paths.source(piece.source.key): piece.source.file for piece in self.pieces}
        found |= {paths.total(name, total.key): total.file for name, total in self.totals.items()}
        for name, column in self.columns.items():
            found |= column.files(name)
        return found


class Basis(_Frozen):
    """A total as it was when a metric was defined with it, and the version that it covers."""

    version: Count
    total: Total


class MetricEntry(_Frozen):
    """A per-sample metric of all segments.

    Attributes:
        definition: a text that changes when the meaning of the metric changes.
        logical_type: the type that the metric declares.
        nulls: whether samples may have no value.
        spec: what rebuilds the metric without its code; None for a function.
        basis: the totals that it was defined with.
        lineage: a digest of all its values, added to with each segment and kept by a compaction.
    """

    definition: str
    lineage: str
    logical_type: TypeName
    nulls: Literal["refuse", "keep"] = "refuse"
    spec: dict[str, str | int | float | bool | None] | None = None
    basis: dict[str, Basis] = Field(default_factory=dict)

    @property
    def is_given(self) -> bool:
        """Whether its values were computed elsewhere, so that more samples can't be measured with it."""
        return self.spec is not None and self.spec.get("metric") == "Values"


class TotalEntry(_Frozen):
    """An accumulated metric of all segments."""

    definition: str
    spec: dict[str, str | int | float | bool | None] | None = None


class Manifest(_Frozen):
    """A snapshot. It holds no time, host or worker count: equal inputs give equal bytes."""

    format: Literal["arrowds-index"] = "arrowds-index"
    format_version: int = FORMAT_VERSION
    version: Annotated[int, Field(ge=1, lt=1 << 62)]
    operation: str
    lineage: str
    """A digest of the data of all segments, added to with each segment and kept by a compaction."""
    metrics: dict[str, MetricEntry] = Field(default_factory=dict)
    totals: dict[str, TotalEntry] = Field(default_factory=dict)
    segments: Annotated[tuple[Segment, ...], Field(min_length=1)]
    xxh3: str = ""
    """In the file: the digest of the manifest itself, taken with this field empty."""

    @property
    def num_samples(self) -> int:
        """Samples of all segments."""
        return sum(segment.num_samples for segment in self.segments)

    @property
    def first_ids(self) -> list[int]:
        """The global id of each segment's first sample."""
        return list(accumulate((segment.num_samples for segment in self.segments[:-1]), initial=0))

    @property
    def files(self) -> dict[str, File]:
        """Every file of the snapshot by name; a file that two segments share is there once."""
        found: dict[str, File] = {}
        for segment in self.segments:
            found |= segment.files
        for metric in self.metrics.values():
            found |= {paths.total(name, basis.total.key): basis.total.file for name, basis in metric.basis.items()}
        return found

    def without_given(self) -> Manifest:
        """Return the same without metrics whose values were handed over: nothing tells those of more samples."""
        kept = {name: entry for name, entry in self.metrics.items() if not entry.is_given}
        segments = tuple(
            segment.model_copy(update={"columns": {name: segment.columns[name] for name in kept}})
            for segment in self.segments
        )
        return self.model_copy(update={"metrics": kept, "segments": segments})

    def fingerprint(self, metrics: Iterable[str] | None = None) -> str:
        """A digest (32 hexadecimal digits) of the data and of the values of some metrics, by default of all.

        It stays the same when other metrics are added, and when segments are compacted.
        """
        named = sorted(self.metrics if metrics is None else set(metrics))
        return extended(self.lineage, *(f"{name}={self.metrics[name].lineage}" for name in named))

    @property
    def own_digest(self) -> str:
        """The XXH3-128 digest of the manifest, its own ``xxh3`` aside."""
        bare = self.model_copy(update={"xxh3": ""})
        return xxhash.xxh3_128_hexdigest(bare.model_dump_json().encode())

    def to_json(self) -> bytes:
        """The manifest as it is stored, signed with its own digest."""
        signed = self.model_copy(update={"xxh3": self.own_digest})
        return signed.model_dump_json(indent=1).encode() + b"\n"


def extended(lineage: str, *more: str) -> str:
    """Return the digest of what ``lineage`` is a digest of, and more.

    >>> extended("", "a") == extended(extended(""), "a")
    False
    """
    return xxhash.xxh3_128_hexdigest("\0".join([lineage, *more]).encode())


class _Header(BaseModel):
    """The fields that every version of the format has."""

    format: Literal["arrowds-index"]
    format_version: int
    vacuumed: bool = False


def numbers(store: Store) -> list[int]:
    """Return the versions that have a manifest, ascending, vacuumed ones included. One listing."""
    found = (paths.version_of(name) for name in store.names(paths.MANIFESTS))
    return sorted(version for version in found if version is not None)


def latest(store: Store) -> Manifest | None:
    """Return the newest snapshot, or None where nothing was committed.

    Raises:
        IndexCorruptError: when its manifest can't be parsed.
        IndexVersionError: when it was written by a newer format.
    """
    versions = numbers(store)
    while versions:
        try:
            return _read(store, versions[-1])
        except VersionNotFoundError:  # vacuumed since the listing, which only a newer one allows
            listed = versions[-1]
            versions = numbers(store)
            if versions[-1] == listed:
                raise
    return None


def load(store: Store, version: int | None = None) -> Manifest:
    """Read a snapshot, by default the newest; one listing and one read.

    Raises:
        IndexNotFoundError: when there is none; says whether an unfinished build is there.
        VersionNotFoundError: when that version was vacuumed or never existed; names those that can be opened.
        IndexVersionError: when it was written by a newer format.
        IndexCorruptError: when it can't be parsed.
    """
    if version is None:
        newest = latest(store)
        if newest is None:
            raise IndexNotFoundError(_not_found(store))
        return newest
    try:
        return _read(store, version)
    except FileNotFoundError as error:
        known = numbers(store)
        if not known:
            raise IndexNotFoundError(_not_found(store)) from error
        raise VersionNotFoundError(f"{store.url} has no version {version}; the newest is {known[-1]}") from error


def load_unless_vacuumed(store: Store, version: int) -> Manifest | None:
    """Read a snapshot; None where it was vacuumed."""
    try:
        return _read(store, version)
    except VersionNotFoundError:
        return None


def _read(store: Store, version: int) -> Manifest:
    name = paths.manifest(version)
    text = store.read(name).to_pybytes()
    where = f"{store.url}/{name}"
    try:
        header = _Header.model_validate_json(text)
        if header.format_version > FORMAT_VERSION:
            raise IndexVersionError(
                f"{where} has index format {header.format_version}; this arrowds reads up to {FORMAT_VERSION}: "
                "upgrade arrowds, or analyze the dataset again with this one"
            )
        if header.vacuumed:
            raise VersionNotFoundError(
                f"version {version} of {store.url} was vacuumed; arrowds.versions({store.url!r}) lists the others"
            )
        manifest = Manifest.model_validate_json(text)
        _check_names(manifest, version)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        fault = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise IndexCorruptError(f"{where} is not the manifest of an index: {fault}") from error
    except (ValueError, RecursionError, OverflowError) as error:
        if isinstance(error, (IndexVersionError, VersionNotFoundError)):
            raise
        raise IndexCorruptError(f"{where} is not the manifest of an index: {error}") from error
    if manifest.xxh3 != manifest.own_digest:
        raise IndexCorruptError(f"{where} has changed since it was written; restore it, or open another version")
    return manifest


def _check_names(manifest: Manifest, version: int) -> None:
    if manifest.version != version:
        raise ValueError(f"it says that it is version {manifest.version}")
    for name in (*manifest.metrics, *manifest.totals):
        check_metric_name(name)
    for segment in manifest.segments:
        missing = [
            *(manifest.metrics.keys() ^ segment.columns.keys()),
            *(manifest.totals.keys() ^ segment.totals.keys()),
        ]
        if missing:
            raise ValueError(f"a segment and the list of metrics disagree about {', '.join(sorted(missing))}")
        for name, column in segment.columns.items():
            if segment.num_samples > len(column.values) * ROWS_PER_FILE:
                raise ValueError(f"{len(column.values)} files can't have {segment.num_samples} values of {name}")
    if manifest.num_samples >= 1 << 62:
        raise ValueError(f"{manifest.num_samples} samples")


def _not_found(store: Store) -> str:
    if isinstance(store, LocalStore) and not store.root.exists():
        return f"{store.url} does not exist; create an index there with arrowds.analyze(source, metrics, {store.url!r})"
    if any(name.endswith("/plan.json") for name in store.names(paths.BUILDS)):
        return f"{store.url} holds an unfinished index; run the same arrowds.analyze(...) again to finish it"
    return f"{store.url} is not an index: it has no manifest"


def commit(store: Store, based_on: Callable[[Manifest | None], Manifest]) -> Manifest:
    """Create the next snapshot: make it from the newest one, and make it anew when another writer was faster.

    Data files must be on disk before this is called.

    Args:
        store: the index.
        based_on: makes the new manifest of the newest one (None for the first); may raise to give up, or return the
            newest one where that has everything already.
    """
    while True:
        newest = latest(store)
        proposed = based_on(newest)
        if proposed is newest or store.create(paths.manifest(proposed.version), proposed.to_json()):
            return proposed


def retire(store: Store, version: int) -> None:
    """Replace the manifest of a version by a mark; its number stays taken, so that no late writer can commit it."""
    mark = _Header(format="arrowds-index", format_version=FORMAT_VERSION, vacuumed=True)
    store.write(paths.manifest(version), mark.model_dump_json().encode() + b"\n", durable=True)


def check_sizes(store: Store, files: Mapping[str, File]) -> None:
    """Compare every file's size with the manifest.

    Raises:
        IndexCorruptError: naming every file that is missing or has another size.
    """
    _raise_faults(store, [fault for name, file in files.items() if (fault := size_fault(store, name, file))])


def check_digests(store: Store, files: Mapping[str, File], more_faults: Sequence[str] = ()) -> None:
    """Read every file and compare its size and digest with the manifest.

    Args:
        store: the index.
        files: what to read.
        more_faults: what was found elsewhere, for the same error.

    Raises:
        IndexCorruptError: naming every file that is missing, truncated or changed.
    """
    found = ordered_map(lambda item: digest_fault(store, *item), files.items(), threads=store.files_at_once)
    _raise_faults(store, [*filter(None, found), *more_faults])


def size_fault(store: Store, name: str, file: File) -> str | None:
    """Say what is wrong with the size of a file, or return None."""
    size = store.size(name)
    if size is None:
        return f"{name}: is missing"
    return None if size == file.bytes else f"{name}: {size} bytes instead of {file.bytes}"


def digest_fault(store: Store, name: str, file: File) -> str | None:
    """Say what is wrong with the size or the content of a file, or return None."""
    try:
        data = store.read(name)
    except FileNotFoundError:
        return f"{name}: is missing"
    except OSError as error:
        return f"{name}: {error}"
    if data.size != file.bytes:
        return f"{name}: {data.size} bytes instead of {file.bytes}"
    return None if xxhash.xxh3_128_hexdigest(memoryview(data)) == file.xxh3 else f"{name}: its content has changed"


def _raise_faults(store: Store, faults: list[str]) -> None:
    if faults:
        listed = "\n  ".join(faults)
        raise IndexCorruptError(
            f"{len(faults)} file(s) of the index {store.url} are damaged:\n  {listed}\n"
            "restore them from a copy, or run arrowds.analyze(..., overwrite=True)"
        )
