"""MixtureSampler: batches from several indexes, in proportions that may change at a step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from arrowds.curriculum.apportion import Changes, DrawPlan
from arrowds.curriculum.config import Curriculum, curriculum_digest, parse_curriculum
from arrowds.curriculum.metric_values import MetricSource, fingerprint_of
from arrowds.curriculum.pools import Phases, build_pools
from arrowds.curriculum.ranks import LARGEST_SEED, RankLayout, whole_number
from arrowds.curriculum.stateless import StatelessDraws, shuffled
from arrowds.curriculum.stream import BatchStream, OnNewData, check_step
from arrowds.errors import ConfigError, StateMismatchError

Int64 = npt.NDArray[np.int64]

_WEIGHT_UNIT = 1 << 30

Weights = Mapping[str, float]


class MixtureSampler(BatchStream):
    """Yield the sample ids of one rank's microbatches, drawn from several indexes in given proportions.

    Ids are those of the datasets one after another, as ``torch.utils.data.ConcatDataset`` counts them:
    ``offsets[name] + id``. Within a source the draws follow its curriculum, as those of ``order="stateless"`` do.

    Args:
        indexes: open indexes by source name; the offsets follow their sequence.
        weights: the share of each source (any positive scale), or a list of (first step, shares), the first at 1.
        curricula: for each source a curriculum; sources without one are shuffled.
        micro_batch_size: as in :class:`CurriculumSampler`, like all that follow.
        rank: which rank this is.
        world_size: how many there are.
        gradient_accumulation_steps: microbatches per step.
        seed: of all that is random.
        num_epochs: how many times the samples of all sources are drawn.
        drop_last: leave out the last, short global batch; False leaves out only a last microbatch with fewer samples
            than ranks.

    Raises:
        ConfigError: for invalid shares, and as :class:`CurriculumSampler` raises.

    >>> import tempfile
    >>> import arrowds
    >>> import polars as pl
    >>> folder = tempfile.TemporaryDirectory()
    >>> lengths = pl.DataFrame({"seqlen": [1 + i % 64 for i in range(1000)]})
    >>> seqlen = arrowds.metrics.expr("seqlen", pl.col("seqlen"))
    >>> web = arrowds.analyze(lengths, [seqlen], folder.name + "/index", workers=1, progress=False)
    >>> sampler = MixtureSampler({"web": web, "code": web}, [(1, {"web": 3, "code": 1}), (11, {"web": 1, "code": 1})],
    ...                          micro_batch_size=8)
    >>> [int((sampler.global_batch_at(step) < sampler.offsets["code"]).sum()) for step in (1, 10, 11, 50)]
    [6, 6, 4, 4]
    >>> folder.cleanup()
    """

    _of_the_pass = ("_draws",)

    def __init__(
        self,
        indexes: Mapping[str, MetricSource],
        weights: Weights | Sequence[tuple[int, Weights]],
        *,
        micro_batch_size: int,
        curricula: Mapping[str, Curriculum] | None = None,
        rank: int = 0,
        world_size: int = 1,
        gradient_accumulation_steps: int = 1,
        seed: int = 1234,
        num_epochs: int = 1,
        drop_last: bool = True,
    ) -> None:
        layout = RankLayout(
            micro_batch_size=micro_batch_size,
            rank=rank,
            world_size=world_size,
            gradient_accumulation_steps=gradient_accumulation_steps,
        )
        super().__init__(layout, num_epochs=num_epochs, drop_last=drop_last)
        self._sources = [
            _Source(name, index, (curricula or {}).get(name, {}), place)
            for place, (name, index) in enumerate(indexes.items())
        ]
        unknown = set(curricula or {}) - set(indexes)
        if unknown or not indexes:
            raise ConfigError(f"curricula name {sorted(unknown)}, but the sources are {list(indexes)}")
        bounds = itertools.accumulate((index.num_samples for index in indexes.values()), initial=0)
        self.offsets = dict(zip(indexes, bounds, strict=False))
        self.seed = whole_number("seed", seed, least=0, most=LARGEST_SEED - len(self._sources))
        schedule = [(1, weights)] if isinstance(weights, Mapping) else list(weights)
        self._starts, self._shares = _checked(schedule, list(indexes))
        if self.stop < 1:
            raise ConfigError(f"{self.samples_per_epoch} samples do not fill one batch of {layout.global_batch_size}")
        self._block: tuple[int, Int64] = (0, np.zeros((0, 0), np.int64))
        size = layout.global_batch_size
        change = np.diff(self._shares, axis=0, prepend=0)
        phase, leaf = np.nonzero(change)
        before = (self._starts - 1) * size
        self._plan = DrawPlan(len(indexes), Changes(phase, leaf, change[phase, leaf]), before, batch=size)
        _ = self._draws  # Errors in the curricula are due here, not at the first batch.

    @cached_property
    def _draws(self) -> list[StatelessDraws]:
        return [self._draws_of(source) for source in self._sources]

    def _draws_of(self, source: _Source) -> StatelessDraws:
        """Return the draws of one source; a phase of its curriculum begins after what the mixture has drawn by then."""
        phases = Phases.of(source.metrics, limit=self.num_steps)
        drawn = self._split(phases.start, empty=True).first
        pools = build_pools(source.index, source.metrics, {}, None, phases)
        return StatelessDraws(
            pools,
            phases,
            seed=self.seed + source.place + 1,
            batch_size=0,
            draws_before=drawn.reshape(len(phases.start), len(self._sources))[:, source.place],
        )

    def _split(self, steps: Int64, *, empty: bool = False) -> Any:
        start = (steps - 1) * self.layout.global_batch_size
        phases = np.searchsorted(self._starts, steps, side="right") - 1
        return self._plan.shares(phases, start, start + self.layout.global_batch_size, empty=empty)

    @property
    def num_samples(self) -> int:
        """How many samples all datasets have together: ids are below it."""
        return self.samples_per_epoch

    @cached_property
    def samples_per_epoch(self) -> int:
        """How many samples all sources have together."""
        return sum(source.index.num_samples for source in self._sources)

    def batches_from(self, step: int) -> Int64:
        """Return the global batches of a step and some after it: ``[steps, global_batch_size]``.

        With ``drop_last=False`` the last one is cut when it is yielded.
        """
        first, block = self._block
        if not first <= step < first + len(block):
            count = min(4 * len(block), max(1, (1 << 15) // self.layout.global_batch_size))
            steps = np.arange(step, step + (max(1, count) if step == first + len(block) else 1))
            first, block = step, self._draw(steps)
            self._block = first, block
        return block[step - first :]

    def _draw(self, steps: Int64) -> Int64:
        shares = self._split(steps)
        ids = np.empty(len(steps) * self.layout.global_batch_size, np.int64)
        begin = np.cumsum(shares.count) - shares.count
        for source, draws in zip(self._sources, self._draws, strict=True):
            mine = np.flatnonzero(shares.leaf == source.place)
            first, count = shares.first[mine], shares.count[mine]
            within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
            drawn = draws.draw(steps[shares.row[mine]], first, first + count)
            ids[np.repeat(begin[mine], count) + within] = drawn + self.offsets[source.name]
        return shuffled(ids.reshape(len(steps), -1), steps, self.seed)

    def locate(self, ids: npt.ArrayLike) -> tuple[npt.NDArray[np.str_], Int64]:
        """Return the source and the id within it of each id.

        Raises:
            ConfigError: for an id of no source.
        """
        array = np.asarray(ids, np.int64)
        if array.size and not (array.min() >= 0 and array.max() < self.num_samples):
            raise ConfigError(f"ids must lie within 0 to {self.num_samples - 1}; got {array.min()} to {array.max()}")
        offsets = np.array(list(self.offsets.values()))
        source = np.searchsorted(offsets, array, side="right") - 1
        return np.array(list(self.offsets))[source], array - offsets[source]

    def difficulties_at(self, step: int) -> dict[str, Any]:
        """Return the difficulty of each metric at a step, by ``source.metric``."""
        return {
            f"{source.name}.{metric}": level
            for source, draws in zip(self._sources, self._draws, strict=True)
            for metric, level in draws.phases.difficulties(check_step(step)).items()
        }

    def identity(self) -> dict[str, Any]:
        """Return what a saved state must agree in. Weights of later steps may change."""
        return {
            "order": "mixture",
            "indexes": {
                source.name: fingerprint_of(source.index, [metric.name for metric in source.metrics])
                for source in self._sources
            },
            "curricula": {source.name: curriculum_digest(source.metrics, None) for source in self._sources},
            "seed": self.seed,
            "global_batch_size": self.layout.global_batch_size,
        }

    def state_at(self, position: int) -> dict[str, Any]:
        """Return the position, the identity of the stream and the weights up to here: JSON-serialisable values."""
        state = super().state_at(position)
        return state | {"weights": self._weights_until(state["curriculum_step"])}

    def checked_position(self, state: Mapping[str, Any], on_new_data: OnNewData = "refuse") -> int:
        """Return the position of a saved state that fits, the weights up to it included.

        Raises:
            StateMismatchError: naming everything in which the state differs.
        """
        position = super().checked_position(state, on_new_data)
        now = self._weights_until(self._step_of(position))
        if state.get("weights") != now:
            raise StateMismatchError(f"the saved run had the weights {state.get('weights')}, now they are {now}")
        return position

    def _weights_until(self, step: int) -> list[list[Any]]:
        known = max(1, int(np.searchsorted(self._starts, step, side="right")))
        return [[int(at), shares.tolist()] for at, shares in zip(self._starts[:known], self._shares, strict=False)]


@dataclass(frozen=True)
class _Source:
    name: str
    index: MetricSource
    curriculum: Curriculum
    place: int

    @cached_property
    def metrics(self) -> Any:
        metrics = parse_curriculum(self.curriculum)
        if any(metric.difficulty is not None for metric in metrics):
            raise ConfigError(f"the curriculum of {self.name!r} has an expression, which a mixture does not support")
        return metrics


def _checked(schedule: Sequence[tuple[int, Weights]], names: list[str]) -> tuple[Int64, Int64]:
    """Return the first steps and the shares, in integers that add up to about 2**30."""
    steps = [step for step, _ in schedule]
    if not steps or steps[0] != 1 or any(later <= step for step, later in itertools.pairwise(steps)):
        raise ConfigError(f"weights must start at step 1 and have ascending steps, got the steps {steps}")
    rows = []
    for step, weights in schedule:
        values = [weights.get(name, 0) for name in names]
        if (
            set(weights) - set(names)
            or not all(math.isfinite(value) and value >= 0 for value in values)
            or not sum(values)
        ):
            raise ConfigError(
                f"the weights from step {step} on must be numbers >= 0, one per source of {names}; got {weights}"
            )
        rows.append([round(value / sum(values) * _WEIGHT_UNIT) for value in values])
    return np.array(steps, np.int64), np.array(rows, np.int64)
