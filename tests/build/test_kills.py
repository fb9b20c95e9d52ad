"""A process that is killed at any moment leaves the old or the new snapshot; a rerun finishes, and nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from index_files import contents, digests, leftovers, memory_folder
from small_operations import OPERATIONS

import arrowds
from arrowds.errors import IndexNotFoundError

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [HERE, HERE.parent, HERE.parents[1]]))}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_kill_before_any_step_leaves_the_old_or_the_new_and_a_rerun_finishes(operation):
    with memory_folder() as folder:
        command = [sys.executable, str(HERE / "killed_operations.py"), str(folder), operation, "9"]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=400, check=False)
    assert done.returncode == 0, done.stderr
    killed = list(map(json.loads, done.stdout.splitlines()))
    assert len(killed) >= 8
    for each in killed:
        again = operation == "overwrite"  # each is one more snapshot, of the same bytes
        assert each["died"] and each["finished"] and each["same_bytes"], each
        assert each["old_or_new"] or again, each
        assert each["left"] == [], each


KILLED_WITH_WORKERS = """
import sys, time
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
    assert run_and_kill(script, tmp_path / "whole", 300) == 0
    kills = 0
    for delay in (0.7, 1.9, 300):
        kills += (done := run_and_kill(script, tmp_path / "killed", delay)) == -signal.SIGKILL
        if done == 0:
            break
        with pytest.raises(IndexNotFoundError, match=r"does not exist|unfinished|no manifest"):
            arrowds.open_index(tmp_path / "killed")
    assert kills >= 1
    killed, whole = (arrowds.open_index(tmp_path / name, verify=True) for name in ("killed", "whole"))
    assert digests(killed) == digests(whole)
    arrowds.vacuum(tmp_path / "killed")
    assert leftovers(tmp_path / "killed") == []


def run_and_kill(script: Path, index: Path, delay: float) -> int:
    """Run a script that says when it begins; kill it that many seconds later."""
    command = [sys.executable, str(script), str(index)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=ENVIRONMENT) as process:
        process.stdout.readline()
        try:
            return process.wait(delay)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait(30)


KILLED_IN_A_VIEW = """
import os, sys
import arrowds
from arrowds.index import view
write = view._write_order
def killed(path, *arguments):
    if sys.argv[2] == "half":
        path.write_bytes(b"half")
        os.kill(os.getpid(), 9)
    write(path, *arguments)
view._write_order = killed
rename = os.rename
def killed_rename(source, target):
    if sys.argv[2] == "before":
        os.kill(os.getpid(), 9)
    rename(source, target)
    if sys.argv[2] == "after":
        os.kill(os.getpid(), 9)
os.rename = killed_rename
arrowds.open_index(sys.argv[1])["loss"].order
"""


@pytest.mark.parametrize("when", ["half", "before", "after"])
def test_a_killed_maker_of_a_view_leaves_nothing_for_ever_and_disturbs_nobody(tmp_path, when):
    OPERATIONS["analyze"][1](tmp_path / "ix")
    before = set(contents(tmp_path / "ix"))
    killed = subprocess.run(
        [sys.executable, "-c", KILLED_IN_A_VIEW, tmp_path / "ix", when], env=ENVIRONMENT, timeout=120, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert set(contents(tmp_path / "ix")) > before
    index = arrowds.open_index(tmp_path / "ix")
    assert len(index["loss"].order) == index["loss"].num_valid
    arrowds.vacuum(tmp_path / "ix")
    assert leftovers(tmp_path / "ix") == []
    assert not list((tmp_path / "ix" / "views").glob(".*"))
    index.verify()


def test_a_vacuum_spares_a_view_that_is_being_made(tmp_path, monkeypatch):
    index = OPERATIONS["analyze"][1](tmp_path / "ix")
    write = arrowds.index.view._write_order

    def vacuumed_meanwhile(*arguments):
        arrowds.vacuum(tmp_path / "ix")
        write(*arguments)

    monkeypatch.setattr(arrowds.index.view, "_write_order", vacuumed_meanwhile)
    assert len(index["loss"].order) == index["loss"].num_valid
    assert leftovers(tmp_path / "ix") == []
