"""How the ranks of torch.distributed find one another, and what each hears of the others: through the store alone."""

from __future__ import annotations

import json
import os
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import xxhash

from arrowds import errors
from arrowds.errors import ArrowdsError, ConfigError, MissingExtraError, UnsupportedError, WorkerDiedError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.distributed_c10d import Store

Answer = TypeVar("Answer")

_ARRIVAL = 10
"""How many times the patience with a silent rank a rank may take to begin: it may have data to look through first."""

FAILURE = "failure"
"""The key of what has ended the build on a rank."""

_KEPT = "Finished work is kept: run again to resume"


class Link:
    """What connects a rank to the others: the store, used by one thread alone, which beats and watches the next rank.

    A call to the store never returns while the process that holds the store is stopped; so callers wait for the thread.
    """

    def __init__(self, store: Store, rank: int, size: int, timeout_s: float, session: str) -> None:
        self.rank = rank
        self.size = size
        self.interval = min(1.0, timeout_s / 10)
        self.failed = threading.Event()
        self.failure: dict[str, str] = {}
        self._store = store
        self._session = session
        self._timeout = timeout_s
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = queue.SimpleQueue()
        self._neighbour = (rank + 1) % size
        self._beats = 0
        self._silent = 0.0
        threading.Thread(target=self._serve, name="arrowds heartbeat", daemon=True).start()

    def add(self, key: str, amount: int = 1) -> int:
        """Add to a counter of the session and return its value."""
        return self._ask(lambda: self._add(key, amount))

    def write(self, key: str, text: str) -> None:
        """Set a key of the session."""
        self._ask(lambda: self._store.set(f"{self._session}/{key}", text))

    def read(self, key: str) -> str | None:
        """Return a key of the session, None where it is not set."""
        return self._ask(lambda: self._read(key))

    def stop(self) -> None:
        """Beat no more."""
        self._calls.put(None)

    def _ask(self, call: Callable[[], Answer]) -> Answer:
        future: Future[Answer] = Future()
        self._calls.put((call, future))
        try:
            return future.result(self._timeout)
        except TimeoutError as error:
            lost = _lost_store(f"has not answered for {self._timeout:g} s")
            raise WorkerDiedError(lost["text"]) from error
        except RuntimeError as error:  # what torch's store raises
            if self.failure:
                raise as_error(self.failure) from error
            raise WorkerDiedError(_lost_store(f"is gone ({_first_line(error)})")["text"]) from error

    def _add(self, key: str, amount: int) -> int:
        return self._store.add(f"{self._session}/{key}", amount)

    def _read(self, key: str) -> str | None:
        name = f"{self._session}/{key}"
        return self._store.get(name).decode() if self._store.check([name]) else None

    def _serve(self) -> None:
        """Answer calls, and in between, at every interval, beat and look after the others."""
        last = time.monotonic() - self.interval
        while True:
            with suppress(queue.Empty):
                request = self._calls.get(timeout=max(0.0, last + self.interval - time.monotonic()))
                if request is None:
                    return
                call, future = request
                try:
                    future.set_result(call())
                except Exception as error:
                    future.set_exception(error)
            now = time.monotonic()
            if now - last >= self.interval:
                # A pause of this process is no silence of the other one.
                passed, last = min(now - last, 2 * self.interval), now
                try:
                    self._look(passed)
                except RuntimeError as error:
                    self._fail(_lost_store(f"is gone ({_first_line(error)})"))

    def _look(self, passed: float) -> None:
        self._add(f"beat/{self.rank}", 1)
        if self.failed.is_set():
            return
        if (record := self._read(FAILURE)) is not None:
            self._fail(json.loads(record))
            return
        beats = self._add(f"beat/{self._neighbour}", 0)
        self._silent = self._silent + passed if beats == self._beats else 0.0
        self._beats = beats
        patience = self._timeout if beats else _ARRIVAL * self._timeout
        if self._silent > patience:
            what = (
                f"given no sign of life for {patience:g} s" if beats else f"not come to this build for {patience:g} s"
            )
            reason = "it was killed, hangs, or its machine is gone"
            if self._read(f"left/{self._neighbour}") is not None:
                what, reason = "left this build before its end", "see what it says itself"
            text = f"rank {self._neighbour} of {self.size} has {what}: {reason}. {_KEPT}"
            record = json.dumps({"type": WorkerDiedError.__name__, "text": text})
            self._store.set(f"{self._session}/{FAILURE}", record)
            self._fail(json.loads(record))

    def _fail(self, record: dict[str, str]) -> None:
        if not self.failed.is_set():
            self.failure = record
            self.failed.set()


def _lost_store(what: str) -> dict[str, str]:
    text = (
        f"the store of torch.distributed {what}: rank 0 or the launcher, one of which holds it, was killed, hangs, or "
        f"its machine is gone. {_KEPT}"
    )
    return {"type": WorkerDiedError.__name__, "text": text}


def as_record(error: BaseException, rank: int) -> dict[str, str]:
    """Return an error as plain text for the other ranks."""
    name = type(error).__name__
    if isinstance(error, ArrowdsError):
        return {"type": name, "text": f"rank {rank}: {error}"}
    told = "was interrupted" if isinstance(error, KeyboardInterrupt) else f"failed with {name}: {error}"
    return {
        "type": WorkerDiedError.__name__,
        "text": f"rank {rank} {told}. {_KEPT}",
    }


def as_error(record: Mapping[str, str]) -> ArrowdsError:
    """Return the error of another rank, of the type that it has there where that is one of arrowds."""
    kind = getattr(errors, record["type"], None)
    if isinstance(kind, type) and issubclass(kind, ArrowdsError):
        with suppress(TypeError):
            return kind(record["text"])
    return WorkerDiedError(record["text"])


def _first_line(error: BaseException) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


_sessions: Counter[tuple[int, ...]] = Counter()
_store_of_launcher: tuple[Store, int, int] | None = None


def name_session(ranks: Sequence[int]) -> str:
    """Name a session of some ranks, the same on all of them: they count the sessions that they have had together."""
    _sessions[tuple(ranks)] += 1
    members = xxhash.xxh3_64_hexdigest(",".join(map(str, ranks)).encode())
    return f"arrowds/{members}/{_sessions[tuple(ranks)]}"


def meeting_point(group: ProcessGroup | None, timeout_s: float) -> tuple[Store, int, list[int]]:
    """Return a store that all ranks of a group have, this process's rank in the group, and the global ranks of it."""
    try:
        import torch.distributed as dist
    except ImportError as error:
        raise MissingExtraError("torch", "torch") from error
    if not dist.is_available():
        raise UnsupportedError("this build of torch has no torch.distributed; install one that has")
    if not dist.is_initialized():
        if group is not None:
            raise ConfigError("a group was given, but torch.distributed is not initialised in this process")
        store, rank, size = _from_launcher(timeout_s)
        return store, rank, list(range(size))
    rank = dist.get_rank(group)
    if rank < 0:
        raise ConfigError("this process is not a member of the group; call with the group on its members alone")
    ranks = dist.get_process_group_ranks(dist.group.WORLD if group is None else group)
    store = dist.distributed_c10d._get_default_store()  # torch has no public name for it
    # A connection of our own: others that wait for a key hold the one that they share.
    return (store.clone() if hasattr(store, "clone") else store), rank, ranks


def _from_launcher(timeout_s: float) -> tuple[Store, int, int]:
    """Meet the other ranks as the environment says, once in the life of this process."""
    global _store_of_launcher  # noqa: PLW0603  # the store has one address
    if _store_of_launcher is None:
        from torch.distributed.rendezvous import rendezvous

        rank, size, url = address_of(os.environ)
        limit = timedelta(seconds=_ARRIVAL * timeout_s)
        try:
            store, rank, size = next(iter(rendezvous(url, rank, size, timeout=limit)))
        except (RuntimeError, ValueError) as error:
            raise WorkerDiedError(
                f"rank {rank} of {size} has not met the others at {url} within {_ARRIVAL * timeout_s:g} s "
                f"({_first_line(error)}); see that all were started, with the same address"
            ) from error
        _store_of_launcher = store, rank, size
    return _store_of_launcher


def address_of(environment: Mapping[str, str]) -> tuple[int, int, str]:
    """Return rank, number of ranks and meeting point, from the variables of torchrun, deepspeed or Slurm.

    >>> address_of({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1"})
    (1, 2, 'env://')
    >>> address_of({"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[03-04],x"})
    (5, 8, 'tcp://n03:20007')
    """
    if environment.keys() >= {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}:
        return int(environment["RANK"]), int(environment["WORLD_SIZE"]), "env://"
    if environment.keys() >= {"SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_ID"}:
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
        host = environment.get("MASTER_ADDR") or _first_host(nodes)
        port = environment.get("MASTER_PORT") or 20000 + int(environment["SLURM_JOB_ID"]) % 20000
        return int(environment["SLURM_PROCID"]), int(environment["SLURM_NTASKS"]), f"tcp://{host}:{port}"
    raise ConfigError(
        "engine='torch' needs ranks: start the script with torchrun, deepspeed or srun, or call "
        "torch.distributed.init_process_group first"
    )


def _first_host(nodes: str) -> str:
    """Return the first name of a list of hosts as Slurm writes it.

    >>> _first_host("gpu[007-009,12],login"), _first_host("a1,a2"), _first_host("r1-n[1,3]-ib")
    ('gpu007', 'a1', 'r1-n1-ib')
    """
    match = re.match(r"([^,\[]*)(?:\[(\w+)[^\]]*\]([^,\[]*))?", nodes)
    return "".join(part or "" for part in match.groups()) if match else ""
