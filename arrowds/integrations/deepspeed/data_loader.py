"""DeepSpeedDataLoader: DeepSpeed's loader by its own arguments, resumable, with the attributes that its engine uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from arrowds.errors import ConfigError, MissingExtraError
from arrowds.integrations.deepspeed.data_sampler import DeepSpeedDataSampler
from arrowds.integrations.deepspeed.epoch_batches import EpochBatches
from arrowds.loading import CurriculumDataLoader, RepeatingLoader, ResumableSampler

_OF_THE_STATE = ("consumed_samples", "curriculum_step", "current_difficulties")


class DeepSpeedDataLoader:
    """A drop-in for DeepSpeed's loader: the same arguments, the same batches, a state that counts what was handed out.

    With a curriculum in ``deepspeed_dataloader_config`` batches come from :class:`DeepSpeedDataSampler`, unless a
    ``data_sampler`` is given: that is used unchanged, so that an evaluation follows no curriculum. Without a curriculum
    they are those of ``data_sampler`` or of torch's ``DistributedSampler``, reshuffled every epoch.

    Args:
        dataset: a map-style dataset.
        batch_size: samples of a microbatch of this rank.
        pin_memory: copy batches to pinned memory; ignored on a machine without an accelerator.
        local_rank: negative for a process without a launcher, which gets the batches of all its devices.
        tput_timer: started before each batch; None: no timer.
        collate_fn: as torch's.
        num_local_io_workers: worker processes; by default 2, and with a curriculum the number in its configuration.
        data_sampler: yields ids.
        data_parallel_world_size: ranks that share the data.
        data_parallel_rank: this one.
        dataloader_drop_last: leave out a last batch that is short.
        deepspeed_dataloader_config: DeepSpeed's dictionary: ``curriculum_learning``, ``data_efficiency``,
            ``gradient_accumulation_steps``, ``num_workers``, ...
        options: further options of torch's DataLoader: ``prefetch_factor``, ``persistent_workers``, ...

    Raises:
        ConfigError: for invalid settings.

    >>> loader = DeepSpeedDataLoader([0, 1, 2, 3, 4], 2, False, 0, None, num_local_io_workers=0, data_sampler=range(5))
    >>> [batch.tolist() for batch in loader], len(loader)
    ([[0, 1], [2, 3], [4]], 3)
    """

    def __init__(  # noqa: PLR0917 - DeepSpeed's signature
        self,
        dataset: Any,
        batch_size: int,
        pin_memory: bool,
        local_rank: int,
        tput_timer: Any,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        num_local_io_workers: int | None = None,
        data_sampler: Any = None,
        data_parallel_world_size: int | None = None,
        data_parallel_rank: int | None = None,
        dataloader_drop_last: bool = False,
        deepspeed_dataloader_config: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        try:
            import torch
        except ImportError as error:
            raise MissingExtraError("torch", "torch") from error
        if not hasattr(dataset, "__len__"):
            raise ConfigError("the dataset has no length: expected a map-style dataset, got an iterable one")
        config = deepspeed_dataloader_config or {}
        self.curriculum_learning_enabled = bool(config.get("curriculum_learning")) and data_sampler is None
        if self.curriculum_learning_enabled:
            num_local_io_workers = config.get("num_workers", 0)
        elif num_local_io_workers is None:
            num_local_io_workers = 2
        if local_rank < 0 and not self.curriculum_learning_enabled:
            batch_size *= max(1, torch.accelerator.device_count())
        self.dataset = dataset
        self.batch_size = batch_size
        self.tput_timer = tput_timer
        self.collate_fn = collate_fn
        self.num_local_io_workers = num_local_io_workers
        self.pin_memory = pin_memory and torch.accelerator.is_available()
        self.dataloader_drop_last = dataloader_drop_last
        self.post_process_func: Callable[[Any, dict[str, Any]], Any] | None = None
        rank, world_size = data_parallel_rank or 0, data_parallel_world_size or 1
        sampler: ResumableSampler = (
            _curriculum_sampler(config, len(dataset), batch_size, rank, world_size)
            if self.curriculum_learning_enabled
            else _epoch_batches(dataset, data_sampler, batch_size, rank, world_size, drop_last=dataloader_drop_last)
        )
        self._loader = CurriculumDataLoader(
            dataset,
            sampler,
            collate_fn=collate_fn,
            num_workers=num_local_io_workers,
            pin_memory=self.pin_memory,
            **options,
        )
        self.data_sampler = SamplerInUse(self)
        self._batches: Iterator[Any] | None = None

    def __len__(self) -> int:
        """Batches of this rank in an epoch; with a curriculum, in all epochs."""
        return len(self._loader)

    def __iter__(self) -> DeepSpeedDataLoader:
        self._batches = iter(self._loader)
        return self

    def __next__(self) -> Any:
        if self.tput_timer:
            self.tput_timer.start()
        if self._batches is None:
            self._batches = iter(self._loader)
        batch = next(self._batches)
        if self.curriculum_learning_enabled and self.post_process_func is not None:
            batch = self.post_process_func(batch, self.state_dict())
        return batch

    @property
    def sampler(self) -> Any:
        """The sampler itself, which may be ahead of the batches handed out."""
        return self._loader.sampler

    @property
    def current_difficulties(self) -> dict[str, Any]:
        """The difficulty of each metric for the batch last handed out."""
        return self._loader.current_difficulties

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the training loop, in JSON types."""
        return self._loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Resume where a state was taken, with the next batch; None changes nothing.

        Raises:
            StateMismatchError: for a state that the sampler refuses.
        """
        self._loader.load_state_dict(state)
        self._batches = None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, without a curriculum; see :meth:`arrowds.CurriculumDataLoader.set_epoch`."""
        self._loader.set_epoch(epoch)

    def set_custom_curriculum_learning_schedule(self, functions: Mapping[str, Callable[[int], Any]]) -> None:
        """Set the functions of the step for metrics whose schedule is "custom", from the next batch on."""
        self._loader.set_custom_curriculum_learning_schedule(functions)

    def add_epochs(self) -> None:
        """Add epochs to a curriculum that has finished its own."""
        self._loader.add_epochs()


def _curriculum_sampler(
    config: Mapping[str, Any], num_samples: int, batch_size: int, rank: int, world_size: int
) -> DeepSpeedDataSampler:
    return DeepSpeedDataSampler(
        config["data_efficiency"],
        num_samples,
        batch_size,
        rank,
        world_size,
        config.get("data_parallel_group"),
        config.get("gradient_accumulation_steps", 1),
        config.get("global_rank", 0),
    )


def _epoch_batches(
    dataset: Any, sampler: Any, batch_size: int, rank: int, world_size: int, *, drop_last: bool
) -> EpochBatches:
    from torch.utils.data.distributed import DistributedSampler

    if sampler is None:
        sampler = DistributedSampler(dataset, num_replicas=world_size, rank=rank)
    return EpochBatches(sampler, batch_size, drop_last=drop_last)


class SamplerInUse:
    """The sampler as of the batch last handed out to the training loop.

    DeepSpeed's engine saves and loads it with its checkpoints.
    """

    def __init__(self, loader: DeepSpeedDataLoader) -> None:
        self._loader = loader
        self.state_dict = loader.state_dict
        self.load_state_dict = loader.load_state_dict
        self.set_epoch = loader.set_epoch
        self.set_custom_curriculum_learning_schedule = loader.set_custom_curriculum_learning_schedule

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        """Return everything else from the sampler."""
        if name.startswith("__"):
            raise AttributeError(name)
        state = self._loader.state_dict() if name in _OF_THE_STATE else {}
        return state[name] if name in state else getattr(self._loader.sampler, name)


class PipelineDataLoader(RepeatingLoader):
    """The loader without an end that a pipeline engine draws from."""

    loader: DeepSpeedDataLoader

    @property
    def post_process_func(self) -> Callable[[Any, dict[str, Any]], Any] | None:
        """The function that gets each batch and the sampler's state; the engine sets it."""
        return self.loader.post_process_func

    @post_process_func.setter
    def post_process_func(self, function: Callable[[Any, dict[str, Any]], Any] | None) -> None:
        self.loader.post_process_func = function
