"""One writer at a time, told by name; a dead one's lock is taken over."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from arrowds.errors import IndexLockedError, StorageError
from arrowds.index import lock

HOLD = """
import sys, time
from pathlib import Path
from arrowds.index import lock
with lock.writing(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "index" / "writer.lock"


@pytest.fixture
def holder(path):
    """Another process that holds the lock until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, path, "60"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_it_is_there_while_the_block_runs(path):
    with lock.writing(path):
        found = json.loads(path.read_text())
        assert (found["pid"], found["host"]) == (os.getpid(), socket.gethostname())
    assert list(path.parent.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), lock.writing(path):
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []


def test_the_second_is_told_who_holds_it(path, holder):
    expected = rf"process {holder.pid} on {socket.gethostname()} \(since 20.*\) is writing to .*index; wait for it"
    with pytest.raises(IndexLockedError, match=expected), lock.writing(path):
        pass
    assert json.loads(path.read_text())["pid"] == holder.pid
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["writer.lock"]


def test_two_threads_of_one_process_are_two_runs(path):
    with lock.writing(path), pytest.raises(IndexLockedError, match=f"process {os.getpid()}"), lock.writing(path):
        pass


def test_the_lock_of_a_killed_process_is_taken_over(path, holder, caplog):
    holder.kill()
    holder.wait()
    assert path.exists()
    with lock.writing(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert "taking over the lock that a dead run left" in caplog.text
    assert list(path.parent.iterdir()) == []


def test_a_process_that_was_killed_and_not_yet_waited_for_is_dead(path, holder):
    holder.kill()
    deadline = time.monotonic() + 10
    while lock._process_start(holder.pid) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with lock.writing(path):
        pass


def test_a_later_process_of_the_same_id_does_not_hold_it(path):
    path.parent.mkdir()
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "process_start": "1"}))
    with lock.writing(path):
        pass


def write_foreign(path, *, age: float) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"host": "elsewhere", "pid": 7, "process_start": "1", "since": "2026-01-01"}))
    os.utime(path, (time.time() - age, time.time() - age))


def test_another_hosts_lock_holds_as_long_as_it_is_touched(path):
    write_foreign(path, age=lock.STALE_SECONDS - 5)
    with pytest.raises(IndexLockedError, match=r"process 7 on elsewhere \(since 2026-01-01\)"), lock.writing(path):
        pass
    write_foreign(path, age=lock.STALE_SECONDS + 5)
    with lock.writing(path):
        assert json.loads(path.read_text())["host"] == socket.gethostname()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_a_lock_that_can_not_be_read_expires(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(IndexLockedError, match="another run is writing to"), lock.writing(path):
        pass
    os.utime(path, (0, 0))
    with lock.writing(path):
        pass


def test_the_holder_touches_it(path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.02)
    with lock.writing(path):
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while path.stat().st_mtime == 0:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert "arrowds-lock" not in [thread.name for thread in threading.enumerate()]


def test_a_lock_that_was_taken_away_is_not_removed(path):
    with lock.writing(path):
        write_foreign(path, age=0)
    assert json.loads(path.read_text())["host"] == "elsewhere"


def test_of_many_that_take_over_a_dead_lock_one_at_a_time_holds_it(path):
    """Threads stand for processes: each has a token of its own."""
    write_foreign(path, age=3600)
    inside, most, taken = [], [], []

    def take() -> None:
        for _ in range(10):
            try:
                with lock.writing(path):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.002)
                    inside.pop()
                    taken.append(1)
            except IndexLockedError:
                time.sleep(0.001)

    threads = [threading.Thread(target=take) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert taken
    assert max(most) == 1
    assert list(path.parent.iterdir()) == []


def test_a_folder_that_can_not_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="can't be written"), lock.writing(tmp_path / "file" / "writer.lock"):
        pass
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(StorageError, match="dangling can't be written"), lock.writing(tmp_path / "dangling" / "w.lock"):
        pass


def test_a_sweep_that_takes_the_draft_away_is_no_failure(path, monkeypatch):
    """The holder clears half-written files just as a second run has written its draft."""
    link = os.link

    def swept(source, target):
        Path(source).unlink()
        return link(source, target)

    with lock.writing(path):
        monkeypatch.setattr(os, "link", swept)
        with pytest.raises(IndexLockedError), lock.writing(path):
            pass
