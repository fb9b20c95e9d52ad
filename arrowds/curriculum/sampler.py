"""CurriculumSampler: the microbatches of one rank, drawn as the metrics of an index call for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from arrowds.cost import LengthCost
from arrowds.curriculum.config import Curriculum, CurriculumMetric, curriculum_digest, parse_curriculum
from arrowds.curriculum.draws import Draws, DrawSettings, find_draws
from arrowds.curriculum.metric_values import DerivedMetric, MetricSource, evaluate, fingerprint_of
from arrowds.curriculum.pools import Phases, build_pools
from arrowds.curriculum.ranks import LARGEST_SEED, RankLayout, whole_number
from arrowds.curriculum.schedule import Number
from arrowds.curriculum.stateless import StatelessDraws
from arrowds.curriculum.stream import BatchStream, OnNewData, check_step
from arrowds.curriculum.token_budget import TokenBudget, check_options
from arrowds.curriculum.token_steps import Mark, TokenSteps
from arrowds.curriculum.trace import trace_table
from arrowds.errors import ConfigError, EmptyDatasetError

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

Int64 = npt.NDArray[np.int64]


class CurriculumSampler(BatchStream):
    """Yield the sample ids of one rank's microbatches: lists of int.

    Args:
        index: an open index.
        curriculum: DeepSpeed's dictionary of metrics or a list of :class:`CurriculumMetric`; empty: a plain shuffle.
        micro_batch_size: samples of one rank in one microbatch; None with ``max_tokens``.
        rank: which rank this is.
        world_size: how many there are.
        gradient_accumulation_steps: microbatches per step; times the two sizes, this is the global batch size.
        max_tokens: the tokens of one rank in one microbatch, instead of its samples: as many samples as fit. A step
            then has ``world_size * gradient_accumulation_steps`` microbatches, the same however they are divided.
        lengths: with ``max_tokens``, the metric that counts the tokens of a sample; by default ``"seqlen"``.
        padded: with ``max_tokens``, whether a microbatch is padded to a rectangle: then rows times longest sample are
            within the budget. By default the sum of the lengths is.
        overlong: with ``max_tokens``, "raise" (the default) refuses samples that are longer; "truncate" counts them as
            ``max_tokens``, and the dataset has to cut them.
        cost: with ``max_tokens``, what a sample costs: of :func:`arrowds.cost.transformer`, a pair (a, b) for
            a L + b L^2 of its length L, or the name of a metric. The samples of a step are then divided so that the
            costliest rank costs as little as possible; steps are filled to 92 %, which leaves room for that.
        seed: of all that is random.
        num_epochs: how many times the samples are drawn.
        order: "stateless": every batch follows from (seed, step); "deepspeed": the batches of DeepSpeed's sampler. More
            by :func:`arrowds.curriculum.draws.register_draws`.
        drop_last: leave out the last, short global batch (with ``order="deepspeed"``: a short microbatch). False leaves
            out only a last microbatch with fewer samples than ranks. With ``max_tokens`` an epoch leaves what doesn't
            fill its last step to the next epoch, and False makes a step of it that is less full.
        where: a Polars expression over metrics; only samples for which it is true are drawn.
        exclude_steps: steps to leave out; all others are unchanged.
        exclude_ids: samples that are never drawn.
        record: a folder for an Arrow record of what was yielded, or, with a :class:`arrowds.CurriculumDataLoader`,
            handed out; see :func:`arrowds.curriculum.trace.read_records`.

    Raises:
        ConfigError: for invalid arguments or settings.
        EmptyPoolError: when a difficulty admits no sample.
        TokenBudgetError: when a sample is longer than ``max_tokens``.

    >>> import tempfile
    >>> import arrowds
    >>> import polars as pl
    >>> folder = tempfile.TemporaryDirectory()
    >>> lengths = pl.DataFrame({"seqlen": [1 + i % 64 for i in range(1000)]})
    >>> seqlen = arrowds.metrics.expr("seqlen", pl.col("seqlen"))
    >>> index = arrowds.analyze(lengths, [seqlen], folder.name + "/index", workers=1, progress=False)
    >>> curriculum = {"seqlen": {"difficulty_type": "value", "clustering_type": "schedule_based", "min_difficulty": 8,
    ...     "max_difficulty": 64, "schedule_type": "fixed_linear",
    ...     "schedule_config": {"total_curriculum_step": 20, "difficulty_step": 8}}}
    >>> sampler = CurriculumSampler(index, curriculum, micro_batch_size=4, gradient_accumulation_steps=2)
    >>> ids = next(iter(sampler))
    >>> len(ids), int(index["seqlen"].values[ids].max()) <= 8, sampler.current_difficulties
    (4, True, {'seqlen': 8})
    >>> sampler = CurriculumSampler(index, curriculum, max_tokens=512)
    >>> [int(index["seqlen"].values[ids].sum()) <= 512 for ids in sampler][:3]
    [True, True, True]
    >>> folder.cleanup()
    """

    _of_the_pass = ("_phases", "_draws", "_steps")

    def __init__(
        self,
        index: MetricSource,
        curriculum: Curriculum,
        *,
        micro_batch_size: int | None = None,
        max_tokens: int | None = None,
        lengths: str | None = None,
        padded: bool | None = None,
        overlong: Literal["raise", "truncate"] | None = None,
        cost: LengthCost | tuple[float, float] | str | None = None,
        rank: int = 0,
        world_size: int = 1,
        gradient_accumulation_steps: int = 1,
        seed: int = 1234,
        num_epochs: int = 1,
        order: str = "stateless",
        drop_last: bool = True,
        where: pl.Expr | None = None,
        exclude_steps: Iterable[int] = (),
        exclude_ids: Iterable[int] | None = None,
        record: str | PathLike[str] | None = None,
    ) -> None:
        check_options(max_tokens, micro_batch_size, order, lengths=lengths, padded=padded, overlong=overlong, cost=cost)
        layout = RankLayout(
            micro_batch_size=1 if micro_batch_size is None else micro_batch_size,  # a place is a sample or a microbatch
            rank=rank,
            world_size=world_size,
            gradient_accumulation_steps=gradient_accumulation_steps,
        )
        super().__init__(layout, num_epochs=num_epochs, drop_last=drop_last, exclude_steps=exclude_steps, record=record)
        self._draws_class = find_draws(order)
        if isinstance(index, str | PathLike):
            raise ConfigError(f"expected an open index: pass arrowds.open_index({str(index)!r})")
        if index.num_samples < 1:
            raise EmptyDatasetError("nothing to draw: the index has no samples")
        self.index = index
        self.metrics = parse_curriculum(curriculum)
        self.seed = whole_number("seed", seed, least=0, most=LARGEST_SEED)
        self.order = order
        self._exclude_ids = _excluded(exclude_ids, index.num_samples)
        self._derived = _derived(index, self.metrics)
        self._allowed = None if where is None else _allowed(index, where)
        self._where = where
        self._budget = None
        if max_tokens is not None:
            priced = LengthCost(*cost) if isinstance(cost, tuple | list) else cost
            self._budget = TokenBudget(max_tokens, lengths or "seqlen", bool(padded), overlong or "raise", priced)
        self._digest = curriculum_digest(self.metrics, where)
        if self._end_near(0) < 1:
            batch = f"one batch of {layout.global_batch_size}"
            if max_tokens is not None:
                batch = f"one step of {layout.global_batch_size} microbatches of {max_tokens} tokens"
            remedy = "use drop_last=False, or a smaller batch" if drop_last else f"each of {world_size} ranks needs one"
            raise ConfigError(f"{self.samples_per_epoch} samples x {num_epochs} epochs do not fill {batch}; {remedy}")
        if self._budget is None and all(m.schedule_type != "custom" or m.function for m in self.metrics):
            _ = self._draws  # Invalid settings raise here, not at the first batch.

    @cached_property
    def samples_per_epoch(self) -> int:
        """How many samples an epoch has: all but those that the filter and the exclusions leave out."""
        if self._allowed is None:
            return self.index.num_samples - len(self._exclude_ids)
        return int(self._allowed.sum() - self._allowed[self._exclude_ids].sum())

    @property
    def _unit(self) -> int:
        """What ``drop_last`` leaves whole: the global batch, or the microbatch of all ranks."""
        return self.layout.micro_samples if self._draws_class.partial_steps else self.layout.global_batch_size

    @cached_property
    def _phases(self) -> Phases:
        if self._budget is None:
            return Phases.of(self.metrics, limit=max(1, self.num_steps))
        draws = self.samples_per_epoch * self.num_epochs * (self.epoch + 1)
        return Phases.of(self.metrics, limit=max(1, draws // self.layout.global_batch_size))

    @cached_property
    def _draws(self) -> Draws:
        return self._draws_class.of(
            DrawSettings(
                index=self.index,
                metrics=self.metrics,
                derived=self._derived,
                allowed=self._allowed,
                exclude_ids=self._exclude_ids,
                phases=self._phases,
                seed=self.seed,
                batch_size=self.layout.global_batch_size,
                end=self.end,
            )
        )

    def batches_from(self, step: int) -> Int64:
        """Return the global batches of a step and perhaps some after it: ``[steps, global_batch_size]``."""
        return self._draws.batches_from(step)

    @cached_property
    def _steps(self) -> TokenSteps | None:
        """What each step takes under the token budget; None where microbatches are of a number of samples."""
        if self._budget is None:
            return None
        lengths = self._budget.lengths_of(self.index, self._allowed, self._exclude_ids)
        pools = build_pools(self.index, self.metrics, self._derived, self._allowed, self._phases)

        def draws(draws_before: Int64) -> StatelessDraws:
            return StatelessDraws(
                pools,
                self._phases,
                seed=self.seed,
                batch_size=0,
                exclude_ids=self._exclude_ids,
                draws_before=draws_before,
            )

        return TokenSteps(
            draws,
            self._phases,
            lengths,
            max_tokens=self._budget.max_tokens,
            padded=self._budget.padded,
            microbatches=self.layout.global_batch_size,
            samples_per_epoch=self.samples_per_epoch,
            drop_last=self.drop_last,
            seed=self.seed,
            ranks=self.layout.world_size,
            cost=self._budget.cost_of(self.index),
        )

    def _end_of(self, epoch: int) -> int:
        if self._steps is None:
            return super()._end_of(epoch)
        return self._steps.last_step(self.num_epochs * (epoch + 1)) * self.layout.global_batch_size

    def _end_near(self, position: int) -> int:
        if self._steps is None:
            return super()._end_near(position)
        size = self.layout.global_batch_size
        return self._steps.last_step(self.num_epochs * (self.epoch + 1), up_to=position // size + 1) * size

    def _shares_from(self, step: int, start: int, stop: int) -> list[list[int]]:
        if self._steps is None:
            return super()._shares_from(step, start, stop)
        mine: list[list[int]] = [
            ids.tolist() for ids in self._steps.microbatches(step)[start :: self.layout.world_size]
        ]
        return mine

    def _samples_of(self, step: int, start: int, stop: int) -> Int64:
        if self._steps is None:
            return super()._samples_of(step, start, stop)
        return np.concatenate([np.zeros(0, np.int64), *self._steps.microbatches(step)[start:stop]])

    def _places_at(self, step: int) -> tuple[Int64, Int64]:
        if self._steps is None:
            return super()._places_at(step)
        places = np.arange(self.layout.global_batch_size)
        counts = [len(ids) for ids in self._steps.microbatches(step)]
        micro, rank = np.divmod(np.repeat(places, counts), self.layout.world_size)
        return micro, rank

    @property
    def consumed_samples(self) -> int:
        """How many samples have been yielded to all ranks, those of excluded steps counted."""
        if self._steps is None:
            return super().consumed_samples
        step, microbatches = divmod(self._position, self.layout.global_batch_size)
        return self._steps.samples_before(step + 1) + len(self._samples_of(step + 1, 0, microbatches))

    @property
    def step_of_epoch(self) -> int:
        """The number, within its epoch, of the step last yielded; 0 before the first."""
        if self._steps is None or self._position == 0:
            return super().step_of_epoch
        return self.step - self._steps.last_step(self._steps.mark_of(self.step).epoch)

    def costs_at(self, step: int) -> npt.NDArray[np.float64]:
        """Return the costs of the microbatches of a step: float64, ``[gradient_accumulation_steps, world_size]``.

        Without ``cost`` these are their tokens. The sum of each column is the work of a rank; the largest of these,
        over their mean, is the time of the step over that of a balanced one.

        Raises:
            ConfigError: when ``step`` is below 1, or there is no token budget.
        """
        if self._steps is None:
            raise ConfigError("costs_at needs a token budget: pass max_tokens")
        return self._steps.costs(check_step(step)).reshape(-1, self.layout.world_size)

    def tokens_at(self, step: int) -> Int64:
        """Return the tokens of the microbatches of a step: int64, ``[gradient_accumulation_steps, world_size]``.

        Raises:
            ConfigError: when ``step`` is below 1, or there is no token budget.
        """
        if self._steps is None or self._budget is None:
            raise ConfigError("tokens_at needs a token budget: pass max_tokens")
        return self._steps.tokens(check_step(step)).reshape(-1, self.layout.world_size)

    def difficulties_at(self, step: int) -> dict[str, Number]:
        """Return the difficulty of each metric at a step (the first is 1)."""
        return self._phases.difficulties(check_step(step))

    def set_custom_curriculum_learning_schedule(self, functions: Mapping[str, Callable[[int], Number]]) -> None:
        """Set the functions of the step for metrics whose ``schedule_type`` is "custom"; other names are ignored."""
        self.metrics = tuple(
            replace(metric, function=functions.get(metric.name, metric.function)) for metric in self.metrics
        )
        for cached in self._of_the_pass:
            self.__dict__.pop(cached, None)
        self._moves += 1  # a running iteration draws its next batch again

    def identity(self) -> dict[str, Any]:
        """Return what a saved state must agree in."""
        return {
            **({} if self._budget is None else {"token_budget": asdict(self._budget)}),
            "order": self.order,
            "index": fingerprint_of(self.index, self._names),
            "curriculum": self._digest,
            "seed": self.seed,
            "global_batch_size": self.layout.global_batch_size,
        }

    def state_at(self, position: int) -> dict[str, Any]:
        """Return the position and the identity of the stream: at most 1 KiB of JSON-serialisable values."""
        state = super().state_at(position) | {"index_version": getattr(self.index, "version", None)}
        if self._steps is not None:
            step = position // self.layout.global_batch_size + 1
            state |= {"consumed_microbatches": position, "mark": self._steps.mark_of(step).to_state()}
            del state["consumed_samples"]
        if self._draws_class.keeps_state:
            state |= self._draws.state_at(state["curriculum_step"])
        return state

    @property
    def _names(self) -> list[str]:
        """The metrics of the index that decide what is drawn."""
        expressions = [metric.difficulty for metric in self.metrics if metric.difficulty is not None]
        expressions += [] if self._where is None else [self._where]
        named = [name for expression in expressions for name in expression.meta.root_names()]
        if self._budget is not None:
            named += [self._budget.lengths, *([self._budget.cost] if isinstance(self._budget.cost, str) else [])]
        return [*(metric.name for metric in self.metrics if metric.difficulty is None), *named]

    def checked_position(self, state: Mapping[str, Any], on_new_data: OnNewData = "refuse") -> int:
        """Return the position of a saved state that fits; with ``order="deepspeed"``, draw all steps up to it.

        Raises:
            StateMismatchError: naming everything in which the state differs.
        """
        position = super().checked_position(state, on_new_data)
        if self._steps is not None:
            self._steps.remember(Mark.from_state(state.get("mark")))
        if on_new_data == "refuse" and self._draws_class.keeps_state:
            self._draws.check_state(self._step_of(position), state)
        return position

    def _was_drawn_from(self, state: Mapping[str, Any]) -> bool | None:
        had, version = getattr(self.index, "had_fingerprint", None), state.get("index_version")
        if had is None or type(version) is not int:
            return None
        told: bool | None = had(version, state.get("index"), sorted(set(self._names) & set(self.index.metrics)))
        return told

    def trace(self, steps: int | Iterable[int]) -> pa.Table:
        """Return the samples of steps over all ranks, one row each, as they are drawn.

        Columns: ``step``, ``micro_batch``, ``rank``, ``sample_id``, ``difficulty_NAME`` for each metric of the
        curriculum, and the value of every metric of the index and of every expression.

        Raises:
            ConfigError: when a step is below 1.
        """
        chosen = [check_step(step) for step in ([steps] if isinstance(steps, int) else steps)]
        batches = {step: self.global_batch_at(step) for step in chosen}
        if self._steps is None:
            batches = {step: ids[: self.samples_at(step) or None] for step, ids in batches.items()}
        values = {name: self.index[name] for name in self.index.metrics} | self._derived
        places = {step: self._places_at(step) for step in chosen}
        return trace_table(batches, {step: self.difficulties_at(step) for step in chosen}, places, values)


def _excluded(ids: Iterable[int] | None, num_samples: int) -> Int64:
    """Return the ids that are never drawn, sorted and distinct."""
    try:
        given = np.array([] if ids is None else list(ids))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"exclude_ids must be a list of sample ids, got {ids!r:.60}") from error
    if given.size and (given.ndim != 1 or given.dtype.kind not in "iu"):
        raise ConfigError(f"exclude_ids must be a list of sample ids, got {ids!r:.60}")
    found = np.unique(given)
    if len(found) and not 0 <= found[0] <= found[-1] < num_samples:
        raise ConfigError(f"exclude_ids must lie in [0, {num_samples}), got {found[0]} to {found[-1]}")
    return found.astype(np.int64)


def _derived(index: MetricSource, metrics: Iterable[CurriculumMetric]) -> dict[str, DerivedMetric]:
    return {m.name: DerivedMetric(evaluate(index, m.difficulty)) for m in metrics if m.difficulty is not None}


def _allowed(index: MetricSource, where: pl.Expr) -> npt.NDArray[np.bool_]:
    values = evaluate(index, where)
    if values.dtype != np.bool_:
        raise ConfigError(f"where must be true or false for each sample, but {where} gives {values.dtype}")
    allowed: npt.NDArray[np.bool_] = np.ma.filled(values, False)
    if not allowed.any():
        raise ConfigError(f"where={where} is true for no sample")
    return allowed
