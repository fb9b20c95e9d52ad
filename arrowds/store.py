"""Named objects below one root, on a local disk or in an object store: read, write, create if absent, list, delete.

Nothing else in arrowds writes files of an index. An object appears under its name only when it is complete, and
:meth:`Store.create` is the one operation that several writers can race for.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import tempfile
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import takewhile
from pathlib import Path, PurePath
from typing import Any

import pyarrow as pa
import xxhash

from arrowds.errors import ConfigError, MissingExtraError, StorageError

TEMPORARY = ".tmp"
_BLOCK = 1 << 24
_THREADS = 8
_SCHEMES = ("s3", "s3a", "gs", "az", "abfs", "abfss", "azure")
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/{1,2}([^/].*)")
_NONCE = "arrowds-commit"
_RETRIES = 6
_RETRY_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a listing: its name below the root, its size in bytes and when it was last written."""

    name: str
    size: int
    modified: datetime


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

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     store = open_store(folder)
    ...     store.create("a/b", b"1"), store.create("a/b", b"2"), store.read("a/b").to_pybytes(), store.names("a")
    (True, False, b'1', ['a/b'])
    """

    url: str
    """Where the root is, for people and for a later :func:`open_store`."""

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
        """Write a small object, replacing one of that name; ``durable``, it is either one after a power cut, too."""
        with self.writing(name) as draft:
            draft.path.write_bytes(data)
            if durable:
                sync_path(draft.path)
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
            return (self.root / name).stat().st_size
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


def sync_path(path: Path) -> None:
    """Return when a file or the entries of a folder are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
def replacing(path: Path) -> Iterator[Draft]:
    """Give a draft beside ``path``; rename it to ``path`` on success, remove it on failure.

    Raises:
        StorageError: when the file can't be written (disk full, file-size limit, permission), saying what to do.
    """
    draft = Draft(path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}{TEMPORARY}"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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


class ObjectStore(Store):
    """Objects below a prefix of a bucket, through obstore. Requests are retried with growing pauses for a minute."""

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.url = url.rstrip("/")
        self.options = dict(options or {})
        self._opened: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url, "options": self.options, "_opened": None}

    @property
    def client(self) -> Any:
        """The obstore client, opened in the process that uses it: its threads don't survive a fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), _client(self.url, self.options))
        return self._opened[1]

    def read(self, name: str) -> pa.Buffer:
        import obstore

        with self._explaining(name, "read"):
            return pa.py_buffer(obstore.get(self.client, name).bytes())

    def read_range(self, name: str, start: int, stop: int) -> pa.Buffer:
        """Return the bytes [start, stop) of an object."""
        import obstore

        with self._explaining(name, "read"):
            return pa.py_buffer(obstore.get_range(self.client, name, start=start, end=stop))

    @contextmanager
    def writing(self, name: str) -> Iterator[Draft]:
        import obstore

        with tempfile.TemporaryDirectory(prefix="arrowds-") as folder:
            draft = Draft(Path(folder, "draft"))
            try:
                yield draft
                written = record(draft.path)
            except OSError as error:
                if isinstance(error, StorageError):
                    raise
                raise StorageError(
                    error.errno, f"{self.url}/{name} could not be written: {explained(error)}"
                ) from error
            with self._explaining(name, "written"):
                obstore.put(self.client, name, draft.path)
            draft.record = written

    def create(self, name: str, data: bytes) -> bool:
        import obstore
        from obstore.exceptions import AlreadyExistsError, NotSupportedError, PreconditionError

        nonce = uuid.uuid4().hex
        with self._explaining(name, "written"):
            try:
                obstore.put(self.client, name, data, mode="create", attributes={_NONCE: nonce}, use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                # The answer to an attempt that succeeded may have been lost, and the next attempt then finds our own.
                return bool(obstore.get(self.client, name).attributes.get(_NONCE) == nonce)
            except (NotSupportedError, NotImplementedError) as error:
                raise StorageError(_no_conditional_put(self.url)) from error
        return True

    def check_conditional_put(self) -> None:
        """Refuse a store that overwrites where it should create: two writers would lose each other's work.

        Raises:
            StorageError: saying what to do.
        """
        name = f"builds/.probe-{uuid.uuid4().hex}"
        try:
            twice = self.create(name, b"1"), self.create(name, b"2")
        finally:
            self.delete([name])
        if twice != (True, False):
            raise StorageError(_no_conditional_put(self.url))

    def entries(self, prefix: str) -> list[Entry]:
        import obstore

        with self._explaining(prefix, "listed"):
            pages = obstore.list(self.client, prefix=prefix or None)
            found = [Entry(item["path"], item["size"], item["last_modified"]) for page in pages for item in page]
        return sorted(found, key=lambda entry: entry.name)

    def size(self, name: str) -> int | None:
        import obstore

        try:
            with self._explaining(name, "read"):
                return int(obstore.head(self.client, name)["size"])
        except FileNotFoundError:
            return None

    def delete(self, names: Iterable[str]) -> None:
        import obstore

        listed = list(names)
        for start in range(0, len(listed), 1000):
            with self._explaining(listed[start], "deleted"), suppress(FileNotFoundError):
                obstore.delete(self.client, listed[start : start + 1000])

    def sync(self, names: Iterable[str]) -> None:
        """Return at once: a store answers a put when the object is safe."""

    @contextmanager
    def _explaining(self, name: str, done: str) -> Iterator[None]:
        """Turn what obstore raises into a FileNotFoundError or a StorageError that names the object."""
        from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError

        where = f"{self.url}/{name}"
        try:
            yield
        except (FileNotFoundError, NotFoundError) as error:
            if "NoSuchBucket" in str(error):
                raise StorageError(
                    f"{where} could not be {done}: the bucket does not exist; create it first"
                ) from error
            raise FileNotFoundError(where) from error
        except (PermissionDeniedError, UnauthenticatedError, PermissionError) as error:
            raise StorageError(
                f"{where} could not be {done}: the store refuses the credentials ({_first_line(error)}); check "
                "storage_options or the environment"
            ) from error
        except (BaseError, OSError) as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(
                f"{where} could not be {done}: {_first_line(error)}; check the address and the network, then run "
                "again: finished work is kept"
            ) from error


def _client(url: str, options: Mapping[str, Any]) -> Any:
    try:
        from obstore.exceptions import BaseError
        from obstore.store import from_url
    except ImportError as error:
        raise MissingExtraError("obstore", "cloud") from error
    client_options = {name.removeprefix("aws_"): value for name, value in options.items() if _is_client_option(name)}
    config = {name: str(value) for name, value in options.items() if not _is_client_option(name)}
    if str(config.get("aws_endpoint_url", config.get("aws_endpoint", config.get("endpoint", "")))).startswith("http:"):
        client_options.setdefault("allow_http", True)
    retry = {"max_retries": _RETRIES, "retry_timeout": timedelta(seconds=_RETRY_SECONDS)}
    try:
        open_url: Callable[..., Any] = from_url  # its overloads name every key of every service
        return open_url(url, config=config or None, client_options=client_options or None, retry_config=retry)
    except (BaseError, ValueError, TypeError) as error:
        raise ConfigError(f"{url} can't be opened with these storage_options: {_first_line(error)}") from error


def _is_client_option(name: str) -> bool:
    return name.removeprefix("aws_") in ("allow_http", "allow_invalid_certificates", "timeout", "connect_timeout")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__


def _no_conditional_put(url: str) -> str:
    return (
        f"{url}: this store can't create an object only if it is absent, which commits need so that no writer's work "
        "is lost; use a bucket with conditional writes (If-None-Match), or write the index to a disk and copy it"
    )


def is_url(path: object) -> bool:
    """Tell whether a path names an object store; a Path that has lost a slash of "s3://" does, too.

    >>> is_url("s3://bucket/index"), is_url(Path("s3://bucket/index")), is_url("index"), is_url("C:/index")
    (True, True, False, False)
    """
    return _URL.fullmatch(os.fspath(path)) is not None if isinstance(path, str | PurePath) else False


def open_store(path: str | os.PathLike[str], storage_options: Mapping[str, Any] | None = None) -> Store:
    """Return the store whose root is a folder or a URL: ``s3://``, ``gs://`` or ``az://``, then bucket and prefix.

    Args:
        path: a folder, which need not exist, or a URL.
        storage_options: keys of obstore and Polars, such as ``aws_endpoint_url`` and ``aws_access_key_id``; the
            environment gives what they don't.

    Raises:
        ConfigError: for another scheme, or options for a local folder.
        MissingExtraError: when obstore is not installed.
    """
    text = re.sub("^file:/+", "/", os.fspath(path), flags=re.IGNORECASE)
    url = _URL.fullmatch(text)
    if url is None:
        if storage_options:
            raise ConfigError(f"storage_options belong to a URL, but {text} is a local folder")
        return LocalStore(Path(text).expanduser().absolute())  # workers may have another working directory
    scheme, rest = url[1].lower(), url[2]
    if scheme not in _SCHEMES:
        raise ConfigError(f"{text}: unknown scheme {scheme!r}; expected a folder, or one of s3://, gs://, az://")
    store = ObjectStore(f"{scheme}://{rest}", storage_options)
    _ = store.client
    return store
