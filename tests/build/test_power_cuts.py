"""After a power cut at any moment an index opens as the old or the new snapshot, whole; a rerun finishes the work.

Every legal state is worked out by ``crash_states``; no state is a damaged index.
"""

from __future__ import annotations

import random
from functools import lru_cache

import pytest
from crash_states import Recording, TreeStore, laid_out, recorded
from index_files import digests, memory_folder
from small_operations import OPERATIONS, analyze, append
from thresholds import small_thresholds

import arrowds
from arrowds.errors import IndexNotFoundError
from arrowds.index import manifest as manifests
from arrowds.index.manifest import Manifest
from arrowds.store import Store

SIZES = {"part": 32, "bucket": 40, "file": 25}
"""Two parts, and a few files of each kind, for a record of some hundred operations."""


@lru_cache
def record_of(operation: str) -> tuple[Recording, Manifest | None, Manifest]:
    """What an operation does, and the snapshots before and after it."""
    before, act = OPERATIONS[operation]
    with memory_folder() as base, small_thresholds(**SIZES):
        before(base / "ix")
        old = manifests.load(arrowds.store.open_store(base / "ix")) if (base / "ix").exists() else None
        with recorded(base) as recording:
            act(base / "ix")
        return recording, old, arrowds.open_index(base / "ix").manifest


def opened(store: Store) -> Manifest | None:
    """The newest snapshot after reading every file; None where there is no index."""
    try:
        found = manifests.load(store)
    except IndexNotFoundError:
        return None
    check(store, found)
    return found


def check(store: Store, snapshot: Manifest) -> None:
    """Every file has the digest that the manifest says."""
    assert [
        fault for name, file in snapshot.files.items() if (fault := manifests.digest_fault(store, name, file))
    ] == []


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_state_after_a_power_cut_is_the_old_or_the_new_index(operation):
    recording, old, new = record_of(operation)
    found = []
    known: dict[frozenset[tuple[str, bytes]], Manifest | None] = {}
    for moment, tree in recording.crashes():
        of_index = frozenset(item for item in tree.items() if not item[0].startswith("ix/builds/"))
        if of_index not in known:
            known[of_index] = opened(TreeStore(tree, "ix/"))
        snapshot = known[of_index]
        assert snapshot in (old, new), f"after {recording.ops[moment - 1].what}"
        found.append(snapshot)
        if moment == len(recording.ops):
            assert snapshot == new  # what has returned is safe
    assert len(found) > 50
    assert found[0] == old


@pytest.mark.parametrize("operation", ["overwrite", "append", "add_metrics", "compact"])
def test_the_old_snapshot_is_whole_whatever_is_lost(operation):
    recording, old, _ = record_of(operation)
    for moment, tree in recording.crashes(more=0):
        if moment % 11 == 0:
            store = TreeStore(tree, "ix/")
            assert manifests.load(store, old.version) == old
            check(store, old)


def test_a_vacuumed_version_says_so_or_is_whole_whatever_is_lost():
    """Its mark is on disk before any of its files goes."""
    recording, _, _ = record_of("vacuum")
    states = set()
    for moment, tree in recording.crashes():
        store = TreeStore(tree, "ix/")
        snapshot = manifests.load_unless_vacuumed(store, 1)
        states.add(snapshot is None)
        if snapshot is not None:
            check(store, snapshot)
        assert moment >= 0
    assert states == {True, False}


@pytest.mark.parametrize("operation", ["analyze", "append", "add_metrics", "compact", "vacuum"])
def test_a_run_after_a_power_cut_ends_in_the_same_bytes(operation):
    """Also where reports and runs of the earlier one survived what they vouch for."""
    recording, _, _ = record_of(operation)
    with memory_folder() as folder, small_thresholds(**SIZES):
        before, act = OPERATIONS[operation]
        before(folder / "whole")
        act(folder / "whole")
        expected = digests(arrowds.open_index(folder / "whole"))
        states = list(recording.crashes(seed=1))
        unfinished = [tree for _, tree in states if any("/builds/" in name for name in tree)] or [t for _, t in states]
        for tree in random.Random(0).sample(unfinished, 3):
            path = laid_out(tree, folder / "cut") / "ix"
            act(path)
            index = arrowds.open_index(path, verify=True)
            assert digests(index) == expected


def test_reports_that_survive_their_files_are_not_believed():
    """Every file that a report or a run's name stands for is lost, emptied or has a hole, one kind at a time."""
    recording, _, _ = record_of("append")
    trees = [tree for _, tree in recording.kills() if any("/reduced/" in name for name in tree)]
    last = max(trees, key=lambda tree: sum("/builds/" in name for name in tree))
    unsynced = [
        name for name in last if "segment=" in name or "/runs/" in name or "/sums/" in name or "/values/" in name
    ]
    with memory_folder() as folder, small_thresholds(**SIZES):
        analyze(folder / "whole", 1)
        expected = digests(append(folder / "whole", 2))
        old = manifests.load(TreeStore(last, "ix/")).files
        unsynced = [name for name in unsynced if name.removeprefix("ix/") not in old]
        assert len(unsynced) > 10
        for number, name in enumerate(unsynced[::2]):
            half = len(last[name]) // 2
            tree = {**last, name: [b"", last[name][:half] + bytes(len(last[name]) - half)][number % 2]}
            if number % 5 == 0:
                del tree[name]
            path = laid_out(tree, folder / "cut") / "ix"
            append(path, 2)
            assert digests(arrowds.open_index(path, verify=True)) == expected, name


def test_a_view_never_vouches_for_lost_data():
    with memory_folder() as base, small_thresholds(**SIZES):
        index = analyze(base / "ix", 1)
        values, order = index.manifest.metrics.keys(), {}
        with recorded(base) as recording:
            order = {name: index[name].order.tolist() for name in values}
        kept = {name: index[name].values.tolist() for name in values}
        states = 0
        for moment, tree in recording.crashes(more=1):
            views = {name: data for name, data in tree.items() if name.startswith("ix/views/")}
            if not any(name.endswith("view.json") for name in views):
                continue  # a view without it is not looked at
            states += 1
            again = arrowds.open_index(laid_out(tree, base / "cut") / "ix")
            for name in values:
                assert again[name].order.tolist() == order[name], f"after {recording.ops[moment - 1].what}"
                assert str(again[name].values.tolist()) == str(kept[name])
            again.verify()
        assert states > 10
