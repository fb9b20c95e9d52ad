"""Refuses that one rank's share of the batches is divided among processes once more."""

from __future__ import annotations

import sys
from types import FrameType

from arrowds.errors import ConfigError


def refuse_second_division(rank: int, world_size: int) -> None:
    """Refuse to be divided by Accelerate among its processes, where this is the share of one rank already.

    ``accelerator.prepare`` wraps the batch sampler of a torch DataLoader and deals its batches out to the processes. Of
    a sampler that was made with ``rank`` and ``world_size`` each process would then get a share of a share, and most
    samples would be skipped. The wrapper is found among the callers.

    Raises:
        ConfigError: when one of Accelerate's wrappers for several processes asks.
    """
    accelerate = sys.modules.get("accelerate.data_loader")
    if world_size == 1 or accelerate is None:
        return
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        caller = frame.f_locals.get("self")
        processes = (
            caller.num_processes
            if isinstance(caller, accelerate.BatchSamplerShard)
            else caller.state.num_processes
            if isinstance(caller, accelerate.DataLoaderDispatcher)
            else 1
        )
        if processes > 1:
            raise ConfigError(
                f"this sampler yields the share of rank {rank} of {world_size}, and accelerator.prepare would divide "
                f"it among {processes} processes once more: leave the loader out of prepare(), or make the sampler "
                "with rank=0 and world_size=1"
            )
        frame = frame.f_back
