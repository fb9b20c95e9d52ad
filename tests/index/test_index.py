"""Opening an index, its names, pickling and forks; damaged files are errors, never crashes."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
from thresholds import TINY, small_thresholds

import arrowds
from arrowds.errors import (
    IndexCorruptError,
    IndexNotFoundError,
    IndexVersionError,
    UnknownMetricError,
    VersionNotFoundError,
)
from arrowds.index import open_index
from arrowds.parallel import computed_once

fork = multiprocessing.get_context("fork")
FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # other tests start threads


def test_an_index_names_its_metrics_and_totals(make_index):
    total = np.arange(6, dtype=np.float32).reshape(2, 3)
    index = make_index({"a": pa.array([1, 2]), "b": pa.array([True, False])}, {"t": total, "scalar": np.array(7)})
    assert (len(index), index.num_samples, index.metrics, list(index)) == (2, 2, ["a", "b"], ["a", "b"])
    assert "a" in index and "t" not in index
    assert list(index.totals) == ["t", "scalar"]
    assert np.array_equal(index.totals["t"], total) and index.totals["t"].dtype == np.float32
    assert index.totals["scalar"].shape == () and index.totals["scalar"] == 7
    with pytest.raises(ValueError, match="read-only"):
        index.totals["t"][0, 0] = 1
    assert "num_samples=2" in repr(index)
    assert index["a"] is index["a"]
    assert index.version == 1


def test_unknown_names_say_what_there_is(make_index):
    index = make_index({"a": pa.array([1, 2])}, {"t": np.array([1])})
    for lookup, message in [(lambda: index["c"], "it has a"), (lambda: index["t"], r"index.totals\['t'\]")]:
        with pytest.raises(UnknownMetricError, match=message):
            lookup()
    with pytest.raises(KeyError):
        index["c"]
    with pytest.raises(KeyError, match="it has t"):
        index.totals["c"]
    assert index.totals.get("c") is None


def test_a_pickled_index_and_metric_answer_the_same(make_index):
    index = make_index({"a": pa.array([3, 1, 2])}, {"t": np.array([1])})
    index["a"].sample_ids(above=1)
    again = pickle.loads(pickle.dumps(index))
    assert again["a"].order.tolist() == [1, 2, 0]
    assert pickle.loads(pickle.dumps(index["a"]))[0] == 3
    assert (again.fingerprint, again.version) == (index.fingerprint, index.version)
    assert len(pickle.dumps(index["a"])) < 1000


@pytest.mark.parametrize("again", [[3, 1, 2], [9, 8, 7], [1, 3, 2]], ids=["the same", "other values", "another order"])
def test_an_index_whose_folder_was_replaced_keeps_its_answers_or_refuses(make_index, tmp_path, again):
    """Of what is mapped nothing changes; what is read only now is the same, or an error, and never the other index."""
    path = tmp_path / "ix"
    opened, unused = make_index({"a": pa.array([3, 1, 2])}, path=path), open_index(path)
    order, pickled = opened["a"].order, pickle.dumps(unused)
    shutil.rmtree(path)
    make_index({"a": pa.array(again)}, path=path)["a"].order  # noqa: B018
    assert order.tolist() == opened["a"].order.tolist() == [1, 2, 0]
    answers = {
        "half mapped": lambda: opened["a"].values.tolist(),
        "not mapped": lambda: unused["a"].values.tolist(),
        "queried": lambda: unused.scan().collect()["a"].to_list(),
        "pickled": lambda: pickle.loads(pickled)["a"].values.tolist(),
    }
    for how, answer in answers.items():
        if again == [3, 1, 2]:
            assert answer() == again, how
            continue
        with pytest.raises((IndexCorruptError, VersionNotFoundError)):
            answer()


def _send_order(index, connection):
    connection.send((index["a"].order.tolist(), int(index["b"][1]), index["a"].count(above=1)))


@FORKS
def test_an_index_works_after_a_fork(make_index):
    index = make_index({"a": pa.array([3, 1, 2]), "b": pa.array([5, 6, 7])})
    index["a"].order  # one map is open before the fork, the other is not  # noqa: B018
    here, there = fork.Pipe()
    process = fork.Process(target=_send_order, args=(index, there))
    process.start()
    assert here.poll(60)
    assert here.recv() == ([1, 2, 0], 6, 2)
    process.join(60)
    assert process.exitcode == 0


@FORKS
def test_a_fork_while_another_thread_opens_a_metric_does_not_hang(make_index, monkeypatch):
    """No lock of an attribute or a module is held across the opening, so that none is lost in the child."""
    index = make_index({"a": pa.array([3, 1, 2]), "b": pa.array([5, 6, 7])})
    opening, forked = threading.Event(), threading.Event()
    open_view = arrowds.Index.open_view

    def slow(self, spec):
        if threading.current_thread() is not threading.main_thread():
            opening.set()
            forked.wait(60)
        return open_view(self, spec)

    monkeypatch.setattr(arrowds.Index, "open_view", slow)
    thread = threading.Thread(target=lambda: index["a"].order)
    thread.start()
    assert opening.wait(60)
    here, there = fork.Pipe()
    process = fork.Process(target=_send_order, args=(index, there))
    process.start()
    try:
        assert here.poll(60), "the child hangs"
        assert here.recv() == ([1, 2, 0], 6, 2)
    finally:
        forked.set()
        process.kill()
        process.join(60)
        thread.join(60)


def test_an_attribute_is_computed_once_and_never_under_a_lock():
    calls = []

    class Slow:
        @computed_once
        def value(self):
            """The docstring stays."""
            calls.append(threading.get_ident())
            time.sleep(0.05)
            return object()

    slow, found = Slow(), []
    threads = [threading.Thread(target=lambda: found.append(slow.value)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(map(id, found))) == 1 and found[0] is slow.value
    assert len(set(calls)) == 4  # they did not wait for one another
    assert Slow.value.__doc__ == "The docstring stays."
    assert Slow().value is not slow.value


def test_opening_needs_an_index(tmp_path, make_index):
    with pytest.raises(IndexNotFoundError, match="does not exist; create an index there with"):
        open_index(tmp_path / "nothing")
    with pytest.raises(IndexNotFoundError, match="has no manifest"):
        open_index(tmp_path)
    path = make_index({"a": pa.array([1])}).path
    assert open_index(str(path), cache_dir=tmp_path)["a"][0] == 1
    assert [found.name for found in tmp_path.rglob("order.arrow")] == ["order.arrow"]
    newer = shutil.copytree(path, tmp_path / "newer") / "manifests" / "00000001.json"
    newer.write_text(newer.read_text().replace('"format_version": 2', '"format_version": 99'))
    with pytest.raises(IndexVersionError, match="99"):
        open_index(tmp_path / "newer")
    for version in (0, 2, 10**9):
        with pytest.raises(VersionNotFoundError, match=f"no version {version}; the newest is 1"):
            open_index(path, version=version)


def files_of(index):
    return [index.path / name for name in sorted(index.manifest.files)]


@pytest.mark.parametrize("damage", ["missing", "truncated", "grown"])
def test_files_of_another_size_are_found_at_opening(make_index, tmp_path, damage):
    with small_thresholds(**TINY):
        index = make_index({"a": pa.array(range(20))}, {"t": np.array([1])})
    for number in range(len(files_of(index))):
        copied = open_index(shutil.copytree(index.path, tmp_path / str(number)))
        path = files_of(copied)[number]
        content = path.read_bytes()
        path.unlink() if damage == "missing" else path.write_bytes(
            content[:-1] if damage == "truncated" else content + b"\0"
        )
        with pytest.raises(IndexCorruptError, match=path.name):
            open_index(copied.path)
        with pytest.raises(IndexCorruptError, match=path.name):
            copied.verify()


def test_a_map_truncated_after_opening_is_an_error_and_no_crash(make_index):
    index = make_index({"a": pa.array(range(100_000))})
    index["a"].order, index["a"].values
    again = open_index(index.path)
    again["a"]._view  # noqa: B018  # found whole, but not mapped yet
    for path in index.path.glob("views/*/*.arrow"):
        path.write_bytes(path.read_bytes()[:1000])
    for lookup in (lambda: again["a"][99_999], lambda: again["a"].sample_ids(up_to=3)):
        with pytest.raises(IndexCorruptError, match="1000 bytes"):
            lookup()


@pytest.mark.parametrize("kind", ["values", "buckets"])
def test_no_view_is_made_of_a_file_with_another_content(make_index, kind):
    index = make_index({"a": pa.array([3, 1, 2])})
    (path,) = index.path.glob(f"metrics/a/{kind}/**/*.parquet")
    content = bytearray(path.read_bytes())
    content[path.read_bytes().index(b"PAR1") + 40] ^= 1  # of the first page, which can still be read
    path.write_bytes(content)
    opened = open_index(index.path)
    with pytest.raises(IndexCorruptError, match="has changed since it was written"):
        opened["a"].order  # noqa: B018
    with pytest.raises(IndexCorruptError, match="has changed since it was written"):
        opened["a"].values  # noqa: B018


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty", "no summary", "other summary"])
def test_a_damaged_view_is_made_again(make_index, damage):
    index = make_index({"a": pa.array([3, 1, 2])})
    index["a"].order  # noqa: B018
    (view,) = (index.path / "views").iterdir()
    if damage == "missing":
        (view / "order.arrow").unlink()
    elif damage == "truncated":
        (view / "values.arrow").write_bytes((view / "values.arrow").read_bytes()[:-1])
    elif damage == "empty":
        (view / "order.arrow").write_bytes(b"")
    elif damage == "no summary":
        (view / "view.json").unlink()
    else:
        (view / "view.json").write_text('{"values.arrow": {}, "order.arrow": 7}')
    assert open_index(index.path)["a"].order.tolist() == [1, 2, 0]
    index.verify()
    assert [path.name for path in (index.path / "views").iterdir()] == [view.name]


def test_verify_names_every_changed_file_of_the_index_and_of_its_views(make_index):
    index = make_index({"a": pa.array([1, 2, 3])}, {"t": np.array([1])})
    index["a"].order  # noqa: B018
    index.verify()
    flipped = [*files_of(index)[::2], *index.path.glob("views/*/values.arrow")]
    for path in flipped:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(IndexCorruptError) as caught:
        index.verify()
    assert all(str(path.relative_to(index.path)) in str(caught.value) for path in flipped)
    with pytest.raises(IndexCorruptError):
        open_index(index.path, verify=True)
    open_index(index.path)  # sizes alone don't tell


def test_a_damaged_view_is_not_extended_by_an_append(make_index):
    index = make_index({"a": pa.array([3, 1, 2])})
    index["a"].order  # noqa: B018
    (path,) = index.path.glob("views/*/order.arrow")
    content = bytearray(path.read_bytes())
    place = content.rindex(np.array([1, 2, 0], np.uint32).tobytes())
    content[place : place + 4] = b"\2\0\0\0"
    path.write_bytes(content)
    grown = arrowds.append(pa.table({"a": [0]}), index.path, workers=1, progress=False)
    assert grown["a"].order.tolist() == [3, 1, 2, 0]


def _count_views(path, start, made, results):
    start.wait()
    index = open_index(path)
    results.put(index["a"].order.tolist())


@FORKS
def test_of_many_processes_that_open_a_view_at_once_one_makes_it(make_index, monkeypatch):
    index = make_index({"a": pa.array(range(1000, 0, -1))})
    made = fork.Value("i", 0)
    make = arrowds.index.view._make

    def counted(*arguments):
        with made.get_lock():
            made.value += 1
        time.sleep(0.1)
        make(*arguments)

    monkeypatch.setattr(arrowds.index.view, "_make", counted)
    start, results = fork.Barrier(8), fork.SimpleQueue()
    processes = [fork.Process(target=_count_views, args=(index.path, start, made, results)) for _ in range(8)]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join(60)
    assert found == [list(range(999, -1, -1))] * 8
    assert made.value == 1
    assert len(list((index.path / "views").iterdir())) == 1


FLIP_EVERY_BYTE = """
import sys
from pathlib import Path
from arrowds.errors import ArrowdsError
from arrowds.index import open_index

root = Path(sys.argv[1])
for path in sorted(root.glob("views/*/*.arrow")):
    good = path.read_bytes()
    for position in range(len(good)):
        for bits in (0xFF, 0x01):
            bad = bytearray(good)
            bad[position] ^= bits
            path.write_bytes(bad)
            try:
                metric = open_index(root)["a"]
                metric.values.sum(), metric.order.sum(), metric.sample_ids(above=1), metric.histogram(3), metric.max()
            except ArrowdsError:
                pass
    path.write_bytes(good)
print("survived")
"""


def test_no_flipped_byte_of_a_map_crashes_the_interpreter(make_index):
    index = make_index({"a": pa.array([1, None, 3, 2, 2], pa.int16())})
    index["a"].order  # noqa: B018
    run = subprocess.run(
        [sys.executable, "-c", FLIP_EVERY_BYTE, index.path], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.stdout == "survived\n", run.stderr
