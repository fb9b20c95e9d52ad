"""DistributedDataAnalyzer: DeepSpeed's constructor over an arrowds index that all ranks write together."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

from arrowds.index import Index
from arrowds.integrations.deepspeed.data_analyzer import DataAnalyzer
from arrowds.integrations.deepspeed.ranks import is_initialized

logger = logging.getLogger(__name__)


class DistributedDataAnalyzer(DataAnalyzer):
    """Measure every sample of a torch dataset on all ranks, as DeepSpeed's class of this name, into an arrowds index.

    Arguments and their order are DeepSpeed's. The ranks take parts of the dataset and write them to ``save_path``,
    which all must see. They meet in torch's store alone, see :class:`arrowds.build.engines.TorchEngine`: nothing
    passes through a device, and values of any type stay exact.

    Args:
        dataset: a map-style torch dataset.
        num_workers: number of ranks; taken from ``comm_group`` where that is given.
        num_threads: number of local processes that each rank may use.
        worker_id: which rank this is; taken from ``comm_group`` where that is given.
        batch_size: samples per batch.
        metric_names: names of the metrics.
        metric_functions: for each metric a callable from a collated batch to a tensor or array.
        metric_types: for each metric ``"single_value_per_sample"`` or ``"accumulate_value_over_samples"``.
        save_path: folder of the index.
        collate_fn: makes a batch of a list of samples; by default torch's.
        device: accepted and not used: metrics run where their functions run, and nothing is sent through a device.
        comm_group: the torch.distributed group of the ranks; by default all.
        sample_indices: the sample id of each row of the dataset, where it is not the row's number.
        overwrite: replace an index of other data or metrics at ``save_path``.
        deepspeed_files: write DeepSpeed's files of the metrics per sample too, where they are integers.

    Raises:
        ConfigError: as :class:`DataAnalyzer`.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     analyzer = DistributedDataAnalyzer(
    ...         torch.utils.data.TensorDataset(torch.tensor([3, 1, 2])), batch_size=2, metric_names=["value"],
    ...         metric_functions=[lambda batch: batch[0]], metric_types=["single_value_per_sample"], save_path=folder)
    ...     analyzer.run_map_reduce()["value"].values.tolist()
    [3, 1, 2]
    """

    def __init__(  # noqa: PLR0917  # the order is DeepSpeed's
        self,
        dataset: Any,
        num_workers: int = 1,
        num_threads: int = 1,
        worker_id: int = 0,
        batch_size: int = 1,
        metric_names: Sequence[str] = (),
        metric_functions: Sequence[Callable[[Any], Any]] = (),
        metric_types: Sequence[str] = (),
        save_path: str | os.PathLike[str] = "./",
        collate_fn: Callable[[list[Any]], Any] | None = None,
        device: Any = "cuda",
        comm_group: Any = None,
        sample_indices: Any = None,
        *,
        overwrite: bool = False,
        deepspeed_files: bool = False,
    ) -> None:
        if comm_group is not None:
            num_workers, worker_id = comm_group.size(), comm_group.rank()
        elif num_workers > 1 and not is_initialized():
            _join_group()
        logger.debug("device %s is not used: nothing passes through a device", device)
        super().__init__(
            dataset,
            num_workers=num_workers,
            worker_id=worker_id,
            num_threads=max(1, num_threads or 1),
            batch_size=batch_size,
            metric_names=metric_names,
            metric_functions=metric_functions,
            metric_types=metric_types,
            save_path=save_path,
            collate_fn=collate_fn,
            sample_indices=sample_indices,
            overwrite=overwrite,
            deepspeed_files=deepspeed_files,
        )
        self.comm_group = comm_group
        self.device = device

    def run_map_reduce(self, comm_group: Any = None) -> Index | None:
        """Measure the dataset together with the other ranks, and return the index on every rank.

        Args:
            comm_group: the torch.distributed group of the ranks; by default that of the constructor.

        Raises:
            ConfigError: when ranks have different data or metrics.
            WorkerDiedError: when another rank failed or died; names it.
        """
        return super().run_map_reduce(self.comm_group if comm_group is None else comm_group)


def _join_group() -> None:
    """Start torch.distributed from the launcher's environment, as DeepSpeed's class does; gloo needs no device."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
