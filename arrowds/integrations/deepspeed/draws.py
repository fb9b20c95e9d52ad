"""DeepSpeed's draws: the batches of its sampler, from the same stream of the same generator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from arrowds.curriculum.config import CurriculumMetric
from arrowds.curriculum.draws import DrawSettings, RegisteredDraws
from arrowds.curriculum.metric_values import Ids, MetricValues, find_metric, id_dtype
from arrowds.errors import EmptyPoolError, StateMismatchError

Int64 = npt.NDArray[np.int64]

_REMEMBERED = 1024


class DeepSpeedDraws(RegisteredDraws):
    """The global batches of DeepSpeed's ``DeepSpeedDataSampler``, step by step.

    Each step depends on all steps before it. The draws keep their place: the next step is one draw, an earlier one
    restarts from the first.
    """

    partial_steps = True
    keeps_state = True

    def __init__(self, settings: DrawSettings) -> None:
        self._clusters = _ClusterRule(settings)
        self._phases = settings.phases
        self._seed = settings.seed
        self._batch_size = settings.batch_size
        self._restart()

    @classmethod
    def of(cls, settings: DrawSettings) -> Self:
        """Return the draws of a run."""
        return cls(settings)

    def _restart(self) -> None:
        self._step = 0
        self._batch: Int64 = np.zeros(0, np.int64)
        self._rng = np.random.default_rng(self._seed)
        self._members: list[Ids] = []
        self._position: list[int] = []
        self._chances: npt.NDArray[np.float64] = np.zeros(0)
        self._passed: dict[int, Any] = {0: self._rng.bit_generator.state}

    def batches_from(self, step: int) -> Int64:
        """Return the ids of the global batch of a step (the first is 1): int64, ``[1, batch_size]``."""
        self._go_to(step)
        return self._batch[np.newaxis]

    def _go_to(self, step: int) -> None:
        if step < self._step:
            self._restart()
        while self._step < step:
            self._advance()

    def state_at(self, step: int) -> dict[str, Any]:
        """Return where the generator's stream is after a step: ``generator``, two integers."""
        if step not in self._passed:
            self._go_to(step)
        state = self._passed[step]["state"]
        return {"generator": {name: int(state[name]) for name in ("state", "inc")}}

    def check_state(self, step: int, state: Mapping[str, Any]) -> None:
        """Draw all steps up to ``step`` and compare the generator with that of a saved state.

        Raises:
            StateMismatchError: when they differ.
        """
        if state.get("generator") != self.state_at(step)["generator"]:
            raise StateMismatchError(
                f"drawing {step} steps again leads to another state of the generator: another NumPy than the "
                f"one that saved it, other excluded ids, or another custom schedule; NumPy is {np.__version__}"
            )

    def _advance(self) -> None:
        self._step += 1
        phase = int(self._phases.of_step(self._step))
        if self._phases.start[phase] == self._step:
            self._enter(phase)
        chosen = self._rng.choice(len(self._members), self._batch_size, replace=True, p=self._chances)
        counts = np.bincount(chosen, minlength=len(self._members)).tolist()
        batch = np.concatenate([part for k, count in enumerate(counts) for part in self._take(k, count)])
        self._rng.shuffle(batch)
        self._batch = batch.astype(np.int64)
        # Loader workers draw ahead: a checkpoint needs the state of a step some batches ago.
        self._passed[self._step] = self._rng.bit_generator.state
        self._passed.pop(self._step - _REMEMBERED, None)

    def _enter(self, phase: int) -> None:
        now = {name: levels[phase] for name, levels in self._phases.levels.items()}
        before = {name: levels[phase - 1] for name, levels in self._phases.levels.items()} if phase else None
        new = self._clusters.new_members(before, now, self._members)
        if len(new):
            self._rng.shuffle(new)
            self._members.append(new)
            self._position.append(0)
            sizes = [len(members) for members in self._members]
            self._chances = np.array([size / sum(sizes) for size in sizes])
        if not self._members:
            raise EmptyPoolError(f"no sample is admitted at step {self._step} by {now}; raise min_difficulty")

    def _take(self, cluster: int, count: int) -> Iterator[Ids]:
        """Yield the next members of a cluster, which is reshuffled whenever it is exhausted."""
        members = self._members[cluster]
        while count:
            start = self._position[cluster]
            if start == len(members):
                self._rng.shuffle(members)
                start = 0
            part = members[start : start + count].copy()
            self._position[cluster] = start + len(part)
            count -= len(part)
            yield part


class _ClusterRule:
    """Which samples a new cluster holds when difficulties change."""

    def __init__(self, settings: DrawSettings) -> None:
        index, derived = settings.index, settings.derived
        self._metrics = [metric for metric in settings.metrics if metric.clustered]
        self._values: dict[str, MetricValues] = {
            metric.name: derived.get(metric.name) or find_metric(index, metric.name) for metric in self._metrics
        }
        self._num_samples = index.num_samples
        self._dtype = id_dtype(index.num_samples)
        self._kept: npt.NDArray[np.bool_] | None = None
        if settings.allowed is not None or len(settings.exclude_ids):
            ones = np.ones(index.num_samples, np.bool_)
            self._kept = ones if settings.allowed is None else settings.allowed.copy()
            self._kept[settings.exclude_ids] = False

    def new_members(self, before: dict[str, Any] | None, now: dict[str, Any], clusters: list[Ids]) -> Ids:
        """Return the samples that become admitted, as DeepSpeed lists them, in a new array."""
        if not self._metrics:
            ids = np.arange(0 if clusters else self._num_samples, dtype=self._dtype)
        elif len(self._metrics) == 1:
            metric = self._metrics[0]
            ids = np.array(self._between(metric, None if before is None else before[metric.name], now[metric.name]))
        else:
            admitted = np.ones(self._num_samples, np.bool_)
            for metric in self._metrics:
                inside = np.zeros(self._num_samples, np.bool_)
                inside[self._between(metric, None, now[metric.name])] = True
                admitted &= inside
            for cluster in clusters:
                admitted[cluster] = False
            ids = np.flatnonzero(admitted).astype(self._dtype)
        return ids if self._kept is None else ids[self._kept[ids]]

    def _between(self, metric: CurriculumMetric, low: Any, high: Any) -> Ids:
        values = self._values[metric.name]
        order = values.order
        if not metric.percentile:
            return order[0 if low is None else values.rank(low) : values.rank(high)]
        # DeepSpeed rounds to whole samples per percentile, and gives the rest to the last one.
        share = len(order) // 100
        stop = len(order) if high == 100 else int(share * high)
        return order[int(share * (low or 0)) : stop]
