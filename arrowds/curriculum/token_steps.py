"""Steps under a token budget: how many draws each step takes, and how they are dealt to its microbatches.

The draws are those of ``order="stateless"``; where a step begins among them depends on the lengths of all samples that
were drawn before. Steps are filled in blocks of at least 64 microbatches, within a phase and an epoch: a block takes
the draws that fill it, deals them to its microbatches, and these come in random order. So a sample comes up within one
block of its place among the draws, and every microbatch has long and short samples. A :class:`Mark` says where a block
begins; from a mark, the steps after it follow without those before.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from arrowds.curriculum.balance import balanced
from arrowds.curriculum.fill import fill_flat, fill_padded
from arrowds.curriculum.permutation import derive_key, mix
from arrowds.curriculum.pools import Phases
from arrowds.curriculum.stateless import StatelessDraws
from arrowds.curriculum.token_budget import Cost
from arrowds.errors import StateMismatchError

Int64 = npt.NDArray[np.int64]

BLOCK = 64
"""The fewest microbatches that are filled together, where phases and epochs are long enough."""

_ORDER = 3  # what a key is for, beside those of arrowds.curriculum.stateless
_FILLS = (0.996, 0.992, 0.986)
_FILL_TO_BALANCE = 0.92
"""Ranks with a costly sample need fewer tokens than others, which must have room for theirs."""


class Mark(NamedTuple):
    """Where a block of steps begins.

    Attributes:
        step: its first step.
        draw: the first draw that no earlier step takes.
        epoch: the epoch that its draws count for.
        draws_before: how many draws come before each phase so far.
    """

    step: int
    draw: int
    epoch: int
    draws_before: tuple[int, ...]

    def to_state(self) -> list[Any]:
        """The mark as JSON values."""
        return [self.step, self.draw, self.epoch, list(self.draws_before)]

    @classmethod
    def from_state(cls, values: Any) -> Mark:
        """The mark of a saved state; raises StateMismatchError for anything else."""
        match values:
            case [int(step), int(draw), int(epoch), [0, *more]] if (
                step > 0
                and draw >= 0
                and epoch >= 0
                and all(type(before) is int for before in more)
                and all(a <= b for a, b in zip([0, *more], [*more, draw], strict=True))
            ):
                return cls(step, draw, epoch, (0, *more))
        raise StateMismatchError(f"the saved state has an invalid mark of its token budget: {values!r}")


@dataclass(frozen=True, slots=True)
class _Block:
    """Consecutive steps: microbatch i of them has the samples ``ids[offsets[i] : offsets[i + 1]]``."""

    mark: Mark
    ids: Int64
    offsets: Int64
    next: Mark


class TokenSteps:
    """The microbatches of any step, each within the budget.

    Args:
        draws: returns the draws for the numbers of draws before each phase.
        phases: when difficulties change.
        lengths: tokens of every sample; more than the budget count as the budget.
        max_tokens: the budget of a microbatch.
        padded: whether the budget bounds rows times longest sample, instead of the sum of the lengths.
        microbatches: how many a step has, over all ranks.
        samples_per_epoch: how many draws an epoch has.
        drop_last: whether draws at the end of an epoch that don't fill a step are left to the next one. Otherwise they
            make a step that is less full, unless they are fewer than its microbatches.
        seed: of the order of microbatches within a block.
        ranks: how many ranks share the microbatches.
        cost: what samples cost, from their ids and lengths, to divide each step among the ranks by; None where the
            division does not matter.
    """

    def __init__(
        self,
        draws: Callable[[Int64], StatelessDraws],
        phases: Phases,
        lengths: npt.NDArray[Any],
        *,
        max_tokens: int,
        padded: bool,
        microbatches: int,
        samples_per_epoch: int,
        drop_last: bool,
        seed: int,
        ranks: int,
        cost: Cost | None,
    ) -> None:
        self._draws = draws
        self._phases = phases
        self._lengths = lengths
        self._max_tokens = max_tokens
        self._padded = padded
        self._microbatches = microbatches
        self._per_epoch = samples_per_epoch
        self._drop_last = drop_last
        self._seed = seed
        self._ranks = ranks
        self._cost = cost
        self._fills = _FILLS if cost is None else (_FILL_TO_BALANCE,)
        self._divided: tuple[int, list[Int64]] = 0, []
        self._steps = -(-BLOCK // microbatches)
        self._tokens_per_draw = 1.0
        self._plan: tuple[tuple[int, ...], StatelessDraws] = (), draws(np.zeros(len(phases.start), np.int64))
        self._marks = [Mark(1, 0, 0, (0,))]
        self._block: _Block | None = None

    def microbatches(self, step: int) -> list[Int64]:
        """Return the ids of each microbatch of a step; where costs are known, those that give ranks equal work."""
        if self._cost is None:
            return self._packed(step)
        if self._divided[0] != step:
            self._divided = step, self._balanced(self._packed(step), self._cost)
        return self._divided[1]

    def _balanced(self, packed: list[Int64], cost: Cost) -> list[Int64]:
        ids = np.concatenate(packed)
        lengths = self._tokens_of(ids)
        place = balanced(
            lengths,
            cost(ids, lengths),
            ranks=self._ranks,
            microbatches=self._microbatches // self._ranks,
            capacity=self._max_tokens,
        )
        if place is None:
            return packed
        counts = np.bincount(place, minlength=self._microbatches)
        return np.split(ids[np.argsort(place, kind="stable")], np.cumsum(counts)[:-1])

    def _packed(self, step: int) -> list[Int64]:
        block = self._block_of(step)
        first = (step - block.mark.step) * self._microbatches
        bounds = block.offsets[first : first + self._microbatches + 1]
        return np.split(block.ids[bounds[0] : bounds[-1]], bounds[1:-1] - bounds[0])

    def costs(self, step: int) -> npt.NDArray[np.float64]:
        """Return the cost of each microbatch of a step; its tokens where no costs are known."""
        if self._cost is None:
            return self.tokens(step).astype(np.float64)
        return np.array([float(self._cost(ids, self._tokens_of(ids)).sum()) for ids in self.microbatches(step)])

    def tokens(self, step: int) -> Int64:
        """Return the tokens of each microbatch of a step, without padding."""
        return np.array([int(self._tokens_of(ids).sum()) for ids in self.microbatches(step)])

    def last_step(self, epochs: int, *, up_to: int | None = None) -> int:
        """Return the last step of the first ``epochs`` epochs.

        With ``up_to``, a step: the last step of its block, if that does not end them. Nothing after it is computed.
        """
        while True:
            at = bisect_right(self._marks, epochs - 1, key=lambda mark: mark.epoch)
            if at < len(self._marks):
                return self._marks[at].step - 1
            if up_to is not None and up_to < self._marks[-1].step:
                return self._marks[-1].step - 1
            self._fill(self._marks[-1])

    def samples_before(self, step: int) -> int:
        """Return how many samples all steps before one have together."""
        block = self._block_of(step)
        return block.mark.draw + int(block.offsets[(step - block.mark.step) * self._microbatches])

    def mark_of(self, step: int) -> Mark:
        """Return where the block of a step begins."""
        return self._block_of(step).mark

    def remember(self, mark: Mark) -> None:
        """Take a mark from an earlier run in place of those so far: the steps before it need not be filled again.

        Raises:
            StateMismatchError: when it can't be one of this run.
        """
        if mark.step not in self._phases_so_far(mark) or mark.draw >= (mark.epoch + 1) * self._per_epoch:
            raise StateMismatchError(f"the saved state has a mark of its token budget that does not fit: {mark}")
        self._marks = sorted({Mark(1, 0, 0, (0,)), mark})
        self._block, self._divided = None, (0, [])

    def _phases_so_far(self, mark: Mark) -> range:
        """The steps of the last phase that a mark knows of."""
        phase = len(mark.draws_before) - 1
        if phase >= len(self._phases.start):
            return range(0)
        return range(int(self._phases.start[phase]), self._end_of_phase(phase))

    def _end_of_phase(self, phase: int) -> int:
        return int(self._phases.start[phase + 1]) if phase + 1 < len(self._phases.start) else 1 << 62

    def _insert(self, mark: Mark) -> None:
        at = bisect_right(self._marks, mark)
        if self._marks[at - 1] != mark:
            insort(self._marks, mark)

    def _block_of(self, step: int) -> _Block:
        while True:
            block = self._block
            if block is not None and block.mark.step <= step < block.next.step:
                return block
            self._fill(self._marks[bisect_right(self._marks, step, key=lambda mark: mark.step) - 1])

    def _fill(self, mark: Mark) -> _Block | None:
        """Fill the block of a mark, and note where the next begins; None where the rest of its epoch fills no step."""
        phase = len(mark.draws_before) - 1
        steps = min(self._steps, self._end_of_phase(phase) - mark.step)
        end = (mark.epoch + 1) * self._per_epoch
        ids, lengths = self._drawn(mark, steps, end)
        positions, offsets = self._dealt(lengths, steps, mark.step)
        epoch = mark.epoch
        if mark.draw + len(ids) == end and len(positions) == len(ids):  # what is left does not need all the steps
            epoch += 1
            steps = self._steps_for(lengths, steps, mark.step)
            if not steps:
                self._insert(mark._replace(epoch=epoch))  # so it begins the next epoch
                return None
            positions, offsets = self._dealt(lengths, steps, mark.step)
        step, draw = mark.step + steps, mark.draw + len(positions)
        before = (*mark.draws_before, draw) if step == self._end_of_phase(phase) else mark.draws_before
        self._block = _Block(mark, ids[positions], offsets, Mark(step, draw, epoch, before))
        self._insert(self._block.next)
        return self._block

    def _steps_for(self, lengths: Int64, most: int, first: int) -> int:
        """Return how many steps are made of the last draws of an epoch; with ``drop_last``, how many they fill."""
        tokens = int(lengths.sum()) / (self._microbatches * self._max_tokens)
        steps = max(1, int(tokens))
        while steps < most and len(self._dealt(lengths, steps, first)[0]) < len(lengths):
            steps += 1
        if self._drop_last and tokens < self._fills[-1] * steps:
            steps -= 1
        return min(steps, len(lengths) // self._microbatches)

    def _drawn(self, mark: Mark, steps: int, end: int) -> tuple[Int64, npt.NDArray[np.int64]]:
        """Return the draws from a mark on, more than fit into the steps, or up to the end; and their lengths."""
        if self._plan[0] != mark.draws_before:
            phases = len(self._phases.start)
            before = [*mark.draws_before, *[mark.draws_before[-1]] * (phases - len(mark.draws_before))]
            self._plan = mark.draws_before, self._draws(np.array(before, np.int64))
        room = steps * self._microbatches * self._max_tokens
        count = int(room / self._tokens_per_draw * 1.1) + self._microbatches * steps
        while True:
            numbers = np.arange(mark.draw, min(mark.draw + count, end))
            # One by one: of several draws at once, those of one cluster come together.
            ids = self._plan[1].draw(np.full(len(numbers), mark.step), numbers, numbers + 1)
            lengths = self._tokens_of(ids)
            total = int(lengths.sum())
            if total > room or mark.draw + count >= end:
                break
            count *= 2
        self._tokens_per_draw = max(1.0, total / len(ids))
        return ids, lengths

    def _tokens_of(self, ids: Int64) -> Int64:
        """The tokens of samples; an empty one takes a row."""
        return np.clip(self._lengths[ids].astype(np.int64), 1, self._max_tokens)

    def _dealt(self, lengths: Int64, steps: int, first: int) -> tuple[Int64, Int64]:
        """Deal the first draws, as many as fit, to all microbatches of the steps: positions, and where each begins."""
        bins = steps * self._microbatches
        if self._padded:
            where = fill_padded(lengths, bins, self._max_tokens)
        else:
            where = fill_flat(lengths, bins, self._max_tokens, self._fills)
        key = derive_key(self._seed, _ORDER, np.array([first]))
        place = np.argsort(np.argsort(mix(key + np.arange(bins, dtype=np.uint64)), kind="stable"), kind="stable")
        microbatch = place[where]
        counts = np.bincount(microbatch, minlength=bins)
        return np.argsort(microbatch, kind="stable"), np.concatenate([[0], np.cumsum(counts)])
