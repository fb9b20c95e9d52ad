"""Walk through global batches step by step, microbatch by microbatch, with a position that can be saved."""

from __future__ import annotations

import logging
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from typing import Any

import numpy as np
import numpy.typing as npt

from arrowds.curriculum.ranks import RankLayout
from arrowds.curriculum.trace import Recorder, Row
from arrowds.errors import ConfigError, StateMismatchError

Int64 = npt.NDArray[np.int64]

STATE_VERSION = 1

logger = logging.getLogger(__name__)


class BatchStream(ABC):
    """The microbatches of one rank. Iterating resumes at the position and stops after the last microbatch.

    The position counts the samples yielded to all ranks, so any other layout with the same global batch size can resume
    from it, also in the middle of a step. All ranks yield the same number of microbatches. None of them is empty: if
    fewer samples than ranks remain at the end, they are left out.

    Attributes:
        layout: how batches are divided.
        num_epochs: how many epochs there are.
        recorder: records what this rank consumes; None: no record.
    """

    def __init__(
        self, layout: RankLayout, *, exclude_steps: Iterable[int] = (), record: str | PathLike[str] | None = None
    ) -> None:
        self.layout = layout
        self.num_epochs = 1
        self._excluded = frozenset(int(step) for step in exclude_steps)
        self.recorder = None if record is None else Recorder(record, rank=layout.rank)
        if self.recorder is not None:
            weakref.finalize(self, self.recorder.finish)  # a loop that is left early loses no rows
        self._position = 0  # How many samples were yielded to all ranks, those of excluded steps counted.

    @property
    @abstractmethod
    def samples_per_epoch(self) -> int:
        """How many samples one epoch counts."""

    @property
    @abstractmethod
    def end(self) -> int:
        """How many samples are drawn in all, the excluded steps counted."""

    @property
    def stop(self) -> int:
        """After how many samples the stream stops: :attr:`end`, less a last microbatch too small to serve all ranks."""
        return self.layout.handed_out(self.end)

    @abstractmethod
    def batches_from(self, step: int) -> Int64:
        """Return the global batches of a step and perhaps some after it: ``[steps, global_batch_size]``."""

    @abstractmethod
    def difficulties_at(self, step: int) -> dict[str, Any]:
        """Return the difficulty of each metric at a step."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return what a saved state must agree in: names and JSON-serialisable values."""

    @property
    def num_steps(self) -> int:
        """How many global steps there are, the last of which may be shorter."""
        return self._step_of(self.stop)

    def samples_at(self, step: int) -> int:
        """Return how many samples of a step all ranks get: fewer than a global batch only in the last step."""
        return max(0, min(self.layout.global_batch_size, self.stop - (step - 1) * self.layout.global_batch_size))

    def __len__(self) -> int:
        """Return how many microbatches this rank gets in all."""
        whole, rest = divmod(self.stop, self.layout.global_batch_size)
        excluded = sum(
            self._microbatches(self.samples_at(step)) for step in self._excluded if 1 <= step <= self.num_steps
        )
        return whole * self.layout.gradient_accumulation_steps + self._microbatches(rest) - excluded

    def _microbatches(self, samples: int) -> int:
        return -(-samples // self.layout.micro_samples)

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the ids of this rank's microbatches from the position on, and record them if there is a recorder."""
        yield from self.draw(None if self.recorder is None else self.recorder.add)
        self.close()

    def draw(self, note: Callable[[Row], None] | None) -> Iterator[list[int]]:
        """Yield as iterating does, without recording: a loader draws ahead and records what it hands out.

        Args:
            note: called with the row of each microbatch before it is yielded.
        """
        micro, size, end = self.layout.micro_samples, self.layout.global_batch_size, self.stop
        start, stop = self.layout.mine(micro)
        whole = end // size * size
        first, ready = 0, list[list[int]]()
        if self._position >= end:
            logger.warning("the sampler is exhausted: raise num_epochs, or call reset()")
        while True:
            position = self._after_excluded(self._position) if self._excluded else self._position
            count = min(micro, size - position % size, end - position)
            if count < micro and not self._serves_all(position, count):
                break
            if position >= whole or count < micro or position % micro:
                ids = self._odd(position, count)
            else:
                number = position // micro
                if not first <= number < first + len(ready):
                    step = position // size + 1
                    first = (step - 1) * self.layout.gradient_accumulation_steps
                    ready = self.batches_from(step).reshape(-1, micro)[:, start:stop].tolist()
                ids = ready[number - first]
            self._position = position + count
            if note is not None:
                note((position // size + 1, position % size // micro, list(ids)))
            yield ids

    def _serves_all(self, position: int, count: int) -> bool:
        """Whether ``count`` samples make a microbatch; fewer than ranks do so only in the middle of the run."""
        in_a_whole_step = position // self.layout.global_batch_size < self.stop // self.layout.global_batch_size
        return count > 0 and (count >= self.layout.world_size or in_a_whole_step)

    def _after_excluded(self, position: int) -> int:
        """Return the position, moved past any excluded steps that start at it."""
        size = self.layout.global_batch_size
        while position % size == 0 and position // size + 1 in self._excluded:
            position += size
        return position

    def _odd(self, position: int, count: int) -> list[int]:
        """Return this rank's part of a microbatch that is short, or that starts where another layout stopped."""
        step, offset = divmod(position, self.layout.global_batch_size)
        start, stop = self.layout.mine(count)
        ids: list[int] = self.global_batch_at(step + 1)[offset + start : offset + stop].tolist()
        return ids

    def global_batch_at(self, step: int) -> Int64:
        """Return the ids of the whole global batch of a step (the first is 1), by microbatch and rank.

        With ``order="stateless"`` any step is one computation; with ``"deepspeed"`` all steps before it are drawn.

        Raises:
            ConfigError: when ``step`` is below 1.
        """
        batch: Int64 = self.batches_from(check_step(step))[0]
        return batch

    def reset(self) -> None:
        """Move to the beginning."""
        self._position = 0

    def add_epochs(self) -> None:
        """Add epochs until there is something left to yield; batches already yielded do not change.

        A short last step is continued, unless its rest is too small to serve all ranks: then the next step follows.
        """
        size = self.layout.global_batch_size
        while True:
            position = self._after_excluded(self._position)
            if self._serves_all(position, min(size - position % size, self.stop - position)):
                return
            self.num_epochs += 1
            for cached in ("end", "_draws"):  # cached properties; the draws know where they end
                self.__dict__.pop(cached, None)
            if (rest := -self._position % size) != self.layout.handed_out(rest):
                self._position += rest

    def close(self) -> None:
        """Close the record, if there is one."""
        if self.recorder is not None:
            self.recorder.close()

    @property
    def step(self) -> int:
        """The step of the microbatch last yielded; 0 before the first."""
        return self._step_of(self._position)

    def _step_of(self, position: int) -> int:
        return -(-position // self.layout.global_batch_size)

    @property
    def step_of_epoch(self) -> int:
        """The number, within its epoch, of the step last yielded; 0 before the first.

        An epoch begins with the first step all of whose samples belong to it.
        """
        if self._position == 0:
            return 0
        size = self.layout.global_batch_size
        epoch = (self.step - 1) * size // self.samples_per_epoch
        return self.step - -(-epoch * self.samples_per_epoch // size)

    @property
    def consumed_samples(self) -> int:
        """How many samples have been yielded to all ranks, those of excluded steps counted."""
        return self._position

    @property
    def position(self) -> int:
        """What :meth:`state_at` needs to know; a loader keeps it for every batch, since it is cheap."""
        return self._position

    @property
    def current_difficulties(self) -> dict[str, Any]:
        """The difficulties of the step last yielded; empty before the first."""
        return self.difficulties_at(self.step) if self._position else {}

    def state_dict(self) -> dict[str, Any]:
        """Return the position and the identity of the stream: a few hundred bytes of JSON-serialisable values.

        The record, if there is one, is flushed first, so that a checkpoint is never ahead of it.
        """
        if self.recorder is not None:
            self.recorder.flush()
        return self.state_at(self._position)

    def state_at(self, position: int) -> dict[str, Any]:
        """Return the state of an earlier :attr:`position`."""
        step = self._step_of(position)
        return {
            "version": STATE_VERSION,
            **self.identity(),
            "curriculum_step": step,
            "consumed_samples": position,
            "current_difficulties": self.difficulties_at(step) if position else {},
        }

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Move to the position of a saved state, of any rank and any world size with the same global batch size.

        None, which DeepSpeed passes for a checkpoint without a sampler, leaves the position unchanged, and so does a
        state that is refused. With ``order="deepspeed"`` all steps up to the position are drawn, to compare the
        generator.

        Raises:
            StateMismatchError: naming everything in which the state differs: dataset, curriculum, seed, ...
        """
        if state is None:
            logger.warning("the checkpoint has no sampler state; the sampler stays at its current position")
            return
        self._position = self.checked_position(state)

    def checked_position(self, state: Mapping[str, Any]) -> int:
        """Return the position of a saved state if it fits this stream; change nothing.

        Raises:
            StateMismatchError: naming everything in which the state differs.
        """
        if not isinstance(state, Mapping) or state.get("version") != STATE_VERSION:
            got = state.get("version") if isinstance(state, Mapping) else type(state).__name__
            raise StateMismatchError(f"expected a sampler state of version {STATE_VERSION}, got {got!r}")
        differing = [
            f"{name} (saved {state.get(name)!r}, now {value!r})"
            for name, value in self.identity().items()
            if state.get(name) != value
        ]
        if differing:
            raise StateMismatchError(
                "the saved state differs in "
                + ", ".join(differing)
                + "; use the index and the curriculum that it was saved with"
            )
        position = state.get("consumed_samples")
        if not isinstance(position, int) or isinstance(position, bool) or position < 0:
            raise StateMismatchError(f"the saved state has an invalid position: {position!r} samples")
        return position


def check_step(step: int) -> int:
    """Return a step as an int.

    Raises:
        ConfigError: when it is below 1.
    """
    if step < 1:
        raise ConfigError(f"steps count from 1, got {step}")
    return int(step)
