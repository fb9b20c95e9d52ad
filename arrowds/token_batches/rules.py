"""The rules of token-budget batches, their validation, and the samples that they admit. Pure."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from arrowds.errors import ConfigError, EmptyPoolError, TokenBudgetError

Order = Literal["random", "dataloader", "seqlen"]
PackingMethod = Literal["best_fit", "sequential"]
Overlong = Literal["raise", "truncate", "skip"]
IntArray = npt.NDArray[np.int64]
IdArray = npt.NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchRules:
    """Every rule of a plan; `arrowds.batch_by_tokens` describes each.

    Raises:
        ConfigError: for an invalid rule, naming it.
    """

    max_tokens: int
    order: Order = "random"
    packing: PackingMethod = "best_fit"
    padded: bool = False
    min_batch_size: int = 1
    max_batch_size: int | None = None
    effective_batch_size: int = 1
    same_size: bool = False
    overlong: Overlong = "raise"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_tokens", "min_batch_size", "effective_batch_size"):
            require_at_least(name, getattr(self, name), 1)
        require_at_least("seed", self.seed, 0)
        if self.max_batch_size is not None:
            require_at_least("max_batch_size", self.max_batch_size, self.min_batch_size)
        for name, allowed in (("order", Order), ("packing", PackingMethod), ("overlong", Overlong)):
            if getattr(self, name) not in get_args(allowed):
                raise ConfigError(f"{name}={getattr(self, name)!r}: expected one of {', '.join(get_args(allowed))}")

    @property
    def max_rows(self) -> int:
        """The largest number of samples in a batch; every sample counts as at least one token."""
        return self.max_tokens if self.max_batch_size is None else min(self.max_batch_size, self.max_tokens)


def require_at_least(name: str, value: object, least: int) -> None:
    """Raise unless the value is an integer of at least `least`.

    Raises:
        ConfigError: naming the argument, the value and what was expected.
    """
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # whatever the caller passed; TypeError says no
    except TypeError as error:
        raise ConfigError(f"{name}={value!r}: expected an integer of at least {least}") from error
    if isinstance(value, bool) or number < least:
        raise ConfigError(f"{name}={value!r}: expected an integer of at least {least}")


def as_lengths(lengths: Sequence[int] | npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the lengths as a one-dimensional integer array; a view if they already are one.

    Raises:
        ConfigError: for another shape, another type, or a negative length.
    """
    if isinstance(lengths, np.ma.MaskedArray) and np.ma.is_masked(lengths):
        missing = np.ma.getmaskarray(np.ma.asarray(lengths))
        raise ConfigError(
            f"{int(missing.sum())} samples have no length, the first is sample {int(missing.argmax())}: pass ids=... "
            "without them, and lengths.filled(0)"
        )
    array = np.asarray(lengths)
    if array.ndim != 1:
        raise ConfigError(f"lengths have shape {array.shape}: expected one length per sample, shape (n,)")
    if len(array) and array.dtype.kind not in "iu":
        raise ConfigError(f"lengths have type {array.dtype}: expected integers, one per sample")
    if len(array) and int(array.min()) < 0:
        raise ConfigError(f"sample {int(array.argmin())} has length {array.min()}: lengths can't be negative")
    return array


def as_ids(ids: Sequence[int] | npt.NDArray[Any] | None, samples: int) -> IdArray:
    """Return the ids to batch, as uint32 if that is wide enough for every sample, else uint64.

    Raises:
        ConfigError: for ids outside the samples.
        EmptyPoolError: when there are no ids.
    """
    dtype = np.uint32 if samples <= 2**32 else np.uint64
    array = np.arange(samples, dtype=dtype) if ids is None else np.asarray(ids)
    if array.ndim != 1 or (len(array) and array.dtype.kind not in "iu"):
        raise ConfigError(f"ids have shape {array.shape} and type {array.dtype}: expected integers of shape (n,)")
    if not len(array):
        raise EmptyPoolError(f"no sample to batch: got {samples} lengths and {len(array)} ids")
    if int(array.min()) < 0 or int(array.max()) >= samples:
        raise ConfigError(f"ids go from {array.min()} to {array.max()}, but there are {samples} lengths")
    return array.astype(dtype, copy=False)


def admit(lengths: npt.NDArray[Any], ids: IdArray, rules: BatchRules) -> tuple[IdArray, IdArray]:
    """Return the ids that the rules admit, and those that they skip because of their length.

    Raises:
        TokenBudgetError: when a sample exceeds the budget and `overlong` is "raise", or when every sample does.
    """
    over = lengths[ids] > rules.max_tokens
    count = int(np.count_nonzero(over))
    if not count or rules.overlong == "truncate":
        return ids, ids[:0]
    if rules.overlong == "raise" or count == len(ids):
        longest = ids[np.argmax(lengths[ids])]
        raise TokenBudgetError(
            f"{count} of {len(ids)} samples are longer than max_tokens={rules.max_tokens}; the longest, "
            f"sample {longest}, has {lengths[longest]} tokens. Raise max_tokens to {lengths[longest]}, "
            "or pass overlong='truncate' (and cut them when loading) or overlong='skip'"
        )
    return ids[~over], ids[over]
