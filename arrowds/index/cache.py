"""The memory maps that a host keeps of indexes elsewhere: one folder of limited size; the least recently used leave.

Processes that use a view hold a shared lock on its folder, so that it is not removed. The locks end with the processes,
however they end.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import xxhash

from arrowds.errors import ConfigError, StorageError
from arrowds.index import paths
from arrowds.store import TEMPORARY, one_at_a_time

logger = logging.getLogger(__name__)

CACHE_DIR = "ARROWDS_CACHE_DIR"
CACHE_LIMIT = "ARROWDS_CACHE_LIMIT"

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]B)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HostCache:
    """The views below one folder.

    Attributes:
        root: the folder.
    """

    root: Path

    @classmethod
    def at(cls, folder: Path | None) -> HostCache:
        """The cache in a folder, by default that of ``ARROWDS_CACHE_DIR``, else ``arrowds`` in the user's cache folder.

        It is created when it is first needed.
        """
        default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "arrowds"
        return cls(folder or Path(os.environ.get(CACHE_DIR) or default))

    @property
    def limit(self) -> int:
        """The most bytes that all views take: ``ARROWDS_CACHE_LIMIT``, by default half of the disk.

        Views in use stay, even above it.
        """
        limit = os.environ.get(CACHE_LIMIT)
        return size_named(limit) if limit else shutil.disk_usage(self.root).total // 2

    def folder(self, url: str) -> Path:
        """The folder of the views of one index."""
        return self.root / xxhash.xxh3_64_hexdigest(url.encode())

    @property
    def folders(self) -> Iterator[Path]:
        """The folders of the views of all indexes."""
        return self.root.glob("*/")

    def make_room(self, nbytes: int, wanted_for: str) -> None:
        """Remove views that nobody uses, the least recently used first, until there is room for another.

        Raises:
            ConfigError: when the limit is not a size.
            StorageError: when the disk has no room, even so.
        """
        limit = self.limit
        with one_at_a_time(self.root / ".lock"):
            views = sorted(self._views(), key=lambda view: view.last_used)
            total = sum(view.nbytes for view in views)
            for view in views:
                if total + nbytes <= limit and nbytes <= shutil.disk_usage(self.root).free:
                    break
                if _removed(view.folder):
                    logger.info("removed the memory maps %s, which were used least recently", view.folder)
                    total -= view.nbytes
        free = shutil.disk_usage(self.root).free
        if nbytes > free:
            raise self.is_full(nbytes, wanted_for)
        if total + nbytes > limit:
            logger.warning(
                "the memory maps that are in use take more than the limit of %d bytes of %s", limit, self.root
            )

    def is_full(self, nbytes: int, wanted_for: str) -> StorageError:
        """The error to raise when the disk has no room for a view."""
        free = shutil.disk_usage(self.root).free
        return StorageError(
            errno.ENOSPC,
            f"the cache folder {self.root} has no room for the memory maps of {wanted_for}: they take "
            f"{nbytes / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free; free space, or pass cache_dir=... (or set "
            f"{CACHE_DIR}) on another disk",
        )

    def _views(self) -> Iterator[_Kept]:
        for folder in self.root.glob(f"*/{paths.VIEWS}/[!.]*"):
            with suppress(OSError):  # another process has removed it
                files = [path.stat() for path in folder.iterdir()]
                last_used = max((file.st_mtime for file in files), default=0.0)
                yield _Kept(folder, sum(file.st_size for file in files), last_used)


@dataclass(frozen=True, slots=True)
class _Kept:
    folder: Path
    nbytes: int
    last_used: float


def held(folder: Path) -> int | None:
    """Return a descriptor that keeps a view from being removed until it is closed; None where the view is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    with suppress(OSError):  # a file system without locks: there, nothing is removed either
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    try:
        if os.path.samestat(os.fstat(descriptor), folder.stat()):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _removed(folder: Path) -> bool:
    """Remove a folder unless a process holds it; tell whether it is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        removed = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}{TEMPORARY}")
        folder.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)
        return True
    except OSError:  # it is in use, or the file system has no locks
        return False
    finally:
        os.close(descriptor)


def size_named(text: str) -> int:
    """Return a size in bytes that is written as a number and, perhaps, KB, MB, GB or TB.

    Raises:
        ConfigError: when it is written otherwise.

    >>> size_named("1.5GB"), size_named("300")
    (1500000000, 300)
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ConfigError(f"{CACHE_LIMIT} must be a size such as 200GB, got {text!r}")
    return int(float(found[1]) * _UNITS[(found[2] or "").upper()])
