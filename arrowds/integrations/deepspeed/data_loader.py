"""DeepSpeedDataLoader: DeepSpeed's loader by its own arguments, resumable, with the attributes that its engine uses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from arrowds.curriculum.ranks import whole_number
from arrowds.errors import ConfigError, MissingExtraError
from arrowds.integrations.deepspeed.data_sampler import DeepSpeedDataSampler, section
from arrowds.integrations.deepspeed.epoch_batches import EpochBatches
from arrowds.loading import CurriculumDataLoader, RepeatingLoader, ResumableSampler

_MOST_WORKERS = 1 << 12
_OF_THE_STATE = ("consumed_samples", "curriculum_step", "current_difficulties")


class DeepSpeedDataLoader:
    """A drop-in for DeepSpeed's loader: the same arguments, the same batches, a state that counts what was handed out.

    As there, torch's loader is made when an iteration starts: attributes that are set before count, such as
    ``dataset``, ``data_sampler``, ``collate_fn``, ``batch_size``, ``num_local_io_workers``, ``pin_memory`` and
    ``dataloader_drop_last``.

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
        num_local_io_workers: worker processes; by default two for each device, and with a curriculum the number in its
            configuration.
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
        self.deepspeed_dataloader_config = config
        self.curriculum_learning_enabled = bool(config.get("curriculum_learning")) and data_sampler is None
        self.device_count = max(1, torch.accelerator.device_count())
        if self.curriculum_learning_enabled:
            num_local_io_workers = whole_number(
                "num_workers", config.get("num_workers", 0), least=0, most=_MOST_WORKERS
            )
        elif local_rank >= 0:
            self.device_count = 1
        else:
            batch_size *= self.device_count
        self.dataset = dataset
        self.batch_size = batch_size
        self.tput_timer = tput_timer
        self.collate_fn = collate_fn
        self.num_local_io_workers = 2 * self.device_count if num_local_io_workers is None else num_local_io_workers
        self.pin_memory = pin_memory
        self.dataloader_drop_last = dataloader_drop_last
        self.post_process_func: Callable[[Any, dict[str, Any]], Any] | None = None
        self.data: Iterator[Any] | None = None
        self._options = options
        rank, world_size = data_parallel_rank or 0, data_parallel_world_size or 1
        self._sampler: ResumableSampler
        if self.curriculum_learning_enabled:
            self._sampler = _curriculum_sampler(config, len(dataset), batch_size, rank, world_size)
        else:
            self._sampler = self._in_batches(data_sampler or _shuffled(dataset, rank, world_size))
        self._loader = self._make_loader()
        self.len = len(self._loader)

    def _in_batches(self, sampler: Any) -> EpochBatches:
        return EpochBatches(sampler, self.batch_size, drop_last=self.dataloader_drop_last)

    @property
    def _settings(self) -> dict[str, Any]:
        """What torch's loader is made with."""
        import torch

        return {
            "dataset": self.dataset,
            "sampler": self._sampler,
            "collate_fn": self.collate_fn,
            "num_workers": self.num_local_io_workers,
            "pin_memory": self.pin_memory and torch.accelerator.is_available(),
        }

    def _make_loader(self) -> CurriculumDataLoader:
        self._made_with = self._settings
        return CurriculumDataLoader(**self._made_with, **self._options)

    @property
    def dataloader(self) -> CurriculumDataLoader:
        """The loader that batches come from, made with the attributes as they are now."""
        if isinstance(self._sampler, EpochBatches):
            self._sampler.batch_size, self._sampler.drop_last = self.batch_size, self.dataloader_drop_last
        if any(value is not self._made_with[name] for name, value in self._settings.items()):
            earlier, self._loader = self._loader, self._make_loader()
            if earlier.sampler is self._sampler:
                self._loader.take_over(earlier)
        return self._loader

    @property
    def data_sampler(self) -> SamplerInUse:
        """The sampler, with the state of the batch last handed out; another one may be set before an iteration."""
        return SamplerInUse(self)

    @data_sampler.setter
    def data_sampler(self, sampler: Any) -> None:
        if not isinstance(sampler, SamplerInUse):
            self._sampler = sampler if self.curriculum_learning_enabled else self._in_batches(sampler)
            self.len = len(self._sampler)

    def __len__(self) -> int:
        """Batches of this rank in an epoch; with a curriculum, in all epochs."""
        return self.len

    def __iter__(self) -> DeepSpeedDataLoader:
        self.data = iter(self.dataloader)
        return self

    def __next__(self) -> Any:
        if self.tput_timer:
            self.tput_timer.start()
        if self.data is None:
            self.data = iter(self.dataloader)
        batch = next(self.data)
        if self.curriculum_learning_enabled and self.post_process_func is not None:
            batch = self.post_process_func(batch, self.state_dict())
        return batch

    @property
    def data_iterator(self) -> Iterator[Any] | None:
        """The running iteration, by the name that DeepSpeed's loader has for it with a curriculum."""
        return self.data

    @property
    def sampler(self) -> Any:
        """The sampler itself, which may be ahead of the batches handed out."""
        return self._sampler

    @property
    def current_difficulties(self) -> dict[str, Any]:
        """The difficulty of each metric for the batch last handed out."""
        return self.dataloader.current_difficulties

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the training loop, in JSON types."""
        return self.dataloader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Resume where a state was taken, with the next batch; None changes nothing.

        Raises:
            StateMismatchError: for a state that the sampler refuses.
        """
        self.dataloader.load_state_dict(state)
        self.data = None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; see :meth:`arrowds.CurriculumDataLoader.set_epoch`."""
        self.dataloader.set_epoch(epoch)

    def set_custom_curriculum_learning_schedule(self, functions: Mapping[str, Callable[[int], Any]]) -> None:
        """Set the functions of the step for metrics whose schedule is "custom", from the next batch on."""
        self.dataloader.set_custom_curriculum_learning_schedule(functions)

    def add_epochs(self) -> None:
        """Add epochs to a curriculum that has finished its own."""
        self.dataloader.add_epochs()


def _curriculum_sampler(
    config: Mapping[str, Any], num_samples: int, batch_size: int, rank: int, world_size: int
) -> DeepSpeedDataSampler:
    return DeepSpeedDataSampler(
        section(config, "data_efficiency", of="deepspeed_dataloader_config"),
        num_samples,
        batch_size,
        rank,
        world_size,
        config.get("data_parallel_group"),
        config.get("gradient_accumulation_steps", 1),
        config.get("global_rank", 0),
    )


def _shuffled(dataset: Any, rank: int, world_size: int) -> Any:
    from torch.utils.data.distributed import DistributedSampler

    return DistributedSampler(dataset, num_replicas=world_size, rank=rank)


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
        if name == "_loader":
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
