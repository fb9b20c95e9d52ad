"""Hugging Face's Trainer, and those built on it such as TRL's, over the batches of a sampler of arrowds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from arrowds.errors import ConfigError, MissingExtraError, StateMismatchError
from arrowds.loading import CurriculumDataLoader, RepeatingLoader, ResumableSampler

try:
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise MissingExtraError("transformers", "trainers") from error

if TYPE_CHECKING:
    _Base = Trainer
else:
    _Base = object

_STATE = "arrowds"  # its key beside the states of the callbacks in trainer_state.json


class CurriculumTrainerMixin(_Base):
    """Makes any subclass of ``transformers.Trainer`` train on the batches of a sampler, and resume exactly.

    Every checkpoint contains the position of the loader, in ``trainer_state.json``. A run that is resumed from it
    starts with the next batch, and reads none before it. The Trainer's arguments decide sizes, workers and collation as
    always. An epoch of the Trainer has as many batches as the sampler's first pass, and epochs continue one another.
    ``ignore_data_skip`` is set.

    Args:
        args: what the Trainer takes, with a map-style ``train_dataset`` whose row i is sample i of the index.
        sampler: makes the sampler: ``functools.partial(arrowds.CurriculumSampler, index, curriculum)``, or any function
            of ``micro_batch_size``, ``gradient_accumulation_steps``, ``rank`` and ``world_size``. Those that the
            partial sets itself are not passed, nor is ``micro_batch_size`` to one with ``max_tokens``.
        kwargs: what the Trainer takes.

    Raises:
        ConfigError: from ``train``, when sampler and Trainer disagree: in the number of samples or the steps.
        StateMismatchError: from ``train``, for a checkpoint without a position or of another sampler.
    """

    def __init__(self, *args: Any, sampler: Callable[..., ResumableSampler], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._make_sampler = sampler
        self.args.ignore_data_skip = True  # The loader resumes by itself.
        self.add_callback(_Position(self))

    def get_train_dataloader(self) -> Any:
        """Return the batches of this process, one epoch of the Trainer in each iteration."""
        given = getattr(self._make_sampler, "keywords", {})
        sizes = {
            "micro_batch_size": self._train_batch_size,
            "gradient_accumulation_steps": self.args.gradient_accumulation_steps,
            "rank": self.args.process_index,
            "world_size": self.args.world_size,
        }
        if "max_tokens" in given:
            del sizes["micro_batch_size"]
        sampler = self._make_sampler(**{name: size for name, size in sizes.items() if name not in given})
        own = super().get_train_dataloader()  # It knows the columns, the collation and the workers.
        loader = CurriculumDataLoader(
            own.dataset,
            sampler,
            collate_fn=own.collate_fn,
            num_workers=own.num_workers,
            pin_memory=self.args.dataloader_pin_memory and self.args.device.type != "cpu",
            persistent_workers=own.persistent_workers,
            prefetch_factor=own.prefetch_factor,
            worker_init_fn=own.worker_init_fn,
        )
        self._epochs = _Epochs(self, loader)
        return self._epochs

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        states: Any = self.state.stateful_callbacks  # a dictionary by now
        states[_STATE] = self._epochs.loader.state_dict()
        super()._save_checkpoint(*args, **kwargs)


class _Epochs:
    """The loader's batches in the epochs of a Trainer."""

    def __init__(self, trainer: CurriculumTrainerMixin, loader: CurriculumDataLoader) -> None:
        self._trainer, self.loader, self._length = trainer, loader, len(loader)
        steps, rest = divmod(self._length, trainer.args.gradient_accumulation_steps)
        if rest or not steps:
            raise ConfigError(
                f"the sampler has {self._length} microbatches, which are no whole number of steps of "
                f"{trainer.args.gradient_accumulation_steps}: use drop_last=True and the Trainer's "
                "gradient_accumulation_steps"
            )
        self.steps = steps
        self.dataset = loader.dataset

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        """Yield the rest of the epoch that the Trainer is in."""
        done = self._trainer.state.global_step % self.steps
        rest = (self.steps - done) * self._trainer.args.gradient_accumulation_steps
        return itertools.islice(RepeatingLoader(self.loader), rest)


class _Position(TrainerCallback):
    """Resumes the loader, and keeps the Trainer's epoch, which it would count from the resumed step on."""

    def __init__(self, trainer: CurriculumTrainerMixin) -> None:
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            return
        if _STATE not in state.stateful_callbacks:
            raise StateMismatchError(
                f"the checkpoint of step {state.global_step} has no position of an arrowds loader: it was saved by "
                "another Trainer; resume it there, or start without resume_from_checkpoint"
            )
        self._trainer._epochs.loader.load_state_dict(state.stateful_callbacks[_STATE])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.epoch = state.global_step / self._trainer._epochs.steps


class CurriculumTrainer(CurriculumTrainerMixin, Trainer):
    """``transformers.Trainer`` over the batches of a sampler; the arguments are those of its two parents."""
