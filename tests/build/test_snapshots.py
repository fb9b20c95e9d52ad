"""Snapshots: what was opened keeps its answers while newer ones are committed; versions, vacuum, rival writers."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from index_files import contents, leftovers

import arrowds
from arrowds.errors import (
    ArrowdsError,
    ConfigError,
    IndexChangedError,
    IndexExistsError,
    IndexNotFoundError,
    MetricError,
    VersionNotFoundError,
)

HERE = Path(__file__).parent
X = arrowds.metrics.expr("x", pl.col("x"))


def rows(*values: int) -> pa.Table:
    return pa.table({"x": values})


def analyze(path, *values, metrics=X, **options) -> arrowds.Index:
    return arrowds.analyze(rows(*values), metrics, path, workers=1, progress=False, **options)


def append(path, *values, **options) -> arrowds.Index:
    return arrowds.append(rows(*values), path, workers=1, progress=False, **options)


def grown(path) -> None:
    """Everything that makes a snapshot: versions 1 to 5."""
    analyze(path, 3, 1)
    append(path, 2)
    arrowds.add_metrics(rows(3, 1, 2), arrowds.metrics.expr("y", -pl.col("x")), path, workers=1, progress=False)
    arrowds.compact(path, workers=1)
    analyze(path, 9, overwrite=True)


EXPECTED = {1: [3, 1], 2: [3, 1, 2], 3: [3, 1, 2], 4: [3, 1, 2], 5: [9]}


def test_every_version_can_be_opened_and_says_what_made_it(tmp_path):
    grown(tmp_path)
    for version, values in EXPECTED.items():
        index = arrowds.open_index(tmp_path, version=version, verify=True)
        assert (index.version, index.num_samples) == (version, len(values))
        assert index["x"].values.tolist() == values
        assert index["x"].order.tolist() == np.argsort(values).tolist()
        assert index.sql("select x from samples order by sample_id")["x"].to_list() == values
    assert arrowds.open_index(tmp_path).version == 5
    table = arrowds.versions(tmp_path)
    assert table["version"].to_list() == [5, 4, 3, 2, 1]
    assert table["operation"].to_list() == ["analyze", "compact", "add_metrics", "append", "analyze"]
    assert table["num_samples"].to_list() == [1, 3, 3, 3, 2]
    assert table["num_segments"].to_list() == [1, 1, 2, 2, 1]
    assert table["metrics"].to_list() == [["x"], ["x", "y"], ["x", "y"], ["x"], ["x"]]
    assert table["committed"].is_sorted(descending=True)


def test_what_was_opened_before_keeps_its_answers_with_and_without_open_maps(tmp_path):
    analyze(tmp_path, 3, 1)
    used, unused = arrowds.open_index(tmp_path), arrowds.open_index(tmp_path)
    kept = used["x"].order
    pickled = pickle.dumps(unused)
    append(tmp_path, 2)
    arrowds.compact(tmp_path, workers=1)
    analyze(tmp_path, 9, overwrite=True)
    for index in (used, unused, pickle.loads(pickled)):
        assert (index.version, index["x"].values.tolist(), index["x"].order.tolist()) == (1, [3, 1], [1, 0])
        index.verify()
    arrowds.vacuum(tmp_path)
    assert kept.tolist() == used["x"].order.tolist() == [1, 0]  # what is mapped stays
    assert used["x"].values.tolist() == [3, 1]


class Values:
    """A dataset whose workers open the maps late: at the first item."""

    def __init__(self, index: arrowds.Index) -> None:
        self.index = index

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> list[int]:
        return [self.index.version, int(self.index["x"][i]), int(self.index["x"].order[i])]


@pytest.mark.parametrize("start", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # other tests start threads here
def test_loader_workers_that_open_their_maps_late_see_the_snapshot_that_was_opened(tmp_path, start):
    from torch.utils.data import DataLoader  # seconds to import

    analyze(tmp_path, 3, 1, 2)
    dataset = Values(arrowds.open_index(tmp_path))
    append(tmp_path, 0)
    arrowds.compact(tmp_path, workers=1)
    analyze(tmp_path, 9, overwrite=True)
    loader = DataLoader(dataset, batch_size=None, num_workers=2, multiprocessing_context=start)
    assert list(loader) == [[1, 3, 1], [1, 1, 2], [1, 2, 0]]


def test_a_vacuumed_version_is_told_by_name_also_where_it_was_open(tmp_path):
    analyze(tmp_path, 3, 1)
    unused = arrowds.open_index(tmp_path)
    pickled = pickle.dumps(unused)
    analyze(tmp_path, 9, overwrite=True)
    assert arrowds.vacuum(tmp_path) == [1]
    assert arrowds.vacuum(tmp_path) == []
    for act in (
        lambda: arrowds.open_index(tmp_path, version=1),
        lambda: pickle.loads(pickled),
        lambda: unused["x"].order,
    ):
        with pytest.raises(VersionNotFoundError, match=r"version 1 of .* was vacuumed"):
            act()
    with pytest.raises(VersionNotFoundError, match="no version 3; the newest is 2"):
        arrowds.open_index(tmp_path, version=3)
    assert arrowds.versions(tmp_path)["version"].to_list() == [2]
    assert leftovers(tmp_path) == []
    assert analyze(tmp_path, 7, overwrite=True).version == 3  # a number is never used again


@pytest.mark.parametrize("keep", [1, 2, 3, 9])
def test_vacuum_keeps_what_the_newest_snapshots_need_and_nothing_else(tmp_path, keep):
    grown(tmp_path)
    for version in EXPECTED:
        arrowds.open_index(tmp_path, version=version)["x"].order  # noqa: B018
    gone = arrowds.vacuum(tmp_path, keep=keep)
    kept = [version for version in EXPECTED if version not in gone]
    assert gone == list(EXPECTED)[: max(0, 5 - keep)]
    assert arrowds.versions(tmp_path)["version"].to_list() == kept[::-1]
    for version in kept:
        index = arrowds.open_index(tmp_path, version=version, verify=True)
        assert index["x"].values.tolist() == EXPECTED[version]
    named = set().union(*(arrowds.open_index(tmp_path, version=version).manifest.files for version in kept))
    assert {name for name in contents(tmp_path) if not name.startswith(("manifests/", "views/"))} == named


def test_vacuum_needs_an_index_and_a_number(tmp_path):
    with pytest.raises(IndexNotFoundError):
        arrowds.vacuum(tmp_path / "nothing")
    analyze(tmp_path / "ix", 1)
    with pytest.raises(ConfigError, match="keep must be at least 1; got 0"):
        arrowds.vacuum(tmp_path / "ix", keep=0)


def during(path: Path, meanwhile: Callable[[], object], act: Callable[[arrowds.metrics.Metric], arrowds.Index]):
    """Do something while a metric is being measured."""
    done = []

    def measured(batch):
        if not done:
            done.append(True)
            meanwhile()
        return batch["x"]

    return act(arrowds.metrics.function("x", measured, dtype="int64", version="1"))


FX = arrowds.metrics.function("x", lambda batch: batch["x"], dtype="int64", version="1")


def test_a_vacuum_leaves_unfinished_builds_alone_unless_it_is_told(tmp_path):
    """In the map, in the reduce, and between the two."""
    analyze(tmp_path, 3, 1, metrics=FX)
    analyze(tmp_path, 5, metrics=FX, overwrite=True)
    index = during(tmp_path, lambda: arrowds.vacuum(tmp_path), lambda metric: append(tmp_path, 2, metrics=metric))
    assert index["x"].values.tolist() == [5, 2]
    index.verify()

    def failing(batch):
        raise ValueError

    with pytest.raises(MetricError):
        append(tmp_path, 4, metrics=arrowds.metrics.function("x", failing, dtype="int64", version="1"))
    arrowds.vacuum(tmp_path)
    assert any(name.startswith("builds/") for name in leftovers(tmp_path))
    arrowds.vacuum(tmp_path, unfinished=True)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("step", ["reduce_task", "publish"])
def test_a_vacuum_just_before_the_commit_takes_nothing_of_it(tmp_path, monkeypatch, step):
    analyze(tmp_path, 3, 1)
    real = getattr(arrowds.build.commit, step)

    def vacuumed_first(*arguments):
        arrowds.vacuum(tmp_path)
        real(*arguments)
        arrowds.vacuum(tmp_path)

    monkeypatch.setattr(arrowds.build.commit, step, vacuumed_first)
    index = append(tmp_path, 2)
    assert index["x"].values.tolist() == [3, 1, 2]
    index.verify()


def test_two_appends_at_once_are_both_committed(tmp_path):
    analyze(tmp_path, 1, metrics=FX)
    index = during(
        tmp_path, lambda: append(tmp_path, 7, metrics=FX), lambda metric: append(tmp_path, 8, 9, metrics=metric)
    )
    assert (index.version, index["x"].values.tolist()) == (3, [1, 7, 8, 9])


def test_a_copy_of_a_file_is_more_samples_unless_the_content_is_compared(tmp_path):
    pl.DataFrame({"x": [1, 2]}).write_parquet(tmp_path / "a.parquet")
    pl.DataFrame({"x": [1, 2]}).write_parquet(tmp_path / "copy.parquet")
    arrowds.analyze(tmp_path / "a.parquet", X, tmp_path / "ix", progress=False)
    copy, path = tmp_path / "copy.parquet", tmp_path / "ix"
    assert arrowds.append(copy, path, compare_content=True, progress=False).num_samples == 2
    assert arrowds.append(copy, path, progress=False)["x"].values.tolist() == [1, 2, 1, 2]


def test_two_appends_of_the_same_rows_at_once_are_one(tmp_path):
    analyze(tmp_path, 1, metrics=FX)
    index = during(
        tmp_path, lambda: append(tmp_path, 7, metrics=FX), lambda metric: append(tmp_path, 7, metrics=metric)
    )
    assert (index.version, index["x"].values.tolist()) == (2, [1, 7])
    assert append(tmp_path, 7, metrics=FX)["x"].values.tolist() == [1, 7, 7]  # one after the other they are two


def test_an_append_is_measured_again_with_the_metrics_that_were_added_meanwhile(tmp_path):
    analyze(tmp_path, 1, metrics=FX)
    more = arrowds.metrics.expr("y", -pl.col("x"))

    def add():
        arrowds.add_metrics(rows(1), more, tmp_path, workers=1, progress=False)

    index = during(tmp_path, add, lambda metric: append(tmp_path, 8, metrics=metric))
    assert (index.version, index.metrics) == (3, ["x", "y"])
    assert (index["x"].values.tolist(), index["y"].values.tolist()) == ([1, 8], [-1, -8])
    index.verify()


def test_an_append_is_measured_again_with_the_counts_that_were_refreshed_meanwhile(tmp_path):
    """Else a metric would have values of two definitions."""
    first, second = (pa.table({"t": tokens, "x": [5] * len(tokens)}) for tokens in ([[0, 0, 1]], [[1, 1, 0], [2]]))
    rarity = arrowds.metrics.vocab_rarity("t")
    arrowds.analyze(first, [FX, rarity], tmp_path, workers=1, progress=False)
    arrowds.append(second, tmp_path, metrics=FX, workers=1, progress=False)
    whole = pa.concat_tables([first, second])

    def refresh():
        arrowds.add_metrics(whole, rarity, tmp_path, refresh=True, workers=1, progress=False)

    index = during(
        tmp_path,
        refresh,
        lambda metric: arrowds.append(first, tmp_path, metrics=metric, workers=1, progress=False),
    )
    values = index["vocab_rarity"].values
    assert values[0] == values[3]  # the same sample, before and after
    assert index.manifest.metrics["vocab_rarity"].basis["vocab_rarity.token_counts"].version == 3


def test_metrics_that_are_added_while_samples_are_appended_are_refused_and_leave_nothing(tmp_path):
    analyze(tmp_path, 1)
    with pytest.raises(IndexChangedError, match=r"samples were added to .* run again with all of the data"):
        during(
            tmp_path,
            lambda: append(tmp_path, 2),
            lambda metric: arrowds.add_metrics(
                rows(1),
                arrowds.metrics.function("z", metric.fn, dtype="int64", version="1"),
                tmp_path,
                workers=1,
                progress=False,
            ),
        )
    arrowds.vacuum(tmp_path)
    assert leftovers(tmp_path) == []
    assert arrowds.open_index(tmp_path, verify=True)["x"].values.tolist() == [1, 2]


@pytest.mark.parametrize("rival", ["append", "add_metrics"])
def test_a_compaction_keeps_what_was_added_meanwhile(tmp_path, monkeypatch, rival):
    analyze(tmp_path, 1)
    append(tmp_path, 2)
    real = arrowds.build.compact.publish

    def overtaken(*arguments):
        if rival == "append":
            append(tmp_path, 3)
        else:
            metric = arrowds.metrics.expr("y", -pl.col("x"))
            arrowds.add_metrics(rows(1, 2), metric, tmp_path, workers=1, progress=False)
        return real(*arguments)

    monkeypatch.setattr(arrowds.build.compact, "publish", overtaken)
    if rival == "append":
        index = arrowds.compact(tmp_path, workers=1)
        assert [segment.num_samples for segment in index.manifest.segments] == [2, 1]
        assert index["x"].values.tolist() == [1, 2, 3]
    else:
        with pytest.raises(IndexChangedError, match="was changed by another run; compact it again"):
            arrowds.compact(tmp_path, workers=1)
        monkeypatch.undo()
        assert len(arrowds.compact(tmp_path, workers=1).manifest.segments) == 1
    arrowds.vacuum(tmp_path)
    assert leftovers(tmp_path) == []
    arrowds.open_index(tmp_path, verify=True)


def test_a_writer_that_wakes_late_does_not_replace_what_another_has_finished(tmp_path):
    """It slept for any time, on any host, whatever its clock says: no lock is asked."""
    with pytest.raises(
        IndexExistsError, match="was finished by another run meanwhile; open it, or pass overwrite=True"
    ):
        during(tmp_path, lambda: analyze(tmp_path, 4, 5), lambda metric: analyze(tmp_path, 1, metrics=metric))
    index = arrowds.open_index(tmp_path, verify=True)
    assert (index.version, index["x"].values.tolist()) == (1, [4, 5])
    again = analyze(tmp_path, 1, metrics=FX, overwrite=True)
    assert (again.version, again["x"].values.tolist()) == (2, [1])


def test_the_same_analysis_twice_at_once_is_one_index(tmp_path):
    """The one that is slower finds its work done, and removed, by the other."""
    index = during(
        tmp_path, lambda: analyze(tmp_path, 4, 5, metrics=FX), lambda metric: analyze(tmp_path, 4, 5, metrics=metric)
    )
    assert (index.version, index["x"].values.tolist()) == (1, [4, 5])
    index.verify()
    arrowds.vacuum(tmp_path)
    assert leftovers(tmp_path) == []


def test_of_two_analyses_of_one_dataset_with_other_metrics_none_is_lost(tmp_path):
    other = arrowds.metrics.expr("y", -pl.col("x"))
    index = during(
        tmp_path,
        lambda: analyze(tmp_path, 4, 5, metrics=other, overwrite=True),
        lambda metric: analyze(tmp_path, 4, 5, metrics=metric, overwrite=True),
    )
    assert (index.version, index.metrics) == (2, ["x"])
    assert arrowds.open_index(tmp_path, version=1, verify=True).metrics == ["y"]


def test_threads_that_append_and_compact_and_vacuum_lose_nothing(tmp_path):
    analyze(tmp_path, 0)

    def work(number: int) -> None:
        for step in range(3):
            value = 10 * number + step + 1
            if number == 4:
                with contextlib.suppress(IndexChangedError):
                    arrowds.compact(tmp_path, workers=1)
                arrowds.vacuum(tmp_path, keep=3)
            else:
                append(tmp_path, value)

    with ThreadPoolExecutor(5) as threads:
        list(threads.map(work, range(5)))
    index = arrowds.open_index(tmp_path, verify=True)
    assert sorted(index["x"].values.tolist()) == [0, *sorted(10 * n + step + 1 for n in range(4) for step in range(3))]
    arrowds.vacuum(tmp_path)
    assert leftovers(tmp_path) == []


RACER = """
import sys
import polars as pl, pyarrow as pa, arrowds
path, number = sys.argv[1], int(sys.argv[2])
sys.stdin.readline()
for step in range(3):
    arrowds.append(pa.table({"x": [10 * number + step + 1]}), path, workers=1, progress=False)
"""


def test_processes_that_append_at_once_lose_nothing(tmp_path):
    analyze(tmp_path, 0)
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, tmp_path, str(n)], stdin=subprocess.PIPE, env=environment)
        for n in range(3)
    ]
    for racer in racers:
        racer.stdin.write(b"go\n")
        racer.stdin.close()
    assert [racer.wait(120) for racer in racers] == [0, 0, 0]
    index = arrowds.open_index(tmp_path, verify=True)
    assert sorted(index["x"].values.tolist()) == [0, *sorted(10 * n + step + 1 for n in range(3) for step in range(3))]
    assert index.version == 10


def test_readers_see_one_snapshot_or_another_while_writers_overwrite_and_vacuum(tmp_path):
    analyze(tmp_path, 0, 0)
    stop, wrong = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            try:
                index = arrowds.open_index(tmp_path)
                values, order = index["x"].values.tolist(), index["x"].order.tolist()
                if values[0] != values[1] or order != [0, 1]:
                    wrong.append(values)
            except VersionNotFoundError:
                pass  # it was vacuumed before its maps were made
            except ArrowdsError as error:
                wrong.append(error)

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for value in range(1, 8):
        analyze(tmp_path, value, value, overwrite=True)
        arrowds.vacuum(tmp_path)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def _second_in_its_own_namespace(path: str) -> None:
    append(Path(path), 2)


@pytest.mark.skipif(os.getuid() != 0, reason="unshare needs root")
def test_writers_in_two_process_namespaces_of_one_host_name_both_commit(tmp_path):
    """Containers have equal host names and process ids; nothing is told by these."""
    analyze(tmp_path, 1, metrics=FX)
    script = (
        "import sys, pyarrow as pa, arrowds\n"
        "fx = arrowds.metrics.function('x', lambda batch: batch['x'], dtype='int64', version='1')\n"
        "arrowds.append(pa.table({'x': [2]}), sys.argv[1], metrics=fx, workers=1, progress=False)\n"
    )
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", script, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    index = during(
        tmp_path,
        lambda: subprocess.run(command, check=True, env=environment, timeout=300),
        lambda metric: append(tmp_path, 3, metrics=metric),
    )
    assert (index.version, index["x"].values.tolist()) == (3, [1, 2, 3])
    assert multiprocessing.current_process().name == "MainProcess"
