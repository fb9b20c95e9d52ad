"""A program that runs an operation on an index again and again, killed each time at another step; prints JSON lines.

Usage: killed_operations.py FOLDER OPERATION NUMBER_OF_STEPS

A step is a change of the file system below the index, as Python's audit events tell it; the kill comes just before.
Each run is a fork of this process, which has imported everything and has started no thread.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from index_files import digests, leftovers
from small_operations import OPERATIONS

import arrowds
from arrowds.errors import IndexNotFoundError

CHANGES = {"os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.truncate", "os.utime"}


class Steps:
    """An audit hook that counts the steps of a run and kills it before one of them."""

    def __init__(self, folder: Path, kill_at: int | None, log: int) -> None:
        self.folder, self.kill_at, self.log, self.count = str(folder), kill_at, log, 0

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not (writes or event in CHANGES) or not str(arguments[0]).startswith(self.folder):
            return
        self.count += 1
        os.write(self.log, f"{event} {' '.join(map(str, arguments[:2]))}\n".encode())
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def run(folder: Path, act: Callable[[Path], object], *, kill_at: int | None = None) -> tuple[int, list[str]]:
    """Run an operation, and open what it has made, in a fork; return its exit status and its steps."""
    log = folder.with_name("steps.log")
    with log.open("wb") as file:
        child = os.fork()
        if child == 0:
            try:
                sys.addaudithook(Steps(folder, kill_at, file.fileno()))
                act(folder)
                if (folder / "manifests").is_dir():
                    index = arrowds.open_index(folder)
                    _ = [index[name].order for name in index]
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, log.read_text().splitlines()


def state(folder: Path) -> str:
    """What a reader finds: nothing, or the digest of a snapshot whose every byte is as the manifest says."""
    try:
        return arrowds.open_index(folder, verify=True).manifest.xxh3
    except IndexNotFoundError:
        return "nothing"


def main() -> None:
    base, operation, most = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    pa.array(np.zeros(1))  # here, and not in each fork, pyarrow imports pandas, where there is one
    start = base / "start"
    start.mkdir()
    before, act = OPERATIONS[operation]
    assert run(start, before)[0] == 0
    old = state(start)
    whole = base / "trial"
    shutil.copytree(start, whole)
    status, steps = run(whole, act)
    assert status == 0, "the operation fails on its own"
    new, expected = state(whole), digests(arrowds.open_index(whole))
    links = [number for number, step in enumerate(steps, 1) if step.startswith("os.link") and "manifests" in step]
    commit = links[0] if links else 0
    points = {*range(max(commit - 2, 1), min(commit + 3, len(steps)) + 1), 1, len(steps)}
    points |= set(random.Random(0).sample(range(1, len(steps) + 1), min(most, len(steps))))
    shutil.rmtree(whole)
    for point in sorted(points):
        folder = base / "trial"  # always one path, as it may go into the digest of what is built
        shutil.copytree(start, folder)
        died, done = run(folder, act, kill_at=point)
        after = state(folder)
        again = operation != "append" or after != new  # a table in memory can be appended any number of times
        finished = run(folder, act)[0] if again else 0
        arrowds.vacuum(folder)
        found = {
            "step": done[-1],
            "died": died == -signal.SIGKILL,
            "old_or_new": after in (old, new),
            "finished": finished == 0,
            "same_bytes": digests(arrowds.open_index(folder, verify=True)) == expected,
            "left": leftovers(folder),
        }
        print(json.dumps(found))
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
