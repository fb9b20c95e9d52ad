"""From batches of ids to batches of tensors: torch's DataLoader, with a state that counts what was handed out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter, methodcaller
from typing import TYPE_CHECKING, Any, Protocol

from arrowds.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    import torch

_CHOSEN_BY_THE_SAMPLER = ("batch_size", "shuffle", "sampler", "batch_sampler", "drop_last")


class ResumableSampler(Protocol):
    """What a loader needs of a sampler: batches of ids, and a state that an iteration goes on from.

    The loader notes the state at every batch. A sampler to which that matters has two members more: ``position``, what
    it is to note, which must be cheap and never change, and ``state_at(position)``, the state that belongs to it. One
    that keeps a record has a ``recorder`` and ``draw``, as :class:`arrowds.CurriculumSampler` has.
    """

    def __iter__(self) -> Iterator[Sequence[int]]: ...

    def __len__(self) -> int: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...


class _Drawing:
    """Draws from the sampler, batches ahead of the training loop, and notes where the sampler was after each."""

    def __init__(self, sampler: ResumableSampler) -> None:
        self._sampler = sampler
        self._note: Callable[[Any], Any] = methodcaller("state_dict")
        self.state_at: Callable[[Any], dict[str, Any]] = dict
        if hasattr(sampler, "state_at"):
            self._note, self.state_at = attrgetter("position"), sampler.state_at
        # Of the batches that are drawn and not yet handed out; these arrive in the order of the draws.
        self.places: deque[Any] = deque()
        # A record is of what was handed out, not of what was drawn.
        self._recorder = getattr(sampler, "recorder", None)
        self._rows: deque[Any] = deque()
        self.hand_out: Callable[[], Any] = self.places.popleft if self._recorder is None else self._record

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Sequence[int]]:
        self.places.clear()
        self._rows.clear()
        sampler, note, add = self._sampler, self._note, self.places.append
        for ids in sampler if self._recorder is None else sampler.draw(self._rows.append):  # type: ignore[attr-defined]  # one with a recorder
            add(note(sampler))
            yield ids

    def _record(self) -> Any:
        if self._recorder is not None:
            self._recorder.add(self._rows.popleft())
        return self.places.popleft()

    def write_record(self) -> None:
        """Write what was handed out, where there is a record."""
        if self._recorder is not None:
            self._recorder.flush()

    def now(self) -> Any:
        """Return the place where the sampler is."""
        return self._note(self._sampler)


class CurriculumDataLoader:
    """torch's DataLoader over a dataset and a sampler of arrowds, resumable exactly.

    Workers draw batches ahead; the state counts only those that the loop was given. An iteration begins where the state
    stands: at the first batch, after the last one handed out, or where ``load_state_dict`` put it. A state loaded while
    an iteration runs takes effect with its next batch. There is one iteration at a time.

    Args:
        dataset: a map-style dataset whose row i is sample i of the index.
        sampler: an :class:`arrowds.CurriculumSampler`, a :class:`arrowds.TokenBudgetBatchSampler`, or anything with
            their methods.
        options: every option of ``torch.utils.data.DataLoader`` but those that choose batches. Without ``generator``
            the seeds of the workers come from ``torch.initial_seed()``, and torch's global generator is not drawn from:
            a resumed run finds it as the uninterrupted one does.

    Raises:
        ConfigError: for an option that the sampler replaces, or a dataset whose length is not the index's.

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
            from torch.utils.data import DataLoader
        except ImportError as error:
            raise MissingExtraError("torch", "torch") from error
        if replaced := [name for name in _CHOSEN_BY_THE_SAMPLER if name in options]:
            raise ConfigError(f"{', '.join(replaced)}: the sampler decides that; leave it out here")
        if options.get("in_order") is False:
            raise ConfigError("in_order=False would hand out batches in an order that no state can name; leave it out")
        check_length(dataset, sampler)
        if options.get("generator") is None:
            options["generator"] = _own_generator()
        self.dataset = dataset
        self.sampler = sampler
        self._drawing = _Drawing(sampler)
        self._loader: DataLoader[Any] = DataLoader(dataset, batch_sampler=self._drawing, **options)  # type: ignore[arg-type]  # any iterable of lists of ids will do
        self._place: Any = None  # after the batch last handed out; None: where the sampler is
        self._owner: object = None  # the running iteration
        self._moved = False  # the running iteration is to begin anew, from the sampler's position

    @property
    def current_difficulties(self) -> dict[str, Any]:
        """The difficulty of each metric for the batch that was last handed out; empty before the first."""
        return dict(self._state().get("current_difficulties", {}))

    def __len__(self) -> int:
        """Batches of this rank in a whole pass, those already handed out included."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        owner = self._owner = object()
        hand_out = self._drawing.hand_out
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
                        raise ConfigError("another iteration of this loader has begun; two would share one position")
                    if self._moved:
                        break
        finally:
            self._drawing.write_record()
        self._place = None

    def _go_back(self) -> None:
        """Make the sampler forget what was drawn ahead of the loop."""
        if self._place is not None:
            self.sampler.load_state_dict(self._state())

    def add_epochs(self) -> None:
        """Let a sampler that is through with its epochs draw on; others are left as they are."""
        if hasattr(self.sampler, "add_epochs"):
            self._go_back()
            self.sampler.add_epochs()
            self._place, self._moved = None, True

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to a sampler that orders every epoch anew; the present one keeps its place.

        A curriculum is one stream over all its epochs, and goes on where it is.
        """
        set_epoch = getattr(self.sampler, "set_epoch", None)
        if set_epoch is not None:
            self._go_back()
            set_epoch(epoch)
            self._place, self._moved = None, True

    def set_custom_curriculum_learning_schedule(self, functions: Mapping[str, Callable[[int], Any]]) -> None:
        """Set the functions of the step for metrics whose schedule is "custom", from the next batch on."""
        self._go_back()
        self.sampler.set_custom_curriculum_learning_schedule(functions)  # type: ignore[attr-defined]  # a curriculum's
        self._place, self._moved = None, True

    def state_dict(self) -> dict[str, Any]:
        """Where the training loop is: the sampler's state at the batch last handed out, in JSON types.

        A record, where the sampler keeps one, is written up to there.
        """
        self._drawing.write_record()
        return self._state()

    def _state(self) -> dict[str, Any]:
        return self.sampler.state_dict() if self._place is None else self._drawing.state_at(self._place)

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on where a state was taken, with the next batch. None, a checkpoint without a state, changes nothing.

        Raises:
            StateMismatchError: for a state that the sampler refuses; the position is then unchanged.
        """
        if state is None:
            return
        self.sampler.load_state_dict(state)
        self._place, self._moved = None, True


def _own_generator() -> torch.Generator:
    import torch

    return torch.Generator().manual_seed(torch.initial_seed())


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
    """A loader without an end: when it is through, it begins anew.

    A sampler that orders every epoch anew goes on with the next epoch. A curriculum goes on as well: it draws beyond
    its epochs at the difficulty that it has reached.

    >>> loader = RepeatingLoader([1, 2])
    >>> [next(loader) for _ in range(5)]
    [1, 2, 1, 2, 1]
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self._batches: Iterator[Any] = iter(loader)

    def __iter__(self) -> RepeatingLoader:
        return self

    def __next__(self) -> Any:
        batch = next(self._batches, _END)
        if batch is _END:
            batch = next(self._anew(), _END)
        if batch is _END and hasattr(self.loader, "add_epochs"):
            self.loader.add_epochs()
            batch = next(self._anew(), _END)
        if batch is _END:
            raise ConfigError("the loader has no batches; a loop over it would never end")
        return batch

    def _anew(self) -> Iterator[Any]:
        batches: Iterator[Any]
        self._batches = batches = iter(self.loader)
        return batches

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        """Give everything else as the loader has it: ``dataset``, ``current_difficulties``, ``state_dict``."""
        if name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Load the loader's state and go on there."""
        self.loader.load_state_dict(state)
        self._anew()
