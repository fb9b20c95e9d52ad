"""DeepSpeedDataSampler: DeepSpeed's curriculum sampler by its own arguments, over an index or DeepSpeed's files."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from arrowds.curriculum.sampler import CurriculumSampler
from arrowds.errors import StateMismatchError
from arrowds.integrations.deepspeed.curriculum_metrics import open_curriculum_metrics

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
        sampling = data_efficiency_config["data_sampling"]
        learning = sampling["curriculum_learning"]
        metrics = learning["curriculum_metrics"] if learning.get("enabled", True) else {}
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
            exclude_steps=sampling.get("exclude_steps", ()),
            exclude_ids=sampling.get("exclude_ids"),
        )

    @property
    def curriculum_step(self) -> int:
        """The step of the microbatch last yielded, by DeepSpeed's name; 0 before the first."""
        return self.step

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Move to the position of a saved state: of this class, of DeepSpeed's sampler, or None.

        From DeepSpeed's, which does not save the state of its generator, only the position is taken.

        Raises:
            StateMismatchError: naming everything in which the state differs.
        """
        if state is None or not state.keys() >= _DEEPSPEED_STATE:
            return super().load_state_dict(state)
        position = state["curriculum_step"] * self.layout.global_batch_size - len(state["batch"])
        if position < 0 or len(state["batch"]) > self.layout.global_batch_size:
            raise StateMismatchError(
                f"DeepSpeed's sampler saved {len(state['batch'])} samples left of step {state['curriculum_step']}, "
                f"expected at most {self.layout.global_batch_size}, a global batch; use the batch sizes that saved it"
            )
        logger.warning(
            "the checkpoint is from DeepSpeed's own sampler: resuming at its step %d as an uninterrupted run would; "
            "a run that DeepSpeed itself resumed has drawn other samples",
            state["curriculum_step"],
        )
        self._position = position
        return None
