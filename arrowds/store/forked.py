"""Requests of a process that was forked after its parent had used an object store.

obstore's threads do not survive a fork: a request of the child would wait for ever. So the child starts one new
interpreter, which makes its requests; it ends with the child.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from typing import Any

from arrowds.errors import StorageError

_SERVE = "from arrowds.store.forked import serve; serve()"


class Helper:
    """An interpreter that calls functions for this process, one at a time."""

    def __init__(self) -> None:
        paths = os.pathsep.join(filter(None, sys.path))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
        )
        self._lock = threading.Lock()

    def call(self, function: Any, *args: Any) -> Any:
        """Return what the function returns there, or raise what it raises."""
        to_helper, from_helper = self._process.stdin, self._process.stdout
        if to_helper is None or from_helper is None:
            raise StorageError("the process that makes requests has no pipes")
        try:
            with self._lock:
                pickle.dump((function, args), to_helper)
                to_helper.flush()
                succeeded, result = pickle.load(from_helper)
        except (EOFError, BrokenPipeError) as error:
            raise StorageError(
                f"process {self._process.pid}, which makes the requests of this forked process, was killed; run again"
            ) from error
        if not succeeded:
            raise result
        return result


def serve() -> None:
    """Answer calls from standard input on standard output until it is closed."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what anything here prints is no answer
    calls = sys.stdin.buffer
    while True:
        try:
            function, args = pickle.load(calls)
        except EOFError:
            return
        try:
            answer = (True, function(*args))
        except Exception as error:
            answer = (False, error)
        pickle.dump(answer, answers)
        answers.flush()


_helper: tuple[int, Helper] | None = None
_starting = threading.Lock()


def helper() -> Helper:
    """Return the helper of this process, started when it is first needed."""
    global _helper  # noqa: PLW0603  # one for each process
    if _helper is None or _helper[0] != os.getpid():
        with _starting:
            if _helper is None or _helper[0] != os.getpid():
                _helper = (os.getpid(), Helper())
    return _helper[1]


def _new_lock() -> None:
    """A fork copies locks as they are: one that another thread holds would never be released."""
    global _starting  # noqa: PLW0603
    _starting = threading.Lock()


os.register_at_fork(after_in_child=_new_lock)
