"""Whether Arrow data from a file is what its metadata say, so that no damage becomes a wrong length or a crash."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa


def check_array(array: pa.Array, *, text: bool = True) -> None:
    """Raise ArrowInvalid unless every offset, length and index of the array is valid, and its `text` UTF-8.

    The cost is that of the rows of the array: only those values of a list's child that the rows refer to are looked at,
    and of numbers none. What can't be told from valid data, such as another number, is for digests to notice.

    >>> lists = pa.ListArray.from_buffers(pa.list_(pa.int8()), 2, [None, pa.array([0, 9, 1], pa.int32()).buffers()[1]],
    ...     children=[pa.array([1], pa.int8())])
    >>> check_array(lists)
    Traceback (most recent call last):
    pyarrow.lib.ArrowInvalid: list offsets decrease: 9 is followed by 1
    """
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        check_array(array.storage, text=text)
    elif isinstance(kind, pa.ListType | pa.LargeListType | pa.MapType):
        array.validate()
        check_array(_children(array, _offsets(array)), text=text)
    elif isinstance(kind, pa.FixedSizeListType):
        array.validate()
        check_array(array.values.slice(array.offset * kind.list_size, len(array) * kind.list_size), text=text)
    elif isinstance(kind, pa.StructType):
        array.validate()
        for number in range(len(kind)):
            check_array(array.field(number), text=text)
    elif not text and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        array.view(pa.binary() if pa.types.is_string(kind) else pa.large_binary()).validate(full=True)
    else:
        array.validate(full=True)


def _offsets(array: Any) -> np.ndarray[Any, Any]:
    """The offsets of the rows of a list or map array, which `validate` found to be long enough."""
    dtype = np.int64 if isinstance(array.type, pa.LargeListType) else np.int32
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.zeros(1, dtype)
    offsets = np.frombuffer(buffer, dtype)[array.offset : array.offset + len(array) + 1]
    falls = np.flatnonzero(np.less(offsets[1:], offsets[:-1]))
    if len(falls):
        first = int(falls[0])
        raise pa.ArrowInvalid(f"list offsets decrease: {offsets[first]} is followed by {offsets[first + 1]}")
    return offsets


def _children(array: Any, offsets: np.ndarray[Any, Any]) -> pa.Array:
    """The part of the child that the rows refer to."""
    values = _map_entries(array) if isinstance(array.type, pa.MapType) else array.values
    first, last = int(offsets[0]), int(offsets[-1])
    if not 0 <= first <= last <= len(values):
        raise pa.ArrowInvalid(f"list offsets {first} to {last} lie outside the {len(values)} values")
    return values.slice(first, last - first)


def _map_entries(array: pa.MapArray) -> pa.StructArray:
    return pa.StructArray.from_arrays([array.keys, array.items], ["key", "value"])
