"""The store contract on real S3 servers: exclusive creation, lost answers, refused credentials, processes that fork."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
from proxy import every, proxy_to, reads, writes
from servers import BUCKET

import arrowds
from arrowds.errors import ConfigError, MissingExtraError, StorageError
from arrowds.store import LocalStore, ObjectStore, is_url, open_store

CREATING = Path(__file__).with_name("creating_process.py")


@pytest.fixture(params=["disk", "moto", "seaweedfs"])
def store(request, tmp_path):
    if request.param == "disk":
        return LocalStore(tmp_path / "store")
    server = request.getfixturevalue(f"{request.param}_server")
    return ObjectStore(f"s3://{BUCKET}/{tmp_path.name}-{os.getpid()}-{time.time_ns()}", server.options)


def test_every_store_keeps_the_contract(store):
    assert store.names("") == []
    with pytest.raises(FileNotFoundError):
        store.read("a/b")
    assert store.size("a/b") is None
    written = store.write("a/b", b"12345")
    assert (written.bytes, store.size("a/b"), store.read("a/b").to_pybytes()) == (5, 5, b"12345")
    assert store.write("a/b", b"").bytes == 0
    assert store.read("a/b").to_pybytes() == b""
    assert store.create("c", b"first") is True
    assert store.create("c", b"second") is False
    assert store.read("c").to_pybytes() == b"first"
    large = bytes(range(256)) * (1 << 17)
    with store.writing("a/x y=ü.bin") as draft:
        draft.path.write_bytes(large)
    assert draft.written.bytes == len(large)
    assert store.read("a/x y=ü.bin").to_pybytes() == large
    store.write("ab/d", b"1")
    assert store.names("a") == ["a/b", "a/x y=ü.bin"]
    assert store.names("") == ["a/b", "a/x y=ü.bin", "ab/d", "c"]
    assert [entry.size for entry in store.entries("")] == [0, len(large), 1, 5]
    again = pickle.loads(pickle.dumps(store))
    assert again.read("c").to_pybytes() == b"first"
    store.sync(["c"])
    store.delete(["a/b", "never/there", "c"])
    assert store.names("") == ["a/x y=ü.bin", "ab/d"]


def test_a_draft_that_fails_leaves_no_object(store):
    with pytest.raises(ZeroDivisionError), store.writing("a") as draft:
        draft.path.write_bytes(b"half")
        raise ZeroDivisionError
    assert store.names("") == []


def test_of_eight_processes_that_create_400_objects_each_is_won_once(place):
    command = [sys.executable, str(CREATING), place.url, json.dumps(place.options), "8", "50"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    won = dict(json.loads(line) for line in done.stdout.splitlines())
    assert len(won) == 8
    created = sorted(name for names in won.values() for name in names)
    assert created == [f"{number:03}" for number in range(50)]
    for pid, names in won.items():
        for name in names:
            assert place.store.read(name).to_pybytes() == str(pid).encode()


def test_a_created_object_whose_answer_is_lost_is_created_once(proxy, proxied):
    store = proxied.store
    with proxy.faulty(rule=writes, lose_answer=True, times=1) as fault:
        assert store.create("a", b"1") is True
    assert fault.hits == 1
    assert store.read("a").to_pybytes() == b"1"
    with proxy.faulty(rule=writes, lose_answer=True, times=1):
        assert store.create("a", b"1") is False  # the same content, but another's


@pytest.mark.parametrize(
    "fault",
    [{"status": 500}, {"status": 503}, {"lose_answer": True}, {"delay": 0.5}],
    ids=["500", "503", "lost", "slow"],
)
def test_every_request_is_repeated(proxy, proxied, fault):
    store = proxied.store
    actions = {
        "create": lambda: store.create("new", b"2"),
        "write": lambda: store.write("a", b"123"),
        "read": lambda: store.read("a"),
        "read_range": lambda: store.read_range("a", 0, 2),
        "list": lambda: store.names(""),
        "size": lambda: store.size("a"),
        "delete": lambda: store.delete(["new"]),
    }
    store.write("a", b"1")
    for name, action in actions.items():
        with proxy.faulty(rule=every, times=2, **fault) as hit:
            assert action() is not False, name
        assert hit.hits == (1 if name == "delete" and "delay" in fault else hit.hits) > 0, name
    assert store.names("") == ["a"]


def test_an_answer_that_breaks_off_is_asked_for_again(proxy, proxied):
    store = proxied.store
    content = os.urandom(3_000_000)
    store.write("a", content)
    with proxy.faulty(rule=reads, cut_after=1_000_000, times=2):
        assert store.read("a").to_pybytes() == content
    with proxy.faulty(rule=lambda request: request.is_list, cut_after=50, times=2):
        assert store.names("") == ["a"]
    large = os.urandom(40_000_000)
    with proxy.faulty(rule=writes, lose_answer=True, times=2), store.writing("large") as draft:
        draft.path.write_bytes(large)
    assert store.read("large").to_pybytes() == large


def test_a_store_that_stays_away_is_named_with_what_to_do(proxy, proxied):
    quick = {**proxied.options, "max_retries": 2}
    nobody = {**quick, "aws_endpoint_url": "http://127.0.0.1:9"}
    with pytest.raises(StorageError, match=r"s3://corpus/.*/a could not be read: .*run again: finished work is kept"):
        ObjectStore(proxied.url, nobody).read("a")
    with proxy.faulty(rule=every, status=503) as fault:
        with pytest.raises(StorageError, match=r"could not be written.*503"):
            ObjectStore(proxied.url, quick).create("a", b"")
        assert fault.hits == 3


def test_refused_credentials_and_a_missing_bucket_are_told_apart(seaweed):
    wrong = ObjectStore(seaweed.url, {**seaweed.options, "aws_secret_access_key": "wrong"})
    missing = ObjectStore("s3://no-such-bucket/a", seaweed.options)
    for action in (
        lambda store: store.read("a"),
        lambda store: store.names(""),
        lambda store: store.write("a", b"1"),
        lambda store: store.create("a", b"1"),
    ):
        with pytest.raises(StorageError, match=r"refuses the credentials \(SignatureDoesNotMatch\)") as told:
            action(wrong)
        assert seaweed.options["aws_secret_access_key"] not in str(told.value)
        with pytest.raises(StorageError, match=r"no-such-bucket.*the bucket does not exist"):
            action(missing)


@pytest.mark.parametrize("url", ["s3://bucket/a", "gs://bucket/a"])
def test_missing_credentials_are_named(url, monkeypatch):
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    with pytest.raises(StorageError, match=r"there are no credentials; pass storage_options"):
        ObjectStore(url, {"max_retries": 0}).read("x")


@pytest.mark.parametrize("url", ["az://container/a", "abfs://container/a"])
def test_azure_needs_an_account(url, monkeypatch):
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match=r"can't be opened: .*Account must be specified; check storage_options"):
        open_store(url)


def test_unknown_schemes_and_options_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="unknown scheme 'ftp'"):
        open_store("ftp://host/a")
    with pytest.raises(ConfigError, match="local folder"):
        open_store(tmp_path, {"aws_region": "x"})
    with pytest.raises(ConfigError, match="aws_no_such_option"):
        open_store("s3://bucket/a", {"aws_no_such_option": "x"})


def test_a_path_is_as_good_as_a_string(seaweed):
    assert is_url(Path("s3://bucket/a"))
    store = open_store(Path(seaweed.url), seaweed.options)
    assert store.url == seaweed.url
    store.write("a", b"1")
    assert seaweed.store.read("a").to_pybytes() == b"1"


def test_without_obstore_the_pip_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    monkeypatch.setitem(sys.modules, "obstore.exceptions", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'arrowds\[cloud\]'"):
        open_store("s3://bucket/never-opened-before", {"aws_region": "a"})


def test_credentials_are_in_no_representation_and_no_file(seaweed):
    store = seaweed.store
    assert "testing" not in repr(store)
    assert "testing" not in str(arrowds.errors.StorageError(f"{store}"))


def test_a_store_without_conditional_puts_is_refused_before_anything_is_written(moto_server):
    with proxy_to(moto_server.endpoint) as proxy:
        # moto checks no signatures, of which the header is a part.
        server = moto_server.through(proxy.endpoint)
        url = f"s3://{BUCKET}/unconditional-{time.time_ns()}"
        with (
            proxy.faulty(drop_header="If-None-Match"),
            pytest.raises(
                StorageError, match=r"can't create an object only if it is absent.*write the index to a disk"
            ),
        ):
            arrowds.analyze([1, 2], length, url, storage_options=server.options, progress=False)
        assert ObjectStore(url, server.options).names("") == []


length = arrowds.metrics.function("m", lambda batch: batch, dtype="int64")


def read_in_child(store, queue):
    try:
        found = store.read("a").to_pybytes(), store.names(""), store.create("b", b"2"), store.create("b", b"3")
        try:
            store.read("missing")
        except FileNotFoundError:
            queue.put(found)
    except BaseException as error:
        queue.put(repr(error))


def test_a_process_that_was_forked_reads_and_writes_too(seaweed):
    store = seaweed.store
    store.write("a", b"1")
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=read_in_child, args=(store, queue))
    child.start()
    assert queue.get(timeout=120) == (b"1", ["a"], True, False)
    child.join()
    assert store.read("b").to_pybytes() == b"2"
