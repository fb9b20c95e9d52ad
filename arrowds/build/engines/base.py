"""Engine, what decides where the tasks of a build run; what they compute and write does not depend on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Work:
    """A function to call with each item: it writes files, and may be called again for an item that it has finished.

    Attributes:
        function: takes one item.
        releases_gil: whether threads of one process can do several items at a time.
        name: what an item is, for messages, before what it says of itself: "samples" and "0 to 1023".
    """

    function: Callable[[Any], None]
    releases_gil: bool
    name: str

    def label(self, item: object) -> str:
        """Name an item in a message."""
        return f"{self.name} {item}"


class Engine(ABC):
    """Where tasks run. Derive from it to add a place; tasks are idempotent, so that a lost one is simply run again."""

    @abstractmethod
    def run(self, work: Work, items: Sequence[Item]) -> Generator[Item, None, None]:
        """Do the work for every item and yield each one when it is done, in any order.

        When the generator ends, every item is done, also those that other processes did.
        """

    def once(self, step: Callable[[], Result]) -> Result | None:
        """Run a step in one of the engine's processes while the others wait; return its result there, else None."""
        return step()

    def agree(self, facts: Mapping[str, str]) -> None:
        """Refuse to go on when the engine's processes were started with different data, metrics or code.

        Raises:
            ConfigError: naming what differs, and where.
        """

    def close(self) -> None:
        """Give back what the engine holds; called when the build ends, whether it succeeded or not."""
