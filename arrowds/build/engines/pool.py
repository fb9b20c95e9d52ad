"""Worker processes that compute parts: started afresh, watched, replaced once when they die.

Workers are new interpreters, never forks: a fork of a process that runs Polars or torch threads may hang. They do not
import the caller's main module either, so a script needs no ``if __name__ == "__main__"``; what is defined there
travels by value.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, Pipe, wait
from types import TracebackType
from typing import cast

import cloudpickle

from arrowds.errors import ArrowdsError, WorkerDiedError
from arrowds.index.manifest import PartRange

logger = logging.getLogger(__name__)

_TRIES = 2


class UnloadableTaskError(ArrowdsError):
    """The dataset or a metric can't be sent to another process."""


class RemoteTracebackError(Exception):
    """The traceback in the worker, as the cause of the error that is raised here."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def payload_of(work: Callable[[PartRange], None]) -> bytes:
    """Return what a worker needs to rebuild the work, which it calls with one part after the other.

    Raises:
        UnloadableTaskError: when the dataset or a metric can't be pickled, also not by value.
    """
    try:
        return cast(bytes, cloudpickle.dumps(work))
    except Exception as error:
        raise UnloadableTaskError(f"the dataset or a metric can't be pickled ({error})") from error


class _Worker:
    """One process and the part it is busy with."""

    def __init__(self, payload: bytes, threads: int) -> None:
        self.connection, theirs = Pipe()
        environment = {"POLARS_MAX_THREADS": str(threads), "OMP_NUM_THREADS": str(threads), **os.environ}
        command = [sys.executable, "-m", "arrowds.build.engines.worker", str(theirs.fileno()), str(os.getpid())]
        if sys.flags.dev_mode:
            command[1:1] = ["-X", "dev"]
        package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))  # noqa: PTH100, PTH120  # a string for PYTHONPATH
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL)
        theirs.close()
        self.part: PartRange | None = None
        try:
            self.connection.send(sys.path)
            self.connection.send_bytes(payload)
        except OSError:
            logger.debug("worker %d ended while it was started", self.process.pid)

    def give(self, part: PartRange) -> None:
        self.part = part
        try:
            self.connection.send(part)
        except OSError:
            logger.debug("worker %d ended before it was given part %d", self.process.pid, part.number)

    def stop(self) -> None:
        self.connection.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class WorkerPool:
    """A fixed number of workers with one task; use as a context manager, which stops them."""

    def __init__(self, payload: bytes, count: int) -> None:
        self._payload = payload
        self._threads = max(1, (os.cpu_count() or 1) // count)
        self._workers = [_Worker(payload, self._threads) for _ in range(count)]

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for worker in self._workers:
            worker.stop()

    def run(self, parts: Sequence[PartRange]) -> Iterator[PartRange]:
        """Yield each part when a worker has finished it.

        Raises:
            UnloadableTaskError: when the workers can't rebuild the task.
            WorkerDiedError: when a worker died twice on one part.
            ArrowdsError: what a worker raised, with its traceback as the cause.
        """
        waiting = deque(parts)
        deaths: dict[int, int] = {}
        for worker in self._workers:
            if waiting:
                worker.give(waiting.popleft())
        while busy := {worker.connection: worker for worker in self._workers if worker.part is not None}:
            for ready in wait(list(busy)):
                worker = busy[cast(Connection, ready)]
                part = cast(PartRange, worker.part)
                try:
                    outcome = worker.connection.recv()
                except (EOFError, OSError):
                    worker = self._replace(worker, part, deaths)
                    worker.give(part)
                    continue
                _raise_if_failed(outcome)
                worker.part = None
                if waiting:
                    worker.give(waiting.popleft())
                yield part

    def _replace(self, dead: _Worker, part: PartRange, deaths: dict[int, int]) -> _Worker:
        dead.stop()
        deaths[part.number] = deaths.get(part.number, 0) + 1
        how = _how_it_ended(dead.process.returncode)
        if deaths[part.number] >= _TRIES:
            raise WorkerDiedError(
                f"a worker {how} on samples {part.start} to {part.stop - 1}, {_TRIES} times; if memory ran out, use "
                "fewer workers or smaller batches. Finished parts are kept: run again to go on"
            )
        logger.warning("a worker %s on samples %d to %d; trying them once more", how, part.start, part.stop - 1)
        fresh = _Worker(self._payload, self._threads)
        self._workers[self._workers.index(dead)] = fresh
        return fresh


def _how_it_ended(returncode: int) -> str:
    if returncode >= 0:
        return f"ended with exit status {returncode}"
    return f"was killed by signal {-returncode} ({signal.Signals(-returncode).name})"


def _raise_if_failed(outcome: tuple[str, object, str]) -> None:
    kind, error, traceback = outcome
    if kind == "unloadable":
        raise UnloadableTaskError(f"a worker process can't rebuild the dataset or a metric ({error})")
    if kind == "error" and isinstance(error, BaseException):
        raise error from RemoteTracebackError(traceback)
