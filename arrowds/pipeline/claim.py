"""One run at a time in an output folder."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from arrowds.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

_held: set[int] = set()


def _close_in_child() -> None:
    """Close what a fork has inherited: a loader's worker that outlives its run must not hold the folder."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold a folder, created if missing, against other runs; the system releases it when the process ends.

    The lock is on the folder itself, so that nothing is left in it. Where the file system has no locks, that is logged
    and the run goes on.

    Raises:
        ConfigError: when another run holds the folder.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder, claimed(Path(folder)):
    ...     with claimed(Path(folder)):
    ...         pass
    Traceback (most recent call last):
    arrowds.errors.ConfigError: another run is writing to ...
    """
    folder.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    _held.add(descriptor)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise ConfigError(
                    f"another run is writing to {folder}: wait until it has ended, or choose another output"
                ) from error
            logger.warning("%s can't be locked (%s): see to it that no other run writes there", folder, error)
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)
