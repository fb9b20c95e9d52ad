"""deepspeed.initialize with arrowds' loader; the engine is DeepSpeed's own, unpatched."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from arrowds.errors import MissingExtraError
from arrowds.integrations.deepspeed.data_loader import DeepSpeedDataLoader, PipelineDataLoader

_LOADER_OPTIONS = ("prefetch_factor", "persistent_workers")


def initialize(*args: Any, **kwargs: Any) -> tuple[Any, Any, Any, Any]:
    """Call ``deepspeed.initialize`` with the same arguments, and give the engine arrowds' loader.

    The configuration is the same JSON. A metric of the curriculum has an ``index_path``, or DeepSpeed's paths; see
    :class:`DeepSpeedDataSampler`. The engine's checkpoints contain the position of the training loop, its setters work,
    and ``engine.training_dataloader`` is the loader that is returned.

    Returns:
        ``(engine, optimizer, training_dataloader, lr_scheduler)``; the loader is None without ``training_data``, and on
        the middle stages of a pipeline, which load no data.

    Raises:
        ConfigError: for an invalid curriculum.
        MissingExtraError: when DeepSpeed is not installed.
    """
    try:
        import deepspeed
    except ImportError as error:
        raise MissingExtraError("deepspeed", "deepspeed") from error
    given = inspect.signature(deepspeed.initialize).bind(*args, **kwargs).arguments
    training_data = given.pop("training_data", None)
    engine, optimizer, _, lr_scheduler = deepspeed.initialize(**given)
    if training_data is not None:
        if hasattr(engine, "set_dataloader"):
            # As in DeepSpeed's pipeline engine, the dataset is not shuffled without a curriculum.
            unshuffled = None if engine.curriculum_learning_enabled() else _unshuffled(engine, training_data)
            loader = deepspeed_io(engine, training_data, data_sampler=unshuffled)
            engine.set_dataloader(PipelineDataLoader(loader))
        else:
            engine.training_dataloader = deepspeed_io(engine, training_data)
    return engine, optimizer, engine.training_dataloader, lr_scheduler


def deepspeed_io(  # noqa: PLR0917 - DeepSpeed's signature
    engine: Any,
    dataset: Any,
    batch_size: int | None = None,
    route: str = "train",
    pin_memory: bool = True,
    data_sampler: Any = None,
    collate_fn: Callable[[list[Any]], Any] | None = None,
    num_local_io_workers: int | None = None,
    **options: Any,
) -> DeepSpeedDataLoader:
    """Return a loader for an engine: DeepSpeed's ``engine.deepspeed_io`` with the engine as first argument.

    The curriculum applies to training only, not to the routes ``"eval"`` and ``"predict"`` nor to a ``data_sampler``.
    With an engine from ``deepspeed.initialize``, assign the result to ``engine.training_dataloader``.

    Args:
        engine: the engine that ``deepspeed.initialize`` returned.
        dataset: a map-style dataset.
        batch_size: samples of a microbatch; by default the engine's.
        route: ``"train"``, ``"eval"`` or ``"predict"``.
        pin_memory: copy batches to pinned memory if there is an accelerator.
        data_sampler: yields ids.
        collate_fn: by default the engine's.
        num_local_io_workers: worker processes.
        options: further options of torch's DataLoader; ``prefetch_factor`` and ``persistent_workers`` may also be
            in the ``data_sampling`` section of the configuration.

    Raises:
        ConfigError: for invalid settings.
    """
    training = route == "train"
    if not training and data_sampler is None:
        data_sampler = _unshuffled(engine, dataset)
    rank, world_size = _data_parallel(engine)
    config: dict[str, Any] = {}
    if engine.curriculum_learning_enabled() and data_sampler is None:
        sampling = engine.data_sampling_config()
        config = {
            "curriculum_learning": True,
            "data_efficiency": engine.data_efficiency_config(),
            "gradient_accumulation_steps": engine.gradient_accumulation_steps(),
            "num_workers": sampling["num_workers"],
        }
        options = {name: sampling[name] for name in _LOADER_OPTIONS if name in sampling} | options
    return DeepSpeedDataLoader(
        dataset,
        engine.train_micro_batch_size_per_gpu() if batch_size is None else batch_size,
        pin_memory,
        engine.local_rank,
        engine.tput_timer if training else None,
        engine.collate_fn if collate_fn is None else collate_fn,
        num_local_io_workers,
        data_sampler,
        world_size,
        rank,
        engine.dataloader_drop_last(),
        config,
        **options,
    )


def _unshuffled(engine: Any, dataset: Any) -> Any:
    from torch.utils.data.distributed import DistributedSampler

    rank, world_size = _data_parallel(engine)
    return DistributedSampler(dataset, num_replicas=world_size, rank=rank, shuffle=False)


def _data_parallel(engine: Any) -> tuple[int, int]:
    """Return the rank among the ranks that get different data, and their number."""
    if engine.mpu is not None:
        return engine.mpu.get_data_parallel_rank(), engine.mpu.get_data_parallel_world_size()
    from deepspeed import comm

    # Not the global rank: with sequence parallelism several ranks get the same data.
    return comm.get_rank(engine.data_parallel_group), comm.get_world_size(engine.data_parallel_group)
