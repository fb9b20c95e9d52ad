"""From batches of ids to batches of tensors: torch's DataLoader, with a state that counts what was handed out."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from arrowds.errors import ConfigError, MissingExtraError, StateMismatchError

STATE_VERSION = 1


class ResumableSampler(Protocol):
    """What a loader needs of a sampler: batches of ids, and a state that an iteration goes on from."""

    def __iter__(self) -> Iterator[Sequence[int]]: ...

    def __len__(self) -> int: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any], /) -> None: ...


class _Drawn(NamedTuple):
    """The sampler as it was right after it gave a batch."""

    state: dict[str, Any]
    difficulties: dict[str, Any]


class _RecordingSampler:
    """Remembers the sampler's state at every batch that workers draw ahead of the training loop."""

    def __init__(self, sampler: ResumableSampler) -> None:
        self.sampler = sampler
        self.drawn: deque[_Drawn] = deque()

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Sequence[int]]:
        self.drawn.clear()
        for ids in self.sampler:
            difficulties = dict(getattr(self.sampler, "current_difficulties", {}))
            self.drawn.append(_Drawn(self.sampler.state_dict(), difficulties))
            yield ids


class CurriculumDataLoader:
    """torch's DataLoader over a dataset and a sampler of arrowds, resumable exactly.

    Workers draw batches ahead; the state counts only those that the loop was given. An iteration begins where the state
    stands: at the first batch, after the last one handed out, or where ``load_state_dict`` put it.

    Args:
        dataset: a map-style dataset whose row i is sample i of the index.
        sampler: an :class:`arrowds.CurriculumSampler`, a :class:`arrowds.TokenBudgetBatchSampler`, or anything with
            their methods.
        options: every option of ``torch.utils.data.DataLoader`` but those that choose batches.

    Raises:
        ConfigError: for an option that the sampler replaces, or a dataset whose length is not the index's.
    """

    def __init__(self, dataset: Any, sampler: ResumableSampler, **options: Any) -> None:
        try:
            from torch.utils.data import DataLoader
        except ImportError as error:
            raise MissingExtraError("torch", "torch") from error
        replaced = {"batch_size", "shuffle", "sampler", "batch_sampler", "drop_last"} & options.keys()
        if replaced:
            raise ConfigError(f"{', '.join(sorted(replaced))}: the sampler decides that; leave it out here")
        if options.get("in_order") is False:
            raise ConfigError("in_order=False would hand out batches in an order that no state can name; leave it out")
        _check_length(dataset, sampler)
        self.dataset = dataset
        self.sampler = sampler
        self._recording = _RecordingSampler(sampler)
        self._loader: DataLoader[Any] = DataLoader(dataset, batch_sampler=self._recording, **options)  # type: ignore[arg-type]  # any iterable of lists of ids will do
        self._last = _Drawn(sampler.state_dict(), {})

    @property
    def data_sampler(self) -> ResumableSampler:
        """The sampler, by the name that DeepSpeed's engine looks for."""
        return self.sampler

    @property
    def current_difficulties(self) -> dict[str, Any]:
        """The difficulty of each metric for the batch that was last handed out."""
        return self._last.difficulties

    def __len__(self) -> int:
        """Batches of this rank in a whole epoch."""
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        # A loop that was left early drew batches that nobody saw: go back to the last one that somebody did.
        self.sampler.load_state_dict(self._last.state)
        for batch in self._loader:
            self._last = self._recording.drawn.popleft()
            yield batch
        self._last = _Drawn(self.sampler.state_dict(), self._last.difficulties)

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to a sampler that orders every epoch anew."""
        set_epoch = getattr(self.sampler, "set_epoch", None)
        if set_epoch is not None:
            self.sampler.load_state_dict(self._last.state)
            set_epoch(epoch)
            self._last = _Drawn(self.sampler.state_dict(), self._last.difficulties)

    def state_dict(self) -> dict[str, Any]:
        """Where the training loop is: the sampler's state at the last batch handed out, in JSON types."""
        return {"version": STATE_VERSION, "sampler": self._last.state}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on where a state was taken, with the next iteration. None is taken for a run without a state.

        Raises:
            StateMismatchError: for a state of another version, or one that the sampler refuses.
        """
        if state is None:
            return
        if state.get("version") != STATE_VERSION:
            raise StateMismatchError(
                f"the loader's state has version {state.get('version')!r}: expected {STATE_VERSION}"
            )
        self.sampler.load_state_dict(state["sampler"])
        self._last = _Drawn(self.sampler.state_dict(), {})


def _check_length(dataset: Any, sampler: ResumableSampler) -> None:
    expected = getattr(sampler, "num_samples", None)
    if expected is not None and hasattr(dataset, "__len__") and len(dataset) != expected:
        raise ConfigError(
            f"the dataset has {len(dataset)} samples but the index {expected}; index the dataset that you train on"
        )


class RepeatingLoader:
    """A loader without an end: when it is through, the next epoch begins.

    >>> loader = RepeatingLoader([1, 2])
    >>> [next(loader) for _ in range(5)]
    [1, 2, 1, 2, 1]
    """

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.epoch = 0
        self._batches = iter(loader)

    def __iter__(self) -> RepeatingLoader:
        return self

    def __next__(self) -> Any:
        try:
            return next(self._batches)
        except StopIteration:
            self.epoch += 1
            self._batches = iter(self.loader)
        try:
            return next(self._batches)
        except StopIteration:
            raise ConfigError("the loader has no batches; a loop over it would never end") from None

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        """Give everything else as the loader has it: ``data_sampler``, ``current_difficulties``, ``state_dict``."""
        if name == "loader":
            raise AttributeError(name)
        return getattr(self.loader, name)

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Load the loader's state and begin a new iteration there."""
        self.loader.load_state_dict(state)
        self._batches = iter(self.loader)
