"""Parts on this machine: in this process, in its threads, or in worker processes, whichever finishes first."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import partial

from arrowds.build.engines.pool import UnloadableTaskError, WorkerPool, payload_of
from arrowds.build.map import map_part
from arrowds.build.plan import MapTask
from arrowds.errors import ConfigError
from arrowds.index.manifest import PartRange

logger = logging.getLogger(__name__)

_STARTUP_SECONDS = 5.0
"""What starting workers costs at the most: importing torch and the dataset's modules, and sending them the dataset."""


def check_workers(workers: int | None) -> None:
    """Raise ConfigError for a number of workers that makes no sense."""
    if workers is not None and workers < 1:
        raise ConfigError(f"workers must be at least 1; got {workers}")


def run_local(
    task: MapTask, parts: Sequence[PartRange], *, workers: int | None, most_workers: int | None = None
) -> Iterator[PartRange]:
    """Map the parts and yield each one when its files are written, in any order.

    Args:
        task: what to compute.
        parts: the row ranges.
        workers: None to choose by the work there is, 1 for this process alone, more for that many workers: threads
            where source and metrics work outside the interpreter lock, else processes.
        most_workers: bounds the choice where ``workers`` is None; by default the number of cores.
    """
    check_workers(workers)
    count = min(workers or most_workers or os.cpu_count() or 1, max(len(parts), 1))
    if workers == 1 or not parts:
        yield from _in_process(task, deque(parts))
    elif task.source.concurrent and all(metric.in_threads for metric in task.metrics):
        yield from _in_threads(task, parts, count)
    elif workers is None:
        yield from _in_process_while_cheaper(task, deque(parts), count)
    else:
        yield from _in_workers(task, parts, count)


def _in_process(task: MapTask, parts: deque[PartRange]) -> Iterator[PartRange]:
    while parts:
        map_part(task, parts[0])
        yield parts.popleft()


def _in_process_while_cheaper(task: MapTask, parts: deque[PartRange], count: int) -> Iterator[PartRange]:
    """Compute part after part here, and hand over to workers once they would save more than their start costs."""
    seconds: list[float] = []
    while parts:
        began = time.perf_counter()
        map_part(task, parts[0])
        seconds.append(time.perf_counter() - began)
        yield parts.popleft()
        saved = min(seconds) * len(parts) * (1 - 1 / count)
        # One part tells nothing: it also imports what the metrics need.
        if parts and count > 1 and len(seconds) > 1 and saved > 2 * _STARTUP_SECONDS:
            yield from _in_workers(task, list(parts), min(count, len(parts)))
            return


def _in_threads(task: MapTask, parts: Sequence[PartRange], count: int) -> Iterator[PartRange]:
    with ThreadPoolExecutor(count) as threads:
        running: dict[Future[None], PartRange] = {}
        waiting = deque(parts)
        try:
            while waiting or running:
                while waiting and len(running) < count:
                    part = waiting.popleft()
                    running[threads.submit(map_part, task, part)] = part
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    part = running.pop(future)
                    future.result()
                    yield part
        finally:
            for future in running:
                future.cancel()


def _in_workers(task: MapTask, parts: Sequence[PartRange], count: int) -> Iterator[PartRange]:
    """Compute the parts in processes; where the task can't be sent to one, compute them here and say so."""
    left = {part.number: part for part in parts}
    try:
        with WorkerPool(payload_of(partial(map_part, task)), count) as pool:
            for part in pool.run(parts):
                del left[part.number]
                yield part
    except UnloadableTaskError as error:
        logger.warning("running in this process instead of %d workers: %s", count, error)
        yield from _in_process(task, deque(left.values()))
