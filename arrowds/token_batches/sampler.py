"""One rank's share of a plan, epoch after epoch, as torch's DataLoader takes it for `batch_sampler`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any, Self

from arrowds.errors import ConfigError, StateMismatchError
from arrowds.shares import refuse_second_division
from arrowds.states import checked_state, count_in, refuse_other_samplers
from arrowds.token_batches.plan import TokenBatchPlan
from arrowds.token_batches.rules import require_at_least

STATE_VERSION = 1


class TokenBudgetBatchSampler:
    """One rank's batches of a plan, as lists of int, epoch after epoch; resumable.

    Each full iteration advances to the next epoch; `set_epoch` chooses one. An iteration starts at the first batch; the
    first one after `load_state_dict` resumes where the state was taken. The state depends on neither rank nor world
    size: between two steps a run can resume on another number of ranks.

    A DataLoader with workers draws batches ahead of the training loop. `arrowds.CurriculumDataLoader` accounts for
    that; with torch's own, count what was trained on and pass it: `state_dict(batches=n)`.

    Args:
        plan: from `arrowds.batch_by_tokens`; the first iteration is of its epoch.
        rank: this process, from 0.
        world_size: number of ranks; divides the plan's `effective_batch_size`.

    Raises:
        ConfigError: when plan, rank and world size do not match.

    >>> from arrowds.token_batches.plan import batch_by_tokens
    >>> plan = batch_by_tokens([4] * 8, max_tokens=8, order="dataloader", world_size=2)
    >>> list(TokenBudgetBatchSampler(plan, rank=1, world_size=2))
    [[2, 3], [6, 7]]
    """

    def __init__(self, plan: TokenBatchPlan, *, rank: int = 0, world_size: int = 1) -> None:
        require_at_least("world_size", world_size, 1)
        require_at_least("rank", rank, 0)
        if rank >= world_size:
            raise ConfigError(f"rank={rank}: expected one from 0 to {world_size - 1}, as world_size is {world_size}")
        if plan.rules.effective_batch_size % world_size:
            raise ConfigError(
                f"the plan has effective_batch_size={plan.rules.effective_batch_size} batches in a step, which "
                f"world_size={world_size} ranks can't share: plan with batch_by_tokens(..., world_size={world_size})"
            )
        self.plan = plan
        self.rank = rank
        self.world_size = world_size
        self._rules = asdict(plan.rules)  # once: a loader may ask for the state after each batch
        self._start = 0  # batches of this rank that the next iteration skips
        self._given = 0  # batches of this rank yielded in this epoch

    @property
    def epoch(self) -> int:
        """The epoch of the running iteration, or of the next one."""
        return self.plan.epoch

    @property
    def num_samples(self) -> int:
        """Samples of the dataset, including those in no batch."""
        return self.plan.num_samples

    def __len__(self) -> int:
        """Batches of each rank in this epoch, including those already yielded."""
        return len(self.plan) // self.world_size

    @property
    def sampler(self) -> Self:
        """The sampler itself: Lightning and Accelerate call ``batch_sampler.sampler.set_epoch`` before each epoch."""
        return self

    def __iter__(self) -> Iterator[list[int]]:
        refuse_second_division(self.rank, self.world_size)
        start, self._start = self._start, 0
        self._given = start
        plan = self.plan
        for batch in plan.batches[self.rank + start * self.world_size :: self.world_size]:
            self._given += 1
            yield batch.tolist()
        if self.plan is plan:
            self.plan, self._given = plan.with_epoch(plan.epoch + 1), 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration; naming the current epoch keeps the position in it."""
        if epoch != self.epoch:
            self.plan, self._start, self._given = self.plan.with_epoch(epoch), 0, 0

    def state_dict(self, *, batches: int | None = None) -> dict[str, Any]:
        """Return the position of this run, in JSON types.

        Args:
            batches: how many of this rank's batches of this epoch were trained on, if not all that were yielded.
        """
        done = self._given if batches is None else batches
        if not 0 <= done <= len(self):
            raise ConfigError(f"batches={done}: expected 0 to {len(self)}, the batches of each rank in this epoch")
        return {
            "version": STATE_VERSION,
            "digest": self.plan.digest,
            "rules": dict(self._rules),
            "epoch": self.epoch,
            "batches": done * self.world_size,  # over all ranks
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume where the state was taken, with the next iteration.

        Raises:
            StateMismatchError: for a state of other samples, rules or version, or from within a step of other ranks.
        """
        state = checked_state(state, STATE_VERSION, of="a TokenBudgetBatchSampler")
        refuse_other_samplers(state, "TokenBudgetBatchSampler")
        if state.get("digest") != self.plan.digest:
            raise StateMismatchError("the state was saved for other samples: the lengths or ids of this plan differ")
        ours = self._rules
        saved = state.get("rules")
        rules: Mapping[str, Any] = saved if isinstance(saved, Mapping) else {}
        differing = [name for name in ours if rules.get(name) != ours[name]]
        if differing:
            listed = ", ".join(f"{name} {rules.get(name)!r}, now {ours[name]!r}" for name in differing)
            raise StateMismatchError(f"the state was saved under other rules: {listed}")
        batches, epoch = count_in(state, "batches"), count_in(state, "epoch")
        if batches % self.world_size:
            raise StateMismatchError(
                f"the state was saved after {batches} batches, within a step, which "
                f"{self.world_size} ranks can't share: resume on the number of ranks that saved it"
            )
        plan = self.plan.with_epoch(epoch)
        if batches > len(plan):
            raise StateMismatchError(
                f"the saved state is damaged: {batches} batches of epoch {epoch}, which has {len(plan)}"
            )
        self.plan = plan
        self._start = self._given = batches // self.world_size
        if self._start >= len(self):
            self.plan, self._start, self._given = self.plan.with_epoch(self.epoch + 1), 0, 0
