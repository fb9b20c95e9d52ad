"""Run a function over many items in threads, a few at a time, and take the results in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(function: Callable[[Item], Result], items: Iterable[Item], *, ahead: int = 2) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, in order, computing at most a few results before they are wanted.

    Args:
        function: something that leaves the interpreter lock while it works.
        items: its arguments.
        ahead: results that may wait, beyond one for each processor; this bounds the memory.

    >>> list(ordered_map(abs, [-1, 2, -3]))
    [1, 2, 3]
    """
    count = min(8, os.cpu_count() or 1)
    running: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(count) as threads:
        try:
            for item in items:
                running.append(threads.submit(function, item))
                if len(running) >= count + ahead:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()
