"""Objects of a store as source files: found by URL, folder or pattern, and read by ranges, never as a whole.

Every request names the ETag that the object had when it was found, so that one that is replaced meanwhile is an error
and never a mixture of two contents.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from arrowds.errors import SourceError, StorageError, UnreadableFileError
from arrowds.store import Entry, ObjectStore, open_store

_SMALLEST_READ = 1 << 16
_READ_AHEAD = 8 << 20
_SMALLEST_GAP = 1 << 20
"""Bytes that are cheaper to read than to leave out, as every range is a request."""
_FOLDERS = r"(?:(?!\.)[^/]+/)*"
_MAGIC = re.compile(r"[*?\[]")
_MANIFEST = re.compile(r"(?:(.*)/)?manifests/\d{8,}\.json|(?:(.*)/)?builds/[^/]+/plan\.json")

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class ObjectPath:
    """One object with the content that it had when it was found: what a ``Path`` is for a local file."""

    store: ObjectStore
    key: str
    size: int
    etag: str

    def __str__(self) -> str:
        return f"{self.store.url}/{self.key}"

    @property
    def name(self) -> str:
        """The last part of its name."""
        return PurePosixPath(self.key).name

    @property
    def stem(self) -> str:
        """Its name without the ending."""
        return PurePosixPath(self.key).stem

    @property
    def suffix(self) -> str:
        """The ending of its name."""
        return PurePosixPath(self.key).suffix

    def open(self, mode: str = "rb") -> ObjectFile:
        """Open it for reading; nothing is read yet."""
        return ObjectFile(self)

    def now(self) -> ObjectPath:
        """The same object as it is now; raises UnreadableFileError where it is gone."""
        try:
            entry = self.store.entry(self.key)
        except FileNotFoundError as error:
            raise UnreadableFileError(f"can't read {self}: there is no such object") from error
        return replace(self, size=entry.size, etag=entry.etag)

    def exists(self) -> bool:
        """Whether there is an object of that name."""
        return self.store.size(self.key) is not None

    def read_ranges(self, ranges: Sequence[Range]) -> list[pa.Buffer]:
        """Return ranges of bytes; raises UnreadableFileError where the object was replaced since it was found."""
        try:
            return self.store.read_ranges(self.key, ranges, etag=self.etag)
        except FileNotFoundError as error:
            raise UnreadableFileError(f"can't read {self}: there is no such object any more") from error
        except StorageError as error:
            if error.errno != errno.ESTALE:
                raise
            raise UnreadableFileError(f"{self} changed since it was opened; open the source again") from error


class ObjectFile(io.RawIOBase):
    """An object as a file. Reads from one position on become longer requests; groups of ranges are read at once.

    Args:
        path: the object.
        groups: ranges that will be read together, such as the columns of a row group; a group is read when its first
            byte is, and forgotten when the group after the next one is.
    """

    def __init__(self, path: ObjectPath, groups: Sequence[Sequence[Range]] = ()) -> None:
        self._path = path
        self._at = 0
        self._window: tuple[int, pa.Buffer] = (0, pa.py_buffer(b""))
        self._groups = [_joined(group) for group in groups]
        self._held: dict[int, list[tuple[int, pa.Buffer]]] = {}

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._path.size}[whence]
        return self._at

    def size(self) -> int:
        """How many bytes it has."""
        return self._path.size

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        stop = min(self._at + len(view), self._path.size)
        if stop <= self._at:
            return 0
        data = self._bytes(self._at, stop)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """Read as many bytes, or all that are left."""
        stop = self._path.size if size is None or size < 0 else min(self._at + size, self._path.size)
        if stop <= self._at:
            return b""
        data = self._bytes(self._at, stop)
        self._at = stop
        return bytes(data)

    def _bytes(self, start: int, stop: int) -> memoryview:
        found = self._of_group(start, stop)
        if found is not None:
            return found
        first, data = self._window
        if not (first <= start and stop <= first + len(data)):
            goes_on = first < start <= first + len(data) or (start == 0 and self._path.size <= _READ_AHEAD)
            end = min(max(stop, start + (_READ_AHEAD if goes_on else _SMALLEST_READ)), self._path.size)
            [data] = self._path.read_ranges([(start, end)])
            first = start
            self._window = (first, data)
        return memoryview(data)[start - first : stop - first]

    def _of_group(self, start: int, stop: int) -> memoryview | None:
        for number, group in enumerate(self._groups):
            place = bisect_right(group, (start, self._path.size)) - 1
            if place < 0 or stop > group[place][1]:
                continue
            if number not in self._held:
                data = self._path.read_ranges(group)
                self._held[number] = [(first, piece) for (first, _), piece in zip(group, data, strict=True)]
                for old in [held for held in self._held if held < number - 1]:
                    del self._held[old]
            first, piece = self._held[number][place]
            return memoryview(piece)[start - first : stop - first]
        return None


def _joined(ranges: Sequence[Range]) -> list[Range]:
    """The same bytes in fewer ranges, ascending, with what lies between those that are close. Pure.

    >>> _joined([(5_000_000, 5_000_010), (0, 10), (20, 30)])
    [(0, 30), (5000000, 5000010)]
    """
    found: list[Range] = []
    for start, stop in sorted(ranges):
        if found and start - found[-1][1] <= _SMALLEST_GAP:
            found[-1] = (found[-1][0], max(found[-1][1], stop))
        else:
            found.append((start, stop))
    return found


def object_at(url: str, options: Mapping[str, Any] | None) -> ObjectPath:
    """The object of a URL, whose size and ETag are unknown until :meth:`ObjectPath.now`."""
    store, key = _place(url, options)
    return ObjectPath(store, key, 0, "")


def objects_of(pattern: str, options: Mapping[str, Any] | None, endings: Sequence[str]) -> list[ObjectPath]:
    """The objects that a URL stands for: one object, all data files below a folder, or those that match a pattern.

    Args:
        pattern: the URL. ``*`` and ``?`` match within a part of a name, ``**`` any number of parts.
        options: how to reach the store.
        endings: the endings of data files, for folders.

    Raises:
        UnreadableFileError: when it stands for none.
        SourceError: when a folder is a table of a kind whose files hold deleted rows as well.
        StorageError: when the store can't be reached.
    """
    store, key = _place(pattern, options)
    magic = _MAGIC.search(key)
    if magic is None:
        try:
            return [_found(store, store.entry(key))] if key else _files_below(store, key, pattern, endings)
        except FileNotFoundError:
            return _files_below(store, key, pattern, endings)
    fixed = key[: magic.start()].rpartition("/")[0]
    entries = _outside_indexes(store.entries(fixed))
    matches = re.compile(_regex(key)).fullmatch
    found = [_found(store, entry) for entry in entries if matches(entry.name)]
    if not found:
        raise UnreadableFileError(f"no object matches {pattern}")
    return found


def _place(url: str, options: Mapping[str, Any] | None) -> tuple[ObjectStore, str]:
    """The bucket of a URL and the name within it."""
    store = open_store(url, options)
    if not isinstance(store, ObjectStore):
        raise SourceError(f"{url} is not the URL of an object")
    scheme, _, rest = store.url.partition("://")
    bucket, _, key = rest.partition("/")
    return ObjectStore(f"{scheme}://{bucket}", store.options), key


def _found(store: ObjectStore, entry: Entry) -> ObjectPath:
    return ObjectPath(store, entry.name, entry.size, entry.etag)


def _regex(pattern: str) -> str:
    """The names that a pattern matches, as a regular expression. Pure.

    >>> [bool(re.fullmatch(_regex("a/**/*.csv"), name)) for name in ("a/x.csv", "a/b/c/x.csv", "b/x.csv", "a/x.csv.gz")]
    [True, True, False, False]
    """
    *folders, last = pattern.split("/")
    above = "".join(_FOLDERS if part == "**" else _part_regex(part) + "/" for part in folders)
    return above + (_FOLDERS + "[^/]+" if last == "**" else _part_regex(last))


def _part_regex(part: str) -> str:
    """What a part of a pattern between two slashes matches; as everywhere, hidden names need a dot in the pattern."""
    pieces = re.split(r"(\*+|\?|\[!?[^]]+\])", part)
    known = {"*": "[^/]*", "?": "[^/]"}
    visible = r"(?!\.)" if part[:1] in ("*", "?", "[") else ""
    return visible + "".join(
        known.get(piece[:1], piece.replace("[!", "[^")) if number % 2 else re.escape(piece)
        for number, piece in enumerate(pieces)
    )


def _files_below(store: ObjectStore, prefix: str, url: str, endings: Sequence[str]) -> list[ObjectPath]:
    """All data files below a folder, without hidden ones and Spark's marks, which start with an underscore."""
    prefix = prefix.rstrip("/")
    entries = store.entries(prefix)
    below = {entry.name.removeprefix(prefix).lstrip("/"): entry for entry in entries}
    _refuse_tables(below, url)
    kept = {entry.name for entry in _outside_indexes(entries)}
    saved = _saved_names(store, prefix, below)
    found = [
        _found(store, entry)
        for name, entry in below.items()
        if entry.name in kept
        and name.lower().endswith(tuple(endings))
        and (saved is None or name in saved)
        and not any(part.startswith((".", "_")) for part in name.split("/"))
    ]
    if not found:
        raise UnreadableFileError(f"no such object, and no data file below {url}/; looked for {', '.join(endings)}")
    return found


def _refuse_tables(names: Mapping[str, object], url: str) -> None:
    for mark, kind in (
        (r"(.*/)?_delta_log/.*", "a Delta table"),
        (r"(.*/)?\.hoodie/.*", "a Hudi table"),
        (r"(.*/)?metadata/[^/]*\.metadata\.json", "an Iceberg table"),
    ):
        if any(re.fullmatch(mark, name) for name in names):
            raise SourceError(
                f"{url} holds {kind}, whose files include deleted rows; pass it as a pyarrow table instead"
            )
    if any(name.rpartition("/")[2] == "dataset_dict.json" for name in names):
        raise SourceError(f"{url} holds several splits; pass the folder of one")


def _saved_names(store: ObjectStore, prefix: str, names: Mapping[str, Entry]) -> set[str] | None:
    """The data files of a folder that Hugging Face ``datasets`` saved, which may hold files of its cache as well."""
    if "state.json" not in names:
        return None
    try:
        state = json.loads(store.read(names["state.json"].name).to_pybytes())
        return {str(file["filename"]) for file in state["_data_files"]}
    except (ValueError, KeyError, TypeError):
        return None


def _outside_indexes(entries: Sequence[Entry]) -> list[Entry]:
    """The objects that lie in no index, so that one may be written into the folder of its data."""
    indexes = {found[1] or found[2] or "" for entry in entries if (found := _MANIFEST.fullmatch(entry.name))}
    return [entry for entry in entries if not any(above in indexes for above in _above(entry.name))]


def _above(name: str) -> Iterator[str]:
    while name:
        name = name.rpartition("/")[0]
        yield name
