"""Local disks keep the contract of stores; a disk that is full, read-only or forbidden is an error in words."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import xxhash
from index_files import contents, memory_folder
from store_contract import StoreContract

import arrowds
from arrowds.errors import ConfigError, StorageError
from arrowds.index import files
from arrowds.store import FileRecord, LocalStore, one_at_a_time, open_store, record, replacing

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="mounting a file system needs root")


class TestLocalStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path):
        return open_store(tmp_path / "deep" / "root")

    def test_of_many_threads_one_creates_where_files_have_no_hard_links(self, store, monkeypatch):
        def refused(source, target):
            raise OSError(errno.EPERM, "no hard links here")

        monkeypatch.setattr(os, "link", refused)
        self.test_of_many_threads_one_creates(store)

    def test_a_draft_that_a_vacuum_takes_is_written_again(self, store, monkeypatch):
        link, taken = os.link, []

        def swept(source, target):
            if not taken:
                taken.append(source)
                Path(source).unlink()
            return link(source, target)

        monkeypatch.setattr(os, "link", swept)
        assert store.create("m/1", b"x")
        assert taken and store.names("") == ["m/1"]

    def test_reading_is_a_map_and_no_copy(self, store):
        store.write("a", bytes(1 << 20))
        before = pa.total_allocated_bytes()
        data = store.read("a")
        assert pa.total_allocated_bytes() - before < 1 << 16
        store.delete(["a"])
        assert data.size == 1 << 20  # what is mapped stays

    def test_empty_folders_go_with_their_last_object(self, store):
        store.write("a/b/c", b"1")
        store.write("a/d", b"1")
        store.delete(["a/b/c"])
        assert sorted(path.name for path in store.root.rglob("*")) == ["a", "d"]
        store.delete(["a/d"])
        assert store.root.is_dir() and not list(store.root.iterdir())


def test_names_of_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert open_store("x").url == str(tmp_path / "x")
    assert open_store("~/x").url == str(tmp_path / "home" / "x")
    assert open_store(f"file://{tmp_path}/x").url == str(tmp_path / "x")
    with pytest.raises(ConfigError, match="storage_options belong to a URL"):
        open_store("x", {"aws_region": "here"})
    with pytest.raises(ConfigError, match=r"unknown scheme 'hdfs'; expected a folder, or one of s3://, gs://, az://"):
        open_store("hdfs://host:9000/x")


@contextmanager
def file_size_limit(nbytes: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def begin_and_end(context) -> None:
    with context:
        pass


WRITERS = {
    "write": lambda store: store.write("file", b"x" * 10_000),
    "create": lambda store: store.create("other", b"x" * 10_000),
    "parquet": lambda store: files.write_parquet(
        store, "file", pa.table({"v": np.random.default_rng(0).random(10_000)})
    ),
    "ipc": lambda store: files.write_ipc(
        store, "file", pa.table({"v": np.arange(10_000)}), rows_per_batch=1000, metadata={}
    ),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_file_size_limit_says_what_to_do(tmp_path, write):
    store = LocalStore(tmp_path)
    store.write("file", b"old")
    with (
        file_size_limit(4096),
        pytest.raises(StorageError, match=r"file-size limit .* \(ulimit -f\) .* raise it") as caught,
    ):
        write(store)
    assert caught.value.errno == errno.EFBIG
    assert contents(tmp_path) == {"file": b"old"}


@contextmanager
def mounted(folder: Path, options: str):
    """A file system in memory; unmounted at the end even if maps are open."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@needs_root
@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_full_disk_says_so_and_keeps_what_is_there(tmp_path, write):
    with mounted(tmp_path / "disk", "size=64k") as disk:
        store = LocalStore(disk)
        store.write("file", b"old")
        filling = (disk / "filling").open("wb")
        with pytest.raises(OSError, match="No space"), filling:
            while True:
                filling.write(bytes(4096))
                filling.flush()
        with pytest.raises(StorageError, match="the disk is full; free space or choose another path") as caught:
            write(store)
        assert caught.value.errno == errno.ENOSPC
        (disk / "filling").unlink()
        assert contents(disk) == {"file": b"old"}


@needs_root
def test_a_map_that_does_not_fit_is_an_error_before_it_is_written_to(tmp_path):
    """A write to a map without room behind it would be a SIGBUS."""
    with mounted(tmp_path / "disk", "size=2m") as disk, pytest.raises(OSError, match="No space"):
        begin_and_end(files.allocated_map(disk / "a.arrow", pa.int64(), 1 << 20, name="v"))


@needs_root
def test_a_read_only_disk_is_an_error_in_words_and_can_be_read(tmp_path):
    with mounted(tmp_path / "disk", "size=4m") as disk:
        table = pa.table({"input_ids": [[1, 2], [3]]})
        arrowds.analyze(table, arrowds.metrics.seqlen(), disk / "ix", workers=1, progress=False)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for act in (
            lambda: arrowds.analyze(
                table, arrowds.metrics.seqlen(), disk / "ix", overwrite=True, workers=1, progress=False
            ),
            lambda: arrowds.analyze(table, arrowds.metrics.seqlen(), disk / "new", workers=1, progress=False),
            lambda: arrowds.append(table, disk / "ix", workers=1, progress=False),
            lambda: LocalStore(disk / "ix").create("manifests/00000002.json", b"x"),
            lambda: LocalStore(disk / "ix").delete(["manifests/00000001.json"]),
        ):
            with pytest.raises(StorageError, match="the file system is read-only"):
                act()
        index = arrowds.open_index(disk / "ix", cache_dir=tmp_path / "cache", verify=True)
        assert index["seqlen"].order.tolist() == [1, 0]
        assert (tmp_path / "cache").is_dir()


def test_the_maps_of_an_index_that_can_not_be_written_lie_in_the_users_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    table = pa.table({"input_ids": [[1, 2], [3]]})
    index = arrowds.analyze(table, arrowds.metrics.seqlen(), tmp_path / "ix", workers=1, progress=False)
    before = contents(tmp_path / "ix")
    monkeypatch.setattr(arrowds.index.index, "_is_writable", lambda root: "ix" not in root.parts)
    assert index["seqlen"].order.tolist() == [1, 0]
    assert contents(tmp_path / "ix") == before
    assert [path.name for path in (tmp_path / "cache").rglob("order.arrow")] == ["order.arrow"]


AS_NOBODY = """
import os, sys
from pathlib import Path
import arrowds, pyarrow as pa
from arrowds.errors import StorageError
from arrowds.store import LocalStore
root = Path(sys.argv[1])
os.setgid(65534); os.setuid(65534)
for act in (
    lambda: LocalStore(root / "closed").read("secret"),
    lambda: LocalStore(root / "closed").write("x", b"1"),
    lambda: LocalStore(root / "closed").create("x", b"1"),
    lambda: LocalStore(root / "closed").delete(["secret"]),
    lambda: LocalStore(root / "new" / "deep").create("x", b"1"),
):
    try:
        act()
    except StorageError as error:
        print(error)
"""


@needs_root
def test_what_is_forbidden_is_an_error_in_words():
    with memory_folder() as folder:
        folder.chmod(0o755)
        (folder / "closed").mkdir(mode=0o755)
        (folder / "closed" / "secret").write_bytes(b"1")
        (folder / "closed" / "secret").chmod(0o600)
        run = subprocess.run([sys.executable, "-c", AS_NOBODY, folder], capture_output=True, text=True, check=False)
    lines = run.stdout.splitlines()
    assert len(lines) == 5, run.stdout + run.stderr
    assert all("permission denied" in line and str(folder) in line for line in lines)
    assert [line.split(": ")[0].rsplit(" ", 3)[-1] for line in lines] == [
        "read",
        "written",
        "written",
        "deleted",
        "created",
    ]


def test_a_path_below_a_file_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    store = LocalStore(tmp_path / "file" / "sub")
    for write in WRITERS.values():
        with pytest.raises(StorageError, match=r"file/sub.* could not be"):
            write(store)
    assert store.size("x") is None and store.names("") == []


def test_what_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replacing(path) as draft:
        draft.path.write_text("half")
        raise KeyboardInterrupt
    assert contents(tmp_path) == {"a.txt": b"old"}


def test_the_record_of_a_file_is_its_size_and_digest(tmp_path):
    content = np.random.default_rng(0).bytes((1 << 24) + 7)  # more than a block
    (tmp_path / "a").write_bytes(content)
    assert record(tmp_path / "a") == FileRecord(len(content), xxhash.xxh3_128_hexdigest(content))
    with replacing(tmp_path / "b") as draft:
        draft.path.write_bytes(content)
    assert draft.written == record(tmp_path / "b")


@pytest.mark.parametrize("call", ["sync", "create", "durable"])
def test_a_sync_that_fails_is_an_error(tmp_path, monkeypatch, call):
    store = LocalStore(tmp_path)
    store.write("a", b"1")

    def failing(descriptor):
        raise OSError(errno.EIO, "the disk is dying")

    monkeypatch.setattr(os, "fsync", failing)
    acts = {
        "sync": lambda: store.sync(["a"]),
        "create": lambda: store.create("b", b"1"),
        "durable": lambda: store.write("b", b"1", durable=True),
    }
    with pytest.raises(StorageError, match="the disk is dying"):
        acts[call]()
    assert contents(tmp_path) == {"a": b"1"}


def test_one_at_a_time_holds_others_back_and_leaves_nothing(tmp_path):
    lock, inside, most = tmp_path / "lock", [], []

    def work() -> None:
        for _ in range(20):
            with one_at_a_time(lock) as held:
                assert held
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(most) == 120 and max(most) == 1
    with one_at_a_time(lock), one_at_a_time(lock, wait=False) as second:
        assert not second
    with one_at_a_time(lock, wait=False) as held:
        assert held
    assert contents(tmp_path) == {}
