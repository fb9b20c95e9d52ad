"""A program that builds an index again and again and kills each build at another step; prints what it found as JSON.

Usage: killed_builds.py FOLDER fresh|overwrite

A step is a change of the file system below the index, as Python's audit events tell it; the kill comes just before.
Each build runs in a fork of this process, which has imported everything and has started no thread.
"""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import sys
import traceback
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from index_files import contents

import arrowds
from arrowds.errors import IndexNotFoundError

CHANGES = {"os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir", "os.truncate", "os.utime"}
MOST_POINTS = 9


def build(folder: Path, *, seed: int, overwrite: bool) -> None:
    random_ = np.random.default_rng(seed)
    table = pa.table(
        {
            "tokens": pa.array([list(range(n)) for n in random_.integers(0, 5, 2500)], pa.list_(pa.uint16())),
            "loss": pa.array(random_.normal(size=2500), mask=random_.random(2500) < 0.1),
        }
    )
    chosen = [
        arrowds.metrics.expr("loss", pl.col("loss"), nulls="keep"),
        arrowds.metrics.vocab_rarity("tokens"),
        arrowds.metrics.function(
            "norm", lambda batch: np.nansum(batch["loss"].to_numpy(zero_copy_only=False)), kind="total"
        ),
    ]
    arrowds.analyze(table, chosen, folder, workers=1, overwrite=overwrite, progress=False)


class Steps:
    """An audit hook that counts the steps of a build and kills it before one of them."""

    def __init__(self, folder: Path, kill_at: int | None, log: int) -> None:
        self.folder, self.kill_at, self.log, self.count = str(folder), kill_at, log, 0

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if not (writes or event in CHANGES) or not str(arguments[0]).startswith(self.folder):
            return
        self.count += 1
        os.write(self.log, f"{event} {str(arguments[0]).removeprefix(self.folder)}\n".encode())
        if self.count == self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)


def run(folder: Path, *, kill_at: int | None, seed: int, overwrite: bool) -> tuple[int, list[str]]:
    """Build in a fork; return its exit status (negative: the signal) and its steps."""
    log = folder.with_name("steps.log")
    with log.open("wb") as file:
        child = os.fork()
        if child == 0:
            try:
                sys.addaudithook(Steps(folder, kill_at, file.fileno()))
                build(folder, seed=seed, overwrite=overwrite)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, log.read_text().splitlines()


def state(folder: Path) -> str:
    """What a reader finds: nothing, or the fingerprint of an index whose every byte is as the manifest says."""
    try:
        return arrowds.open_index(folder, verify=True).fingerprint
    except IndexNotFoundError:
        return "nothing"


def files_of_index(folder: Path) -> dict[str, str]:
    """The files of the current generation, by their path within it, and whatever else there is."""
    data = arrowds.open_index(folder).manifest.layout(folder).data.relative_to(folder).as_posix()
    found = {name.removeprefix(f"{data}/"): content.hex() for name, content in contents(folder).items()}
    del found["manifest.json"]  # names the generation
    return found


def main() -> None:
    base, mode = Path(sys.argv[1]), sys.argv[2]
    logging.disable()  # each build takes over the lock of a dead one, and says so
    pa.array(np.zeros(1))  # here, and not in each fork, pyarrow imports pandas, where there is one
    overwrite = mode == "overwrite"
    old, new = base / "old", base / "new"
    status, steps = run(new, kill_at=None, seed=2, overwrite=False)
    assert status == 0
    expected = files_of_index(new)
    manifest = (new / "manifest.json").read_bytes()
    if overwrite:
        assert run(old, kill_at=None, seed=1, overwrite=False)[0] == 0
        trial = base / "trial"
        run(trial, kill_at=None, seed=1, overwrite=False)
        status, steps = run(trial, kill_at=None, seed=2, overwrite=True)
        assert status == 0
    commit = next(number for number, step in enumerate(steps, 1) if step.startswith("os.rename") and "manifest" in step)
    # The steps around the commit, and some of all others.
    points = {*range(commit - 1, min(commit + 4, len(steps)) + 1), len(steps)}
    others = [*range(1, len(steps) + 1)]
    points |= set(random.Random(0).sample(others, min(MOST_POINTS, len(others))))
    for point in sorted(points):
        folder = base / f"killed-{point}"
        if overwrite:
            run(folder, kill_at=None, seed=1, overwrite=False)
        died, done = run(folder, kill_at=point, seed=2, overwrite=overwrite)
        after = state(folder) if folder.exists() else "nothing"
        finished, _ = run(folder, kill_at=None, seed=2, overwrite=overwrite)
        found = files_of_index(folder)
        print(
            json.dumps(
                {
                    "point": point,
                    "step": done[-1],
                    "died": died,
                    "after": after,
                    "committed": point > commit,
                    "finished": finished,
                    "other_files": sorted(found.keys() ^ expected.keys()),
                    "other_bytes": sorted(
                        name for name in found.keys() & expected.keys() if found[name] != expected[name]
                    ),
                    "same_manifest": (folder / "manifest.json").read_bytes() == manifest,
                }
            )
        )
    fingerprints = {
        "new": state(new),
        "old": state(old) if overwrite else "nothing",
        "steps": len(steps),
        "commit": commit,
    }
    print(json.dumps(fingerprints))


if __name__ == "__main__":
    main()
