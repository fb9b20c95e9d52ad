"""What every store must do; ``tests/test_store.py`` holds local disks to it, and others derive from the class.

A subclass gives a fixture ``store``: a new, empty store that can be pickled.
"""

from __future__ import annotations

import multiprocessing
import pickle
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from arrowds.errors import StorageError
from arrowds.index import files
from arrowds.store import Store

THREADS, PROCESSES, ROUNDS = 16, 8, 5


def _race(store: Store, number: int, start, results) -> None:
    start.wait()
    results.put([(round_, number) for round_ in range(ROUNDS) if store.create(f"race/{round_}", str(number).encode())])


class StoreContract:
    @pytest.fixture
    def store(self) -> Store:
        raise NotImplementedError("a subclass gives the store")

    def test_what_is_written_is_read_until_it_is_replaced_or_deleted(self, store):
        for content in (b"first", b"", b"second" * 100_000):
            written = store.write("a/b/c.json", content)
            assert store.read("a/b/c.json").to_pybytes() == content
            assert store.size("a/b/c.json") == written.bytes == len(content)
        store.delete(["a/b/c.json", "a/never"])
        assert store.size("a/b/c.json") is None
        with pytest.raises(FileNotFoundError):
            store.read("a/b/c.json")

    def test_what_is_not_there_is_told_from_what_can_not_be_read(self, store):
        for name in ("nothing", "no/such/folder"):
            assert store.size(name) is None
            with pytest.raises(FileNotFoundError):
                store.read(name)
        assert store.names("") == store.names("no/such/folder") == []
        store.delete(["nothing"])

    def test_a_listing_names_what_lies_below_a_prefix_sorted(self, store):
        before = datetime.now(UTC) - timedelta(minutes=10)
        for name in ("b/2", "b/10", "b/sub/x", "bb/1", "a", "c/1"):
            store.write(name, name.encode())
        assert store.names("b") == ["b/10", "b/2", "b/sub/x"]
        assert store.names("") == ["a", "b/10", "b/2", "b/sub/x", "bb/1", "c/1"]
        assert [(entry.name, entry.size) for entry in store.entries("b/sub")] == [("b/sub/x", 7)]
        assert all(before < entry.modified < before + timedelta(minutes=20) for entry in store.entries(""))

    def test_an_object_appears_whole_or_not_at_all(self, store):
        with store.writing("a/x") as draft:
            draft.path.write_bytes(b"half")
            assert store.size("a/x") is None
            assert "a/x" not in store.names("")
            draft.path.write_bytes(b"whole")
        assert (draft.written.bytes, store.read("a/x").to_pybytes()) == (5, b"whole")
        with pytest.raises(KeyboardInterrupt), store.writing("a/x") as draft:
            draft.path.write_bytes(b"never")
            raise KeyboardInterrupt
        assert store.read("a/x").to_pybytes() == b"whole"
        assert store.names("") == ["a/x"]
        with pytest.raises(StorageError):
            _ = draft.written

    def test_parquet_and_ipc_go_through_it(self, store):
        table = pa.table({"value": pa.array(range(1000))})
        written = files.write_parquet(store, "t.parquet", table)
        assert files.read_parquet(store, "t.parquet").equals(table)
        assert store.size("t.parquet") == written.bytes
        files.write_ipc(store, "t.arrow", table, rows_per_batch=300, metadata={b"key": b"x"})
        reader = files.open_ipc(store, "t.arrow")
        assert [batch.num_rows for batch in reader.read(0, 4)] == [300, 300, 300, 100]
        assert [batch["value"][0].as_py() for batch in reader.read(1, 3)] == [300, 600]
        assert reader.read(2, 2) == []
        assert reader.schema.metadata[b"key"] == b"x"

    def test_create_does_not_replace(self, store):
        assert store.create("m/1", b"mine")
        assert not store.create("m/1", b"theirs")
        assert store.read("m/1").to_pybytes() == b"mine"
        store.delete(["m/1"])
        assert store.create("m/1", b"again")
        assert store.names("") == ["m/1"]

    def test_of_many_threads_one_creates(self, store):
        def create(number: int) -> list[int]:
            return [round_ for round_ in range(ROUNDS) if store.create(f"race/{round_}", str(number).encode())]

        with ThreadPoolExecutor(THREADS) as threads:
            won = dict(enumerate(threads.map(create, range(THREADS))))
        self.check_one_winner(store, [(round_, number) for number, rounds in won.items() for round_ in rounds])

    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # other tests start threads
    def test_of_many_processes_one_creates(self, store):
        context = multiprocessing.get_context("fork")
        start, results = context.Barrier(PROCESSES), context.Queue()
        processes = [context.Process(target=_race, args=(store, n, start, results)) for n in range(PROCESSES)]
        for process in processes:
            process.start()
        won = [item for _ in processes for item in results.get(timeout=120)]
        for process in processes:
            process.join(30)
            assert process.exitcode == 0
        self.check_one_winner(store, won)

    def check_one_winner(self, store, won) -> None:
        assert sorted(round_ for round_, _ in won) == list(range(ROUNDS))
        for round_, number in won:
            assert store.read(f"race/{round_}").to_pybytes() == str(number).encode()
        assert store.names("") == [f"race/{round_}" for round_ in range(ROUNDS)]

    def test_a_pickled_store_is_the_same_place(self, store):
        store.write("a", b"1")
        again = pickle.loads(pickle.dumps(store))
        assert again.read("a").to_pybytes() == b"1"
        assert again.url == store.url and store.url in repr(again)

    def test_what_is_synced_is_there(self, store):
        store.write("a/b", b"1", durable=True)
        store.write("c", b"2")
        store.sync(["a/b", "c"])
        store.sync([])
        assert store.names("") == ["a/b", "c"]
