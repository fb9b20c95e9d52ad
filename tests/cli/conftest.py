"""The command line as processes: what a launcher starts, kills and starts again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from waiting import wait_until

PROGRAM = [sys.executable, "-c", "from arrowds.cli import main; main()"]


@dataclass(frozen=True)
class Shell:
    """A folder in which commands are run."""

    folder: Path

    def start(self, *arguments: object, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
        """Start a command in a process group of its own."""
        return subprocess.Popen(
            [*PROGRAM, *map(str, arguments)],
            cwd=self.folder, env=os.environ | (environment or {}), text=True, encoding="utf-8",
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def run(self, *arguments: object, status: int = 0) -> str:
        """Run a command to its end and return what it printed: on stdout, or on stderr where it should fail."""
        return self.end(self.start(*arguments), status=status)

    def end(self, process: subprocess.Popen[str], *, status: int = 0) -> str:
        """Wait for a command and return what it printed."""
        out, err = process.communicate(timeout=120)
        assert process.returncode == status, f"{process.args}: {process.returncode}\n{out}\n{err}"
        assert "Traceback" not in err, err
        return err if status else out

    def write_tokens(self, name: str, rows: int, *, seed: int) -> None:
        """Write a file of samples of 1 to 29 tokens."""
        rng = np.random.default_rng(seed)
        lengths = rng.integers(1, 30, rows)
        ids = pl.Series("input_ids", [rng.integers(0, 50, length).tolist() for length in lengths])
        (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
        pl.DataFrame([ids]).write_parquet(self.folder / name)


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """A folder with 3 files of 2,000 samples below ``data``."""
    made = Shell(tmp_path)
    for number in range(3):
        made.write_tokens(f"data/{number}.parquet", 2000, seed=number)
    return made


@pytest.fixture
def interrupt() -> Callable[[subprocess.Popen[str], Callable[[], bool]], None]:
    """Press Ctrl-C as a terminal does: all processes of the group get the signal, once something is true."""

    def press(process: subprocess.Popen[str], ready: Callable[[], bool]) -> None:
        wait_until(ready, process)
        os.killpg(process.pid, signal.SIGINT)

    return press
