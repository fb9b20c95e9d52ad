"""Samples -> batch, as torch's default_collate, but without failing where samples differ in length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from arrowds.errors import MissingExtraError


def collate(samples: list[Any]) -> Any:
    """Make a batch of samples: tensors are stacked, dicts and tuples collated field by field, text stays a list.

    Differs from `torch.utils.data.default_collate` in two points. A field whose samples have different shapes becomes a
    list with one tensor per sample. A list of numbers is one field (such as token ids), not one field per position.

    Raises MissingExtraError where torch is not installed.

    >>> collate([{"ids": [1, 2], "n": 2}, {"ids": [3], "n": 1}])
    {'ids': [tensor([1, 2]), tensor([3])], 'n': tensor([2, 1])}
    """
    torch = _torch()
    first = samples[0]
    kind = type(first)
    if kind is int or kind is float or kind is bool:
        return _numbers(torch, samples)
    if isinstance(first, torch.Tensor):
        return _stack(torch, samples)
    if isinstance(first, np.ndarray) and first.dtype.kind in "biufc":
        return _stack(torch, [torch.as_tensor(sample) for sample in samples])
    if isinstance(first, np.number | np.bool_):
        return torch.as_tensor(np.array(samples))
    if isinstance(first, Mapping):
        return {key: collate([sample[key] for sample in samples]) for key in first}
    if isinstance(first, tuple) and all(isinstance(sample, tuple) and len(sample) == len(first) for sample in samples):
        fields = [collate(list(field)) for field in zip(*samples, strict=True)]
        return kind(*fields) if hasattr(first, "_fields") else fields
    if isinstance(first, list) and all(_is_number_list(sample) for sample in samples):
        return _stack(torch, [torch.tensor(sample) for sample in samples])
    return samples


def _torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "torch") from error
    return torch


def _numbers(torch: Any, samples: list[Any]) -> Any:
    """Plain Python numbers. NumPy converts a list in half the time that torch.tensor takes; the result is the same."""
    array = np.array(samples)
    is_float = isinstance(samples[0], float)
    if array.ndim == 1 and array.dtype.char in ("d" if is_float else "l?"):
        return torch.from_numpy(array)
    return torch.tensor(samples, dtype=torch.float64 if is_float else None)


def _stack(torch: Any, tensors: list[Any]) -> Any:
    """One tensor where all have one shape and dtype, else the list."""
    first = tensors[0]
    same = all(tensor.shape == first.shape and tensor.dtype == first.dtype for tensor in tensors)
    return torch.stack(tensors) if same else tensors


def _is_number_list(sample: Any) -> bool:
    return isinstance(sample, list) and all(type(item) in (int, float, bool) for item in sample)
