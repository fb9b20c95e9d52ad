"""NumPy arrays as Arrow arrays and back, without a copy.

pyarrow's own conversions first import pandas, wherever it is installed, to look for its types: up to a second in which
nothing is converted. Buffers need no such detour.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def arrow_view(values: np.ndarray, *, missing: np.ndarray | None = None) -> pa.Array:
    """View numbers as an Arrow array; bools are packed into bits, and strided or foreign-endian arrays are copied.

    Args:
        values: integers, float32, float64 or bool, of shape (n,).
        missing: True where the value is null, of shape (n,).

    >>> arrow_view(np.array([1.5, 2.5]), missing=np.array([False, True])).to_pylist()
    [1.5, None]
    """
    native = values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))
    kind = pa.from_numpy_dtype(native.dtype)
    data = np.packbits(native, bitorder="little") if native.dtype == np.bool_ else np.ascontiguousarray(native)
    if missing is None or not missing.any():
        return pa.Array.from_buffers(kind, len(native), [None, pa.py_buffer(data)], null_count=0)
    bitmap = pa.py_buffer(np.packbits(~missing, bitorder="little"))
    return pa.Array.from_buffers(kind, len(native), [bitmap, pa.py_buffer(data)], int(np.count_nonzero(missing)))


def numpy_view(values: pa.Array) -> np.ndarray:
    """View the numbers of an Arrow array as NumPy, read-only; bools are unpacked, and nulls have undefined values.

    >>> numpy_view(pa.array([1, 2, 3])[1:])
    array([2, 3])
    """
    if pa.types.is_boolean(values.type):
        bits = np.frombuffer(values.buffers()[1], np.uint8) if len(values) else np.empty(0, np.uint8)
        unpacked: np.ndarray = np.unpackbits(bits, bitorder="little")[values.offset : values.offset + len(values)]
        return unpacked.view(np.bool_)
    dtype = np.dtype(values.type.to_pandas_dtype())
    if len(values) == 0:
        return np.empty(0, dtype)
    return np.frombuffer(values.buffers()[1], dtype, count=len(values), offset=values.offset * dtype.itemsize)
