"""Batches of the ids of any torch sampler, epoch after epoch, with a position that can be saved."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from arrowds.errors import StateMismatchError
from arrowds.states import checked_state, count_in

STATE_VERSION = 1


class EpochBatches:
    """One rank's batches of a torch sampler's ids; each full iteration advances to the next epoch.

    A sampler with ``set_epoch``, such as torch's ``DistributedSampler``, reshuffles every epoch. An iteration starts at
    the first batch; the first one after ``load_state_dict`` resumes where the state was taken. A resumed run is exact
    if the sampler yields the same ids for the same epoch.

    >>> batches = EpochBatches(range(5), 2, drop_last=False)
    >>> list(batches), batches.epoch, len(batches)
    ([[0, 1], [2, 3], [4]], 1, 3)
    """

    def __init__(self, sampler: Iterable[int], batch_size: int, *, drop_last: bool) -> None:
        self.sampler: Any = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last
        self.epoch = 0
        self._start = self._given = 0

    def __len__(self) -> int:
        """Batches of each epoch."""
        return (len(self.sampler) if self.drop_last else len(self.sampler) + self.batch_size - 1) // self.batch_size

    def __iter__(self) -> Iterator[list[int]]:
        start, self._start = self._start, 0
        self._given, epoch = start, self.epoch
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)
        ids = islice(iter(self.sampler), start * self.batch_size, None)
        while batch := list(islice(ids, self.batch_size)):
            if self.drop_last and len(batch) < self.batch_size:
                break
            self._given += 1
            yield batch
        if self.epoch == epoch:
            self.epoch, self._given = epoch + 1, 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; naming the current epoch keeps the position in it."""
        if epoch != self.epoch:
            self.epoch, self._start, self._given = epoch, 0, 0

    def _sizes(self) -> dict[str, int]:
        return {"batch_size": self.batch_size, "samples_of_rank": len(self.sampler)}

    def state_dict(self) -> dict[str, Any]:
        """Return the position of this run, in JSON types."""
        return {"version": STATE_VERSION, **self._sizes(), "epoch": self.epoch, "batches": self._given}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where the state was taken, with the next iteration.

        Raises:
            StateMismatchError: for a state with another batch size, dataset size or world size.
        """
        state = checked_state(state, STATE_VERSION, of="a loader")
        if differing := [
            f"{name} {state.get(name)!r}, now {now}" for name, now in self._sizes().items() if state.get(name) != now
        ]:
            raise StateMismatchError(f"the state was saved with {'; '.join(differing)}")
        epoch, batches = count_in(state, "epoch"), count_in(state, "batches")
        if batches > len(self):
            raise StateMismatchError(
                f"the saved state is damaged: {batches} batches of an epoch, which has {len(self)}"
            )
        self.epoch, self._start = epoch, batches
        if self._start >= len(self):
            self.epoch, self._start = self.epoch + 1, 0
        self._given = self._start
