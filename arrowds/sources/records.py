"""Which files a source consists of: what is recorded of each, and whether it still is what was recorded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from arrowds.errors import SourceError, UnreadableFileError
from arrowds.sources import fingerprint
from arrowds.sources.objects import ObjectPath, object_at
from arrowds.store import ObjectStore, is_url

_MOST_NAMES = 10


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source as an index records it; its fields are plain, so that it can be written as JSON.

    The first row of a file follows from the rows of the files before it.

    Attributes:
        path: the absolute path, or the URL.
        num_rows: the rows that the file adds to the source; 0 for an `.idx` file, whose `.bin` file has them.
        num_bytes: its size.
        modified: the modification time in nanoseconds; of an object in a store its ETag.
        digest: 32 hexadecimal digits (XXH3, 128 bits) of its bytes; of an object "etag:" and its ETag.
    """

    path: str
    num_rows: int
    num_bytes: int
    modified: str
    digest: str

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> SourceFile:
        """The record with these fields; raises SourceError where one is missing or has another type.

        >>> SourceFile.from_json({"path": "/a", "num_rows": 2, "num_bytes": 9, "modified": "1", "digest": "b"}).num_rows
        2
        """
        names = {"path": str, "num_rows": int, "num_bytes": int, "modified": str, "digest": str}
        if not isinstance(values, Mapping) or {name: type(value) for name, value in values.items()} != names:
            raise SourceError(f"expected the record of a file with the fields {', '.join(names)}, got {values!r}")
        return cls(**values)


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What the system says of a file when it is opened; it says something else once the file is written or replaced.

    Attributes:
        path: the path as it was given.
        num_bytes: its size.
        modified: the modification time in nanoseconds, or the ETag.
        identity: inode and change time, which also differ after `chmod`, and between hosts for copies of one file.
    """

    path: Path | ObjectPath
    num_bytes: int
    modified: int | str
    identity: tuple[int, int]

    @classmethod
    def of(cls, path: Path | ObjectPath) -> FileStamp:
        """Ask the system, or the store; raises UnreadableFileError."""
        if isinstance(path, ObjectPath):
            found = path if path.etag else path.now()
            return cls(found, found.size, found.etag, (0, 0))
        try:
            status = path.stat()
        except OSError as error:
            raise UnreadableFileError(f"can't read {path}: {error.strerror or error}") from error
        return cls(path, status.st_size, status.st_mtime_ns, (status.st_ino, status.st_ctime_ns))

    def record(self, num_rows: int, digest: str) -> SourceFile:
        """What an index records of the file: links in its path stay, `..` does not."""
        path = str(self.path)
        if isinstance(self.path, Path):
            path = os.path.abspath(self.path)  # noqa: PTH100  # Path.resolve would follow links
        return SourceFile(path, num_rows, self.num_bytes, str(self.modified), digest)

    def check(self, digest: str = "") -> None:
        """Raise UnreadableFileError unless the file is still the one that was opened.

        Where nothing but its identity differs, its content decides, if `digest` says what that was. Of an object, every
        request checks that, and there is nothing to ask.
        """
        if isinstance(self.path, ObjectPath):
            return
        now = FileStamp.of(self.path)
        if now == self:
            return
        untouched = (now.num_bytes, now.modified) == (self.num_bytes, self.modified)
        if not (untouched and digest and _digest(now) == digest):
            raise UnreadableFileError(f"{self.path} changed since it was opened; open the source again")


@lru_cache(maxsize=4096)
def _digest(stamp: FileStamp) -> str:
    """The digest of a file, computed once for each state of it; of an object its ETag."""
    if isinstance(stamp.path, ObjectPath):
        return f"etag:{stamp.path.etag}"
    return fingerprint.of_files([stamp.path])[0]


def digests(stamps: Sequence[FileStamp]) -> list[str]:
    """The digests of the files' bytes; raises UnreadableFileError where one is not the file that was opened."""
    if any(isinstance(stamp.path, ObjectPath) for stamp in stamps):
        return [_digest(stamp) for stamp in stamps]
    for stamp in stamps:
        stamp.check()
    found = fingerprint.of_files([stamp.path for stamp in stamps if isinstance(stamp.path, Path)])
    for stamp in stamps:
        stamp.check()
    return found


def recorded_stamp(file: SourceFile, storage_options: Mapping[str, Any] | None = None) -> FileStamp:
    """The stamp of a recorded file; raises UnreadableFileError unless it still has the content that was recorded.

    The file is read only where its modification time differs.
    """
    path = object_at(file.path, storage_options) if is_url(file.path) else Path(file.path)
    stamp = FileStamp.of(path)
    same_size = stamp.num_bytes == file.num_bytes
    if not same_size or (str(stamp.modified) != file.modified and _digest(stamp) != file.digest):
        raise UnreadableFileError(
            f"{path} changed since it was recorded: it has {stamp.num_bytes} bytes"
            + (" of other content" if same_size else f" instead of {file.num_bytes}")
        )
    return stamp


def new_files(
    paths: Sequence[Path | ObjectPath], known: Sequence[SourceFile], *, compare_content: bool
) -> list[Path | ObjectPath]:
    """The paths, in order, that are none of the known files.

    A file whose path, size and modification time are known is not read. Where size or time differ, its content is
    compared. `compare_content` compares the content of every file, so that files that were moved are known as well.

    Raises SourceError where a known file has other content now, and, if any of the files is known, where a known file
    is missing.
    """
    # By the file that a path leads to, since links give one file several names.
    by_path = {_real(file.path): file for file in known}
    by_digest = {file.digest: file for file in known} if compare_content else {}
    new, found = [], set()
    for path in paths:
        file = by_path.get(_real(str(path)))
        if file is None and compare_content:
            file = by_digest.get(_digest(FileStamp.of(path)))
        elif file is not None:
            _check_content(path, file, compare_content=compare_content)
        if file is None:
            new.append(path)
        else:
            found.add(file.path)
    if not found:
        _check_moves(new, known)
    if found:
        stores = {path.store for path in paths if isinstance(path, ObjectPath)}
        _check_existence([file.path for file in known if file.path not in found], stores)
    return new


def _check_moves(new: Sequence[Path | ObjectPath], known: Sequence[SourceFile]) -> None:
    """Raise SourceError for a new file of the name and size of a known one that is gone: it seems to have moved."""
    gone = {(Path(file.path).name, file.num_bytes): file.path for file in known if not is_url(file.path)}
    for path in new:
        if isinstance(path, Path) and path.exists():
            old = gone.get((path.name, path.stat().st_size))
            if old is not None and not Path(old).exists():
                raise SourceError(
                    f"{path} has the name and the size of {old}, which is in the index and is gone; if it was moved, "
                    "pass compare_content=True to recognise it by its content, or else give it another name"
                )


def _real(path: str) -> str:
    return path if is_url(path) else os.path.realpath(path)


def _check_content(path: Path | ObjectPath, file: SourceFile, *, compare_content: bool) -> None:
    stamp = FileStamp.of(path)
    if not compare_content and (stamp.num_bytes, str(stamp.modified)) == (file.num_bytes, file.modified):
        return
    if stamp.num_bytes != file.num_bytes or _digest(stamp) != file.digest:
        raise SourceError(
            f"{path} changed since it was indexed ({file.num_rows} rows, {file.num_bytes} bytes); put the old file "
            "back and add new rows as new files, or index everything again with overwrite=True"
        )


def _check_existence(paths: Sequence[str], stores: Iterable[ObjectStore]) -> None:
    """Raise SourceError for the known files that are missing; objects are looked for in those stores alone."""
    objects = [ObjectPath(store, path.removeprefix(f"{store.url}/"), 0, "") for path in paths for store in stores]
    local = [path for path in paths if not is_url(path) and not Path(path).exists()]
    missing = [*local, *(str(item) for item in objects if str(item) in paths and not item.exists())]
    if missing:
        more = f" and {len(missing) - _MOST_NAMES} more" if len(missing) > _MOST_NAMES else ""
        raise SourceError(
            f"files that are in the index are missing: {', '.join(missing[:_MOST_NAMES])}{more}; put them back, or "
            "index what is left with overwrite=True"
        )
