"""Engine, what decides where the tasks of a build run; what they compute and write does not depend on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_device = "cpu"


@dataclass(frozen=True, slots=True)
class Work:
    """A function to call with each item: it writes files, and may be called again for an item that it has finished.

    Attributes:
        function: takes one item.
        releases_gil: whether threads of one process can do several items at a time.
        name: what an item is, for messages, before what it says of itself: "samples" and "0 to 1023".
        runs_metrics: whether metric functions run, which may need what an engine has for them: models, devices.
        begin: does the first half of an item, and returns the second, which releases the interpreter lock: a thread may
            do it while the next item begins. None where an item has no halves.
        alone: whether one process fills the machine, so that no more are started unless the caller asks for them.
    """

    function: Callable[[Any], None]
    releases_gil: bool
    name: str
    runs_metrics: bool = False
    begin: Callable[[Any], Callable[[], None]] | None = None
    alone: bool = False

    def label(self, item: object) -> str:
        """Name an item in a message."""
        return f"{self.name} {item}"


class Engine(ABC):
    """Where tasks run. Derive from it to add a place; tasks are idempotent, so that a lost one is simply run again.

    A build uses its engine as a context manager, from before it looks at its data until after its commit. An engine may
    be used for one build after another.
    """

    @abstractmethod
    def run(self, work: Work, items: Sequence[Item]) -> Generator[Item, None, None]:
        """Do the work for every item and yield each one when it is done, in any order.

        When the generator ends, every item is done, also those that other processes did.
        """

    @property
    def leads(self) -> bool:
        """Whether this is the one of the engine's processes that runs :meth:`once` and tells the progress."""
        return True

    def once(self, step: Callable[[], Result]) -> Result | None:
        """Run a step in one of the engine's processes when all have come to it; return its result there, else None.

        What the step raises is raised in all processes.
        """
        return step()

    def agree(self, facts: Mapping[str, str]) -> None:  # noqa: B027  # one process agrees with itself
        """Refuse to go on when the engine's processes were started with different data, metrics or code.

        Raises:
            ConfigError: naming what differs, and where.
        """

    def close(self, error: BaseException | None = None) -> None:  # noqa: B027  # most engines hold nothing
        """Give back what the engine holds, and tell its other processes of an error that ends the build in this one."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close(error)


def device() -> str:
    """Return the device that the engine has for a metric function: ``"cpu"``, or for instance ``"cuda:1"``.

    A metric function asks when it is called, for instance to load its model once: ``model.to(device())``. With
    ``engine="torch"`` each rank has the GPU of its local rank, which is the current device of torch as well; with a
    :class:`RayEngine` it is the GPU that Ray gives to the task.

    >>> device()
    'cpu'
    """
    return _device


def use_device(name: str) -> None:
    """Set what :func:`device` returns in this process."""
    global _device  # noqa: PLW0603  # a process has one device at a time
    _device = name
