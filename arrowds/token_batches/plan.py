"""Token-budget batches: samples grouped so that each batch holds about as many tokens as fit, epoch by epoch."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt
import xxhash

from arrowds.errors import ConfigError
from arrowds.token_batches.packing import pack
from arrowds.token_batches.rules import (
    BatchRules,
    IdArray,
    IntArray,
    Order,
    Overlong,
    PackingMethod,
    admit,
    as_ids,
    as_lengths,
    require_at_least,
)

_log = logging.getLogger(__name__)
LrScaling = Literal["linear", "sqrt", "none"]


def batch_by_tokens(
    lengths: Sequence[int] | npt.NDArray[Any],
    max_tokens: int = 16384,
    *,
    ids: Sequence[int] | npt.NDArray[Any] | None = None,
    order: Order = "random",
    packing: PackingMethod = "best_fit",
    padded: bool = False,
    min_batch_size: int = 1,
    max_batch_size: int | None = None,
    world_size: int = 1,
    effective_batch_size: int | None = None,
    same_size: bool = False,
    overlong: Overlong = "raise",
    seed: int = 0,
    epoch: int = 0,
) -> TokenBatchPlan:
    """Group samples into batches of at most `max_tokens` tokens: each sample once, nothing lost, nothing repeated.

    The plan depends on the arguments alone, (seed, epoch) among them; every rank computes the same one.

    Args:
        lengths: tokens of every sample of the dataset, shape (n,), any integer type; `index["seqlen"].values` is one.
        max_tokens: the budget of a batch, that is, of what one rank trains on in one forward pass.
        ids: the samples to batch, such as a curriculum's pool; all of them by default.
        order: "random": samples are reshuffled every epoch. "dataloader": batches follow the data (or `ids`), the same
            every epoch. "seqlen": from short samples to long ones.
        packing: "best_fit" fills the gaps with samples that fit; with "dataloader" it moves a few samples up to
            512 batches ahead. "sequential" only cuts the sequence of samples into batches.
        padded: the budget bounds rows x longest sample, for batches that are padded to a rectangle, and best fit then
            groups samples of near-equal length. By default it bounds the sum of the lengths.
        min_batch_size: the fewest samples in a batch. Smaller batches get short samples of larger ones.
        max_batch_size: the most samples in a batch.
        world_size: ranks; each gets the same number of batches, `plan.batches[rank::world_size]`.
        effective_batch_size: batches in one optimizer step over all ranks and accumulation steps, a multiple of
            `world_size` (its default). The number of batches is a multiple of it: the largest are split to reach that.
            If none can be split, as when every sample fills a batch, the rest is left out, with a warning; it differs
            from epoch to epoch.
        same_size: all batches of a step have the same number of samples. Then up to `effective_batch_size - 1` samples,
            different ones in each epoch, are in no batch: `plan.left_out` lists them.
        overlong: what to do with a sample longer than the budget: "raise", "skip" it, or "truncate", which counts it
            as `max_tokens`; the dataset has to cut it.
        seed: of all that is random.
        epoch: of the plan; `plan.with_epoch` gives the others.

    Raises:
        TokenBudgetError: when samples are longer than the budget; it says how many, and the longest.
        ConfigError: for invalid arguments, each or in combination.

    >>> plan = batch_by_tokens([5, 3, 4, 4, 2, 6], max_tokens=8)
    >>> len(plan), plan.fill
    (3, 1.0)
    >>> sorted(sorted(batch.tolist()) for batch in plan.batches)
    [[0, 1], [2, 3], [4, 5]]
    """
    require_at_least("world_size", world_size, 1)
    rules = BatchRules(
        max_tokens=max_tokens,
        order=order,
        packing=packing,
        padded=padded,
        min_batch_size=min_batch_size,
        max_batch_size=max_batch_size,
        effective_batch_size=world_size if effective_batch_size is None else effective_batch_size,
        same_size=same_size,
        overlong=overlong,
        seed=seed,
    )
    if rules.effective_batch_size % world_size:
        raise ConfigError(
            f"effective_batch_size={rules.effective_batch_size} batches can't be shared by world_size={world_size} "
            f"ranks: take a multiple, such as {-(-rules.effective_batch_size // world_size) * world_size}"
        )
    known = as_lengths(lengths)
    pool, skipped = admit(known, as_ids(ids, len(known)), rules)
    return _plan(_Pool(known, pool, skipped), rules, epoch)


@dataclass(frozen=True)
class _Pool:
    """What is batched, the same for every epoch."""

    lengths: npt.NDArray[Any]
    ids: IdArray
    skipped: IdArray

    @cached_property
    def digest(self) -> str:
        """Digest of lengths and ids, the same for every integer type."""
        digest = xxhash.xxh3_128(self.lengths.astype("<i8").tobytes())
        digest.update(self.ids.astype("<u8").tobytes())
        return digest.hexdigest()


def _tokens_of(pool: _Pool, ids: IdArray, rules: BatchRules) -> IntArray:
    """Return the tokens of samples, capped at the budget."""
    tokens: IntArray = np.minimum(pool.lengths[ids].astype(np.int64), rules.max_tokens)
    return tokens


def _plan(pool: _Pool, rules: BatchRules, epoch: int) -> TokenBatchPlan:
    require_at_least("epoch", epoch, 0)
    packed = pack(_tokens_of(pool, pool.ids, rules), rules, epoch)
    if len(packed.left_out):
        _log.warning(
            "epoch %d: %d of %d samples are left out, because they do not fill a step of %d batches",
            epoch,
            len(packed.left_out),
            len(pool.ids),
            rules.effective_batch_size,
        )
    left_out = np.concatenate([pool.skipped, pool.ids[packed.left_out]])
    return TokenBatchPlan(rules, epoch, pool.ids[packed.positions], packed.offsets, left_out, pool)


@dataclass(frozen=True)
class TokenBatchPlan:
    """The batches of one epoch, as one array of ids and one of offsets; created by `batch_by_tokens`.

    Attributes:
        rules: what the batches satisfy.
        epoch: the epoch of the plan.
        ids: sample ids, batch after batch, uint32 (uint64 above 2^32 samples).
        offsets: where each batch starts in `ids`, int64, shape (len(plan) + 1,).
        left_out: ids in no batch: those skipped because of their length, and the rest that does not fill a step.
    """

    rules: BatchRules
    epoch: int
    ids: IdArray = field(repr=False)
    offsets: IntArray = field(repr=False)
    left_out: IdArray = field(repr=False)
    _pool: _Pool = field(repr=False)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_samples(self) -> int:
        """Samples of the dataset: how many lengths were given."""
        return len(self._pool.lengths)

    @property
    def batches(self) -> BatchView:
        """The batches as a sequence of arrays of ids, which are views created on access."""
        return BatchView(self.ids, self.offsets, range(len(self)))

    @property
    def rows(self) -> IntArray:
        """Samples in each batch, shape (len(plan),)."""
        return np.diff(self.offsets)

    @cached_property
    def tokens(self) -> IntArray:
        """Tokens in each batch without padding, shape (len(plan),)."""
        tokens: IntArray = np.add.reduceat(self._lengths_in_order(), self.offsets[:-1])
        return tokens

    @cached_property
    def longest(self) -> IntArray:
        """Tokens of the longest sample of each step: what to pad its batches to, shape (number of steps,)."""
        steps = self.offsets[: -1 : self.rules.effective_batch_size]
        longest: IntArray = np.maximum.reduceat(self._lengths_in_order(), steps)
        return longest

    @property
    def fill(self) -> float:
        """The share of the budget that the epoch's tokens use, from 0 to 1."""
        return float(self.tokens.sum() / (len(self) * self.rules.max_tokens))

    @property
    def batch_sizes(self) -> IntArray:
        """Samples in each optimizer step, that is, in `effective_batch_size` batches; shape (number of steps,)."""
        return np.diff(self.offsets[:: self.rules.effective_batch_size])

    @property
    def digest(self) -> str:
        """Hexadecimal digest of the lengths and the ids that were batched."""
        return self._pool.digest

    def lr_scale(self, base_batch_size: float, method: LrScaling = "linear") -> npt.NDArray[np.float64]:
        """Return the factor of the learning rate in each step, see `lr_factor`; shape (number of steps,).

        >>> batch_by_tokens([4, 4, 2, 2, 2, 2], max_tokens=8, order="dataloader").lr_scale(base_batch_size=2).tolist()
        [1.0, 2.0]
        """
        return lr_factor(self.batch_sizes, base_batch_size, method)

    def with_epoch(self, epoch: int) -> TokenBatchPlan:
        """Return the plan of another epoch of the same samples and rules; its number of batches may differ slightly."""
        return self if epoch == self.epoch else _plan(self._pool, self.rules, epoch)

    def _lengths_in_order(self) -> IntArray:
        return _tokens_of(self._pool, self.ids, self.rules)


@dataclass(frozen=True)
class BatchView(Sequence[IdArray]):
    """Some of a plan's batches, as arrays of sample ids; slices are views too.

    >>> batch_by_tokens([4] * 6, max_tokens=8, order="dataloader").batches[1:]
    BatchView([2 3], [4 5])
    """

    ids: IdArray
    offsets: IntArray
    chosen: range

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, index: int) -> IdArray: ...
    @overload
    def __getitem__(self, index: slice) -> BatchView: ...
    def __getitem__(self, index: int | slice) -> IdArray | BatchView:
        if isinstance(index, slice):
            return BatchView(self.ids, self.offsets, self.chosen[index])
        batch = self.chosen[index]
        return self.ids[self.offsets[batch] : self.offsets[batch + 1]]

    def __iter__(self) -> Iterator[IdArray]:
        return (self[batch] for batch in range(len(self)))

    def __repr__(self) -> str:
        shown = ", ".join(str(batch) for batch in self[:3])
        return f"BatchView({shown}{', ...' if len(self) > 3 else ''})"


def lr_factor(
    batch_size: npt.ArrayLike, base_batch_size: float, method: LrScaling = "linear"
) -> npt.NDArray[np.float64]:
    """Return the factor for a learning rate that was tuned for `base_batch_size` samples.

    "linear" is the rule of Goyal et al., "Accurate, Large Minibatch SGD", 2017; "sqrt" that of Krizhevsky, "One weird
    trick for parallelizing convolutional neural networks", 2014; "none" is 1.

    Raises:
        ConfigError: for an unknown method, or a base that is not positive.

    >>> lr_factor([8, 32], base_batch_size=8, method="sqrt").tolist()
    [1.0, 2.0]
    """
    if not base_batch_size > 0:
        raise ConfigError(f"base_batch_size={base_batch_size!r}: expected a number above zero")
    ratio = np.asarray(batch_size, np.float64) / base_batch_size
    if method == "linear":
        return ratio
    if method == "sqrt":
        return np.sqrt(ratio)
    if method == "none":
        return np.ones_like(ratio)
    raise ConfigError(f"learning-rate scaling {method!r}: expected one of linear, sqrt, none")
