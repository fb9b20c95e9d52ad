"""Items in worker processes of this machine, through loky: started afresh, watched, and replaced once when they die.

Workers are new interpreters, never forks: a fork of a process that runs Polars or torch threads may hang. They do not
import the caller's main module either, so a script needs no ``if __name__ == "__main__"``; what is defined there
travels by value. Each worker is a pool of one: loky gives up a whole pool when a process of it dies, and so a death
costs the item that the process was busy with, and no other.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import re
import signal
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import cloudpickle

from arrowds.build.engines.base import Work
from arrowds.errors import ArrowdsError, WorkerDiedError

logger = logging.getLogger(__name__)

_TRIES = 2
SECONDS_BETWEEN_LOOKS = 0.2
"""A wait without an end would not notice Ctrl-C: Polars' signal handler restarts system calls."""
_SAFE_PATH = "PYTHONSAFEPATH"
_EXIT_CODE = re.compile(r"\w+\((-?\d+)\)")


class UnloadableTaskError(ArrowdsError):
    """The dataset or a metric can't be sent to another process, or there can be none."""


def payload_of(work: Work) -> bytes:
    """Return the function of some work in a form that other processes can load.

    Raises:
        UnloadableTaskError: when the dataset or a metric can't be pickled, also not by value.
    """
    try:
        payload: bytes = cloudpickle.dumps(work.function)
    except Exception as error:
        raise UnloadableTaskError(f"the dataset or a metric can't be pickled ({error})") from error
    return payload


def in_processes(work: Work, items: Sequence[Any], count: int) -> Generator[int, None, None]:
    """Do the work for every item in ``count`` processes, and yield the number of each item that is done.

    Raises:
        UnloadableTaskError: when the work can't be pickled, or rebuilt in another process, or none can be started.
        WorkerDiedError: when workers died twice on one item.
        ArrowdsError: what a worker raised, with its traceback as the cause.
    """
    from loky.process_executor import BrokenProcessPool

    payload = payload_of(work)
    environment = _environment(max(1, (os.cpu_count() or 1) // count))
    waiting = deque(range(len(items)))
    deaths: Counter[int] = Counter()
    workers: list[_Worker] = []
    busy: dict[Future[None], tuple[_Worker, int]] = {}
    try:
        while waiting or busy:
            while waiting and len(busy) < count:
                idle = next((worker for worker in workers if worker.is_idle), None)
                if idle is None:
                    workers.append(idle := _Worker(payload, environment))
                number = waiting.popleft()
                busy[idle.give(items[number])] = idle, number
            for future in wait(busy, SECONDS_BETWEEN_LOOKS, return_when=FIRST_COMPLETED).done:
                worker, number = busy.pop(future)
                try:
                    future.result()
                except BrokenProcessPool as error:
                    deaths[number] += 1
                    _report_death(work, items[number], _how_it_ended(error), deaths[number])
                    workers.remove(worker)
                    worker.stop()
                    waiting.appendleft(number)
                else:
                    worker.is_idle = True
                    yield number
    finally:
        if workers:
            with ThreadPoolExecutor(len(workers)) as stopping:
                list(stopping.map(_Worker.stop, workers))


class _Worker:
    """A process with the function loaded; it does one item at a time."""

    def __init__(self, payload: bytes, environment: dict[str, str]) -> None:
        from loky import ProcessPoolExecutor

        if multiprocessing.current_process().daemon:
            raise UnloadableTaskError("this process is a daemon of multiprocessing, which can't have workers")
        self.is_idle = True
        try:
            _start_trackers()
            self._pool = ProcessPoolExecutor(
                1, env=environment, initializer=_prepare, initargs=(os.getpid(), os.environ.get(_SAFE_PATH))
            )
            with _interrupts_held():
                self._submit(_load, payload)
        except (OSError, NotImplementedError) as error:
            raise UnloadableTaskError(f"worker processes can't be started ({error})") from error

    def give(self, item: Any) -> Future[None]:
        self.is_idle = False
        return self._submit(_do, item)

    def _submit(self, function: Callable[[Any], None], argument: Any) -> Future[None]:
        from loky.process_executor import BrokenProcessPool

        try:
            future: Future[None] = self._pool.submit(function, argument)
        except BrokenProcessPool as error:  # it has died already
            future = Future()
            future.set_exception(error)
        return future

    def stop(self) -> None:
        self._pool.shutdown(wait=True, kill_workers=True)


def _environment(threads: int) -> dict[str, str]:
    """The environment of workers: what this process has, and before it what a worker should have by default."""
    defaults = {
        "POLARS_MAX_THREADS": str(threads),
        "OMP_NUM_THREADS": str(threads),
        # A module in the current folder must not take the place of one that the interpreter starts with.
        _SAFE_PATH: "1",
        # loky restarts workers that have grown; a memory-mapped dataset that was read counts there, too.
        "LOKY_MAX_MEMORY_LEAK_SIZE": "1e18",
    }
    if sys.flags.dev_mode:
        defaults["PYTHONDEVMODE"] = "1"
    return {**defaults, **os.environ}


def _start_trackers() -> None:
    """Start the processes that remove semaphores after a kill, once, without the current folder among their imports."""
    from multiprocessing.resource_tracker import ensure_running

    from loky.backend.resource_tracker import ensure_running as ensure_running_of_loky

    given = os.environ.get(_SAFE_PATH)
    os.environ[_SAFE_PATH] = "1"
    try:
        ensure_running()
        ensure_running_of_loky()
    finally:
        if given is None:
            del os.environ[_SAFE_PATH]
        else:
            os.environ[_SAFE_PATH] = given


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Start processes to which Ctrl-C doesn't matter, from their first instruction on: this process stops them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _report_death(work: Work, item: Any, how: str, deaths: int) -> None:
    if deaths >= _TRIES:
        raise WorkerDiedError(
            f"a worker {how} on {work.label(item)}, {deaths} times; if memory ran out, use fewer workers or smaller "
            "batches. Finished work is kept: run again to resume"
        )
    logger.warning("a worker %s on %s; trying them once more", how, work.label(item))


def _how_it_ended(error: Exception) -> str:
    """Say how the process of a broken pool ended; loky has it in its message alone."""
    found = _EXIT_CODE.search(str(error))
    if found is None:
        return "died"
    code = int(found[1])
    return f"ended with exit status {code}" if code >= 0 else f"was killed by signal {-code} ({_signal_name(-code)})"


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else "unknown"


# What follows runs in the workers.

_function: Callable[[Any], None] | Exception | None = None


def _prepare(parent: int, safe_path: str | None) -> None:
    """Begin a worker, which ends with its parent, ignores Ctrl-C, and has the parent's environment again."""
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if safe_path is None:
        del os.environ[_SAFE_PATH]


def _end_with_parent(parent: int) -> None:
    """End this process soon after its parent was killed, so that nothing keeps on computing for a run that is gone."""
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)


def _load(payload: bytes) -> None:
    global _function  # noqa: PLW0603  # a worker has one function
    try:
        _function = pickle.loads(payload)
    except Exception as error:
        _function = error


def _do(item: Any) -> None:
    if isinstance(_function, Exception):
        raise UnloadableTaskError(
            f"a worker process can't rebuild the dataset or a metric ({type(_function).__name__}: {_function})"
        )
    if _function is not None:
        call(_function, item)


def call(function: Callable[[Any], None], item: Any) -> None:
    """Call a function in a worker: what it raises can be sent back, and an exit ends the worker.

    Raises:
        ArrowdsError: in place of an error that can't be pickled, with its text.
    """
    try:
        function(item)
    except SystemExit as ended:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 1)
    except Exception as error:
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            raise ArrowdsError(f"{type(error).__name__}: {error}") from error
        raise
