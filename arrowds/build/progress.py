"""How far a run is: a bar with rows per second and time left on a terminal, log lines elsewhere, or a callback."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger(__name__)

ProgressCallback = Callable[[int, int], None]
"""Called with the rows done and the rows in all."""

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def reporting(total: int, progress: bool | ProgressCallback | None) -> Iterator[ProgressCallback]:
    """Give a callback that shows progress over ``total`` rows.

    Args:
        total: rows in all.
        progress: None to choose a bar on a terminal and log lines elsewhere, False for silence, True for the bar in
            any case, or a callback of your own.
    """
    if callable(progress):
        yield progress
    elif progress or (progress is None and sys.stderr.isatty()):
        from arrowds.build.progress_bar import progress_bar

        with progress_bar(total) as callback:
            yield callback
    elif progress is None:
        yield _LogLines()
    else:
        yield lambda done, total: None


class _LogLines:
    """A line of log at most every few seconds, and one at the end."""

    def __init__(self) -> None:
        self._began = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN_LINES and done < total:
            return
        self._last = now
        elapsed = max(now - self._began, 1e-9)
        left = elapsed * (total - done) / max(done, 1)
        logger.info("%d of %d rows, %.0f rows/s, %.0f s left", done, total, done / elapsed, left)
