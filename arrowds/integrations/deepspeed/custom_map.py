"""The hooks with which users of DeepSpeed's analyzer write a store of their own."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from arrowds.build.engines.base import Work
from arrowds.build.engines.processes import in_processes
from arrowds.sources.base import Source

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ThreadRows:
    """The rows [start, stop) of the dataset that one "thread" maps."""

    number: int
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{self.start} to {self.stop - 1}"


@dataclass(frozen=True, kw_only=True)
class CustomMap:
    """The three hooks, and what they are called with; callable on the rows of one "thread".

    Attributes:
        init: ``init(thread_id, names, types, dtypes, save_path, worker_id)`` returns the thread's results.
        update: ``update(batch, types, dtypes, functions, results, first_row)`` adds a batch to them.
        finalize: ``finalize(types, dtypes, results)`` writes them.
    """

    init: Callable[..., Any]
    update: Callable[..., Any]
    finalize: Callable[..., Any]
    source: Source
    batch_size: int
    names: Sequence[str]
    functions: Sequence[Callable[[Any], Any]]
    types: Sequence[str]
    dtypes: Sequence[Any]
    save_path: str
    worker_id: int

    def __call__(self, thread: ThreadRows) -> None:
        """Run the hooks over the rows of one thread."""
        results = self.init(thread.number, self.names, self.types, self.dtypes, self.save_path, self.worker_id)
        batches = self.source.read(thread.start, thread.stop)
        for first_row, batch in zip(range(thread.start, thread.stop, self.batch_size), batches, strict=True):
            self.update(batch, self.types, self.dtypes, self.functions, results, first_row)
        self.finalize(self.types, self.dtypes, results)


def run_threads(custom: CustomMap, threads: Sequence[ThreadRows], *, most_workers: int) -> None:
    """Run the hooks for every thread: in this process where there is one, else in a process for each.

    Raises:
        WorkerDiedError: when a process ended before its thread was done, twice.
    """
    if most_workers == 1 or len(threads) == 1:
        for thread in threads:
            custom(thread)
        return
    work = Work(custom, releases_gil=False, name="samples")
    with closing(in_processes(work, threads, min(most_workers, len(threads)))) as finished:
        for number in finished:
            logger.info("worker %d thread %d: finished", custom.worker_id, threads[number].number)


def split(start: int, stop: int, pieces: int) -> list[tuple[int, int]]:
    """Cut a range as DeepSpeed does: nearly equal pieces, some of them empty where there are more pieces than rows.

    >>> split(0, 10, 3), split(0, 1, 3)
    ([(0, 3), (3, 6), (6, 10)], [(0, 0), (0, 0), (0, 1)])
    """
    bounds = np.linspace(start, stop, pieces + 1, dtype=np.int64).tolist()
    return list(pairwise(bounds))
