"""Dynamic batching as DeepSpeed's JSON configures it, with lengths from files or an index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from arrowds.errors import ConfigError, IndexNotFoundError
from arrowds.index import open_index
from arrowds.indexed_dataset import IndexedDataset, is_indexed_dataset
from arrowds.integrations.deepspeed.distributed_analyzer import DistributedDataAnalyzer
from arrowds.integrations.deepspeed.dynamic_batching import get_dataloader_and_lr_scheduler_for_variable_batch_size

if TYPE_CHECKING:
    from torch.optim.lr_scheduler import LRScheduler
    from torch.utils.data import DataLoader


def get_dataloader_and_lr_scheduler_for_variable_batch_size_deepspeed(  # noqa: PLR0917 - DeepSpeed's signature
    dataset: Any,
    engine: Any,
    dataset_seqlens: Sequence[int] | npt.NDArray[Any] | None = None,
    dataset_filter_ids: Sequence[int] | npt.NDArray[Any] | None = None,
    dataloader_collate_fn: Callable[[list[Any]], Any] | None = None,
    sample_padding_fn: Callable[[Any, int], Any] | None = None,
    batch_seqlens_fn: Callable[[Any], Any] | None = None,
) -> tuple[DataLoader[Any], LRScheduler, dict[str, Any]]:
    """DeepSpeed's call of the same name: loader, learning-rate scheduler and `deepspeed_io` arguments for an engine.

    The lengths are `dataset_seqlens`; else those at `metrics_path`, an index of arrowds with a metric `seqlen` or a
    folder of DeepSpeed's analyzer; else `batch_seqlens_fn` measures them, into an index at `metrics_path`.

    Raises:
        ConfigError: when dynamic batching is not enabled, or the lengths are unknown or not one per sample.
    """
    config = engine._config.data_efficiency_config
    sampling = config["data_sampling"]
    batching = sampling.get("dynamic_batching", {})
    if not batching.get("enabled"):
        raise ConfigError("data_efficiency.data_sampling.dynamic_batching is not enabled in the engine's configuration")
    if dataset_seqlens is None:
        dataset_seqlens = _lengths(
            dataset, engine, batching.get("metrics_path"), batch_seqlens_fn, dataloader_collate_fn
        )
    if len(dataset_seqlens) != len(dataset):
        raise ConfigError(
            f"{len(dataset_seqlens)} lengths for {len(dataset)} samples: measure the lengths of this dataset again"
        )
    # Pipeline stages need batches of one shape. By name, so that DeepSpeed is not imported.
    pipeline = any(kind.__name__ == "PipelineEngine" for kind in type(engine).__mro__)
    return get_dataloader_and_lr_scheduler_for_variable_batch_size(
        dataset,
        dataset_seqlens,
        batching["max_tokens"],
        engine.train_batch_size(),
        dataset_filter_ids=dataset_filter_ids,
        lr_scaling_method=batching["lr_scaling_method"],
        min_batch_size=batching["min_batch_size"],
        max_batch_size=batching["max_batch_size"],
        sequence_picking_order=batching["sequence_picking_order"],
        dataloader_batch_size=engine.train_micro_batch_size_per_gpu(),
        dataloader_rank=engine.data_parallel_group.rank(),
        dataloader_num_replicas=engine.data_parallel_group.size(),
        dataloader_num_workers=sampling["num_workers"],
        dataloader_collate_fn=dataloader_collate_fn,
        dataloader_pin_memory=sampling["pin_memory"],
        lr_scheduler_or_optimizer=engine.lr_scheduler or engine.optimizer,
        required_microbatches_of_same_size=pipeline,
        required_microbatches_of_same_seqlen=pipeline,
        sample_padding_fn=sample_padding_fn,
        verbose=batching["verbose"],
        seed=config["seed"],
    )


def _lengths(
    dataset: Any,
    engine: Any,
    path: str | None,
    measure: Callable[[Any], Any] | None,
    collate: Callable[[list[Any]], Any] | None,
) -> npt.NDArray[Any]:
    """Return the lengths at a path; measure them first if missing."""
    if path is not None and is_indexed_dataset(Path(path, "seqlen", "seqlen_sample_to_metric")):
        return IndexedDataset.open(Path(path, "seqlen", "seqlen_sample_to_metric")).tokens
    try:
        if path is not None:
            return np.asarray(open_index(path)["seqlen"].values)
    except IndexNotFoundError:
        pass  # it is created below
    if measure is None or path is None:
        raise ConfigError(
            f"no sequence lengths at metrics_path={path!r}: pass dataset_seqlens, the path of an index with a metric "
            "'seqlen', or a batch_seqlens_fn and a path for its index"
        )
    analyzer = DistributedDataAnalyzer(
        dataset,
        num_workers=engine.world_size,
        worker_id=engine.global_rank,
        batch_size=1024,
        metric_names=["seqlen"],
        metric_functions=[measure],
        metric_types=["single_value_per_sample"],
        save_path=path,
        collate_fn=collate,
    )
    analyzer.run_map_reduce()
    return np.asarray(open_index(path)["seqlen"].values)
