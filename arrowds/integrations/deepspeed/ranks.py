"""Steps that all processes of a torch.distributed group take together."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar, cast

from arrowds.errors import WorkerDiedError

Result = TypeVar("Result")


def is_initialized() -> bool:
    """Return whether this process is in a torch.distributed group, without loading torch."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


def together(step: Callable[[], Result], group: Any = None) -> Result:
    """Run ``step`` and wait until every process of the group has run its own; without a group, just run it.

    Raises:
        WorkerDiedError: when the step of another process failed; without this, the others would wait forever.
    """
    if not is_initialized():
        return step()
    import torch.distributed as dist

    result: Result | None = None
    error: Exception | None = None
    try:
        result = step()
    except Exception as failure:
        error = failure
    failures: list[str | None] = [None] * dist.get_world_size(group)
    dist.all_gather_object(failures, None if error is None else f"{type(error).__name__}: {error}", group=group)
    if error is not None:
        raise error
    failed = {rank: text for rank, text in enumerate(failures) if text is not None}
    if failed:
        raise WorkerDiedError("; ".join(f"rank {rank} failed with {text}" for rank, text in failed.items()))
    return cast(Result, result)
