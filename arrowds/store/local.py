"""Files below a folder as a store."""

from __future__ import annotations

import errno
import fcntl
import os
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path

import pyarrow as pa

from arrowds.errors import StorageError
from arrowds.store.base import TEMPORARY, Draft, Entry, Store, explained, replacing, sync_path

_THREADS = 8


class LocalStore(Store):
    """Files below a folder, which is created with the first one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.url = str(root)

    def path(self, name: str) -> Path:
        return self.root / name

    def read(self, name: str) -> pa.Buffer:
        path = self.root / name
        try:
            if path.stat().st_size == 0:
                return pa.py_buffer(b"")
            with pa.memory_map(str(path)) as file:
                return file.read_buffer()
        except FileNotFoundError:
            raise
        except NotADirectoryError as error:
            raise FileNotFoundError(str(path)) from error
        except OSError as error:
            raise StorageError(error.errno, f"{path} can't be read: {explained(error)}") from error

    @contextmanager
    def writing(self, name: str) -> Iterator[Draft]:
        self._create_root()
        with replacing(self.root / name) as draft:
            yield draft

    def create(self, name: str, data: bytes) -> bool:
        self._create_root()
        path = self.root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
                try:
                    with draft.open("xb") as file:
                        file.write(data)
                        file.flush()
                        os.fsync(file.fileno())
                    created = _linked(draft, path, data)
                    break
                except FileNotFoundError:
                    if not path.parent.is_dir():
                        raise
                    # else a vacuum took the draft for one of a killed writer
                finally:
                    draft.unlink(missing_ok=True)
            if created:
                _sync_folders(path.parent, self.root)
            return created
        except OSError as error:
            raise StorageError(error.errno, f"{path} could not be written: {explained(error)}") from error

    def _create_root(self) -> None:
        """Create the folder and those above it, so that they survive a power cut."""
        missing = list(takewhile(lambda folder: not folder.exists(), (self.root, *self.root.parents)))
        try:
            for folder in reversed(missing):
                folder.mkdir(exist_ok=True)
                sync_path(folder.parent)
        except OSError as error:
            raise StorageError(error.errno, f"{self.root} could not be created: {explained(error)}") from error

    def entries(self, prefix: str) -> list[Entry]:
        start = self.root / prefix if prefix else self.root
        found = []
        for folder, _, files in os.walk(start):
            for file in files:
                path = Path(folder, file)
                with suppress(FileNotFoundError):  # deleted since it was listed
                    status = path.stat()
                    modified = datetime.fromtimestamp(status.st_mtime, UTC)
                    found.append(Entry(path.relative_to(self.root).as_posix(), status.st_size, modified))
        return sorted(found, key=lambda entry: entry.name)

    def size(self, name: str) -> int | None:
        try:
            return os.stat(f"{self.url}/{name}").st_size  # noqa: PTH116  # a path object takes longer than the call
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StorageError(error.errno, f"{self.root / name} can't be read: {explained(error)}") from error

    def delete(self, names: Iterable[str]) -> None:
        folders: set[Path] = set()
        try:
            for name in names:
                path = self.root / name
                path.unlink(missing_ok=True)
                folders.update(path.relative_to(self.root).parents)
        except OSError as error:
            raise StorageError(error.errno, f"{path} could not be deleted: {explained(error)}") from error
        for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
            if folder.parts:
                with suppress(OSError):  # it is not empty
                    (self.root / folder).rmdir()

    def sync(self, names: Iterable[str]) -> None:
        paths = [self.root / name for name in names]
        try:
            with ThreadPoolExecutor(_THREADS) as threads:
                list(threads.map(sync_path, paths))
            above = (folder for path in paths for folder in path.parents if folder.is_relative_to(self.root))
            for folder in {*above, self.root.parent}:
                sync_path(folder)
        except OSError as error:
            raise StorageError(error.errno, f"{self.root} could not be synced to disk: {explained(error)}") from error


def _sync_folders(folder: Path, root: Path) -> None:
    """Sync a folder and those above it up to the parent of ``root``: each may have just been created."""
    for above in (folder, *folder.parents):
        sync_path(above)
        if above == root.parent:
            return


def _linked(draft: Path, path: Path, data: bytes) -> bool:
    """Give ``draft`` its name unless it is taken: link() is atomic, on network file systems too."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS):
            raise
        return _exclusively_written(path, data)  # a file system without hard links
    return True


def _exclusively_written(path: Path, data: bytes) -> bool:
    try:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    return True


@contextmanager
def one_at_a_time(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file ``path`` while the block runs; other processes of this host wait. A killed one leaves none.

    Gives whether the lock is held: not so on a network file system without locks, or, without ``wait``, where another
    process holds it.
    """
    while True:
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
                held = True
            except OSError:
                held = False
            if held and not _is_same(file.fileno(), path):
                continue  # the holder before us has removed it, and another may hold a new one
            try:
                yield held
            finally:
                if held or wait:
                    path.unlink(missing_ok=True)
            return


def _is_same(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
