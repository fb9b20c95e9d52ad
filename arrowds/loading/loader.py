"""From batches of ids to batches of tensors: torch's DataLoader, with a state that counts the batches handed out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter, methodcaller
from typing import Any, Protocol

from arrowds.errors import ConfigError, MissingExtraError

_CHOSEN_BY_THE_SAMPLER = ("batch_size", "shuffle", "sampler", "batch_sampler", "drop_last")


class ResumableSampler(Protocol):
    """What a loader needs of a sampler: batches of ids, and a state that an iteration resumes from.

    The loader takes the state at every batch. If that is expensive, a sampler has two more members: ``position``, a
    cheap and immutable value that the loader takes instead, and ``state_at(position)``, the state of that position. A
    sampler that keeps a record has a ``recorder`` and ``draw``, as :class:`arrowds.CurriculumSampler` has.
    """

    def __iter__(self) -> Iterator[Sequence[int]]: ...

    def __len__(self) -> int: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...


class _Drawing:
    """The batches drawn ahead of the training loop, and the position of the sampler after each of them."""

    def __init__(self, sampler: ResumableSampler) -> None:
        self._sampler = sampler
        self._note: Callable[[Any], Any] = methodcaller("state_dict")
        self.state_at: Callable[[Any], dict[str, Any]] = dict
        if hasattr(sampler, "state_at"):
            self._note, self.state_at = attrgetter("position"), sampler.state_at
        # Of the batches that are drawn and not yet handed out; the loader hands them out as they were drawn.
        self.places: deque[Any] = deque()
        # The record contains what was handed out, not what was drawn.
        self.recorder = getattr(sampler, "recorder", None)
        self._rows: deque[Any] = deque()
        self.hand_out: Callable[[], Any] = self.places.popleft if self.recorder is None else self._record

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Sequence[int]]:
        self.places.clear()
        self._rows.clear()
        sampler, note, add = self._sampler, self._note, self.places.append
        for ids in sampler if self.recorder is None else sampler.draw(self._rows.append):  # type: ignore[attr-defined]  # one with a recorder
            add(note(sampler))
            yield ids

    def _record(self) -> Any:
        if self.recorder is not None:
            self.recorder.add(self._rows.popleft())
        return self.places.popleft()

    def write_record(self) -> None:
        """Write what was handed out, if there is a record."""
        if self.recorder is not None:
            self.recorder.flush()

    def now(self) -> Any:
        """Return the position of the sampler."""
        return self._note(self._sampler)


class CurriculumDataLoader:
    """torch's DataLoader over a dataset and a sampler of arrowds, with exact resume.

    Workers draw batches ahead; the state counts only those handed out. An iteration starts at the current position: the
    first batch, the batch after the last one handed out, or where ``load_state_dict`` moved it. A state loaded during
    an iteration takes effect with the next batch. Only one iteration runs at a time.

    Args:
        dataset: a map-style dataset whose row i is sample i of the index.
        sampler: an :class:`arrowds.CurriculumSampler`, a :class:`arrowds.TokenBudgetBatchSampler`, or anything with
            their methods.
        options: options of ``torch.utils.data.DataLoader``, except those that choose batches. Without ``generator``
            the seeds of the workers come from ``torch.initial_seed()``, and torch's global generator is not advanced,
            so that it is in the same state in a resumed run.

    Raises:
        ConfigError: for an option that the sampler replaces, or a dataset that differs from the index in length.

    >>> from arrowds.token_batches.plan import batch_by_tokens
    >>> from arrowds.token_batches.sampler import TokenBudgetBatchSampler
    >>> plan = batch_by_tokens([1, 1, 1, 1, 1], max_tokens=2, order="dataloader")
    >>> data = ["a", "b", "c", "d", "e"]
    >>> loader = CurriculumDataLoader(data, TokenBudgetBatchSampler(plan))
    >>> next(iter(loader))
    ['a', 'b']
    >>> resumed = CurriculumDataLoader(data, TokenBudgetBatchSampler(plan))
    >>> resumed.load_state_dict(loader.state_dict())
    >>> list(resumed)
    [['c', 'd'], ['e']]
    """

    def __init__(self, dataset: Any, sampler: ResumableSampler, **options: Any) -> None:
        try:
            import torch
            from torch.utils.data import DataLoader
        except ImportError as error:
            raise MissingExtraError("torch", "torch") from error
        if replaced := [name for name in _CHOSEN_BY_THE_SAMPLER if name in options]:
            raise ConfigError(f"{', '.join(replaced)}: the sampler chooses the batches; leave it out")
        if options.get("in_order") is False:
            raise ConfigError(
                "in_order=False makes the sequence of batches irreproducible, so it can't be resumed; leave it out"
            )
        check_length(dataset, sampler)
        if options.get("generator") is None:
            options["generator"] = torch.Generator().manual_seed(torch.initial_seed())
        self.dataset = dataset
        self.sampler = sampler
        self._drawing = _Drawing(sampler)
        self._loader: DataLoader[Any] = DataLoader(dataset, batch_sampler=self._drawing, **options)  # type: ignore[arg-type]  # any iterable of lists of ids works
        self._place: Any = None  # after the batch last handed out; None: the sampler's position
        self._owner: object = None  # the running iteration
        self._moved = False  # the running iteration is to start again, from the sampler's position
        self._ended = False  # the last iteration was complete

    @property
    def num_workers(self) -> int:
        """How many worker processes load batches."""
        return self._loader.num_workers

    @property
    def current_difficulties(self) -> dict[str, Any]:
        """The difficulty of each metric for the batch last handed out; empty before the first."""
        return dict(self._state().get("current_difficulties", {}))

    def __len__(self) -> int:
        """Batches of this rank in a whole pass, including those already handed out."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        owner = self._owner = object()
        hand_out = self._drawing.hand_out
        if self._ended:
            self._draw_on()
        self._go_back()
        self._moved = True
        try:
            while self._moved:
                self._moved = False
                self._place = self._drawing.now()
                for batch in self._loader:
                    self._place = hand_out()
                    yield batch
                    if self._owner is not owner:
                        raise ConfigError("another iteration of this loader has started; both would share one position")
                    if self._moved:
                        break
        finally:
            self._drawing.write_record()
        self._place, self._ended = None, True

    def _draw_on(self) -> None:
        """Move a curriculum, whose passes are all in its state, on to the next one; other samplers have moved on."""
        self._ended = False
        if hasattr(self.sampler, "add_epochs"):
            self.sampler.add_epochs()

    def take_over(self, earlier: CurriculumDataLoader) -> None:
        """Continue where a loader over the same sampler is, which must not be used any more."""
        self._place, self._ended = earlier._place, earlier._ended

    def _go_back(self) -> None:
        """Move the sampler back to the last batch handed out."""
        if self._place is not None:
            self.sampler.load_state_dict(self._state())

    def add_epochs(self) -> None:
        """Add epochs to a sampler that has finished its own; samplers without ``add_epochs`` are unchanged."""
        if hasattr(self.sampler, "add_epochs"):
            self._go_back()
            self._draw_on()
            self._place, self._moved = None, True

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of a sampler that reshuffles every epoch; naming the current epoch keeps the position in it.

        A curriculum is one stream over all its epochs and is unchanged.
        """
        set_epoch = getattr(self.sampler, "set_epoch", None)
        if set_epoch is not None:
            self._go_back()
            set_epoch(epoch)
            self._place, self._moved, self._ended = None, True, False

    def set_custom_curriculum_learning_schedule(self, functions: Mapping[str, Callable[[int], Any]]) -> None:
        """Set the functions of the step for metrics whose schedule is "custom", from the next batch on."""
        self._go_back()
        self.sampler.set_custom_curriculum_learning_schedule(functions)  # type: ignore[attr-defined]  # a curriculum's
        self._place, self._moved = None, True

    def set_weights(self, from_step: int, weights: Mapping[str, float]) -> None:
        """Draw with other weights of groups from a step on that is not handed out yet: of a mixture's sampler."""
        self._go_back()
        self.sampler.set_weights(from_step, weights)  # type: ignore[attr-defined]  # a mixture's
        self._place, self._moved = None, True

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the training loop: the sampler's state at the batch last handed out, in JSON types.

        The sampler's record, if there is one, is written up to that batch.
        """
        self._drawing.write_record()
        return self._state()

    def _state(self) -> dict[str, Any]:
        return self.sampler.state_dict() if self._place is None else self._drawing.state_at(self._place)

    def record_losses(self, losses: Any) -> None:
        """Keep the loss of each sample of the batch last handed out in the sampler's record.

        Call it for each batch, before :meth:`state_dict`; :func:`arrowds.curriculum.trace.why` joins them by step.

        Args:
            losses: a tensor or array of shape (samples of the batch,), in their order.

        Raises:
            ConfigError: when the sampler keeps no record, or there are not as many losses as samples.
        """
        if self._drawing.recorder is None:
            raise ConfigError("losses are kept in the record of a sampler: make it with record=FOLDER")
        found = losses.detach().float().cpu().numpy() if hasattr(losses, "detach") else losses
        self._drawing.recorder.add_losses(found)

    def load_state_dict(self, state: Mapping[str, Any] | None, **options: Any) -> None:
        """Resume where a state was taken, with the next batch. None, a checkpoint without a state, changes nothing.

        Args:
            state: what :meth:`state_dict` returned.
            options: of the sampler's own method, such as ``on_new_data="continue"``.

        Raises:
            StateMismatchError: for a state that the sampler refuses; the position is then unchanged.
        """
        if state is None:
            return
        self.sampler.load_state_dict(state, **options)
        self._place, self._moved, self._ended = None, True, False


def check_length(dataset: Any, sampler: Any) -> None:
    """Compare the samples of a dataset with those of the sampler's index or plan.

    Raises:
        ConfigError: when they differ.
    """
    expected = getattr(getattr(sampler, "index", sampler), "num_samples", None)
    if expected is not None and hasattr(dataset, "__len__") and len(dataset) != expected:
        raise ConfigError(
            f"the dataset has {len(dataset)} samples but the index {expected}; index the dataset that you train on"
        )


_END = object()


class RepeatingLoader:
    """A loader without an end: after its last batch the next epoch follows.

    A loader that moves on by itself, such as :class:`CurriculumDataLoader`, does so: a curriculum draws on as with a
    larger ``num_epochs``. For any other, ``set_epoch`` is called with the next epoch, on the loader, or else on its
    sampler, batch sampler and dataset, where they have it: torch's ``DistributedSampler`` shuffles again.

    >>> loader = RepeatingLoader([1, 2])
    >>> [next(loader) for _ in range(5)]
    [1, 2, 1, 2, 1]
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self._ended = 0  # how many epochs
        self._batches = self._restart()

    def __iter__(self) -> RepeatingLoader:
        return self

    def __next__(self) -> Any:
        batch = next(self._batches, _END)
        if batch is _END:
            self._ended += 1
            for part, epoch in self._epochs:
                part.set_epoch(max(epoch + 1, _epoch_of(part, self._ended)))
            batch = next(self._restart(), _END)
        if batch is _END and hasattr(self.loader, "add_epochs"):
            self.loader.add_epochs()
            batch = next(self._restart(), _END)
        if batch is _END:
            raise ConfigError("the loader has no batches, so a loop over it would never end")
        return batch

    def _restart(self) -> Iterator[Any]:
        self._epochs = [(part, _epoch_of(part, self._ended)) for part in _parts_with_epochs(self.loader)]
        self._batches = iter(self.loader)
        return self._batches

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        """Return everything else from the loader: ``dataset``, ``current_difficulties``, ``state_dict``."""
        if name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Load the loader's state and resume there."""
        self.loader.load_state_dict(state)
        self._restart()


def _parts_with_epochs(loader: Any) -> list[Any]:
    """Return what orders the samples of a loader and must be told the epoch; nothing where the loader sees to it."""
    if hasattr(loader, "add_epochs"):
        return []
    if hasattr(loader, "set_epoch"):
        return [loader]
    batch_sampler = getattr(loader, "batch_sampler", None)
    parts = [batch_sampler, *(getattr(part, "sampler", None) for part in (loader, batch_sampler))]
    parts.append(getattr(loader, "dataset", None))
    return list({id(part): part for part in parts if hasattr(part, "set_epoch")}.values())


def _epoch_of(part: Any, ended: int) -> int:
    """Return the epoch that a sampler is in, or Accelerate's loader; of one that does not say, by those that ended."""
    epoch = getattr(part, "epoch", getattr(part, "iteration", ended))
    return epoch if isinstance(epoch, int) else ended
