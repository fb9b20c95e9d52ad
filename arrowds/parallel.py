"""Threads that work ahead or are told to stop, attributes that are computed once; safe where a process is forked."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], *, ahead: int = 2, threads: int = 0
) -> Iterator[Result]:
    """Yield ``function(item)`` for each item, in order, computing at most a few results before they are wanted.

    Args:
        function: something that leaves the interpreter lock while it works.
        items: its arguments.
        ahead: results that may wait, beyond one for each thread; this bounds the memory.
        threads: 0 for one for each processor, up to 8; more where the function waits for a network; 1 for none but
            that of the caller.

    >>> list(ordered_map(abs, [-1, 2, -3]))
    [1, 2, 3]
    """
    count = threads or min(8, os.cpu_count() or 1)
    if count == 1:
        yield from map(function, items)
        return
    running: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(count) as pool:
        try:
            for item in items:
                running.append(pool.submit(function, item))
                if len(running) >= count + ahead:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


_told = threading.local()


def stop_on(event: threading.Event) -> None:
    """Let this thread stop at its next :func:`stop_if_told` once the event is set."""
    _told.event = event


def stop_if_told() -> None:
    """Raise KeyboardInterrupt in a thread whose work nobody waits for any more; long work calls it now and then.

    A thread can't be ended from outside: after Ctrl-C, the process would wait for the end of all that it has begun.
    """
    event: threading.Event | None = getattr(_told, "event", None)
    if event is not None and event.is_set():
        raise KeyboardInterrupt


class computed_once(Generic[Result]):  # noqa: N801  # used as a decorator, like property
    """An attribute that is computed when it is first read. Two threads may both compute it; one value is kept.

    ``functools.cached_property`` of Python 3.11 holds a lock for all instances of a class, and a process that is forked
    while another thread holds it waits for ever.
    """

    def __init__(self, function: Callable[[Any], Result]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Result:
        if instance is None:
            return self  # type: ignore[return-value]  # the attribute of the class, as property has it
        value: Result = instance.__dict__.setdefault(self._name, self._function(instance))
        return value
