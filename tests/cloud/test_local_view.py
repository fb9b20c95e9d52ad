"""The memory maps that a host keeps of an index in an object store: one copy, checked, bounded, remade when lost."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import xxhash
from proxy import reads

import arrowds
from arrowds.errors import ConfigError, IndexCorruptError, StorageError
from arrowds.metrics import expr

OPENING = Path(__file__).with_name("opening_process.py")


def analyzed(place, rows=20_000, names=("a", "b")):
    rng = np.random.default_rng(rows)
    data = pa.table({name: rng.integers(0, 1000, rows) for name in names})
    metrics = [expr(name, pl.col(name)) for name in names]
    arrowds.analyze(data, metrics, place.at("i"), storage_options=place.options, progress=False)
    return data


def opened(place, cache):
    return arrowds.open_index(place.at("i"), storage_options=place.options, cache_dir=cache)


def start(place, cache, processes=1) -> subprocess.Popen[str]:
    arguments = [place.at("i"), json.dumps(place.options), str(cache), str(processes)]
    return subprocess.Popen([sys.executable, str(OPENING), *arguments], stdout=subprocess.PIPE, text=True)


def downloads(requests):
    """How many files of values and buckets were read."""
    return sum(reads(request) and "/metrics/" in request.path for request in requests)


def test_64_processes_that_open_at_once_make_one_copy(proxy, proxied, tmp_path):
    data = analyzed(proxied)
    with proxy.counting() as requests:
        parent = start(proxied, tmp_path / "cache", 64)
        output, _ = parent.communicate(timeout=300)
    assert parent.returncode == 0
    pids, digests = zip(*(line.split() for line in output.splitlines()), strict=True)
    assert len(set(pids)) == 64
    expected = xxhash.xxh3_128()
    for name in data.column_names:
        values = data[name].to_numpy()
        expected.update(memoryview(values.astype(np.uint16)))
        expected.update(memoryview(np.argsort(values, kind="stable").astype(np.uint32)))
    assert set(digests) == {expected.hexdigest()}
    assert downloads(requests) == 4  # of each metric the values and one bucket, each once
    views = list((tmp_path / "cache").glob("*/views/*"))
    assert len(views) == 2, views


def test_a_corrupt_download_is_repeated_once(proxy, proxied, tmp_path):
    data = analyzed(proxied, names=("a",))
    values = lambda request: reads(request) and "/metrics/a/values/" in request.path  # noqa: E731
    with proxy.faulty(rule=values, corrupt=True, times=1) as fault:
        assert np.array_equal(opened(proxied, tmp_path / "1")["a"].values, data["a"].to_numpy())
    assert fault.hits == 1
    with proxy.faulty(rule=values, corrupt=True), pytest.raises(IndexCorruptError, match=r"values.*changed"):
        _ = opened(proxied, tmp_path / "2")["a"].values
    # Nothing of it was kept.
    assert np.array_equal(opened(proxied, tmp_path / "2")["a"].values, data["a"].to_numpy())


def test_a_connection_that_is_cut_while_the_view_is_made_is_taken_up_again(proxy, proxied, tmp_path):
    data = analyzed(proxied, names=("a",))
    with proxy.faulty(rule=reads, cut_after=500, times=4) as fault:
        index = opened(proxied, tmp_path)
        assert np.array_equal(index["a"].values, data["a"].to_numpy())
        assert np.array_equal(index["a"].order, np.argsort(data["a"].to_numpy(), kind="stable"))
    assert fault.hits == 4


def test_a_process_that_is_killed_while_it_makes_the_view_leaves_nothing_in_the_way(proxy, proxied, tmp_path):
    data = analyzed(proxied)
    cache = tmp_path / "cache"
    order = lambda request: "/buckets/" in request.path  # noqa: E731
    with proxy.faulty(rule=order, delay=30):
        process = start(proxied, cache)
        end = time.monotonic() + 60
        while not list(cache.glob("*/views/.*.tmp/values.arrow")) and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert list(cache.glob("*/views/.*.tmp")), "it was killed too late"
    index = opened(proxied, cache)
    for name in data.column_names:
        assert np.array_equal(index[name].values, data[name].to_numpy())
    assert not list(cache.glob("*/views/.*.tmp"))


def test_a_view_that_lost_a_part_is_made_again(seaweed, tmp_path):
    data = analyzed(seaweed, names=("a",))
    _ = opened(seaweed, tmp_path)["a"].order
    [view] = tmp_path.glob("*/views/*")
    for damage in (
        lambda: os.truncate(view / "order.arrow", 1000),
        (view / "values.arrow").unlink,
        lambda: (view / "view.json").write_text("{"),
    ):
        damage()
        index = opened(seaweed, tmp_path)
        assert index["a"].is_read_in_place
        assert np.array_equal(index["a"].values, data["a"].to_numpy())


def test_verify_reads_the_maps_of_this_host_as_well(seaweed, tmp_path):
    analyzed(seaweed, names=("a",))
    _ = opened(seaweed, tmp_path)["a"].order
    [path] = tmp_path.glob("*/views/*/values.arrow")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(IndexCorruptError, match=r"values\.arrow"):
        opened(seaweed, tmp_path).verify()


def bytes_in(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.glob("*/views/*/*"))


def test_the_least_recently_used_views_leave_and_never_one_in_use(seaweed, tmp_path, monkeypatch):
    names = ("a", "b", "c", "d")
    data = analyzed(seaweed, rows=100_000, names=names)
    monkeypatch.setenv("ARROWDS_CACHE_LIMIT", "1.5MB")  # a view takes 0.6 MB
    in_use = opened(seaweed, tmp_path)
    expected = {name: data[name].to_numpy() for name in names}
    assert np.array_equal(in_use["a"].values, expected["a"])
    for name in ("b", "c", "d", "b"):
        assert np.array_equal(opened(seaweed, tmp_path)[name].values, expected[name])
        gc.collect()  # an index and its metrics refer to each other
        assert bytes_in(tmp_path) <= 1_500_000
        assert np.array_equal(in_use["a"].values, expected["a"])
    kept = {path.name.split("-")[0] for path in tmp_path.glob("*/views/*")}
    assert kept == {"a", "b"}
    # Used in another process, it stays as well; nobody uses it any more, and it leaves.
    del in_use
    gc.collect()
    index = opened(seaweed, tmp_path)
    assert np.array_equal(index["b"].values, expected["b"])
    _ = opened(seaweed, tmp_path)["c"].values
    assert {path.name.split("-")[0] for path in tmp_path.glob("*/views/*")} == {"b", "c"}


def test_the_limit_is_a_size(seaweed, tmp_path, monkeypatch):
    analyzed(seaweed, rows=100, names=("a",))
    monkeypatch.setenv("ARROWDS_CACHE_LIMIT", "much")
    with pytest.raises(ConfigError, match=r"size such as 200GB.*much"):
        _ = opened(seaweed, tmp_path)["a"].values


def test_the_cache_is_where_the_environment_says(seaweed, tmp_path, monkeypatch):
    analyzed(seaweed, rows=100, names=("a",))
    monkeypatch.setenv("ARROWDS_CACHE_DIR", str(tmp_path / "here"))
    _ = arrowds.open_index(seaweed.at("i"), storage_options=seaweed.options)["a"].values
    assert list((tmp_path / "here").glob("*/views/a-*/values.arrow"))


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.fail(f"this test mounts a small tmpfs, as root: {mounted.stderr}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_cache_disk_is_a_clear_error_and_lookups_go_on_in_place(seaweed, small_disk):
    data = analyzed(seaweed, rows=1_000_000, names=("a",))
    index = opened(seaweed, small_disk)
    with pytest.raises(StorageError, match=r"no room for the memory maps of metric 'a'.*6\.\d MB.*cache_dir"):
        _ = index["a"].values
    assert not list(small_disk.glob("*/views/*"))
    assert index["a"].count(up_to=500) == np.count_nonzero(data["a"].to_numpy() <= 500)


def test_a_cache_that_cannot_be_created_is_a_clear_error(seaweed, tmp_path):
    analyzed(seaweed, rows=100, names=("a",))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"file.*cache_dir"):
        _ = opened(seaweed, tmp_path / "file" / "cache")["a"].values


def test_an_index_that_was_made_again_gets_maps_of_its_own(seaweed, tmp_path):
    store = seaweed.store
    for factor in (1, 2):
        # A function whose code does not show what it returns.
        os.environ["ARROWDS_TEST_FACTOR"] = str(factor)
        metric = arrowds.metrics.function("m", scaled, dtype=np.int64, version="1")
        arrowds.analyze(
            pa.table({"x": [1, 2]}), metric, seaweed.at("i"), storage_options=seaweed.options, progress=False
        )
        assert opened(seaweed, tmp_path)["m"].values.tolist() == [factor, 2 * factor]
        store.delete(store.names(""))


def scaled(batch):
    return batch["x"].to_numpy() * int(os.environ["ARROWDS_TEST_FACTOR"])


def read_in_child(index, queue):
    queue.put((index["a"][5].item(), index["b"].sample_ids(up_to=3).tolist()))


def test_maps_are_made_in_a_process_that_was_forked(seaweed, tmp_path):
    data = analyzed(seaweed)
    index = opened(seaweed, tmp_path)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=read_in_child, args=(index, queue))
    child.start()
    value, ids = queue.get(timeout=120)
    child.join()
    assert value == data["a"][5].as_py()
    assert ids == [i for _, i in sorted((v, i) for i, v in enumerate(data["b"].to_pylist()) if v <= 3)]
