"""Tasks on this machine: in this process, in its threads, or in worker processes, whichever finishes first."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import closing
from threading import Event

from arrowds.build.engines.base import Engine, Item, Work
from arrowds.build.engines.processes import SECONDS_BETWEEN_LOOKS, UnloadableTaskError, in_processes
from arrowds.errors import ConfigError
from arrowds.parallel import stop_on

logger = logging.getLogger(__name__)

_STARTUP_SECONDS = 5.0
"""What starting workers costs at the most: importing torch and the dataset's modules, and sending them the dataset."""


_STOPPING_SECONDS = 10.0
"""How long threads are waited for that were told to stop; they do so after the batch or the bucket at hand."""


class LocalEngine(Engine):
    """The processors of this machine.

    Args:
        workers: None to choose by the work there is, 1 for this process alone, more for that many workers: threads
            where the work releases the interpreter lock, else processes.
        most_workers: bounds the choice where ``workers`` is None; by default the number of processors.

    Raises:
        ConfigError: when ``workers`` is below 1.
    """

    def __init__(self, workers: int | None = None, *, most_workers: int | None = None) -> None:
        if workers is not None and workers < 1:
            raise ConfigError(f"workers must be at least 1; got {workers}")
        self._workers = workers
        self._most = workers or most_workers or os.cpu_count() or 1

    def run(self, work: Work, items: Sequence[Item]) -> Generator[Item, None, None]:
        count = min(self._most, max(len(items), 1))
        if (work.alone and self._workers is None) or (count == 1 and self._workers is not None):
            yield from _in_process(work, items)
        elif work.releases_gil:
            yield from _in_threads(work, items, count)
        elif self._workers is None:
            yield from _in_process_while_cheaper(work, items, count)
        else:
            yield from _in_workers(work, items, count)


def _in_process(work: Work, items: Sequence[Item]) -> Generator[Item, None, None]:
    """Do item after item here; where items have halves, a thread does the second while the next item begins."""
    if work.begin is None:
        for item in items:
            work.function(item)
            yield item
        return
    with ThreadPoolExecutor(1) as thread:
        ending: deque[tuple[Future[None], Item]] = deque()
        for item in items:
            ending.append((thread.submit(work.begin(item)), item))
            if len(ending) > 1:
                yield _ended(*ending.popleft())
        while ending:
            yield _ended(*ending.popleft())


def _ended(future: Future[None], item: Item) -> Item:
    future.result()
    return item


def _in_process_while_cheaper(work: Work, items: Sequence[Item], count: int) -> Generator[Item, None, None]:
    """Do item after item here, and hand over to workers once they would save more than their start costs."""
    seconds: list[float] = []
    began = time.perf_counter()
    left = dict(enumerate(items))
    with closing(_in_process(work, items)) as done:
        for number, item in enumerate(done):
            seconds.append(time.perf_counter() - began)
            del left[number]
            yield item
            saved = min(seconds) * len(left) * (1 - 1 / count)
            # One item tells nothing: it also imports what the metrics need.
            if left and count > 1 and len(seconds) > 1 and saved > 2 * _STARTUP_SECONDS:
                break
            began = time.perf_counter()
    if left:
        yield from _in_workers(work, list(left.values()), min(count, len(left)))


def _in_threads(work: Work, items: Sequence[Item], count: int) -> Generator[Item, None, None]:
    stop = Event()
    threads = ThreadPoolExecutor(count, initializer=stop_on, initargs=(stop,))
    running: dict[Future[None], Item] = {}
    waiting = deque(items)
    try:
        while waiting or running:
            while waiting and len(running) < count:
                item = waiting.popleft()
                running[threads.submit(work.function, item)] = item
            for future in wait(running, SECONDS_BETWEEN_LOOKS, return_when=FIRST_COMPLETED).done:
                item = running.pop(future)
                future.result()
                yield item
    finally:
        stop.set()
        threads.shutdown(wait=False, cancel_futures=True)
        wait(running, timeout=_STOPPING_SECONDS)


def _in_workers(work: Work, items: Sequence[Item], count: int) -> Generator[Item, None, None]:
    """Do the items in processes; where the work can't be sent to one, do them here and say so."""
    left = dict(enumerate(items))
    try:
        for number in in_processes(work, items, count):
            yield left.pop(number)
    except UnloadableTaskError as error:
        logger.warning("running in this process instead of %d workers: %s", count, error)
        yield from _in_process(work, list(left.values()))
