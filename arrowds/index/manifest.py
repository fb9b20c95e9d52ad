"""What an index consists of: the frozen manifest, its checks, and its atomic commit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from arrowds.errors import (
    DatasetIndexError,
    IndexCorruptError,
    IndexNotFoundError,
    IndexReplacedError,
    IndexVersionError,
)
from arrowds.index import files as storage
from arrowds.index.paths import Layout
from arrowds.schema import FORMAT_VERSION, check_metric_name


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PartRange(_Frozen):
    """Part ``number`` covers the rows [start, stop) of the dataset."""

    number: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Dataset(_Frozen):
    """The dataset that was indexed."""

    description: str
    fingerprint: str
    num_samples: int


class MetricEntry(_Frozen):
    """A per-sample metric: types are Arrow type names; ``num_valid`` counts samples that are in the order."""

    definition: str
    logical_type: str
    stored_type: str
    num_valid: int
    num_distinct: int
    num_buckets: int


class TotalEntry(_Frozen):
    """An accumulated metric: its Arrow type and the shape of its sum."""

    definition: str
    type: str
    shape: tuple[int, ...]


class FileEntry(_Frozen):
    """Size in bytes and xxh3-128 digest of one file."""

    bytes: int
    xxh3: str


class Manifest(_Frozen):
    """All that an index consists of. It holds no time, host or worker count: equal inputs give equal bytes."""

    format: Literal["arrowds-index"] = "arrowds-index"
    format_version: int = FORMAT_VERSION
    generation: int = 1
    dataset: Dataset
    sample_id_type: Literal["uint32", "uint64"]
    parts: tuple[PartRange, ...]
    metrics: dict[str, MetricEntry] = Field(default_factory=dict)
    totals: dict[str, TotalEntry] = Field(default_factory=dict)
    files: dict[str, FileEntry]
    xxh3: str = ""
    """In the file: the digest of the manifest itself, taken with this field empty."""

    def layout(self, root: Path) -> Layout:
        """Return the paths of this generation below ``root``."""
        return Layout(root, self.generation)

    @property
    def fingerprint(self) -> str:
        """A digest (32 hexadecimal digits) of the dataset and of every metric's values."""
        digest = xxhash.xxh3_128(self.dataset.fingerprint.encode())
        for name in sorted(self.metrics):
            key = self.layout(Path()).values(name).as_posix()
            digest.update(f"{name}={self.files[key].xxh3};".encode())
        return digest.hexdigest()

    @property
    def own_digest(self) -> str:
        """The XXH3-128 digest of the manifest, its own ``xxh3`` aside."""
        bare = self.model_copy(update={"xxh3": ""})
        return xxhash.xxh3_128_hexdigest(bare.model_dump_json().encode())


def load(root: Path) -> Manifest:
    """Read the manifest of the index in ``root``.

    Raises:
        IndexNotFoundError: when there is none; says whether an unfinished run left parts.
        IndexVersionError: when it was written by a newer format.
        IndexCorruptError: when it can't be parsed.
    """
    path = Layout(root).manifest
    try:
        text = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise IndexNotFoundError(_not_found(root)) from error
    try:
        version = _Version.model_validate_json(text)
        if version.format_version > FORMAT_VERSION:
            raise IndexVersionError(
                f"{root} has index format {version.format_version}; this arrowds reads up to {FORMAT_VERSION}: "
                "upgrade arrowds, or analyze the dataset again with this one"
            )
        manifest = Manifest.model_validate_json(text)
        for name in (*manifest.metrics, *manifest.totals):
            check_metric_name(name)
    except (ValidationError, ValueError) as error:
        if isinstance(error, IndexVersionError):
            raise
        raise IndexCorruptError(f"{path} is not the manifest of an index: {_first_fault(error)}") from error
    if manifest.xxh3 != manifest.own_digest:
        raise IndexCorruptError(f"{path} has changed since it was written; restore it, or analyze the dataset again")
    return manifest


def _first_fault(error: Exception) -> str:
    """Return one line of what may be a long list of pydantic's."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"


class _Version(BaseModel):
    """The two fields that every version of the manifest has."""

    format: Literal["arrowds-index"]
    format_version: int


def _not_found(root: Path) -> str:
    if not root.exists():
        return f"{root} does not exist; create an index there with arrowds.analyze(source, metrics, {str(root)!r})"
    if Layout(root).plan.exists():
        return f"{root} holds an unfinished index; run the same arrowds.analyze(...) again to finish it"
    return f"{root} is not an index: it has no manifest.json"


def commit(root: Path, manifest: Manifest) -> None:
    """Make ``manifest`` the truth about ``root``, atomically."""
    signed = manifest.model_copy(update={"xxh3": manifest.own_digest})
    storage.write_text(Layout(root).manifest, signed.model_dump_json(indent=1) + "\n")


def file_entries(layout: Layout, paths: Iterable[Path]) -> dict[str, FileEntry]:
    """Measure and digest files, in parallel, as entries of the manifest, sorted by path."""
    ordered = sorted(paths)
    with ThreadPoolExecutor() as pool:
        records = list(pool.map(storage.record, ordered))
    return {
        layout.relative(path): FileEntry(bytes=found.bytes, xxh3=found.xxh3)
        for path, found in zip(ordered, records, strict=True)
    }


def check_sizes(root: Path, files: Mapping[str, FileEntry]) -> None:
    """Compare every file's size with the manifest, so that no map is shorter than it claims.

    Raises:
        IndexCorruptError: naming every file that is missing or has another size.
    """
    _raise_bad(root, files, [bad for name, entry in files.items() if (bad := _size_fault(root, name, entry))])


def check_digests(root: Path, files: Mapping[str, FileEntry]) -> None:
    """Read every file and compare its size and digest with the manifest.

    Raises:
        IndexCorruptError: naming every file that is missing, truncated or changed.
    """
    with ThreadPoolExecutor() as pool:
        faults = list(pool.map(lambda item: _digest_fault(root, *item), files.items()))
    _raise_bad(root, files, [fault for fault in faults if fault])


def _size_fault(root: Path, name: str, entry: FileEntry) -> str | None:
    if _escapes(name):
        return f"{name}: lies outside the index"
    try:
        size = (root / name).stat().st_size
    except OSError as error:
        return f"{name}: {error.strerror}"
    return None if size == entry.bytes else f"{name}: {size} bytes instead of {entry.bytes}"


def _digest_fault(root: Path, name: str, entry: FileEntry) -> str | None:
    fault = _size_fault(root, name, entry)
    if fault:
        return fault
    try:
        found = storage.record(root / name)
    except OSError as error:
        return f"{name}: {error.strerror}"
    return None if found.xxh3 == entry.xxh3 else f"{name}: its content has changed"


def _escapes(name: str) -> bool:
    return name.startswith("/") or ".." in name.split("/") or "\\" in name


def _raise_bad(root: Path, files: Mapping[str, FileEntry], faults: list[str]) -> None:
    if faults:
        if _is_replaced(root, files):
            raise IndexReplacedError(f"the index {root} was replaced by another run since it was opened; open it again")
        listed = "\n  ".join(faults)
        raise IndexCorruptError(
            f"{len(faults)} file(s) of the index {root} are damaged:\n  {listed}\n"
            "restore them from a copy, or run arrowds.analyze(..., overwrite=True)"
        )


def _is_replaced(root: Path, files: Mapping[str, FileEntry]) -> bool:
    """Tell whether the index now consists of other files than those."""
    try:
        current = load(root).files
    except DatasetIndexError:
        return False
    return any(current.get(name) != entry for name, entry in files.items())
