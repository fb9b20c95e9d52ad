"""Steps that depend on the lengths of all samples drawn before: under a token budget, or with shares in tokens.

Under a token budget a step takes as many draws of ``order="stateless"`` as fit.
Steps are filled in blocks of at least 64 microbatches, within a phase and an epoch: a block takes
the draws that fill it, deals them to its microbatches, and these come in random order. So a sample comes up within one
block of its place among the draws, and every microbatch has long and short samples. A :class:`Mark` says where a block
begins; from a mark, the steps after it follow without those before.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from arrowds.curriculum.draws import Draws, StatelessDraws, shuffled
from arrowds.curriculum.group_weights import Taken, TokenShares
from arrowds.curriculum.permutation import derive_key, mix
from arrowds.curriculum.pools import Phases
from arrowds.curriculum.token_budget import Cost, balanced, fill_flat, fill_padded
from arrowds.errors import StateMismatchError

Int64 = npt.NDArray[np.int64]

BLOCK = 64
"""The fewest microbatches that are filled together, where phases and epochs are long enough."""

_BLOCK_DRAWS = 1 << 15
_MOST_MARKED = 1 << 22

_ORDER = 3  # what a key is for, beside those of arrowds.curriculum.draws
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
        taken: what was drawn of each group, where groups have shares in tokens.
    """

    step: int
    draw: int
    epoch: int
    draws_before: tuple[int, ...]
    taken: Taken | None = None

    def to_state(self) -> list[Any] | None:
        """The mark as JSON values; None where it is too large."""
        values = [self.step, self.draw, self.epoch, list(self.draws_before)]
        if self.taken is None:
            return values
        taken = self.taken.to_state()
        return None if taken is None else [*values, taken]

    @classmethod
    def from_state(cls, values: Any, *, groups: int | None = None) -> Mark:
        """The mark of a saved state, with shares in tokens of some groups; raises StateMismatchError for others."""
        match values:
            case [int(step), int(draw), int(epoch), [0, *more], *taken] if (
                len(taken) == (groups is not None)
                and step > 0
                and draw >= 0
                and epoch >= 0
                and all(type(before) is int for before in more)
                and all(a <= b for a, b in zip([0, *more], [*more, draw], strict=True))
            ):
                return cls(
                    step, draw, epoch, (0, *more), None if groups is None else Taken.from_state(taken[0], groups)
                )
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
        shares: what chooses the groups of draws where these have shares in tokens; None: the draws do.
        phases: when difficulties change.
        tokens_of: returns the tokens of samples, from 1 to the budget.
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
        shares: TokenShares | None,
        phases: Phases,
        tokens_of: Callable[[Int64], Int64],
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
        self._shares = shares
        self._tokens_of = tokens_of
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
        self._steps = -(-BLOCK // microbatches) if shares is None else 1  # in a block, any step may have any of it
        self._tokens_per_draw = 1.0
        self._plan: tuple[tuple[int, ...], StatelessDraws] | None = None
        self._marks = [Mark(1, 0, 0, (0,), None if shares is None else shares.nothing())]
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

    def end_of_block(self, step: int) -> int:
        """Return the last step that is filled together with a step."""
        return self._block_of(step).next.step - 1

    def mark_of(self, step: int) -> Mark:
        """Return where the block of a step begins."""
        return self._block_of(step).mark

    @property
    def marks(self) -> list[Mark]:
        """Where blocks begin, as far as is known, ascending."""
        return self._marks

    def remember(self, marks: list[Mark]) -> None:
        """Take marks from an earlier run in place of those so far: the steps before them need not be filled again.

        Raises:
            StateMismatchError: when one can't be of this run.
        """
        for mark in marks:
            phase = len(mark.draws_before) - 1
            known = phase < len(self._phases.start)
            in_phase = known and self._phases.start[phase] <= mark.step <= self._end_of_phase(phase)
            if not in_phase or mark.draw >= (mark.epoch + 1) * self._per_epoch:
                raise StateMismatchError(f"the saved state has a mark of its token budget that does not fit: {mark}")
        self._marks = [self._marks[0], *(mark for mark in marks if mark.step > 1)]
        self._block, self._divided = None, (0, [])

    def _end_of_phase(self, phase: int) -> int:
        return int(self._phases.start[phase + 1]) if phase + 1 < len(self._phases.start) else 1 << 62

    def _insert(self, mark: Mark) -> None:
        at = bisect_right(self._marks, mark[:3], key=lambda known: known[:3])
        if self._marks[at - 1][:3] != mark[:3]:
            self._marks.insert(at, mark)

    def _entered(self, mark: Mark) -> Mark:
        """Return a mark with the draws before the phase that begins at it, if one does."""
        phase = int(self._phases.of_step(mark.step))
        new = phase + 1 - len(mark.draws_before)
        taken = None if mark.taken is None or self._shares is None else mark.taken
        if taken is not None and self._shares is not None:
            taken = self._shares.entering(taken, mark.step, phase)
        return mark._replace(draws_before=(*mark.draws_before, *[mark.draw] * new), taken=taken)

    def _block_of(self, step: int) -> _Block:
        while True:
            block = self._block
            if block is not None and block.mark.step <= step < block.next.step:
                return block
            self._fill(self._marks[bisect_right(self._marks, step, key=lambda mark: mark.step) - 1])

    def _fill(self, mark: Mark) -> _Block | None:
        """Fill the block of a mark, and note where the next begins; None where the rest of its epoch fills no step."""
        mark = self._entered(mark)
        steps = min(self._steps, self._end_of_phase(len(mark.draws_before) - 1) - mark.step)
        end = (mark.epoch + 1) * self._per_epoch
        ids, lengths, groups = self._drawn(mark, steps, end)
        positions, offsets = self._dealt(lengths, steps, mark.step)
        epoch = mark.epoch
        if mark.draw + len(ids) == end and len(positions) == len(ids):  # what is left does not need all the steps
            epoch += 1
            steps = self._steps_for(lengths, steps, mark.step)
            if not steps:
                self._insert(mark._replace(epoch=epoch))  # so it begins the next epoch
                return None
            positions, offsets = self._dealt(lengths, steps, mark.step)
        count, taken = len(positions), mark.taken
        if self._shares is not None and taken is not None:
            taken = self._shares.after(taken, groups[:count], lengths[:count])
        after = Mark(mark.step + steps, mark.draw + count, epoch, mark.draws_before, taken)
        self._block = _Block(mark, ids[positions], offsets, after)
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

    def _drawn(self, mark: Mark, steps: int, end: int) -> tuple[Int64, Int64, Int64]:
        """Return the draws from a mark on, more than fit into the steps, or up to the end; their lengths and groups."""
        room = steps * self._microbatches * self._max_tokens
        count = int(room / self._tokens_per_draw * 1.1) + self._microbatches * steps
        while True:
            stop = min(mark.draw + count, end)
            if self._shares is not None and mark.taken is not None:
                ids, groups, lengths = self._shares.draw(mark.taken, mark.step, stop - mark.draw)
            else:
                # One by one: of several draws at once, those of one cluster come together.
                numbers = np.arange(mark.draw, stop)
                ids = self._draws_of(mark).draw(np.full(len(numbers), mark.step), numbers, numbers + 1)
                lengths, groups = self._tokens_of(ids), ids[:0]
            total = int(lengths.sum())
            if total > room or mark.draw + count >= end:
                break
            count *= 2
        self._tokens_per_draw = max(1.0, total / len(ids))
        return ids, lengths, groups

    def _draws_of(self, mark: Mark) -> StatelessDraws:
        if self._plan is None or self._plan[0] != mark.draws_before:
            phases = len(self._phases.start)
            before = [*mark.draws_before, *[mark.draws_before[-1]] * (phases - len(mark.draws_before))]
            self._plan = mark.draws_before, self._draws(np.array(before, np.int64))
        return self._plan[1]

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


class TokenShareDraws(Draws):
    """Global batches of a number of samples, whose groups have shares in tokens.

    A block of steps follows from what was drawn before it, so marks are kept of that.

    Args:
        shares: what chooses the groups of draws.
        phases: when a difficulty or a weight changes.
        seed: of the places of samples in their batch.
        batch_size: samples per global batch.
        end: after how many draws the run ends; the batch that it cuts short is made of the draws before.
    """

    keeps_state = True

    def __init__(self, shares: TokenShares, phases: Phases, *, seed: int, batch_size: int, end: int) -> None:
        self._shares = shares
        self._phases = phases
        self._seed = seed
        self._batch_size = batch_size
        self._end = end
        self._steps = max(1, _BLOCK_DRAWS // batch_size)
        self.marks: list[tuple[int, Taken]] = [(1, shares.nothing())]
        self._block: tuple[int, Int64] = (0, np.zeros((0, batch_size), np.int64))

    def batches_from(self, step: int) -> Int64:
        """Return the global batches of a step and of some after it: int64, ``[steps, batch_size]``."""
        first, block = self._block
        while not first <= step < first + len(block):
            size = 4 * len(block) if step == first + len(block) else 1
            first, taken = self.marks[bisect_right(self.marks, step, key=lambda mark: mark[0]) - 1]
            block = self._fill(first, taken, max(size, step - first + 1))
            self._block = first, block
        rest = self._end % self._batch_size
        if rest and step == self._end // self._batch_size + 1:
            return shuffled(block[step - first : step - first + 1, :rest], np.array([step]), self._seed)
        return shuffled(block[step - first :], np.arange(step, first + len(block)), self._seed)

    def _fill(self, step: int, taken: Taken, steps: int) -> Int64:
        """Draw a block of about some steps, and note what was drawn before the next."""
        phase = int(self._phases.of_step(step))
        steps = min(steps, self._steps)
        if phase + 1 < len(self._phases.start):
            steps = min(steps, int(self._phases.start[phase + 1]) - step)
        taken = self._shares.entering(taken, step, phase)
        ids, groups, lengths = self._shares.draw(taken, step, steps * self._batch_size)
        at = bisect_right(self.marks, step + steps, key=lambda mark: mark[0])
        if self.marks[at - 1][0] != step + steps:
            self.marks.insert(at, (step + steps, self._shares.after(taken, groups, lengths)))
            if len(self.marks) * len(taken.counts) > _MOST_MARKED:
                self.marks = [mark for number, mark in enumerate(self.marks) if not number % 2 or number == at]
        return ids.reshape(steps, self._batch_size)

    def state_at(self, step: int) -> dict[str, Any]:
        """Return what was drawn before the block of a step, where that is small."""
        at, taken = self.marks[bisect_right(self.marks, max(step, 1), key=lambda mark: mark[0]) - 1]
        taken = self._shares.entering(taken, at, int(self._phases.of_step(at)))
        values = taken.to_state()
        return {"mark": None if values is None else [at, values]}

    def check_state(self, step: int, state: Mapping[str, Any]) -> None:
        """Take the mark of a saved state, so that what was drawn before it need not be drawn again.

        Raises:
            StateMismatchError: for a mark that is none.
        """
        match state.get("mark"):
            case None:
                return
            case [int(at), values] if 1 <= at <= max(step, 1):
                taken = Taken.from_state(values, len(self.marks[0][1].counts))
            case damaged:
                raise StateMismatchError(f"the saved state has an invalid mark of its shares: {damaged!r:.200}")
        if int(taken.counts.sum()) != (at - 1) * self._batch_size or taken.phase != self._shares.weights.phase_of(at):
            raise StateMismatchError(f"the saved state has a mark of its shares that does not fit: {taken!r:.200}")
        self.marks = [self.marks[0], *([(at, taken)] if at > 1 else [])]
        self._block = (0, self._block[1][:0])
