"""Items on the ranks of torch.distributed. They meet in its store alone: no collective, no traffic between devices.

A counter in the store hands out items, so that a fast rank takes more of them. Each rank counts up its heartbeat and
watches that of the next rank; whatever ends the build on one rank is written to the store, and ends it on all.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING

from arrowds.build.engines.base import Engine, Item, Result, Work, use_device
from arrowds.build.engines.torch_ranks import FAILURE, Link, as_error, as_record, meeting_point, name_session
from arrowds.errors import ConfigError, WorkerDiedError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_LONGEST_FACT = 200


class TorchEngine(Engine):
    """The ranks of torch.distributed, as torchrun, the deepspeed launcher or Slurm have started them.

    Every rank makes the same calls with the same arguments; all must see the index, and the data, at the same path or
    URL. Where torch.distributed is not initialised, the ranks meet as the launcher's environment says, and it stays
    uninitialised. Any backend will do.

    When a rank is killed, or hangs so that not even its threads run, the others raise :class:`WorkerDiedError` with
    its number: at most ``1.2 * timeout_s + 1`` seconds later, or when the item that they are at is done. An error of
    one rank is raised on all. Finished work is kept, and the next run resumes, with any number of ranks.

    Args:
        group: the ranks that take part, by default all.
        timeout_s: how long a rank may give no sign of life.
        device: what :func:`arrowds.build.engines.device` tells metric functions; by default the GPU of the local rank,
            which becomes torch's current device, or ``"cpu"`` where there is none.

    Raises:
        ConfigError: when there is neither a process group nor a launcher's environment.
        MissingExtraError: when torch is not installed.
        WorkerDiedError: when ranks do not come to the meeting point of the launcher.
    """

    def __init__(
        self, group: ProcessGroup | None = None, *, timeout_s: float = 60.0, device: str | None = None
    ) -> None:
        if not timeout_s > 0:
            raise ConfigError(f"timeout_s must be above 0; got {timeout_s}")
        self._group = group
        self._timeout = timeout_s
        self._device = device
        self._steps = 0
        self._link: Link | None = None
        self._shared_error: BaseException | None = None
        self._joined()  # from now on, so that it lives while the build looks at its data

    @property
    def leads(self) -> bool:
        return self._joined().rank == 0

    def run(self, work: Work, items: Sequence[Item]) -> Generator[Item, None, None]:
        link, step = self._next_step()
        if work.runs_metrics:
            use_device(_chosen_device(self._device))
        left = dict(enumerate(items))
        reported = 0
        number = link.add(f"{step}/next") - 1
        while number < len(items):
            self._raise_failure(link)
            work.function(items[number])
            link.write(f"{step}/log/{link.add(f'{step}/done') - 1}", str(number))
            if link.rank:
                yield left.pop(number)
            number = link.add(f"{step}/next") - 1
            while not link.rank and (line := link.read(f"{step}/log/{reported}")) is not None:
                reported += 1
                yield left.pop(int(line))
        for _ in self._waiting(link):
            if link.add(f"{step}/done", 0) >= len(items):
                break
            while not link.rank and (line := link.read(f"{step}/log/{reported}")) is not None:
                reported += 1
                yield left.pop(int(line))
        yield from left.values()

    def once(self, step: Callable[[], Result]) -> Result | None:
        link, name = self._next_step()
        link.add(f"{name}/here")
        if link.rank:
            self._receive(link, name)
            return None
        for _ in self._waiting(link):  # a rank that comes later may still read what the step removes
            if link.add(f"{name}/here", 0) == link.size:
                break
        try:
            result = step()
        except BaseException as error:
            self._shared_error = error
            link.write(f"{name}/outcome", json.dumps(as_record(error, link.rank)))
            raise
        link.write(f"{name}/outcome", json.dumps({}))
        return result

    def agree(self, facts: Mapping[str, str]) -> None:
        """Refuse to go on when ranks were started with different data, metrics or code.

        Raises:
            ConfigError: on all ranks, naming every rank that differs from rank 0, and in what.
        """
        link, step = self._next_step()
        if link.rank:
            for _ in self._waiting(link):
                if (line := link.read(f"{step}/facts")) is not None:
                    break
            expected = json.loads(line or "{}")
            names = [name for name in {**expected, **facts} if expected.get(name) != facts.get(name)]
            told = [f"{name} ({_cut(facts.get(name))}, on rank 0 {_cut(expected.get(name))})" for name in names]
            link.write(f"{step}/differs/{link.rank}", " and ".join(told))
            link.add(f"{step}/compared")
            self._receive(link, step)
            return
        link.write(f"{step}/facts", json.dumps(dict(facts)))
        for _ in self._waiting(link):
            if link.add(f"{step}/compared", 0) == link.size - 1:
                break
        differing = {rank: link.read(f"{step}/differs/{rank}") for rank in range(1, link.size)}
        told = [f"rank {rank} has another {text}" for rank, text in differing.items() if text]
        outcome = {}
        if told:
            hint = "start all ranks with the same data, metrics and code"
            outcome = {"type": ConfigError.__name__, "text": f"the ranks differ: {'; '.join(told)}; {hint}"}
        link.write(f"{step}/outcome", json.dumps(outcome))
        self._raise(outcome)

    def close(self, error: BaseException | None = None) -> None:
        """Leave the other ranks; tell them of an error, unless they know it."""
        link, self._link = self._link, None
        if link is None:
            return
        use_device("cpu")
        try:
            if error is not None and error is not self._shared_error:
                link.write(FAILURE, json.dumps(as_record(error, link.rank)))
            link.add("left")
            link.write(f"left/{link.rank}", "")
            if link.rank == 0:  # it may hold the store, which others need until they have left, or know of the error
                patience = self._timeout if error is None else 3 * link.interval
                until = time.monotonic() + patience
                while link.add("left", 0) < link.size and time.monotonic() < until:
                    time.sleep(0.02)
        except WorkerDiedError:
            if error is None:
                raise
        finally:
            link.stop()

    def _joined(self) -> Link:
        if self._link is None:
            store, rank, ranks = meeting_point(self._group, self._timeout)
            self._link = Link(store, rank, len(ranks), self._timeout, name_session(ranks))
            self._steps = 0
        return self._link

    def _next_step(self) -> tuple[Link, str]:
        """The link, and a name that the next thing the ranks do together has on all of them."""
        link = self._joined()
        self._raise_failure(link)
        self._steps += 1
        return link, f"step/{self._steps}"

    def _waiting(self, link: Link) -> Generator[None, None, None]:
        """Yield again and again, at growing distances, until the build fails elsewhere."""
        pause = 0.005
        while True:
            yield
            link.failed.wait(pause)
            self._raise_failure(link)
            pause = min(2 * pause, 0.5)

    def _receive(self, link: Link, step: str) -> None:
        """Wait for the outcome of a step on rank 0, and raise it if it is an error."""
        for _ in self._waiting(link):
            if (outcome := link.read(f"{step}/outcome")) is not None:
                self._raise(json.loads(outcome))
                return

    def _raise_failure(self, link: Link) -> None:
        if link.failed.is_set():
            self._raise(link.failure)

    def _raise(self, outcome: Mapping[str, str]) -> None:
        if outcome:
            self._shared_error = as_error(outcome)
            raise self._shared_error


def _cut(fact: str | None) -> str:
    if fact is None:
        return "none"
    return fact if len(fact) <= _LONGEST_FACT else f"{fact[:_LONGEST_FACT]}..."


def _chosen_device(wanted: str | None) -> str:
    """Return the device of this process's metrics, made the current one of torch where it is a GPU."""
    import torch

    if wanted is None:
        if not torch.cuda.is_available():
            return "cpu"
        local = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)
        wanted = f"cuda:{local % torch.cuda.device_count()}"
    if wanted.startswith("cuda"):
        torch.cuda.set_device(wanted)
    return wanted
