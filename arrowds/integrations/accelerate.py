"""A loader for ``accelerator.prepare``: not divided among the processes again, saved and loaded by Accelerate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from arrowds.errors import MissingExtraError
from arrowds.loading import CurriculumDataLoader, ResumableSampler

try:
    from accelerate.utils import send_to_device
    from torch.utils.data import DataLoader
except ImportError as error:
    raise MissingExtraError("accelerate", "trainers") from error

if TYPE_CHECKING:
    from accelerate import Accelerator


class AcceleratedDataLoader(CurriculumDataLoader, DataLoader):  # type: ignore[misc, override, type-arg]  # in place of torch's
    """The loader of one process, for ``accelerator.prepare(model, optimizer, loader)``.

    ``prepare`` returns it unchanged, since the sampler yields this process's share already. Batches are put on the
    accelerator's device. ``accelerator.save_state`` and ``load_state`` keep the position. A DeepSpeed configuration
    with ``"auto"`` batch sizes takes ``batch_size`` from it.

    Args:
        accelerator: the accelerator that prepares it.
        dataset: as in :class:`arrowds.CurriculumDataLoader`, like all that follow.
        sampler: with the accelerator's ``process_index`` as its rank and ``num_processes`` as its world size.
        options: options of ``torch.utils.data.DataLoader``.

    Raises:
        ConfigError: as the loader raises.
    """

    # What Accelerate asks of a loader that it has prepared, and of one with a state.
    _is_accelerate_prepared = True
    use_stateful_dataloader = True

    def __init__(self, accelerator: Accelerator, dataset: Any, sampler: ResumableSampler, **options: Any) -> None:
        CurriculumDataLoader.__init__(self, dataset, sampler, **options)
        self._accelerator = accelerator
        self.batch_size = getattr(sampler, "batch_size", None)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # in place of torch's
        for batch in CurriculumDataLoader.__iter__(self):
            yield send_to_device(batch, self._accelerator.device)
