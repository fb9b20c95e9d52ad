"""Named objects below one root: what every kind of store can do, and how a file gets its name when it is complete."""

from __future__ import annotations

import errno
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from arrowds.errors import StorageError

TEMPORARY = ".tmp"
_BLOCK = 1 << 24
_TRIES = 100
"""How often a draft is begun again that another process has removed, or whose folder it has while that was empty."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a listing.

    Attributes:
        name: its name below the root.
        size: its size in bytes.
        modified: when it was last written.
        etag: what an object store calls this content of the object; empty on a disk.
    """

    name: str
    size: int
    modified: datetime
    etag: str = ""


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a manifest keeps of a file: its size in bytes and the XXH3-128 digest of its bytes."""

    bytes: int
    xxh3: str


@dataclass(slots=True)
class Draft:
    """A file being written: fill ``path``; ``record`` is set when the file has got its name."""

    path: Path
    record: FileRecord | None = None

    @property
    def written(self) -> FileRecord:
        """The size and digest of the finished file."""
        if self.record is None:
            raise StorageError(f"{self.path} is still being written")
        return self.record


class Store(ABC):
    """Objects by name below a root. Names are relative, with forward slashes; a store can be pickled.

    >>> import tempfile
    >>> from arrowds.store import open_store
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = open_store(folder)
    ...     store.create("a/b", b"1"), store.create("a/b", b"2"), store.read("a/b").to_pybytes(), store.names("a")
    (True, False, b'1', ['a/b'])
    """

    url: str
    """Where the root is, for people and for a later :func:`open_store`."""

    files_at_once: int = 0
    """How many files are worth reading at once; 0: one for each processor."""

    @abstractmethod
    def read(self, name: str) -> pa.Buffer:
        """Return the content of an object; a view of a memory map on a local disk.

        Raises:
            FileNotFoundError: when there is no object of that name.
            StorageError: when it can't be read.
        """

    @abstractmethod
    def writing(self, name: str) -> Any:
        """Return a context manager that gives a :class:`Draft`; the object appears when the block ends.

        Raises:
            StorageError: when it can't be written (disk full, permission, connection), saying why.
        """

    def write(self, name: str, data: bytes, *, durable: bool = False) -> FileRecord:
        """Write a small object, replacing one of that name; ``durable``, it is either one after a power cut, too.

        A vacuum may take the draft for one that a killed writer has left; then another one is made.
        """
        for attempt in range(1, _TRIES + 1):
            try:
                with self.writing(name) as draft:
                    draft.path.write_bytes(data)
                    if durable:
                        sync_path(draft.path)
                break
            except StorageError as error:
                if error.errno != errno.ENOENT or attempt == _TRIES:
                    raise
        if durable:
            self.sync([name])
        written: FileRecord = draft.written
        return written

    @abstractmethod
    def create(self, name: str, data: bytes) -> bool:
        """Create an object durably and in one step; return False where the name is taken.

        Of any number of processes and machines that try, exactly one gets True.

        Raises:
            StorageError: when it can't be written, or the store can't create objects conditionally.
        """

    @abstractmethod
    def entries(self, prefix: str) -> list[Entry]:
        """Return all objects whose name starts with ``prefix + "/"`` (all objects for ""), sorted by name."""

    def names(self, prefix: str) -> list[str]:
        """Return the names of :meth:`entries`."""
        return [entry.name for entry in self.entries(prefix)]

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Return the size of an object in bytes, or None where there is none."""

    @abstractmethod
    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; those that are gone already are passed over."""

    @abstractmethod
    def sync(self, names: Iterable[str]) -> None:
        """Return when the objects, and the folders that name them, would survive a power cut."""

    def path(self, name: str) -> Path | None:
        """Return the object as a local file, or None where it isn't one."""
        return None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"


def sync_path(path: Path) -> None:
    """Return when a file or the entries of a folder are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _begin(path: Path) -> None:
    """Create a draft and its folder, which another process may remove while it is empty."""
    for attempt in range(1, _TRIES + 1):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            return
        except FileNotFoundError:
            if attempt == _TRIES:
                raise


@contextmanager
def replacing(path: Path) -> Iterator[Draft]:
    """Give a draft beside ``path``; rename it to ``path`` on success, remove it on failure.

    Raises:
        StorageError: when the file can't be written (disk full, file-size limit, permission), saying what to do.
    """
    draft = Draft(path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{TEMPORARY}"))
    try:
        _begin(draft.path)
        yield draft
        draft.record = record(draft.path)
        draft.path.replace(path)
    except BaseException as error:
        with suppress(OSError):  # what went wrong above may go wrong here too, and says more
            draft.path.unlink()
        if isinstance(error, OSError) and not isinstance(error, StorageError):
            raise StorageError(error.errno, f"{path} could not be written: {explained(error)}") from error
        raise


def record(path: Path) -> FileRecord:
    """Return the size and the digest of a file."""
    digest = xxhash.xxh3_128()
    size = 0
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            size += len(block)
    return FileRecord(bytes=size, xxh3=digest.hexdigest())


def explained(error: OSError) -> str:
    """Say in words why a file could not be written, and what to do about it."""
    reasons = {
        errno.ENOSPC: "the disk is full; free space or choose another path, then run again: finished work is kept",
        errno.EDQUOT: "the disk quota is used up; free space or choose another path, then run again",
        errno.EFBIG: "the file-size limit of this process (ulimit -f) is too small; raise it, then run again",
        errno.EACCES: "permission denied",
        errno.EROFS: "the file system is read-only",
    }
    return reasons.get(error.errno or 0, str(error))
