"""Items in worker processes of this machine, through loky: started afresh, watched, and replaced once when they die.

Workers are new interpreters, never forks: a fork of a process that runs Polars or torch threads may hang. They do not
import the caller's main module either, so a script needs no ``if __name__ == "__main__"``; what is defined there
travels by value.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

import cloudpickle

from arrowds.build.engines.base import Work
from arrowds.errors import ArrowdsError, WorkerDiedError

logger = logging.getLogger(__name__)

_TRIES = 2


class UnloadableTaskError(ArrowdsError):
    """The dataset or a metric can't be sent to another process."""


def in_processes(work: Work, items: Sequence[Any], count: int) -> Generator[int, None, None]:
    """Do the work for every item in ``count`` processes, and yield the number of each item that is done.

    Raises:
        UnloadableTaskError: when the work can't be pickled, or rebuilt in another process.
        WorkerDiedError: when workers died twice on one item.
        ArrowdsError: what a worker raised, with its traceback as the cause.
    """
    try:
        payload = cloudpickle.dumps(work.function)
    except Exception as error:
        raise UnloadableTaskError(f"the dataset or a metric can't be pickled ({error})") from error
    left = dict(enumerate(items))
    deaths: dict[int, int] = {}
    while left:
        yield from _until_a_death(payload, left, count, deaths, work.name)


def _until_a_death(
    payload: bytes, left: dict[int, Any], count: int, deaths: dict[int, int], name: str
) -> Generator[int, None, None]:
    """Do items until all are done or a worker died; the items that died are counted and stay in ``left``."""
    from loky import ProcessPoolExecutor
    from loky.backend import get_context
    from loky.process_executor import TerminatedWorkerError

    threads = str(max(1, (os.cpu_count() or 1) // count))
    environment = {"POLARS_MAX_THREADS": threads, "OMP_NUM_THREADS": threads, "PYTHONSAFEPATH": "1"}
    executor = ProcessPoolExecutor(
        count, env={**environment, **os.environ}, initializer=_load, initargs=(payload,), context=get_context("loky")
    )
    running: dict[Future[None], int] = {}
    waiting = iter(sorted(left, key=lambda number: (-deaths.get(number, 0), number)))
    try:
        while True:
            while len(running) < count and (number := next(waiting, None)) is not None:
                running[executor.submit(_do, left[number])] = number
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                try:
                    future.result()
                except TerminatedWorkerError:
                    _count_deaths(running.values(), left, deaths, name)
                    return
                number = running.pop(future)
                del left[number]
                yield number
    finally:
        executor.shutdown(wait=True, kill_workers=True)


def _count_deaths(numbers: Any, left: dict[int, Any], deaths: dict[int, int], name: str) -> None:
    for number in numbers:
        deaths[number] = deaths.get(number, 0) + 1
        if deaths[number] >= _TRIES:
            raise WorkerDiedError(
                f"a worker died on {name} {left[number]}, {_TRIES} times; if memory ran out, use fewer workers or "
                "smaller batches. Finished work is kept: run again to resume"
            )
        logger.warning("a worker died; trying %s %s once more", name, left[number])


_function: Callable[[Any], None] | Exception | None = None


def _load(payload: bytes) -> None:
    global _function  # noqa: PLW0603  # a worker process has one task
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
        _function(item)
