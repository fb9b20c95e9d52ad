"""The content of Python objects, tensors and arrays as bytes that are the same in every process."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import xxhash

from arrowds.errors import SourceError

Update = Callable[[bytes | memoryview], object]


def feed(sample: Any, update: Update) -> None:
    """Pass the type and the content of a sample to `update`; raises SourceError where content can't be had.

    >>> feed((1, "a"), print)
    b't\\x02\\x00\\x00\\x00\\x00\\x00\\x00\\x00'
    b'i1;'
    b's\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00'
    b'a'
    """
    if sample is None or isinstance(sample, bool | int):
        update(f"i{sample};".encode())
    elif isinstance(sample, float):
        update(b"f" + struct.pack("<d", sample))
    elif isinstance(sample, str):
        _feed_bytes(b"s", sample.encode("utf-8", "surrogatepass"), update)
    elif isinstance(sample, bytes | bytearray | memoryview):
        _feed_bytes(b"b", bytes(sample), update)
    elif isinstance(sample, np.ndarray | np.generic) and sample.dtype.kind not in "OV":
        _feed_array(np.asarray(sample), update)
    elif type(sample).__module__ == "torch" and hasattr(sample, "untyped_storage"):
        _feed_tensor(sample, update)
    elif isinstance(sample, Mapping):
        update(b"d" + struct.pack("<Q", len(sample)))
        for key, value in sample.items():
            feed(key, update)
            feed(value, update)
    elif isinstance(sample, tuple | list):
        update((b"t" if isinstance(sample, tuple) else b"l") + struct.pack("<Q", len(sample)))
        for item in sample:
            feed(item, update)
    elif isinstance(sample, AbstractSet):
        _feed_bytes(b"x", "".join(sorted(map(_digest, sample))).encode(), update)
    else:
        _feed_pickle(sample, update)


def _feed_bytes(tag: bytes, data: bytes, update: Update) -> None:
    update(tag + struct.pack("<Q", len(data)))
    update(data)


def _feed_array(array: np.ndarray[Any, Any], update: Update) -> None:
    update(f"a{array.dtype.str}{array.shape};".encode())
    update(np.ascontiguousarray(array).tobytes())


def _feed_tensor(tensor: Any, update: Update) -> None:
    import torch

    plain = tensor.detach().cpu().contiguous()
    update(f"T{plain.dtype}{tuple(plain.shape)};".encode())
    update(plain.reshape(-1).view(torch.uint8).numpy().tobytes())


def _feed_pickle(sample: Any, update: Update) -> None:
    """Other objects (images, dataclasses) through their pickled state, which is written here and never read back."""
    try:
        data = pickle.dumps(sample, protocol=5)
    except Exception as error:
        raise SourceError(
            f"can't tell the content of a {type(sample).__name__} ({error}); "
            "name the data with TorchSource(..., fingerprint=...)"
        ) from error
    _feed_bytes(b"p", data, update)


def _digest(item: Any) -> str:
    state = xxhash.xxh3_128()
    feed(item, state.update)
    return state.hexdigest()
