"""Drop-ins for DeepSpeed's dynamic batching: `batch_by_seqlens`, the loader over microbatches, the learning rate."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from arrowds.errors import ConfigError, MissingExtraError
from arrowds.loading import scale_lr_by_batch_size
from arrowds.shares import refuse_second_division
from arrowds.token_batches.packing import cut
from arrowds.token_batches.plan import LrScaling, lr_factor
from arrowds.token_batches.rules import IntArray, as_lengths, require_at_least

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler
    from torch.utils.data import DataLoader

Microbatch = tuple[int, list[int]]
_log = logging.getLogger(__name__)


def batch_by_seqlens(  # noqa: PLR0917 - DeepSpeed's signature
    seqlens: Sequence[int] | npt.NDArray[Any],
    max_tokens: int,
    sequence_ids_per_mb: Sequence[int] | npt.NDArray[Any] | None = None,
    min_batch_size: int | None = 1,
    max_batch_size: int | None = None,
    sequence_picking_order: str = "dataloader",
    effective_batch_size: int = 1,
    required_microbatches_of_same_size: bool = False,
    verbose: bool = False,
    seed: int | None = None,
) -> tuple[list[Microbatch], list[int], list[int]]:
    """DeepSpeed's `batch_by_seqlens`: the same arguments, and the same microbatches, in linear time.

    Different from DeepSpeed: the last sample is batched too (DeepSpeed never does), and a warning says how many samples
    are in no microbatch. As in DeepSpeed, samples above `max_tokens` are left out; so are the last microbatches that do
    not fill a batch of `effective_batch_size`, and everything from the first place where `min_batch_size` can't be
    reached. `arrowds.batch_by_tokens` loses none of them, and fills the batches better.

    Args:
        seqlens: tokens of every sample of the dataset, shape (n,).
        max_tokens: the most tokens in a microbatch.
        sequence_ids_per_mb: the samples to batch; all of them by default.
        min_batch_size: the fewest samples in a microbatch.
        max_batch_size: the most samples in a microbatch.
        sequence_picking_order: "dataloader", "random" or "seqlen" (ascending).
        effective_batch_size: microbatches in a batch, over all ranks and accumulation steps.
        required_microbatches_of_same_size: all microbatches of a batch have the same number of samples.
        verbose: log every batch.
        seed: of the shuffle.

    Returns:
        The microbatches as pairs of batch number and sample ids; the samples in each batch; the length of the
        longest sample of each batch.

    Raises:
        ConfigError: for invalid arguments, or too few samples for one batch.

    >>> batch_by_seqlens([3, 3, 2, 4, 4], max_tokens=8)
    ([(0, [0, 1, 2]), (1, [3, 4])], [3, 2], [3, 4])
    """
    require_at_least("max_tokens", max_tokens, 1)
    require_at_least("effective_batch_size", effective_batch_size, 1)
    lengths = as_lengths(seqlens)
    ids = np.arange(len(lengths)) if sequence_ids_per_mb is None else np.asarray(sequence_ids_per_mb, np.int64)
    ids = _picking_order(lengths, ids, sequence_picking_order, seed)
    asked = len(ids)
    ids = ids[lengths[ids] <= max_tokens]
    ordered = lengths[ids].astype(np.int64)
    most = max_batch_size or len(ids)
    if required_microbatches_of_same_size:
        offsets, ids = _interleave(
            ordered,
            ids,
            max_tokens=max_tokens,
            most=most,
            least=min_batch_size or 1,
            microbatches=effective_batch_size,
        )
    else:
        offsets = cut(ordered, max_tokens, most) if len(ids) else np.zeros(1, np.int64)
        short = np.flatnonzero(np.diff(offsets) < (min_batch_size or 1))
        offsets = offsets[: short[0] + 1] if len(short) else offsets
    offsets = offsets[: len(offsets) - (len(offsets) - 1) % effective_batch_size]
    if len(offsets) <= effective_batch_size:
        raise ConfigError(
            f"{asked} samples do not fill one batch of effective_batch_size={effective_batch_size} microbatches "
            f"of at least {min_batch_size} samples and at most {max_tokens} tokens"
        )
    if int(offsets[-1]) < asked:
        _log.warning("%d of %d samples are in no microbatch", asked - int(offsets[-1]), asked)
    batches = offsets[::effective_batch_size]
    longest = np.maximum.reduceat(lengths[ids[: offsets[-1]]], batches[:-1]).tolist()
    flat, borders = ids.tolist(), offsets.tolist()
    microbatches = [
        (number // effective_batch_size, flat[start:stop]) for number, (start, stop) in enumerate(pairwise(borders))
    ]
    sizes: list[int] = np.diff(batches).tolist()
    if verbose:
        for number, size in enumerate(sizes):
            _log.info("batch %d: %d samples, the longest of %d tokens", number, size, longest[number])
    return microbatches, sizes, longest


def _picking_order(lengths: npt.NDArray[Any], ids: IntArray, order: str, seed: int | None) -> IntArray:
    """Return the ids sorted as DeepSpeed does; shuffled by Python's generator, as DeepSpeed shuffles them."""
    if order == "dataloader":
        return ids
    if order == "seqlen":
        return ids[np.lexsort((ids, lengths[ids]))]
    if order == "random":
        shuffled = list(range(len(ids)))
        random.Random(seed).shuffle(shuffled)
        return ids[np.array(shuffled, np.int64)]
    raise ConfigError(f"sequence_picking_order={order!r}: expected one of dataloader, random, seqlen")


def _interleave(
    lengths: IntArray, ids: IntArray, *, max_tokens: int, most: int, least: int, microbatches: int
) -> tuple[IntArray, IntArray]:
    """Return the offsets of microbatches of equal size within each batch, and the ids dealt to them in turn."""
    total = np.concatenate([[0], np.cumsum(lengths)])
    start, sizes, dealt = 0, [0], [ids[:0]]
    while start < len(lengths):
        upto = int(total.searchsorted(total[start] + microbatches * max_tokens, side="right")) - 1
        rows = min(most, (upto - start) // microbatches)
        block = slice(start, start + rows * microbatches)
        tokens = np.cumsum(lengths[block].reshape(rows, microbatches), axis=0).max(axis=1, initial=0)
        rows = int(tokens.searchsorted(max_tokens, side="right"))
        if rows < least:
            break
        dealt.append(ids[start : start + rows * microbatches].reshape(rows, microbatches).T.ravel())
        sizes += [rows] * microbatches
        start += rows * microbatches
    return np.cumsum(sizes), np.concatenate(dealt)


def scale_lr(base_batch_size: float, batch_size: float, base_lr: float = 1, method: str | None = "linear") -> float:
    """DeepSpeed's `scale_lr`: the learning rate for a batch size, from that for another.

    >>> scale_lr(base_batch_size=8, batch_size=16, base_lr=0.5)
    1.0
    """
    return base_lr * float(lr_factor(batch_size, base_batch_size, _scaling(method)))


def _scaling(method: str | None) -> LrScaling:
    """Translate DeepSpeed's spelling: None and "NONE" mean "none"; `lr_factor` refuses unknown methods."""
    known: LrScaling = "none" if method is None or method.lower() == "none" else method  # type: ignore[assignment]
    return known


def lr_scheduler_for_variable_batch_size(  # noqa: PLR0917 - DeepSpeed's signature
    base_batch_size: float,
    batch_sizes: Sequence[int],
    dataloader: Any,
    lr_scheduler_or_optimizer: LRScheduler | Optimizer,
    lr_scaling_method: str | None = "linear",
    verbose: bool = False,
) -> LRScheduler:
    """DeepSpeed's scheduler for batches of varying size: the same learning rates for the same steps.

    Different from DeepSpeed: `get_last_lr()` gives the rates in use, not those before scaling; the scheduler below is
    not stepped on construction; the state holds a digest of the batch sizes, not all of them, and refuses others.

    Args:
        base_batch_size: samples in a batch for which the learning rate was chosen.
        batch_sizes: samples in each batch, from `batch_by_seqlens`; repeated after the last.
        dataloader: accepted for DeepSpeed's signature; not used, as in DeepSpeed.
        lr_scheduler_or_optimizer: the source of the rates to scale.
        lr_scaling_method: "linear", "sqrt", "none" or None.
        verbose: log the settings.
    """
    if verbose:
        _log.info("scaling learning rates by batch size, %s, from %s samples", lr_scaling_method, base_batch_size)
    return scale_lr_by_batch_size(
        lr_scheduler_or_optimizer,
        batch_sizes,
        base_batch_size=base_batch_size,
        method=_scaling(lr_scaling_method),
    )


class _Collate:
    """A collate function that fetches the samples of microbatches and pads them; picklable, unlike a closure."""

    def __init__(
        self,
        dataset: Any,
        pad_to: Sequence[int] | None,
        pad: Callable[[Any, int], Any] | None,
        collate: Callable[[list[Any]], Any] | None,
    ) -> None:
        self.dataset, self.pad_to, self.pad, self.collate = dataset, pad_to, pad, collate

    def __call__(self, microbatches: Sequence[Microbatch]) -> Any:
        samples = []
        for batch, ids in microbatches:
            for sample in map(self.dataset.__getitem__, ids):
                samples.append(
                    sample if self.pad_to is None or self.pad is None else self.pad(sample, self.pad_to[batch])
                )
        return samples if self.collate is None else self.collate(samples)


def dataloader_for_variable_batch_size(  # noqa: PLR0917 - DeepSpeed's signature
    dataset: Any,
    microbatch_ids: Sequence[Microbatch],
    batch_max_seqlens: Sequence[int],
    dataloader_rank: int = 0,
    dataloader_batch_size: int = 1,
    dataloader_num_replicas: int = 1,
    dataloader_collate_fn: Callable[[list[Any]], Any] | None = None,
    dataloader_num_workers: int = 2,
    dataloader_pin_memory: bool = False,
    required_microbatches_of_same_seqlen: bool = False,
    sample_padding_fn: Callable[[Any, int], Any] | None = None,
) -> tuple[DataLoader[Any], dict[str, Any]]:
    """DeepSpeed's loader over the microbatches of `batch_by_seqlens`, and the arguments for `engine.deepspeed_io`.

    Raises:
        ConfigError: when samples must be padded and `sample_padding_fn` is None.
        MissingExtraError: without torch.
    """
    try:
        from torch.utils.data import DataLoader
    except ImportError as error:
        raise MissingExtraError("torch", "torch") from error
    if required_microbatches_of_same_seqlen and sample_padding_fn is None:
        raise ConfigError("required_microbatches_of_same_seqlen needs a sample_padding_fn(sample, length) that pads")
    pad_to = batch_max_seqlens if required_microbatches_of_same_seqlen else None
    collate = _Collate(dataset, pad_to, sample_padding_fn, dataloader_collate_fn)
    sampler: Any = _share_class()(
        microbatch_ids,
        num_replicas=dataloader_num_replicas,
        rank=dataloader_rank,
        shuffle=False,
        drop_last=False,
    )
    shared = {"dataset": microbatch_ids, "batch_size": dataloader_batch_size, "pin_memory": dataloader_pin_memory}
    loader: Any = DataLoader(**shared, sampler=sampler, num_workers=dataloader_num_workers, collate_fn=collate)  # type: ignore[arg-type]  # as above
    engine_arguments = shared | {
        "data_sampler": sampler,
        "collate_fn": collate,
        "num_local_io_workers": dataloader_num_workers,
    }
    return loader, engine_arguments


@cache
def _share_class() -> Any:
    """The class of the loader's sampler, made when torch is first needed."""
    from torch.utils.data import DistributedSampler

    class RankShare(DistributedSampler[Any]):
        """One rank's microbatches; refuses to be divided among the processes of Accelerate once more."""

        def __iter__(self) -> Iterator[Any]:
            refuse_second_division(self.rank, self.num_replicas)
            return super().__iter__()

    return RankShare


def get_dataloader_and_lr_scheduler_for_variable_batch_size(  # noqa: PLR0917 - DeepSpeed's signature
    dataset: Any,
    dataset_seqlens: Sequence[int] | npt.NDArray[Any],
    max_tokens: int,
    effective_batch_size: int,
    dataset_filter_ids: Sequence[int] | npt.NDArray[Any] | None = None,
    lr_scaling_method: str | None = "linear",
    min_batch_size: int | None = 1,
    max_batch_size: int | None = None,
    sequence_picking_order: str = "dataloader",
    dataloader_batch_size: int = 1,
    dataloader_rank: int = 0,
    dataloader_num_replicas: int = 1,
    dataloader_num_workers: int = 0,
    dataloader_collate_fn: Callable[[list[Any]], Any] | None = None,
    dataloader_pin_memory: bool = False,
    lr_scheduler_or_optimizer: LRScheduler | Optimizer | None = None,
    required_microbatches_of_same_size: bool = False,
    required_microbatches_of_same_seqlen: bool = False,
    sample_padding_fn: Callable[[Any, int], Any] | None = None,
    verbose: bool = False,
    seed: int | None = None,
) -> tuple[DataLoader[Any], LRScheduler, dict[str, Any]]:
    """DeepSpeed's call of the same name: batches, loader and learning-rate scheduler in one.

    Raises:
        ConfigError: without `lr_scheduler_or_optimizer`, and as the parts do.
    """
    if lr_scheduler_or_optimizer is None:
        raise ConfigError("lr_scheduler_or_optimizer is None: give the optimizer or scheduler whose rates to scale")
    microbatches, sizes, longest = batch_by_seqlens(
        dataset_seqlens,
        max_tokens,
        sequence_ids_per_mb=dataset_filter_ids,
        min_batch_size=min_batch_size,
        max_batch_size=max_batch_size,
        sequence_picking_order=sequence_picking_order,
        effective_batch_size=effective_batch_size,
        required_microbatches_of_same_size=required_microbatches_of_same_size,
        verbose=verbose,
        seed=seed,
    )
    loader, engine_arguments = dataloader_for_variable_batch_size(
        dataset,
        microbatches,
        longest,
        dataloader_rank=dataloader_rank,
        dataloader_batch_size=dataloader_batch_size,
        dataloader_num_replicas=dataloader_num_replicas,
        dataloader_collate_fn=dataloader_collate_fn,
        dataloader_num_workers=dataloader_num_workers,
        dataloader_pin_memory=dataloader_pin_memory,
        required_microbatches_of_same_seqlen=required_microbatches_of_same_seqlen,
        sample_padding_fn=sample_padding_fn,
    )
    scheduler = lr_scheduler_for_variable_batch_size(
        effective_batch_size, sizes, loader, lr_scheduler_or_optimizer, lr_scaling_method, verbose
    )
    return loader, scheduler, engine_arguments
