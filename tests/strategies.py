"""Hypothesis strategies that several test files share."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from arrowds.schema import VALUE_TYPES


def numbers_of(kind: pa.DataType) -> st.SearchStrategy:
    """Any value of an Arrow value type but NaN: extremes, few distinct ones, subnormals, infinities, both zeros."""
    if pa.types.is_boolean(kind):
        return st.booleans()
    if pa.types.is_integer(kind):
        limits = np.iinfo(kind.to_pandas_dtype())
        low, high = int(limits.min), int(limits.max)
        few = st.integers(max(low, -3), 3)
        edges = st.integers(low, low + 3) | st.integers(high - 3, high)
        return few | edges | st.integers(low, high)
    width = kind.bit_width
    tiny = float(np.finfo(kind.to_pandas_dtype()).smallest_subnormal)
    special = st.sampled_from([0.0, -0.0, float("inf"), float("-inf"), tiny, -tiny, 1.0])
    return special | st.floats(width=width, allow_nan=False, allow_subnormal=True)


@st.composite
def value_columns(
    draw: st.DrawFn,
    *,
    kinds: tuple[pa.DataType, ...] = VALUE_TYPES,
    min_size: int = 1,
    max_size: int = 60,
    nulls: bool = False,
) -> pa.Array:
    """A column of one value type; with ``nulls`` some of it, or all, is null (or NaN, where the type has it).

    Sometimes half of it or all of it is one value, or all values are distinct.
    """
    kind = draw(st.sampled_from(kinds))
    size = draw(st.integers(min_size, max_size))
    values = numbers_of(kind)
    if nulls:
        missing = st.none() if not pa.types.is_floating(kind) else st.none() | st.just(float("nan"))
        values = draw(st.sampled_from([values, values | missing, missing]))
    shape = draw(st.sampled_from(["any", "one value", "half one value", "distinct"]))
    if shape == "distinct" and not nulls and not pa.types.is_boolean(kind) and size < 200:
        items = draw(st.lists(values, min_size=size, max_size=size, unique=True))
    else:
        items = draw(st.lists(values, min_size=size, max_size=size))
    if shape == "one value":
        items = items[:1] * size
    elif shape == "half one value":
        items[: size // 2] = items[:1] * (size // 2)
        items = draw(st.permutations(items))
    return pa.array(items, kind)


@st.composite
def chunked_columns(
    draw: st.DrawFn,
    *,
    kinds: tuple[pa.DataType, ...] = VALUE_TYPES,
    max_chunks: int = 4,
    max_size: int = 25,
    nulls: bool = True,
) -> list[pa.Array]:
    """The columns of one type that are indexed one after the other, each of which may be of another range of values."""
    kind = draw(st.sampled_from(kinds))
    column = value_columns(kinds=(kind,), max_size=max_size, nulls=nulls)
    return draw(st.lists(column, min_size=1, max_size=max_chunks))
