"""DeepSpeed's order: the batches that its sampler draws, from the same stream of the same generator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from arrowds.curriculum.config import CurriculumMetric
from arrowds.curriculum.metric_values import Ids, MetricValues, id_dtype
from arrowds.curriculum.pools import Phases
from arrowds.errors import EmptyPoolError

Int64 = npt.NDArray[np.int64]

_REMEMBERED = 1024


class DeepSpeedOrder:
    """Global batches by step, in the order of ``DeepSpeedDataSampler``.

    Each draw depends on all before it. The order keeps its place: the next step is one draw, an earlier one starts
    anew from the first.

    Args:
        kept: which samples may be drawn, or None for all.
    """

    def __init__(
        self,
        metrics: Sequence[CurriculumMetric],
        values: dict[str, MetricValues],
        phases: Phases,
        *,
        seed: int,
        batch_size: int,
        num_samples: int,
        kept: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        self._clusters = _ClusterRule(metrics, values, num_samples, kept)
        self._phases = phases
        self._seed = seed
        self._batch_size = batch_size
        self._restart()

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

    def generator_state(self, step: int) -> dict[str, int]:
        """Return where the generator's stream is after a step, as two integers."""
        if step not in self._passed:
            self._go_to(step)
        state = self._passed[step]["state"]
        return {name: int(state[name]) for name in ("state", "inc")}

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
        # Loader workers draw ahead: a checkpoint asks for the state of a step that was passed some batches ago.
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
        """Yield the next members of a cluster; its end is followed by a new shuffle, as often as it takes."""
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

    def __init__(
        self,
        metrics: Sequence[CurriculumMetric],
        values: dict[str, MetricValues],
        num_samples: int,
        kept: npt.NDArray[np.bool_] | None,
    ) -> None:
        self._metrics = [metric for metric in metrics if metric.clustered]
        self._values = values
        self._num_samples = num_samples
        self._kept = kept
        self._dtype = id_dtype(num_samples)

    def new_members(self, before: dict[str, Any] | None, now: dict[str, Any], clusters: list[Ids]) -> Ids:
        """Return the samples that become admitted, in the order in which DeepSpeed finds them, in a new array."""
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
