"""Waiting for what a running command does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something is true of a running process."""
    end = time.monotonic() + 60
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.005)
