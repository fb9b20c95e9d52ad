"""Every state in which a power cut may leave a folder, worked out from a record of what a program did to it.

The model is what POSIX promises, no more. The content of a file is safe once the file was synced; before that, after a
crash it may be whole, cut short or empty. A change of a folder (a new name, a rename, a removed name) is safe once that
folder was synced; before that each change may have happened or not, independently of all others and of the content.
"""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pytest

from arrowds.store import Entry, Store

Tree = dict[str, bytes]
"""The files below a folder, by relative path."""


@dataclass(frozen=True)
class Op:
    """A change of folders, or a sync. ``folder`` is a number, ``changes`` set names in folders to nodes, or to None."""

    what: str
    changes: tuple[tuple[int, str, int | None], ...] = ()
    synced: int | None = None
    content: bytes | None = None
    """Of a file that was synced: what is safe from here on."""


@dataclass
class Recording:
    """What a program did below a folder, whose node is 0."""

    ops: list[Op] = field(default_factory=list)
    files: dict[int, bytes] = field(default_factory=dict)
    """The last content of each file by its node."""
    start: dict[tuple[int, str], int] = field(default_factory=dict)
    safe: dict[int, bytes] = field(default_factory=dict)
    """The names, and the content of files, that were there and safe at the beginning."""

    def tree(self, taken: Iterable[int], content: Callable[[int], bytes]) -> Tree:
        """The files that can be reached after some of the operations, each with the content that is given."""
        names = dict(self.start)
        for number in sorted(taken):
            for folder, name, node in self.ops[number].changes:
                if node is None:
                    names.pop((folder, name), None)
                else:
                    names[folder, name] = node
        children: dict[int, list[tuple[str, int]]] = {}
        for (folder, name), node in names.items():
            children.setdefault(folder, []).append((name, node))
        found: Tree = {}

        def walk(folder: int, above: str) -> None:
            for name, node in children.get(folder, ()):
                if node in self.files:
                    found[above + name] = content(node)
                else:
                    walk(node, f"{above}{name}/")

        walk(0, "")
        return found

    def crashes(self, *, seed: int = 0, more: int = 2) -> Iterator[tuple[int, Tree]]:
        """Yield (operations done, what a crash leaves), each state once.

        For every moment: all changes, or only those that are safe, with the content that was not synced whole, lost or
        with a hole; each of the last changes, and some earlier ones, alone or left out; and random choices of all.
        """
        randomly = random.Random(seed)
        seen: set[frozenset[tuple[str, bytes]]] = set()
        for moment in range(len(self.ops) + 1):
            safe, loose, synced = self._safety(moment)
            if moment == len(self.ops):
                seen.clear()  # what is left at the end is told in full
            ways = (_whole, _empty, _short)
            choices = [(taken, way) for taken in (safe | loose, safe) for way in ways]
            some = {*sorted(loose)[-3:], *randomly.sample(sorted(loose), min(more, len(loose)))}
            choices += [(taken, _whole) for one in some for taken in (safe | {one}, safe | loose - {one})]
            choices += [
                ({*safe, *randomly.sample(sorted(loose), len(loose) // 2)}, randomly.choice(ways)) for _ in range(more)
            ]
            for taken, way in choices:
                tree = self.tree(taken, lambda node, way=way, synced=synced: synced.get(node) or way(self.files[node]))
                key = frozenset(tree.items())
                if key not in seen:
                    seen.add(key)
                    yield moment, tree

    def kills(self) -> Iterator[tuple[int, Tree]]:
        """Yield (operations done, what a kill leaves): all that was done so far."""
        for moment in range(len(self.ops) + 1):
            yield moment, self.tree(range(moment), self.files.__getitem__)

    def _safety(self, moment: int) -> tuple[set[int], set[int], dict[int, bytes]]:
        """The changes that are safe at a moment, those that are not, and the safe content of files."""
        safe: set[int] = set()
        loose: set[int] = set()
        synced = dict(self.safe)
        for number in range(moment):
            op = self.ops[number]
            if op.changes:
                loose.add(number)
            elif op.content is not None and op.synced is not None:
                synced[op.synced] = op.content
            elif op.synced is not None:
                done = {n for n in loose if all(folder == op.synced for folder, _, _ in self.ops[n].changes)}
                safe |= done
                loose -= done
        return safe, loose, synced


def _whole(data: bytes) -> bytes:
    return data


def _empty(data: bytes) -> bytes:
    return b""


def _short(data: bytes) -> bytes:
    """As long as it was, with a block of it lost."""
    middle = len(data) // 2
    return data[:middle] + bytes(len(data) - middle)


class _Recorder:
    """Python's calls that change folders, patched; what Arrow writes is found when it is synced or renamed."""

    def __init__(self, base: Path) -> None:
        self.base = str(base)
        self.recording = Recording()
        self.names: dict[tuple[int, str], int | None]
        self.lock = threading.RLock()
        self.nodes: dict[int, int] = {os.stat(base).st_ino: 0}
        self._known(Path(base), self.recording.start)
        self.names = dict(self.recording.start)

    def _known(self, folder: Path, names: dict[tuple[int, str], int]) -> None:
        for entry in sorted(folder.iterdir()):
            names[self.node(folder), entry.name] = self.node(entry)
            if entry.is_dir():
                self._known(entry, names)
            else:
                self.recording.files[self.node(entry)] = self.recording.safe[self.node(entry)] = entry.read_bytes()

    def node(self, path: str | Path) -> int:
        return self.nodes.setdefault(os.stat(path).st_ino, len(self.nodes))

    def mine(self, path: object) -> bool:
        return isinstance(path, (str, Path)) and str(path).startswith(self.base + "/")

    def add(self, what: str, *changes: tuple[int, str, int | None], synced=None, content=None) -> None:
        self.recording.ops.append(Op(what, changes, synced, content))
        for folder, name, node in changes:
            self.names[folder, name] = node

    def notice(self, path: str | Path) -> None:
        """Take note of names that were created without a call that was seen, and of the content behind them."""
        path = Path(path)
        if path.exists():
            for above in [*reversed([p for p in path.parents if self.mine(p)]), path]:
                self._notice_name(above)
            for entry in sorted(path.iterdir()) if path.is_dir() else ():
                if not entry.is_dir():
                    self._notice_name(entry)

    def _notice_name(self, path: Path) -> None:
        if str(path) != self.base:
            key = (self.node(path.parent), path.name)
            if self.names.get(key) != self.node(path):
                self.add(f"new {path.name}", (*key, self.node(path)))
            if not path.is_dir():
                self.recording.files[self.node(path)] = path.read_bytes()


@contextmanager
def recorded(base: Path) -> Iterator[Recording]:
    """Record what the block does below ``base``, in this process and its threads. All that is there is safe."""
    recorder = _Recorder(base)
    real = {
        name: getattr(os, name) for name in ("rename", "replace", "link", "unlink", "remove", "mkdir", "rmdir", "fsync")
    }

    def moved(name: str):
        def call(source, target, **options):
            with recorder.lock:
                if not recorder.mine(source):
                    return real[name](source, target, **options)
                recorder.notice(source)
                recorder.notice(Path(target).parent)
                node = recorder.node(source)
                real[name](source, target, **options)
                gone = [] if name == "link" else [(recorder.node(Path(source).parent), Path(source).name, None)]
                recorder.add(f"{name} {target}", *gone, (recorder.node(Path(target).parent), Path(target).name, node))

        return call

    def removed(name: str):
        def call(path, *, dir_fd=None, **options):
            with recorder.lock:
                whole = Path(os.readlink(f"/proc/self/fd/{dir_fd}"), path) if dir_fd is not None else Path(path)
                if not recorder.mine(whole) or not whole.exists():
                    return real[name](path, dir_fd=dir_fd, **options)
                recorder.notice(whole)
                parent, inode = recorder.node(whole.parent), os.stat(whole)
                real[name](path, dir_fd=dir_fd, **options)
                if inode.st_nlink <= 1 or name == "rmdir":
                    recorder.nodes.pop(inode.st_ino, None)  # the number may be given to another file
                recorder.add(f"{name} {whole}", (parent, whole.name, None))

        return call

    def mkdir(path, *arguments, **options):
        with recorder.lock:
            real["mkdir"](path, *arguments, **options)
            if recorder.mine(path):
                recorder.notice(path)

    def fsync(descriptor):
        with recorder.lock:
            real["fsync"](descriptor)
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if path == recorder.base or recorder.mine(path):
                recorder.notice(path)
                content = None if os.path.isdir(path) else Path(path).read_bytes()
                recorder.add(f"fsync {path}", synced=recorder.node(path), content=content)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("rename", "replace", "link"):
            patch.setattr(os, name, moved(name))
        for name in ("unlink", "remove", "rmdir"):
            patch.setattr(os, name, removed(name))
        patch.setattr(os, "mkdir", mkdir)
        patch.setattr(os, "fsync", fsync)
        yield recorder.recording


class TreeStore(Store):
    """A tree of files in memory, read as an index."""

    url = "memory"

    def __init__(self, tree: Tree, below: str = "") -> None:
        self.files = {name.removeprefix(below): data for name, data in tree.items() if name.startswith(below)}

    def read(self, name: str) -> pa.Buffer:
        if name not in self.files:
            raise FileNotFoundError(name)
        return pa.py_buffer(self.files[name])

    def entries(self, prefix: str) -> list[Entry]:
        raise NotImplementedError

    def names(self, prefix: str) -> list[str]:
        return sorted(name for name in self.files if name.startswith(f"{prefix}/" if prefix else ""))

    def size(self, name: str) -> int | None:
        return len(self.files[name]) if name in self.files else None

    def writing(self, name: str):
        raise NotImplementedError

    create = delete = sync = writing


def laid_out(tree: Tree, folder: Path) -> Path:
    """Write a tree to an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, data in tree.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder
