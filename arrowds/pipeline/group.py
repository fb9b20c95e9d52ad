"""The processes that train together: the rank of this one, and the torch.distributed group during a run."""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from arrowds.errors import ConfigError, MissingExtraError


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranks:
    """One process among those that train."""

    rank: int = 0
    world_size: int = 1

    def mean(self, value: float, device: Any) -> float:
        """Return the mean of a number over all processes."""
        return self.total(value, device) / self.world_size

    def total(self, value: float, device: Any) -> float:
        """Return the sum of a number over all processes."""
        if self.world_size == 1:
            return value
        import torch
        import torch.distributed as dist

        summed = torch.tensor([value], dtype=torch.float64, device=device)
        dist.all_reduce(summed)
        return float(summed)


@contextmanager
def process_group(*, deepspeed: bool = False) -> Iterator[Ranks]:
    """Join the processes that ``torchrun`` or DeepSpeed's launcher started, by their variables; leave at the end.

    An existing group is used and kept.

    Args:
        deepspeed: create a group for a single process too, and keep it until the process ends: DeepSpeed caches the
            first groups that it uses.

    Raises:
        ConfigError: when the launcher's variables are invalid.
        MissingExtraError: when torch is not installed.
    """
    try:
        import torch.distributed as dist
    except ImportError as error:
        raise MissingExtraError("torch", "torch") from error
    if dist.is_available() and dist.is_initialized():
        yield Ranks(rank=dist.get_rank(), world_size=dist.get_world_size())
        return
    rank, world_size = _from_environment()
    if world_size == 1 and not deepspeed:
        yield Ranks()
        return
    _join(rank, world_size)
    if deepspeed:
        atexit.register(_leave)
    try:
        yield Ranks(rank=rank, world_size=world_size)
    finally:
        if not deepspeed:
            _leave()


def _leave() -> None:
    """Leave the group; threads that are still running when the interpreter ends would abort the process."""
    import torch.distributed as dist

    if dist.is_initialized():
        gc.collect()  # a model trained in parallel is in reference cycles that keep the group alive
        dist.destroy_process_group()


def _join(rank: int, world_size: int) -> None:
    import torch
    import torch.distributed as dist

    accelerated = torch.cuda.is_available()
    if accelerated:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    # A single process needs no port, which could be in use.
    store = dist.HashStore() if world_size == 1 else None  # type: ignore[attr-defined]  # public, but not in __all__
    dist.init_process_group("nccl" if accelerated else "gloo", store=store, rank=rank, world_size=world_size)


def _from_environment() -> tuple[int, int]:
    values = {name: os.environ.get(name, default) for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"))}
    try:
        rank, world_size = (int(value) for value in values.values())
    except ValueError as error:
        raise ConfigError(f"the launcher's variables must be integers, got {values}") from error
    if not 0 <= rank < world_size:
        raise ConfigError(
            f"the launcher's variables give rank {rank} of {world_size}; start with torchrun or deepspeed"
        )
    return rank, world_size
