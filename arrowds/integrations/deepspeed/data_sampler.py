"""DeepSpeedDataSampler: DeepSpeed's curriculum sampler by its own arguments, over an index or DeepSpeed's files."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
import numpy.typing as npt

from arrowds.curriculum.metric_values import find_metric
from arrowds.curriculum.sampler import CurriculumSampler
from arrowds.curriculum.stream import OnNewData
from arrowds.errors import ConfigError, StateMismatchError
from arrowds.integrations.deepspeed.curriculum_metrics import open_curriculum_metrics
from arrowds.integrations.deepspeed.export import fitting_integer
from arrowds.integrations.deepspeed.scheduler import CurriculumScheduler
from arrowds.states import count_in

Ids = npt.NDArray[np.uint32]

logger = logging.getLogger(__name__)

_DEEPSPEED_STATE = {"batch", "curriculum_step", "consumed_samples", "data_cluster_paths"}


class DeepSpeedDataSampler(CurriculumSampler):
    """A drop-in for DeepSpeed's sampler: the same arguments, the same batches, a state that resumes exactly.

    The configuration is DeepSpeed's ``data_efficiency``. ``"order": "stateless"`` in ``data_sampling`` chooses arrowds'
    own draws (any step at once, see :class:`arrowds.CurriculumSampler`); the default ``"deepspeed"`` draws what
    DeepSpeed's sampler draws. ``data_sampling`` may have ``exclude_steps`` and ``exclude_ids`` too. Each metric has an
    ``index_path``, or DeepSpeed's two paths. Nothing is written to ``data_cluster_path``, and ranks do not communicate.

    Args:
        data_efficiency_config: the ``data_efficiency`` section.
        one_epoch_total_samples: samples of the dataset.
        micro_batch_size: samples of one rank's microbatch.
        data_parallel_rank: this rank among those that share the data.
        data_parallel_size: how many there are.
        data_parallel_group: not used.
        gradient_accumulation_steps: microbatches per step.
        global_rank: not used.
        drop_last: not used: like DeepSpeed's, all microbatches have their full size.

    Raises:
        ConfigError: for invalid settings.
        EmptyPoolError: when a difficulty admits no sample.

    >>> import tempfile, arrowds, polars as pl
    >>> folder = tempfile.TemporaryDirectory()
    >>> lengths = pl.DataFrame({"seqlen": [1 + i % 64 for i in range(1000)]})
    >>> seqlen = arrowds.metrics.expr("seqlen", pl.col("seqlen"))
    >>> index = arrowds.analyze(lengths, [seqlen], folder.name + "/index", workers=1, progress=False)
    >>> metric = {"index_path": index.path, "difficulty_type": "value", "clustering_type": "schedule_based",
    ...     "min_difficulty": 8, "max_difficulty": 64, "schedule_type": "fixed_linear",
    ...     "schedule_config": {"total_curriculum_step": 20, "difficulty_step": 8}}
    >>> config = {"data_sampling": {"curriculum_learning": {"enabled": True, "curriculum_metrics": {"seqlen": metric}}}}
    >>> sampler = DeepSpeedDataSampler(config, 1000, 4, 0, 1, None, 1, 0)
    >>> ids = next(iter(sampler))
    >>> int(index["seqlen"].values[ids].max()) <= 8, sampler.state_dict()["current_difficulties"]
    (True, {'seqlen': 8})
    >>> folder.cleanup()
    """

    def __init__(  # noqa: PLR0917 - DeepSpeed's signature
        self,
        data_efficiency_config: Mapping[str, Any],
        one_epoch_total_samples: int,
        micro_batch_size: int,
        data_parallel_rank: int,
        data_parallel_size: int,
        data_parallel_group: Any,
        gradient_accumulation_steps: int,
        global_rank: int,
        drop_last: bool = True,
    ) -> None:
        sampling = section(data_efficiency_config, "data_sampling", of="data_efficiency")
        learning = section(sampling, "curriculum_learning", of="data_sampling")
        metrics = (
            section(learning, "curriculum_metrics", of="curriculum_learning") if learning.get("enabled", True) else {}
        )
        super().__init__(
            open_curriculum_metrics(metrics, one_epoch_total_samples),
            metrics,
            micro_batch_size=micro_batch_size,
            rank=data_parallel_rank,
            world_size=data_parallel_size,
            gradient_accumulation_steps=gradient_accumulation_steps,
            seed=data_efficiency_config.get("seed", 1234),
            num_epochs=sampling.get("num_epochs", 1000),
            order=sampling.get("order", "deepspeed"),
            exclude_steps=_listed(sampling, "exclude_steps"),
            exclude_ids=sampling.get("exclude_ids"),
        )
        self.data_efficiency_config = data_efficiency_config
        self.one_epoch_total_samples = one_epoch_total_samples
        self.total_samples = one_epoch_total_samples * self.num_epochs
        self.micro_batch_size = micro_batch_size
        self.micro_batch_times_data_parallel_size = self.layout.micro_samples
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.global_batch_size = self.layout.global_batch_size
        self.data_parallel_rank = data_parallel_rank
        self.data_parallel_group = data_parallel_group
        self.global_rank = global_rank
        self.index_dtype = fitting_integer(0, one_epoch_total_samples)
        self.difficulty_type = {metric.name: metric.difficulty_type for metric in self.metrics}
        self.clustering_type = {metric.name: metric.clustering_type for metric in self.metrics}
        self._announced = 0  # the step that get_next_global_batch began

    @property
    def curriculum_step(self) -> int:
        """The step of the microbatch last yielded, or that ``get_next_global_batch`` began; 0 before the first."""
        return max(self.step, self._announced)

    @property
    def current_difficulties(self) -> dict[str, Any]:
        """The difficulties of :attr:`curriculum_step`; empty before the first."""
        return self.difficulties_at(self.curriculum_step) if self.curriculum_step else {}

    @property
    def curriculum_schedulers(self) -> dict[str, CurriculumScheduler]:
        """The scheduler of each metric, at :attr:`curriculum_step`."""
        schedulers = {}
        for metric in self.metrics:
            schedulers[metric.name] = scheduler = CurriculumScheduler(metric.settings())
            if metric.function is not None:
                scheduler.set_custom_get_difficulty(metric.function)
            if self.curriculum_step:
                scheduler.set_current_difficulty(self.current_difficulties[metric.name])
        return schedulers

    @property
    def batch(self) -> list[int]:
        """What the ranks have yet to yield of the global batch of :attr:`curriculum_step`."""
        done = self._position - (self.curriculum_step - 1) * self.global_batch_size
        return self.global_batch_at(self.curriculum_step).tolist()[done:] if self.curriculum_step else []

    def get_next_global_batch(self) -> None:
        """Begin the next step: :attr:`batch` is its global batch, and iterating yields its microbatches next."""
        position = self._after_excluded(self.curriculum_step * self.global_batch_size)
        self._go_to(position)
        self._announced = position // self.global_batch_size + 1

    def get_start_end_idx(self, batch_len: int | None = None) -> tuple[int, int]:
        """Return which part of a microbatch of all ranks is this rank's: by default of a whole one."""
        return self.layout.mine(batch_len or self.layout.micro_samples)

    def get_sample_based_on_metric_value(self, metric: str, value_start: float, value_end: float) -> Ids | None:
        """Return the ids of the samples with ``value_start < value <= value_end``, by value, or None."""
        values = find_metric(self.index, metric)
        return _or_none(values.order[values.rank(value_start) : values.rank(value_end)])

    def get_sample_based_on_metric_percentile(self, metric: str, percentile_start: float, percentile_end: float) -> Ids:
        """Return the ids of the samples between two percentiles, by value; a percent is n // 100 samples.

        The rest of n / 100 comes with the last percent, as in DeepSpeed's order.
        """
        order = find_metric(self.index, metric).order
        start, stop = (
            len(order) if percentile >= 100 else int(len(order) // 100 * percentile)
            for percentile in (percentile_start, percentile_end)
        )
        return order[start:stop]

    def _go_to(self, position: int) -> None:
        self._announced = 0
        super()._go_to(position)

    def load_state_dict(self, state: Mapping[str, Any] | None, *, on_new_data: OnNewData = "refuse") -> None:
        """Move to the position of a saved state: of this class, of DeepSpeed's sampler, or None.

        From DeepSpeed's, which does not save the state of its generator, only the position is taken.

        Raises:
            StateMismatchError: naming everything in which the state differs.
        """
        if not isinstance(state, Mapping) or not state.keys() >= _DEEPSPEED_STATE:
            return super().load_state_dict(state, on_new_data=on_new_data)
        step = count_in(state, "curriculum_step")
        left = len(state["batch"]) if isinstance(state["batch"], Sized) else None
        size = self.layout.global_batch_size
        if left is None or not left <= min(size, step * size):
            raise StateMismatchError(
                f"DeepSpeed's sampler saved {left} samples left of step {step}, expected at most {size}, a global "
                "batch; use the batch sizes that saved it"
            )
        logger.warning(
            "the checkpoint is from DeepSpeed's own sampler: resuming at its step %d as an uninterrupted run would; "
            "a run that DeepSpeed itself resumed has drawn other samples",
            step,
        )
        self._resume(step * size - left, None)
        return None


def section(values: Any, name: str, *, of: str) -> Mapping[str, Any]:
    """Return a dictionary within a dictionary of a configuration.

    Raises:
        ConfigError: when either is missing or is not a dictionary.
    """
    found = values.get(name) if isinstance(values, Mapping) else None
    if not isinstance(found, Mapping):
        raise ConfigError(f"{of} needs the section {name!r}, a dictionary; got {values!r:.200}")
    return found


def _listed(sampling: Mapping[str, Any], name: str) -> Sequence[Any]:
    found = sampling.get(name, ())
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise ConfigError(f"{name} must be a list, got {found!r:.60}")
    return found


def _or_none(ids: Ids) -> Ids | None:
    return ids if len(ids) else None
