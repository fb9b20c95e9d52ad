"""What a causal language model makes of windows of tokens: the nats that it needs for each."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from arrowds.errors import MetricError, MetricValueError
from arrowds.metrics.models.windows import Windows, padded

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_IGNORED = -100
"""The target that torch's cross_entropy leaves out."""

_LOGITS_AT_A_TIME = 1 << 26
"""Logits of which there is a float32 copy at a time: 256 MiB."""

_fitting: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""Tokens of a forward that models are given since a larger one ran out of memory, in this process."""


def nats_of(model: torch.nn.Module, ids: np.ndarray, windows: Windows, batch_tokens: int) -> np.ndarray:
    """Return the nats of the tokens that count in each window: float64 of shape (w,).

    The windows are sorted by length, the longest first, and cut into forwards of at most ``batch_tokens`` tokens, rows
    times the longest one, or one row. What is found stays on the device until all forwards are under way.

    Args:
        model: takes token ids, int64 of shape (rows, length), and returns logits or what has ``logits``, of shape
            (rows, length, vocabulary); each position depends on those before it alone.
        ids: token ids of all samples, int64.
        windows: what is read and what counts.
        batch_tokens: halved for good when a forward runs out of memory.

    Raises:
        MetricError: when one row alone does not fit into memory, or the model returns no logits.
        MetricValueError: for token ids that are not in the model's vocabulary.
    """
    import torch

    _check_vocabulary(model, ids)
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    order, lengths = np.argsort(-windows.lengths, kind="stable"), windows.lengths
    found: list[torch.Tensor] = []
    done = 0
    with torch.no_grad(), evaluating(model):
        while done < len(order):
            longest = int(lengths[order[done]])
            chosen = order[done : done + max(min(batch_tokens, _fitting.get(model, batch_tokens)) // longest, 1)]
            sums = _sums(model, padded(ids, windows, chosen, _IGNORED), device)
            if sums is None:
                _fit(model, len(chosen), longest)
                continue
            found.append(sums)
            done += len(chosen)
    nats = np.empty(len(order))
    if found:
        nats[order] = torch.cat(found).cpu().numpy()
    return nats


def _sums(model: torch.nn.Module, both: np.ndarray, device: torch.device) -> torch.Tensor | None:
    """Return the nats of each row, float32 on the device; None where memory does not suffice."""
    import torch

    tensor = torch.from_numpy(both)
    try:
        if device.type == "cuda":
            tensor = tensor.pin_memory()
        read, wanted = tensor.to(device, non_blocking=True)
        logits = _logits(model, read)
        return _cross_entropies(logits, wanted).sum(dim=1)
    except torch.OutOfMemoryError:
        return None


def _fit(model: torch.nn.Module, rows: int, longest: int) -> None:
    """Let later forwards have half of the tokens that did not fit."""
    import torch

    if rows == 1:
        raise MetricError(
            f"the device ran out of memory on one window of {longest} tokens; a smaller max_length, "
            "dtype='bfloat16', or a device with more free memory helps"
        )
    _fitting[model] = rows * longest // 2
    logger.warning("out of memory on %d rows of %d tokens; going on with half of them", rows, longest)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _logits(model: torch.nn.Module, read: torch.Tensor) -> torch.Tensor:
    has_cache = hasattr(getattr(model, "config", None), "use_cache")
    result = model(read, use_cache=False) if has_cache else model(read)
    result = result[0] if isinstance(result, tuple) else getattr(result, "logits", result)
    shape = getattr(result, "shape", None)
    if shape is None or len(shape) != 3 or shape[:2] != read.shape:
        got = type(result).__name__ if shape is None else f"shape {tuple(shape)}"
        raise MetricError(
            f"the model returned {got} for token ids of shape {tuple(read.shape)}; expected logits of shape (rows, "
            "length, vocabulary), as those of transformers.AutoModelForCausalLM"
        )
    logits: torch.Tensor = result
    return logits


def _cross_entropies(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Return the nats of each target, 0 for those that are ignored, in float32 whatever the model computes in."""
    import torch
    from torch.nn.functional import cross_entropy

    flat, targets = logits.reshape(-1, logits.shape[-1]), wanted.reshape(-1)
    step = max(_LOGITS_AT_A_TIME // flat.shape[1], 1)
    pieces = [
        cross_entropy(flat[start : start + step].float(), targets[start : start + step], reduction="none")
        for start in range(0, len(flat), step)
    ]
    return torch.cat(pieces).view(wanted.shape)


def _check_vocabulary(model: torch.nn.Module, ids: np.ndarray) -> None:
    """Refuse ids that the model has no embedding of: on a GPU they would end the process's use of it."""
    embeddings = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None  # type: ignore[operator]
    size = getattr(embeddings, "num_embeddings", None)
    if len(ids) and (ids.min() < 0 or (size is not None and ids.max() >= size)):
        wrong = int(ids.min()) if ids.min() < 0 else int(ids.max())
        raise MetricValueError(
            f"token id {wrong} is not one of the model's"
            + ("" if size is None else f" {size} ids from 0")
            + "; was the data "
            "tokenized for another model?"
        )


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Leave dropout and the like out for a while, and put every module back into its mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
