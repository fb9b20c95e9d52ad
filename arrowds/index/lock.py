"""One writer per index: a lock file that is created exclusively, names its holder and outlives no killed run.

No advisory file locking is used, so it works on network file systems. The holder touches the file every few seconds; a
lock whose process is gone (same host) or that was not touched for a minute (another host) may be taken over.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from arrowds.errors import IndexLockedError, StorageError
from arrowds.index import files as storage

logger = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Hold the lock file ``path`` while the block runs.

    Raises:
        IndexLockedError: when another live run holds it; names the host, the process and the time it began.
        StorageError: when the folder can't be written.
    """
    holder = _myself()
    _acquire(path, holder)
    stop = threading.Event()
    beat = threading.Thread(target=_heartbeat, args=(path, stop), daemon=True, name="arrowds-lock")
    beat.start()
    try:
        yield
    finally:
        stop.set()
        beat.join()
        if _read(path) == holder:
            path.unlink(missing_ok=True)


def _myself() -> dict[str, object]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_start": _process_start(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        "token": uuid.uuid4().hex,
    }


def _acquire(path: Path, holder: dict[str, object]) -> None:
    while not _create(path, holder):
        current = _read(path)
        if current is None and not path.exists():
            continue
        if not _is_stale(path, current):
            raise IndexLockedError(_held_message(path, current))
        logger.warning("taking over the lock that a dead run left in %s", path)
        _remove_stale(path, current)


def _create(path: Path, holder: dict[str, object]) -> bool:
    """Create the lock with its content in one step: link() fails where the name is taken, also over NFS."""
    draft = path.with_name(f".{path.name}.{holder['token']}{storage.TEMPORARY}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(holder), encoding="utf-8")
        return _linked(draft, path)
    except OSError as error:
        raise StorageError(error.errno, f"{path.parent} can't be written: {storage.explained(error)}") from error
    finally:
        if path.parent.is_dir():
            draft.unlink(missing_ok=True)


def _linked(draft: Path, path: Path) -> bool:
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    except FileNotFoundError:
        if path.exists():  # its holder has just swept the folder, the draft with it
            return False
        raise
    return True


def _remove_stale(path: Path, stale: dict[str, object] | None) -> None:
    """Take the stale lock away; if a new one slipped in between, put that one back."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}{storage.TEMPORARY}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _read(aside) != stale:
        with suppress(FileExistsError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, object] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _is_stale(path: Path, holder: dict[str, object] | None) -> bool:
    if holder is not None and holder.get("host") == socket.gethostname():
        pid = holder.get("pid")
        return not isinstance(pid, int) or _process_start(pid) != holder.get("process_start")
    try:
        return _clock_of(path) - path.stat().st_mtime > STALE_SECONDS
    except FileNotFoundError:
        return False


def _clock_of(path: Path) -> float:
    """Return the time by the clock that stamps the lock, a file server's perhaps, which may differ from ours."""
    probe = path.with_name(f".{path.name}.{uuid.uuid4().hex}{storage.TEMPORARY}")
    probe.touch()
    now = probe.stat().st_mtime
    probe.unlink()
    return now


def _process_start(pid: int) -> str | None:
    """Return what tells this process from a later one of the same id, or None when it is gone."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state == "Z" else fields[18]
    except OSError:
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown" if not Path("/proc/self/stat").exists() else None


def _heartbeat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT_SECONDS):
        try:
            os.utime(path)
        except OSError as error:
            logger.warning("the lock %s could not be renewed: %s", path, error)


def _held_message(path: Path, holder: dict[str, object] | None) -> str:
    who = "another run"
    if holder:
        who = f"process {holder.get('pid')} on {holder.get('host')} (since {holder.get('since')})"
    return f"{who} is writing to {path.parent}; wait for it to end, or choose another path"
