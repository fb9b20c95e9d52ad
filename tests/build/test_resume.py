"""An index has the same bytes however often its build is killed and whoever computes it; finished parts are kept."""

from __future__ import annotations

import json
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
from hypothesis import given, settings
from hypothesis import strategies as st
from index_files import assert_same, contents
from numbers_dataset import ROWS, metrics_of_numbers, numbers

import arrowds
from arrowds.errors import IndexExistsError, IndexNotFoundError, MetricFailedError
from arrowds.index import manifest
from arrowds.index.paths import Layout

HERE = Path(__file__).parent


def python(script: str | Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    paths = [str(HERE), str(HERE.parent), str(HERE.parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)


@pytest.mark.parametrize("mode", ["fresh", "overwrite"])
def test_a_build_killed_at_any_step_leaves_the_old_or_the_new_and_ends_in_the_same_bytes(tmp_path, mode):
    done = python(HERE / "killed_builds.py", tmp_path, mode)
    assert done.returncode == 0, done.stderr
    *killed, summary = map(json.loads, done.stdout.splitlines())
    assert len(killed) >= 12
    for each in killed:
        assert each["died"] == -signal.SIGKILL, each
        assert each["after"] == summary["new" if each["committed"] else "old"], each
        assert each["finished"] == 0, each
        assert each["other_files"] == each["other_bytes"] == [], each
        assert each["same_manifest"] or mode == "overwrite", each  # it counts the generations


def test_any_number_of_worker_processes_gives_the_same_bytes(tmp_path):
    for workers in (1, 2, 3):
        arrowds.analyze(numbers(), metrics_of_numbers(), tmp_path / str(workers), workers=workers, progress=False)
    assert_same(tmp_path / "2", tmp_path / "1")
    assert_same(tmp_path / "3", tmp_path / "1")
    index = arrowds.open_index(tmp_path / "3", verify=True)
    x = np.arange(ROWS) * 7919 % 1000
    assert index["mod"].values.tolist() == (x % 97).tolist()
    assert index.totals["histogram"].tolist() == np.bincount(x).tolist()


@given(rows=st.integers(1, 4000), workers=st.integers(2, 4), seed=st.integers(0, 99))
@settings(max_examples=12, deadline=None)
def test_any_number_of_threads_gives_the_same_bytes(tmp_path_factory, rows, workers, seed):
    folder = tmp_path_factory.mktemp("indexes")
    random = np.random.default_rng(seed)
    table = pa.table({"x": random.integers(0, 9, rows), "y": random.random(rows)})
    chosen = [arrowds.metrics.expr("x", pl.col("x")), arrowds.metrics.expr("y", pl.col("y") * pl.col("x"))]
    for count in (1, workers):
        arrowds.analyze(table, chosen, folder / str(count), workers=count, progress=False)
    assert_same(folder / str(workers), folder / "1")


KILLED_WITH_WORKERS = """
import sys, time
from pathlib import Path
import arrowds
from numbers_dataset import metrics_of_numbers, numbers

def slow(batch):
    time.sleep(0.03)
    return batch["x"]

print("began", flush=True)
chosen = [*metrics_of_numbers(), arrowds.metrics.function("slow", slow)]
arrowds.analyze(numbers(), chosen, sys.argv[1], workers=2, progress=False)
"""


def test_a_run_with_workers_that_is_killed_at_random_moments_ends_in_the_same_bytes(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(KILLED_WITH_WORKERS)
    reference = python(script, tmp_path / "whole")
    assert reference.returncode == 0, reference.stderr
    kills = 0
    for delay in (0.9, 1.7, 60):
        done = _run_and_kill([sys.executable, str(script), str(tmp_path / "killed")], delay)
        kills += done == -signal.SIGKILL
        if done == 0:
            break
        with pytest.raises(IndexNotFoundError, match=r"does not exist|unfinished|no manifest"):
            arrowds.open_index(tmp_path / "killed")
    assert kills >= 1
    assert_same(tmp_path / "killed", tmp_path / "whole")


def _run_and_kill(command: list[str], delay: float) -> int:
    """Run a script that says when it begins; kill it that many seconds later."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), str(HERE.parents[1])])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        process.stdout.readline()
        try:
            return process.wait(delay)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(30)


class Counted:
    """A metric that fails on one sample, if asked to, and notes the first row of every batch it measured."""

    def __init__(self, *, fail_at: int | None = None) -> None:
        self.fail_at, self.seen = fail_at, []

    def metric(self, name: str = "m", by: int = 2):
        # Neither the notes nor the failure belong to what the metric means.
        return arrowds.metrics.Function(name=name, fn=lambda batch: self.measured(batch, by), digest=f"by {by}")

    def measured(self, batch, by):
        first = batch["x"][0].as_py()
        if self.fail_at is not None and first <= self.fail_at < first + len(batch):
            raise ValueError("broken on purpose")
        self.seen.append(first)
        return batch["x"].to_numpy() * by


def table(n: int = ROWS, *, add: int = 0) -> pa.Table:
    return pa.table({"x": np.arange(n) + add})


def interrupted(path: Path, *, data: pa.Table | None = None, by: int = 2, overwrite: bool = False) -> None:
    """Leave the first two parts finished."""
    metric = Counted(fail_at=2100).metric(by=by)
    with pytest.raises(MetricFailedError, match=r"'m' raised ValueError on samples? "):
        arrowds.analyze(data or table(), metric, path, workers=1, overwrite=overwrite, progress=False)


def finish(path: Path, counted: Counted, *, data: pa.Table | None = None, by: int = 2, **options) -> arrowds.Index:
    return arrowds.analyze(data or table(), counted.metric(by=by), path, workers=1, progress=False, **options)


PARTS = [0, 1024, 2048, 3072, 4096]


def test_finished_parts_are_not_computed_again(tmp_path):
    interrupted(tmp_path / "index")
    counted = Counted()
    index = finish(tmp_path / "index", counted)
    assert counted.seen == [2048, 3072, 4096]
    assert index["m"].values.tolist() == (np.arange(ROWS) * 2).tolist()
    finish(tmp_path / "index", again := Counted())
    assert again.seen == []  # a finished index is opened
    finish(tmp_path / "whole", Counted())
    assert_same(tmp_path / "index", tmp_path / "whole")


def test_without_resume_everything_is_computed_again(tmp_path):
    interrupted(tmp_path / "index")
    finish(tmp_path / "index", counted := Counted(), resume=False)
    assert counted.seen == PARTS


def test_parts_of_another_definition_are_not_kept(tmp_path):
    interrupted(tmp_path / "index", by=2)
    index = finish(tmp_path / "index", counted := Counted(), by=3)
    assert counted.seen == PARTS
    assert index["m"].values.tolist() == (np.arange(ROWS) * 3).tolist()


def test_parts_of_other_data_are_not_kept_and_leave_no_file(tmp_path):
    interrupted(tmp_path / "index", data=table(9000))
    index = finish(tmp_path / "index", counted := Counted(), data=table(1500, add=5))
    assert counted.seen == [5, 1029]
    assert index["m"].values.tolist() == ((np.arange(1500) + 5) * 2).tolist()
    finish(tmp_path / "whole", Counted(), data=table(1500, add=5))
    assert_same(tmp_path / "index", tmp_path / "whole")


@pytest.mark.parametrize("overwrite", [False, True])
def test_metrics_that_a_later_run_leaves_out_leave_no_file(tmp_path, overwrite):
    """Also in the second generation, where an overwriting run had begun with another metric."""
    if overwrite:
        arrowds.analyze(table(10), Counted().metric("old"), tmp_path / "index", workers=1, progress=False)
    failing = [Counted().metric("left_out"), Counted(fail_at=2100).metric()]
    total = arrowds.metrics.function("left_total", lambda batch: 1, kind="total")
    with pytest.raises(MetricFailedError):
        arrowds.analyze(table(), [*failing, total], tmp_path / "index", workers=1, overwrite=overwrite, progress=False)
    index = finish(tmp_path / "index", counted := Counted(), overwrite=overwrite)
    assert counted.seen == [2048, 3072, 4096]
    assert sorted(contents(tmp_path / "index")) == sorted(["manifest.json", *index.manifest.files])
    assert not list(tmp_path.glob("**/*left*"))


@pytest.mark.parametrize("cut", [0, 10, -1])
def test_a_truncated_part_is_computed_again(tmp_path, cut):
    interrupted(tmp_path / "index")
    part = Layout(tmp_path / "index").part("m", 1)
    part.write_bytes(part.read_bytes()[:cut])
    finish(tmp_path / "index", counted := Counted())
    assert counted.seen == [1024, 2048, 3072, 4096]
    finish(tmp_path / "whole", Counted())
    assert_same(tmp_path / "index", tmp_path / "whole")


def test_sums_of_floats_do_not_depend_on_which_metrics_were_finished(tmp_path):
    """A source whose batches depend on the columns it is asked for, as those of Parquet files do."""

    class Wide(arrowds.sources.Source):
        def __len__(self):
            return 2048

        @property
        def schema(self):
            return pa.schema({"x": pa.float64(), "y": pa.float64()})

        description = "wide"

        def fingerprint(self):
            return "0" * 32

        def read(self, start, stop, columns=None):
            names = columns or ["x", "y"]
            values = np.random.default_rng(0).random(2048)[start:stop] * 1e9
            step = 100 // len(names)
            for low in range(0, stop - start, step):
                yield pa.record_batch(dict.fromkeys(names, values[low : low + step]))

    def chosen(fail: bool):
        def second(batch):
            if fail:
                raise ValueError
            return batch["y"]

        per_sample = arrowds.metrics.Function(name="y", fn=second, digest="second", reads=("y",))
        total = arrowds.metrics.function("x", lambda batch: np.sum(batch["x"].to_numpy()), kind="total", columns=["x"])
        return [per_sample, total]

    whole = arrowds.analyze(Wide(), chosen(False), tmp_path / "whole", workers=1, progress=False)
    layout = Layout(tmp_path / "index")
    with pytest.raises(MetricFailedError):
        arrowds.analyze(Wide(), chosen(True), tmp_path / "index", workers=1, progress=False)
    for number in (0, 1):  # as a kill between the two files of a part leaves it
        part = layout.part("y", number)
        part.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes((tmp_path / "whole" / whole.manifest.layout(Path()).part("y", number)).read_bytes())
    arrowds.analyze(Wide(), chosen(False), tmp_path / "index", workers=1, progress=False)
    assert_same(tmp_path / "index", tmp_path / "whole")


def test_opening_the_old_index_again_does_not_harm_a_run_that_overwrites_it(tmp_path):
    """The same analyze as the first, while another is writing the next generation."""
    path = tmp_path / "index"
    finish(path, Counted())
    seen = []

    def measured(batch):
        index = finish(path, Counted())
        seen.append((index.manifest.generation, sorted(Layout(path, 2).data.rglob("part-*"))))
        return batch["x"].to_numpy() * 5

    new = arrowds.analyze(
        table(), arrowds.metrics.function("m", measured), path, workers=1, overwrite=True, progress=False
    )
    assert [generation for generation, _ in seen] == [1] * 5
    assert [len(parts) for _, parts in seen] == [0, 1, 2, 3, 4]
    assert new["m"].values.tolist() == (np.arange(ROWS) * 5).tolist()


def test_an_interrupted_overwrite_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "index"
    finish(path, Counted(), by=7)
    interrupted(path, overwrite=True)
    assert finish(path, Counted(), by=7)["m"][1] == 7  # the old one is whole, and opening it loses nothing
    finish(path, counted := Counted(), overwrite=True)
    assert counted.seen == [2048, 3072, 4096]
    assert arrowds.open_index(path, verify=True)["m"][1] == 2
    assert {name.split("/")[0] for name in contents(path)} == {"manifest.json", "generation-00002"}


def test_maps_that_are_open_outlive_an_overwrite(tmp_path):
    path = tmp_path / "index"
    old = finish(path, Counted(), by=1)["m"]
    values, order = old.values, old.order
    finish(path, Counted(), by=3, overwrite=True)
    finish(path, Counted(), by=4, overwrite=True)
    assert values.tolist() == list(range(ROWS))
    assert order.tolist() == list(range(ROWS))
    assert arrowds.open_index(path)["m"][2] == 8
    assert {name.split("/")[0] for name in contents(path)} == {"manifest.json", "generation-00003"}


def test_a_reader_finds_the_old_or_the_new_at_any_moment_of_an_overwrite(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom test_resume import Counted, Path, finish\n"
        "for by in (2, 3, 4, 5):\n    finish(Path(sys.argv[1]), Counted(), by=by, overwrite=True)\n"
    )
    path = tmp_path / "index"
    finish(path, Counted(), by=1)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), str(HERE.parents[1])])}
    found = set()
    with subprocess.Popen([sys.executable, str(script), str(path)], env=environment) as writer:
        while writer.poll() is None:
            metric = arrowds.open_index(path)["m"]
            found.add(metric.values[:3].tolist()[1])
            time.sleep(0.001)
    assert writer.returncode == 0
    assert found <= {1, 2, 3, 4, 5}
    assert arrowds.open_index(path)["m"][1] == 5


def test_an_index_that_is_replaced_while_it_is_opened_opens_as_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "index"
    finish(path, Counted(), by=1)
    check, replaced = manifest.check_sizes, []

    def replace_then_check(root, files):
        if not replaced:
            replaced.append(True)
            finish(path, Counted(), by=2, overwrite=True)
        check(root, files)

    monkeypatch.setattr(manifest, "check_sizes", replace_then_check)
    assert arrowds.open_index(path)["m"][1] == 2


def test_what_a_killed_run_left_after_its_commit_is_cleared_when_the_index_is_opened_again(tmp_path):
    path = tmp_path / "index"
    finish(path, Counted())
    expected = contents(path)
    Layout(path).plan.write_text("")
    (path / ".manifest.json.7.tmp").write_text("half")
    (path / "metrics" / "gone" / "parts").mkdir(parents=True)
    (path / "metrics" / "gone" / "parts" / "part-00000.parquet").write_text("")
    (path / "totals" / "parts").mkdir(parents=True)
    finish(path, Counted())
    assert contents(path) == expected
    assert sorted(entry.name for entry in path.iterdir()) == ["manifest.json", "metrics"]


def test_an_index_of_something_else_is_not_replaced(tmp_path):
    path = tmp_path / "index"
    finish(path, Counted())
    with pytest.raises(
        IndexExistsError, match=r"an index of other data: arrow table, column x, 5000 samples \(this is "
    ):
        finish(path, Counted(), data=table(10))
    with pytest.raises(IndexExistsError, match=r"with the metrics \['m'\], of which \['m'\] were defined otherwise"):
        finish(path, Counted(), by=9)
    with pytest.raises(
        IndexExistsError, match=r"with the metrics \['m'\]; choose another path, or pass overwrite=True"
    ):
        arrowds.analyze(table(), Counted().metric("other"), path, progress=False)
