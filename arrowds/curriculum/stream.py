"""Walk through global batches step by step, microbatch by microbatch, with a position that can be saved."""

from __future__ import annotations

import logging
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from arrowds.curriculum.ranks import RankLayout, whole_number
from arrowds.curriculum.trace import Recorder, Row
from arrowds.errors import ConfigError, StateMismatchError
from arrowds.shares import refuse_second_division
from arrowds.states import checked_state, count_in, refuse_other_samplers

Int64 = npt.NDArray[np.int64]

STATE_VERSION = 1

_DATA = ("index", "indexes")
OnNewData = Literal["refuse", "continue"]
"""What becomes of a saved state when the index has other samples or values than the one that it was drawn from."""

logger = logging.getLogger(__name__)


class BatchStream(ABC):
    """The microbatches of one rank, in passes of ``num_epochs`` epochs.

    As with torch's samplers, every ``iter()`` starts at the same place, whatever was yielded before: the beginning of
    the pass, or the position of a state that was loaded, until an iteration from there is complete. ``set_epoch``
    chooses the pass; each continues the one before it, as a larger ``num_epochs`` would. An iteration that is running
    when a state is loaded continues from there.

    The position counts what was yielded, in samples of the whole global batch (under a token budget: in microbatches),
    so any other layout with the same global batch size can resume from it, also in the middle of a step. All ranks
    yield equally many microbatches. At the end none of them is empty: samples that are fewer than the ranks are left
    out.

    Attributes:
        layout: how batches are divided.
        num_epochs: how many epochs a pass has.
        epoch: the number of the pass, from 0.
        drop_last: whether samples at the end that do not fill a batch are left out.
        recorder: what keeps the record of this rank; None when there is none.
    """

    _kind: ClassVar[str]  # the name of the samplers whose states fit
    _of_the_pass: tuple[str, ...] = ()  # cached properties that depend on how many epochs there are

    def __init__(
        self,
        layout: RankLayout,
        *,
        num_epochs: int,
        drop_last: bool,
        exclude_steps: Iterable[int] = (),
        record: str | PathLike[str] | None = None,
    ) -> None:
        self.layout = layout
        self.num_epochs = whole_number("num_epochs", num_epochs, least=1)
        self.drop_last = drop_last
        self.epoch = 0
        self._excluded = frozenset(whole_number("exclude_steps", step, least=1) for step in exclude_steps)
        self.recorder = None if record is None else Recorder(record, rank=layout.rank)
        if self.recorder is not None:
            weakref.finalize(self, self.recorder.finish)  # a loop that is left early loses no rows
        self._position = 0  # How many samples were yielded to all ranks, those of excluded steps counted.
        self._start = 0  # The position at which an iteration starts.
        self._moves = 0  # How often the position was set; a running iteration follows.
        self._completed = False  # Whether this pass was yielded to its end.
        self._resumed = False  # Whether a state was loaded since the pass was last chosen.

    @property
    @abstractmethod
    def samples_per_epoch(self) -> int:
        """How many samples one epoch counts."""

    @property
    def end(self) -> int:
        """How many samples are drawn up to the end of this pass, the excluded steps counted."""
        return self._end_of(self.epoch)

    def _end_of(self, epoch: int) -> int:
        total = self.samples_per_epoch * self.num_epochs * (epoch + 1)
        return total // self._unit * self._unit if self.drop_last else total

    def _begin_of(self, epoch: int) -> int:
        """Return where a pass begins: where the last one ends, or after a rest of its step too small for all ranks."""
        if epoch == 0:
            return 0
        position = self.layout.handed_out(self._end_of(epoch - 1))
        rest = -position % self.layout.global_batch_size
        return position if rest == self.layout.handed_out(rest) else position + rest

    @property
    def _unit(self) -> int:
        """What ``drop_last`` leaves whole: the global batch."""
        return self.layout.global_batch_size

    @property
    def stop(self) -> int:
        """After how many samples the stream stops: :attr:`end`, less a last microbatch too small to serve all ranks."""
        return self.layout.handed_out(self.end)

    def _end_near(self, position: int) -> int:
        """Return :attr:`stop`, or, where that takes time to find, a position after this one and before it."""
        return self.stop

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
        """How many global steps there are up to the end of this pass, the last of which may be shorter."""
        return self._step_of(self.stop)

    def samples_at(self, step: int) -> int:
        """Return how many samples of a step all ranks get: fewer than a global batch only in the last step."""
        return max(0, min(self.layout.global_batch_size, self.stop - (step - 1) * self.layout.global_batch_size))

    def __len__(self) -> int:
        """Return how many microbatches this rank gets in a whole pass."""
        return self._microbatches_until(self.stop) - self._microbatches_until(self._begin_of(self.epoch))

    def _microbatches_until(self, stop: int) -> int:
        """Return how many microbatches there are before a position, those of excluded steps left out."""
        size = self.layout.global_batch_size
        whole, rest = divmod(stop, size)
        excluded = sum(
            self._microbatches(min(size, stop - (step - 1) * size))
            for step in self._excluded
            if 0 < step * size < stop + size
        )
        return whole * self.layout.gradient_accumulation_steps + self._microbatches(rest) - excluded

    def _microbatches(self, samples: int) -> int:
        return -(-samples // self.layout.micro_samples)

    @property
    def batch_size(self) -> int:
        """Samples of one rank in one microbatch, by the name that torch's batch samplers have for it."""
        refuse_second_division(self.layout.rank, self.layout.world_size)
        return self.layout.micro_batch_size

    @property
    def sampler(self) -> Self:
        """The sampler itself: Lightning and Accelerate call ``batch_sampler.sampler.set_epoch`` before each epoch."""
        return self

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the ids of this rank's microbatches up to the end of the pass; a record notes them as they are yielded.

        Raises:
            ConfigError: where Accelerate divides among its processes what is the share of one rank already.
        """
        return self.draw(None) if self.recorder is None else self._recorded(self.draw(self.recorder.add))

    def _recorded(self, batches: Iterator[list[int]]) -> Iterator[list[int]]:
        yield from batches
        self.close()

    def draw(self, note: Callable[[Row], None] | None) -> Iterator[list[int]]:
        """Yield as iterating does, without recording: a loader draws ahead and records what it hands out.

        Args:
            note: called with the row of each microbatch before it is yielded.
        """
        refuse_second_division(self.layout.rank, self.layout.world_size)
        if self._start >= self._end_near(self._start):
            logger.warning(
                "the sampler is exhausted: raise num_epochs, or call set_epoch(%d)",
                self.epoch + 1,
            )
        elif self._completed:
            logger.warning(
                "the sampler yields the batches of pass %d once more: call set_epoch(%d) for those that follow, "
                "or iterate over a CurriculumDataLoader, which continues by itself",
                self.epoch,
                self.epoch + 1,
            )
        self._position = self._start
        index: Any = getattr(self, "index", None)
        if self.recorder is not None and hasattr(index, "version"):
            self.recorder.index = {"path": str(index.path), "version": index.version}
        return self._draw_from(self._start, note)

    def _draw_from(self, position: int, note: Callable[[Row], None] | None) -> Iterator[list[int]]:
        micro, size = self.layout.micro_samples, self.layout.global_batch_size
        start, stop = self.layout.mine(micro)
        first, ready, moves = 0, list[list[int]](), self._moves
        end = self._end_near(position)
        while True:
            if moves != self._moves:
                position, ready, moves = self._position, [], self._moves
                end = self._end_near(position)
            if self._excluded:
                position = self._after_excluded(position)
            if position >= end:
                end = self._end_near(position)
            count = min(micro, size - position % size, end - position)
            if count < micro and not self._serves_all(position, count, end):
                break
            if position >= end // size * size or count < micro or position % micro:
                ids = self._odd(position, count)
            else:
                number = position // micro
                if not first <= number < first + len(ready):
                    step = position // size + 1
                    first = (step - 1) * self.layout.gradient_accumulation_steps
                    ready = self._shares_from(step, start, stop)
                ids = ready[number - first]
            if note is not None:
                note((position // size + 1, position % size // micro, list(ids)))
            position += count
            self._position = position
            yield ids
        self._start, self._completed = self._begin_of(self.epoch), True

    def _shares_from(self, step: int, start: int, stop: int) -> list[list[int]]:
        """Return the part ``start`` to ``stop`` of each microbatch of a step and perhaps some after it."""
        batches = self.batches_from(step).reshape(-1, self.layout.micro_samples)
        shares: list[list[int]] = batches[:, start:stop].tolist()
        return shares

    def _serves_all(self, position: int, count: int, end: int) -> bool:
        """Whether ``count`` samples make a microbatch; fewer than ranks do so only in the middle of the run."""
        in_a_whole_step = position // self.layout.global_batch_size < end // self.layout.global_batch_size
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
        ids: list[int] = self._samples_of(step + 1, offset + start, offset + stop).tolist()
        return ids

    def _samples_of(self, step: int, start: int, stop: int) -> Int64:
        """Return the samples at some positions of a step."""
        samples: Int64 = self.batches_from(step)[0, start:stop]
        return samples

    def global_batch_at(self, step: int) -> Int64:
        """Return the ids of the whole global batch of a step (the first is 1), by microbatch and rank.

        With ``order="stateless"`` any step is one computation; with ``"deepspeed"`` all steps before it are drawn.

        Raises:
            ConfigError: when ``step`` is below 1.
        """
        return self._samples_of(check_step(step), 0, self.layout.global_batch_size)

    def microbatches_at(self, step: int) -> list[list[Int64]]:
        """Return the ids of every rank's microbatches of a step (the first is 1).

        Returns:
            For each microbatch, in the sequence of gradient accumulation, a list of the int64 ids of each rank.

        Raises:
            ConfigError: when ``step`` is below 1.
        """
        micro, rank = self._places_at(check_step(step))
        ids, ranks = self.global_batch_at(step)[: len(micro)], self.layout.world_size
        counts = np.bincount(micro * ranks + rank, minlength=self.layout.gradient_accumulation_steps * ranks)
        parts = np.split(ids, np.cumsum(counts)[:-1])
        return [parts[start : start + ranks] for start in range(0, len(parts), ranks)]

    def _places_at(self, step: int) -> tuple[Int64, Int64]:
        """Return the microbatch and the rank of each sample that a step hands out."""
        return self.layout.places(self.samples_at(step) or self.layout.global_batch_size)

    def reset(self) -> None:
        """Go back to the beginning of the first pass."""
        self._choose(0)
        self._go_to(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the pass of ``num_epochs`` that the next iteration yields; the present one keeps its place.

        A resumed loop may thus name the pass in which its state was taken. A later pass draws what a sampler with a
        larger ``num_epochs`` draws there: a curriculum does not start over.

        Raises:
            ConfigError: when ``epoch`` is below 0.
        """
        if epoch < 0:
            raise ConfigError(f"epochs count from 0, got {epoch}")
        resumed, self._resumed = self._resumed, False
        if resumed and epoch == self.epoch + 1 and self._position < self.stop:
            return  # Lightning counts a pass that max_steps has cut short as done; its rest is still to be drawn
        if epoch != self.epoch:
            self._choose(epoch)
            self._go_to(self._begin_of(epoch))

    def add_epochs(self) -> None:
        """Move on to the next pass, unless something of this one is left to yield.

        A short last step is continued, unless a rank would get nothing of its rest: then the step after it is next.
        """
        size, position = self.layout.global_batch_size, self._position
        while True:
            position = self._after_excluded(position)
            end = self._end_near(position)
            if self._serves_all(position, min(size - position % size, end - position), end):
                break
            self._choose(self.epoch + 1)
            position = max(position, self._begin_of(self.epoch))
        self._go_to(position)

    def _choose(self, epoch: int) -> None:
        if epoch != self.epoch:
            self.epoch = epoch
            for name in self._of_the_pass:
                self.__dict__.pop(name, None)

    def _go_to(self, position: int) -> None:
        """Continue at a position, also in a running iteration."""
        self._position = self._start = position
        self._moves += 1
        self._completed = False

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
            "epoch": self.epoch,
            "curriculum_step": step,
            "consumed_samples": position,
            "current_difficulties": self.difficulties_at(step) if position else {},
        }

    def load_state_dict(self, state: Mapping[str, Any] | None, *, on_new_data: OnNewData = "refuse") -> None:
        """Move to the position of a saved state, of any rank and any world size with the same global batch size.

        None, which DeepSpeed passes for a checkpoint without a sampler, leaves the position unchanged, and so does a
        state that is refused. With ``order="deepspeed"`` all steps up to the position are drawn, to compare the
        generator.

        Args:
            state: what :meth:`state_dict` returned.
            on_new_data: "continue" accepts a state of another version of the index, one that was appended to for
                instance. The steps after the saved one are then those of the index that this sampler has: what is drawn
                from its larger pools at these steps, samples that were drawn before included.

        Raises:
            ConfigError: for another value of ``on_new_data``.
            StateMismatchError: naming everything in which the state differs: dataset, curriculum, seed, ...
        """
        if state is None:
            logger.warning("the checkpoint has no sampler state; the sampler stays at its current position")
            return
        if on_new_data not in ("refuse", "continue"):
            raise ConfigError(f"on_new_data must be 'refuse' or 'continue', got {on_new_data!r}")
        self._resume(self.checked_position(state, on_new_data), state.get("epoch"))

    def _resume(self, position: int, epoch: int | None) -> None:
        """Go to a position of a pass; None: the first pass that reaches it."""
        if epoch is None:
            epoch = max(0, -(-position // (self.samples_per_epoch * self.num_epochs)) - 1)
        self._choose(epoch)
        self._go_to(max(position, self._begin_of(epoch)))
        self._resumed = True

    def checked_position(self, state: Mapping[str, Any], on_new_data: OnNewData = "refuse") -> int:
        """Return the position of a saved state if it fits this stream; change nothing.

        Raises:
            StateMismatchError: naming everything in which the state differs.
        """
        state = checked_state(state, STATE_VERSION, of="a sampler")
        refuse_other_samplers(state, self._kind)
        now = self.identity()
        differing = [name for name, value in now.items() if state.get(name) != value]
        if "index" in differing and self._was_drawn_from(state) is False:
            raise StateMismatchError("the saved state is of another index, and not of an earlier version of this one")
        if on_new_data == "continue":
            differing = [name for name in differing if name not in _DATA]
        if differing:
            listed = ", ".join(f"{name} (saved {state.get(name)!r}, now {now[name]!r})" for name in differing)
            remedy = self._other_version(state) if set(differing) <= set(_DATA) else None
            raise StateMismatchError(
                f"the saved state differs in {listed}; "
                + (remedy or "use the index and the curriculum that it was saved with")
            )
        counted = "consumed_samples" if "consumed_samples" in state else "consumed_microbatches"
        position, step = count_in(state, counted), count_in(state, "curriculum_step")
        if step != self._step_of(position):
            raise StateMismatchError(
                f"the saved state is damaged: {counted}={position} are {self._step_of(position)} steps, it says {step}"
            )
        # Every pass before it has yielded something.
        if state.get("epoch") is not None and count_in(state, "epoch") > position:
            raise StateMismatchError(f"the saved state is damaged: it is of epoch {state['epoch']}")
        return position

    def _was_drawn_from(self, state: Mapping[str, Any]) -> bool | None:
        """Tell whether a state was drawn from a version of this index; None where that can't be told."""
        return None

    def _other_version(self, state: Mapping[str, Any]) -> str | None:
        """Say which call opens the version of the index that a state was drawn from, where both are known."""
        index = getattr(self, "index", None)
        saved, now = state.get("index_version"), getattr(index, "version", None)
        if saved is None or now is None or saved == now:
            return None
        path = str(getattr(index, "path", "INDEX"))
        return (
            f"it was drawn from version {saved} of the index, this is version {now}: resume with "
            f"arrowds.open_index({path!r}, version={saved}), or continue with the new data by "
            "load_state_dict(state, on_new_data='continue')"
        )


def check_step(step: int) -> int:
    """Return a step as an int.

    Raises:
        ConfigError: when it is below 1.
    """
    if step < 1:
        raise ConfigError(f"steps count from 1, got {step}")
    return int(step)
