"""CurriculumSampler: the microbatches of one rank, drawn as the metrics of an index call for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict, Unpack

import numpy as np
import numpy.typing as npt

from arrowds.cost import LengthCost
from arrowds.curriculum.apportion import Changes, Shares
from arrowds.curriculum.config import Curriculum, CurriculumMetric, curriculum_digest, parse_curriculum
from arrowds.curriculum.draws import Draws, DrawSettings, GroupPools, StatelessDraws, find_draws
from arrowds.curriculum.group_weights import GroupWeights, Taken, TokenShares
from arrowds.curriculum.metric_values import (
    DerivedMetric,
    MetricSource,
    evaluate,
    fingerprint_of,
    id_dtype,
    joined,
)
from arrowds.curriculum.pools import Phases, Pools, build_pools
from arrowds.curriculum.ranks import LARGEST_SEED, RankLayout, whole_number
from arrowds.curriculum.schedule import Number
from arrowds.curriculum.stream import BatchStream, OnNewData, check_step
from arrowds.curriculum.token_budget import Cost, TokenBudget, check_options, costs_of, lengths_of
from arrowds.curriculum.token_steps import Mark, TokenShareDraws, TokenSteps
from arrowds.curriculum.trace import trace_table
from arrowds.errors import ConfigError, EmptyDatasetError

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

Int64 = npt.NDArray[np.int64]


class SamplerOptions(TypedDict, total=False):
    """What all samplers of groups take; :class:`CurriculumSampler` describes each."""

    micro_batch_size: int | None
    max_tokens: int | None
    lengths: str | None
    padded: bool | None
    overlong: Literal["raise", "truncate"] | None
    cost: LengthCost | tuple[float, float] | str | None
    rank: int
    world_size: int
    gradient_accumulation_steps: int
    seed: int
    num_epochs: int
    order: str
    drop_last: bool
    exclude_steps: Iterable[int]
    record: str | PathLike[str] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Source:
    """Samples of an index that are drawn: as one group with a curriculum, or as several groups.

    Attributes:
        index: where the metrics come from.
        groups: the numbers of the groups, ascending.
        metrics: the curriculum of the only group.
        allowed: which samples belong to it; None for all.
        codes: for several groups, the number of the group of each sample; -1 where it has none.
        exclude_ids: ids of the index that are never drawn, sorted and distinct.
        offset: what is added to the ids of the index.
    """

    index: MetricSource
    groups: Int64
    metrics: tuple[CurriculumMetric, ...] = ()
    allowed: npt.NDArray[np.bool_] | None = None
    codes: Int64 | None = None
    exclude_ids: Int64
    offset: int = 0

    @cached_property
    def derived(self) -> dict[str, DerivedMetric]:
        """The metrics of the curriculum that are expressions."""
        return {
            m.name: DerivedMetric(evaluate(self.index, m.difficulty)) for m in self.metrics if m.difficulty is not None
        }

    def drawn(self) -> npt.NDArray[np.bool_]:
        """Return which samples of the index may be drawn."""
        if self.codes is not None:
            drawn = np.isin(self.codes, self.groups)
        else:
            drawn = np.ones(self.index.num_samples, np.bool_) if self.allowed is None else self.allowed.copy()
        drawn[self.exclude_ids] = False
        return drawn

    @cached_property
    def sizes(self) -> Int64:
        """How many samples of each group may be drawn."""
        if self.codes is not None:
            return np.bincount(self.codes[self.drawn()], minlength=int(self.groups[-1]) + 1)[self.groups]
        if self.allowed is None:
            return np.array([self.index.num_samples - len(self.exclude_ids)])
        return np.array([self.allowed.sum() - self.allowed[self.exclude_ids].sum()])

    def pools(self, phases: Phases | None, seeds: Int64) -> GroupPools:
        """Return the clusters of samples that are drawn together.

        Raises:
            ConfigError: when a difficulty lies outside the metric's values.
            EmptyPoolError: when a difficulty admits no sample.
        """
        if self.codes is None:
            one = Phases(np.array([1]), {}) if phases is None else phases
            pools = build_pools(self.index, self.metrics, self.derived, self.allowed, one)
        else:
            chosen = np.flatnonzero(self.codes >= 0)
            code = self.codes[chosen]
            small = code.astype(np.uint16) if self.groups[-1] < 1 << 16 else code  # which NumPy sorts by counting
            ids = chosen[np.argsort(small, kind="stable")].astype(id_dtype(len(self.codes)))
            sizes = np.bincount(code, minlength=int(self.groups[-1]) + 1)[self.groups]
            changes = Changes(np.zeros(len(sizes), np.int64), np.arange(len(sizes)), sizes)
            pools = Pools(ids, np.concatenate([[0], np.cumsum(sizes)]), changes)
        return GroupPools(
            groups=self.groups,
            pools=pools,
            phases=phases,
            seeds=seeds,
            exclude_ids=self.exclude_ids,
            offset=self.offset,
        )


class GroupSampler(BatchStream):
    """The sampler of both kinds: draws from groups of samples by weights. A curriculum has one group.

    Args:
        sources: where the samples of each group are.
        weights: of the groups.
        unit: whether the weights are shares of the samples or of the tokens.
        options: as of :class:`CurriculumSampler`.
    """

    _of_the_pass = ("_source_phases", "_parts", "_phases", "_draws", "_steps")
    _first_seed: ClassVar[int] = 1  # what the seed of the passes of group 0 is larger by

    def __init__(
        self,
        sources: Sequence[Source],
        weights: GroupWeights,
        *,
        unit: Literal["samples", "tokens"] = "samples",
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
        exclude_steps: Iterable[int] = (),
        record: str | PathLike[str] | None = None,
    ) -> None:
        counted = None if unit == "tokens" else lengths
        check_options(max_tokens, micro_batch_size, order, lengths=counted, padded=padded, overlong=overlong, cost=cost)
        layout = RankLayout(
            micro_batch_size=1 if micro_batch_size is None else micro_batch_size,  # a place is a sample or a microbatch
            rank=rank,
            world_size=world_size,
            gradient_accumulation_steps=gradient_accumulation_steps,
        )
        super().__init__(layout, num_epochs=num_epochs, drop_last=drop_last, exclude_steps=exclude_steps, record=record)
        self._draws_class = find_draws(order)
        self._sources = list(sources)
        self._weights = weights
        self._unit_of_weights = unit
        self.seed = whole_number("seed", seed, least=0, most=LARGEST_SEED - self._first_seed * len(weights.names))
        self.order = order
        self._lengths = lengths or "seqlen"
        self._budget = None
        if max_tokens is not None:
            priced = LengthCost(*cost) if isinstance(cost, tuple | list) else cost
            self._budget = TokenBudget(max_tokens, self._lengths, bool(padded), overlong or "raise", priced)
        if self._end_near(0) < 1:
            batch = f"one batch of {layout.global_batch_size}"
            if max_tokens is not None:
                batch = f"one step of {layout.global_batch_size} microbatches of {max_tokens} tokens"
            remedy = "use drop_last=False, or a smaller batch" if drop_last else f"each of {world_size} ranks needs one"
            raise ConfigError(f"{self.samples_per_epoch} samples x {num_epochs} epochs do not fill {batch}; {remedy}")
        metrics = [metric for source in self._sources for metric in source.metrics]
        if order != "stateless" and any(metric.lower is not None for metric in metrics):
            raise ConfigError(f"a lower bound needs the order 'stateless', got {order!r}")
        if self._budget is None and all(m.schedule_type != "custom" or m.function for m in metrics):
            _ = self._draws, self._parts  # Invalid settings raise here, not at the first batch.

    @cached_property
    def _indexes(self) -> dict[int, MetricSource]:
        """The indexes, by what is added to their ids."""
        return {source.offset: source.index for source in self._sources}

    @cached_property
    def samples_per_epoch(self) -> int:
        """How many samples an epoch has: all but those that filters, groups and exclusions leave out."""
        return sum(int(source.sizes.sum()) for source in self._sources)

    @property
    def _unit(self) -> int:
        """What ``drop_last`` leaves whole: the global batch, or the microbatch of all ranks."""
        partial_steps = self._draws_class is not None and self._draws_class.partial_steps
        return self.layout.micro_samples if partial_steps else self.layout.global_batch_size

    @cached_property
    def _source_phases(self) -> list[Phases | None]:
        """When the curriculum of each source changes; None where it has none."""
        if self._budget is None:
            limit = max(1, self.num_steps)
        else:
            draws = self.samples_per_epoch * self.num_epochs * (self.epoch + 1)
            limit = max(1, draws // self.layout.global_batch_size)
        return [Phases.of(source.metrics, limit=limit) if source.metrics else None for source in self._sources]

    @cached_property
    def _phases(self) -> Phases:
        """When anything changes: a difficulty or a weight."""
        named = {
            self._prefix(source): phases
            for source, phases in zip(self._sources, self._source_phases, strict=True)
            if phases
        }
        return Phases.merged(named, self._weights.starts)

    def _prefix(self, source: Source) -> str:
        """What precedes the names of the metrics of a source's curriculum."""
        return f"{self._weights.names[source.groups[0]]}."

    @cached_property
    def _parts(self) -> list[GroupPools]:
        return [
            source.pools(phases, self.seed + self._first_seed + source.groups)
            for source, phases in zip(self._sources, self._source_phases, strict=True)
        ]

    def _stateless(self, **options: Any) -> StatelessDraws:
        return StatelessDraws(self._parts, self._phases, self._weights, seed=self.seed, **options)

    @cached_property
    def _draws(self) -> Draws:
        source, size = self._sources[0], self.layout.global_batch_size
        if self._draws_class is not None:
            return self._draws_class.of(
                DrawSettings(
                    index=source.index,
                    metrics=source.metrics,
                    derived=source.derived,
                    allowed=source.allowed,
                    exclude_ids=source.exclude_ids,
                    phases=self._phases,
                    seed=self.seed,
                    batch_size=size,
                    end=self.end,
                )
            )
        if self._unit_of_weights == "tokens":
            return TokenShareDraws(self._token_shares, self._phases, seed=self.seed, batch_size=size, end=self.end)
        return self._stateless(batch_size=size, end=self.end)

    @property
    def _token_shares(self) -> TokenShares:
        """What chooses the groups of draws by their shares in tokens."""
        counts_phases = any(phases is not None for phases in self._source_phases)
        known: dict[tuple[tuple[int, ...], ...], StatelessDraws] = {}

        def take(taken: Taken, step: int, rows: Shares) -> Int64:
            if taken.group_draws not in known:
                known.clear()
                missing = len(self._phases.start) - len(taken.group_draws)
                counts = np.array([*taken.group_draws, *[taken.counts] * missing])
                known[taken.group_draws] = self._stateless(
                    batch_size=0, draws_before=counts.sum(axis=1), group_draws=counts
                )
            return known[taken.group_draws].take(np.array([step]), rows)

        return TokenShares(self._weights, take, self._tokens_of, counts_phases=counts_phases)

    @cached_property
    def _tokens_of(self) -> Callable[[Int64], Int64]:
        """What returns the tokens of samples: at least 1, since an empty one takes a row, and at most the budget."""
        lengths = [
            lengths_of(index, self._lengths, partial(self._drawn_of, offset), self._budget)
            for offset, index in self._indexes.items()
        ]
        gather, most = joined(lengths, list(self._indexes)), None if self._budget is None else self._budget.max_tokens
        return lambda ids: np.clip(gather(ids).astype(np.int64), 1, most)

    def _drawn_of(self, offset: int) -> npt.NDArray[np.bool_]:
        masks = [source.drawn() for source in self._sources if source.offset == offset]
        drawn: npt.NDArray[np.bool_] = np.logical_or.reduce(masks)
        return drawn

    @property
    def _cost(self) -> Cost | None:
        cost = None if self._budget is None else self._budget.cost
        if isinstance(cost, str):
            gather = joined([costs_of(index, cost) for index in self._indexes.values()], list(self._indexes))
            return lambda ids, lengths: gather(ids).astype(np.float64)
        return None if cost is None else lambda ids, lengths: cost(lengths)

    def batches_from(self, step: int) -> Int64:
        """Return the global batches of a step and perhaps some after it: ``[steps, global_batch_size]``."""
        return self._draws.batches_from(step)

    @cached_property
    def _steps(self) -> TokenSteps | None:
        """What each step takes under the token budget; None where microbatches are of a number of samples."""
        if self._budget is None:
            return None
        return TokenSteps(
            lambda draws_before: self._stateless(batch_size=0, draws_before=draws_before),
            self._token_shares if self._unit_of_weights == "tokens" else None,
            self._phases,
            self._tokens_of,
            max_tokens=self._budget.max_tokens,
            padded=self._budget.padded,
            microbatches=self.layout.global_batch_size,
            samples_per_epoch=self.samples_per_epoch,
            drop_last=self.drop_last,
            seed=self.seed,
            ranks=self.layout.world_size,
            cost=self._cost,
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

    @property
    def max_tokens(self) -> int | None:
        """The tokens that one rank may have in one microbatch; None where microbatches have a number of samples."""
        return None if self._budget is None else self._budget.max_tokens

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
        self._sources = [
            replace(
                source, metrics=tuple(replace(m, function=functions.get(m.name, m.function)) for m in source.metrics)
            )
            for source in self._sources
        ]
        self._draw_again()

    def _draw_again(self) -> None:
        """Forget what is drawn ahead, also in a running iteration."""
        for cached in self._of_the_pass:
            self.__dict__.pop(cached, None)
        self._moves += 1

    def identity(self) -> dict[str, Any]:
        """Return what a saved state must agree in."""
        return {
            **({} if self._budget is None else {"token_budget": asdict(self._budget)}),
            "order": self.order,
            "seed": self.seed,
            "global_batch_size": self.layout.global_batch_size,
        }

    def state_at(self, position: int) -> dict[str, Any]:
        """Return the position and the identity of the stream: at most 1 KiB of JSON-serialisable values."""
        state = super().state_at(position)
        if len(self._indexes) == 1:
            state["index_version"] = getattr(self._sources[0].index, "version", None)
        if self._steps is not None:
            step = position // self.layout.global_batch_size + 1
            state |= {"consumed_microbatches": position, "mark": self._steps.mark_of(step).to_state()}
            del state["consumed_samples"]
        elif self._draws.keeps_state:
            state |= self._draws.state_at(state["curriculum_step"])
        return state

    def _names_of(self, source: Source) -> list[str]:
        """The metrics of an index that decide what is drawn."""
        expressions = [metric.difficulty for metric in source.metrics if metric.difficulty is not None]
        named = [name for expression in expressions for name in expression.meta.root_names()]
        if self._budget is not None or self._unit_of_weights == "tokens":
            named.append(self._lengths)
        if self._budget is not None and isinstance(self._budget.cost, str):
            named.append(self._budget.cost)
        return [*(metric.name for metric in source.metrics if metric.difficulty is None), *named]

    def checked_position(self, state: Mapping[str, Any], on_new_data: OnNewData = "refuse") -> int:
        """Return the position of a saved state that fits; with ``order="deepspeed"``, draw all steps up to it.

        Raises:
            StateMismatchError: naming everything in which the state differs.
        """
        position = super().checked_position(state, on_new_data)
        if self._steps is not None:
            by_tokens = self._unit_of_weights == "tokens"
            if not by_tokens or state.get("mark") is not None:
                groups = len(self._weights.names) if by_tokens else None
                self._steps.remember([Mark.from_state(state.get("mark"), groups=groups)])
        elif on_new_data == "refuse" and self._draws.keeps_state:
            self._draws.check_state(self._step_of(position), state)
        return position

    def trace(self, steps: int | Iterable[int]) -> pa.Table:
        """Return the samples of steps over all ranks, one row each, as they are drawn.

        Columns: ``step``, ``micro_batch``, ``rank``, ``sample_id``; ``group`` in a mixture; ``difficulty_NAME`` for
        each metric of the curriculum; and the value of every metric of the index and of every expression.

        Raises:
            ConfigError: when a step is below 1.
        """
        chosen = [check_step(step) for step in ([steps] if isinstance(steps, int) else steps)]
        batches = {step: self.global_batch_at(step) for step in chosen}
        if self._steps is None:
            batches = {step: ids[: self.samples_at(step) or None] for step, ids in batches.items()}
        places = {step: self._places_at(step) for step in chosen}
        difficulties = {step: self.difficulties_at(step) for step in chosen}
        return trace_table(batches, difficulties, places, self._traced())

    def _traced(self) -> dict[str, Any]:
        """The metrics whose values are traced."""
        index = self._sources[0].index
        return {name: index[name] for name in index.metrics} | self._sources[0].derived


class CurriculumSampler(GroupSampler):
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

    _kind = "CurriculumSampler"
    _first_seed = 0

    def __init__(
        self,
        index: MetricSource,
        curriculum: Curriculum,
        *,
        where: pl.Expr | None = None,
        exclude_ids: Iterable[int] | None = None,
        **options: Unpack[SamplerOptions],
    ) -> None:
        check_index(index)
        self.index = index
        metrics = parse_curriculum(curriculum)
        self._where = where
        source = Source(
            index=index,
            groups=np.array([0]),
            metrics=metrics,
            allowed=None if where is None else allowed_by(index, where),
            exclude_ids=checked_ids(exclude_ids, index.num_samples),
        )
        self._digest = curriculum_digest(metrics, where)
        super().__init__([source], GroupWeights.of({"": 1}, [""]), **options)

    @property
    def metrics(self) -> tuple[CurriculumMetric, ...]:
        """The curriculum."""
        return self._sources[0].metrics

    def _prefix(self, source: Source) -> str:
        return ""

    @property
    def _names(self) -> list[str]:
        """The metrics of the index that decide what is drawn."""
        return self._names_of(self._sources[0]) + ([] if self._where is None else self._where.meta.root_names())

    def identity(self) -> dict[str, Any]:
        """Return what a saved state must agree in."""
        return super().identity() | {"index": fingerprint_of(self.index, self._names), "curriculum": self._digest}

    def _was_drawn_from(self, state: Mapping[str, Any]) -> bool | None:
        had, version = getattr(self.index, "had_fingerprint", None), state.get("index_version")
        if had is None or type(version) is not int:
            return None
        told: bool | None = had(version, state.get("index"), sorted(set(self._names) & set(self.index.metrics)))
        return told


def check_index(index: MetricSource) -> None:
    """Raise ConfigError for the path of an index, EmptyDatasetError for an index without samples."""
    if isinstance(index, str | PathLike):
        raise ConfigError(f"expected an open index: pass arrowds.open_index({str(index)!r})")
    if index.num_samples < 1:
        raise EmptyDatasetError("nothing to draw: the index has no samples")


def checked_ids(ids: Iterable[int] | None, num_samples: int) -> Int64:
    """Return ids that are never drawn, sorted and distinct; raise ConfigError for anything else."""
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


def allowed_by(index: MetricSource, where: pl.Expr) -> npt.NDArray[np.bool_]:
    """Return for which samples a filter is true; raise ConfigError where it is for none, or no filter."""
    values = evaluate(index, where)
    if values.dtype != np.bool_:
        raise ConfigError(f"where must be true or false for each sample, but {where} gives {values.dtype}")
    allowed: npt.NDArray[np.bool_] = np.ma.filled(values, False)
    if not allowed.any():
        raise ConfigError(f"where={where} is true for no sample")
    return allowed
