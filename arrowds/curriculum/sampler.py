"""CurriculumSampler: the microbatches of one rank, drawn as the metrics of an index call for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from arrowds.curriculum.config import Curriculum, CurriculumMetric, curriculum_digest, parse_curriculum
from arrowds.curriculum.draws import Draws, DrawSettings, find_draws
from arrowds.curriculum.metric_values import DerivedMetric, MetricSource, evaluate, fingerprint_of
from arrowds.curriculum.pools import Phases
from arrowds.curriculum.ranks import RankLayout
from arrowds.curriculum.schedule import Number
from arrowds.curriculum.stream import BatchStream, OnNewData, check_step
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
        micro_batch_size: samples of one rank in one microbatch.
        rank: which rank this is.
        world_size: how many there are.
        gradient_accumulation_steps: microbatches per step; times the two sizes, this is the global batch size.
        seed: of all that is random.
        num_epochs: how many times the samples are drawn.
        order: "stateless": every batch follows from (seed, step); "deepspeed": the batches of DeepSpeed's sampler. More
            by :func:`arrowds.curriculum.draws.register_draws`.
        drop_last: leave out the last, short global batch (with ``order="deepspeed"``: a short microbatch). False leaves
            out only a last microbatch with fewer samples than ranks.
        where: a Polars expression over metrics; only samples for which it is true are drawn.
        exclude_steps: steps to leave out; all others are unchanged.
        exclude_ids: samples that are never drawn.
        record: a folder for an Arrow record of what was yielded, or, with a :class:`arrowds.CurriculumDataLoader`,
            handed out; see :func:`arrowds.curriculum.trace.read_records`.

    Raises:
        ConfigError: for invalid arguments or settings.
        EmptyPoolError: when a difficulty admits no sample.

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
    >>> folder.cleanup()
    """

    _of_the_pass = ("_phases", "_draws")

    def __init__(
        self,
        index: MetricSource,
        curriculum: Curriculum,
        *,
        micro_batch_size: int,
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
        layout = RankLayout(
            micro_batch_size=micro_batch_size,
            rank=rank,
            world_size=world_size,
            gradient_accumulation_steps=gradient_accumulation_steps,
        )
        super().__init__(layout, num_epochs=num_epochs, drop_last=drop_last, exclude_steps=exclude_steps, record=record)
        self._draws_class = find_draws(order)
        if index.num_samples < 1:
            raise EmptyDatasetError("nothing to draw: the index has no samples")
        self.index = index
        self.metrics = parse_curriculum(curriculum)
        self.seed = seed
        self.order = order
        self._exclude_ids = np.unique(np.array([] if exclude_ids is None else list(exclude_ids), np.int64))
        self._derived = _derived(index, self.metrics)
        self._allowed = None if where is None else _allowed(index, where)
        self._where = where
        self._digest = curriculum_digest(self.metrics, where)
        if self.stop < 1:
            remedy = "use drop_last=False, or a smaller batch" if drop_last else f"each of {world_size} ranks needs one"
            raise ConfigError(
                f"{self.samples_per_epoch} samples x {num_epochs} epochs do not fill one batch of "
                f"{layout.global_batch_size}; {remedy}"
            )
        if all(metric.schedule_type != "custom" or metric.function for metric in self.metrics):
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
        return Phases.of(self.metrics, limit=max(1, self.num_steps))

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
            "order": self.order,
            "index": fingerprint_of(self.index, self._names),
            "curriculum": self._digest,
            "seed": self.seed,
            "global_batch_size": self.layout.global_batch_size,
        }

    def state_at(self, position: int) -> dict[str, Any]:
        """Return the position and the identity of the stream: at most 1 KiB of JSON-serialisable values."""
        state = super().state_at(position) | {"index_version": getattr(self.index, "version", None)}
        if self._draws_class.keeps_state:
            state |= self._draws.state_at(state["curriculum_step"])
        return state

    @property
    def _names(self) -> list[str]:
        """The metrics of the index that decide what is drawn."""
        expressions = [metric.difficulty for metric in self.metrics if metric.difficulty is not None]
        expressions += [] if self._where is None else [self._where]
        named = [name for expression in expressions for name in expression.meta.root_names()]
        return [*(metric.name for metric in self.metrics if metric.difficulty is None), *named]

    def checked_position(self, state: Mapping[str, Any], on_new_data: OnNewData = "refuse") -> int:
        """Return the position of a saved state that fits; with ``order="deepspeed"``, draw all steps up to it.

        Raises:
            StateMismatchError: naming everything in which the state differs.
        """
        position = super().checked_position(state, on_new_data)
        if on_new_data == "refuse" and self._draws_class.keeps_state:
            self._draws.check_state(self._step_of(position), state)
        return position

    def trace(self, steps: int | Iterable[int]) -> pa.Table:
        """Return the samples of steps over all ranks, one row each, as they are drawn.

        Columns: ``step``, ``micro_batch``, ``rank``, ``sample_id``, ``difficulty_NAME`` for each metric of the
        curriculum, and the value of every metric of the index and of every expression.

        Raises:
            ConfigError: when a step is below 1.
        """
        chosen = [check_step(step) for step in ([steps] if isinstance(steps, int) else steps)]
        batches = {step: self.global_batch_at(step)[: self.samples_at(step) or None] for step in chosen}
        values = {name: self.index[name] for name in self.index.metrics} | self._derived
        return trace_table(batches, {step: self.difficulties_at(step) for step in chosen}, self.layout, values)


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
