"""One type for a column of text that was read block by block, such that no value changes; pure functions.

While types are inferred, an integer has one of five kinds, by what else can hold it; Arrow types that pyarrow's readers
never infer stand for them, and `settled` replaces these by what the columns are read as.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from arrowds.errors import SourceError
from arrowds.sources.objects import ObjectPath

EXACT_IN_FLOAT = 2**53
"""The largest magnitude up to which float64 holds every integer."""

# Whether it may be negative, and its size: exact in float64 (0), within int64 (1), within uint64 (2).
_KINDS = {
    pa.uint8(): (False, 0),
    pa.int8(): (True, 0),
    pa.uint16(): (False, 1),
    pa.int16(): (True, 1),
    pa.uint64(): (False, 2),
}
_TYPE_OF_KIND = {kind: marker for marker, kind in _KINDS.items()}


def _kind_of_range(low: int, high: int) -> pa.DataType | None:
    """The kind of integers from `low` to `high`; None where 64 bits don't hold them."""
    if max(high, -low) <= EXACT_IN_FLOAT:
        size = 0
    elif max(high, -low - 1) < 2**63:
        size = 1
    else:
        size = 2 if low >= 0 and high < 2**64 else 3
    return _TYPE_OF_KIND.get((low < 0, size))


def kind_of(values: pa.Array | pa.ChunkedArray) -> pa.DataType:
    """The type of a column as it was read, with the kinds of its integers.

    >>> kind_of(pa.array([[1], [-1, 2**60]])) == pa.list_(pa.int16())
    True
    """
    kind = values.type
    if pa.types.is_integer(kind):
        low, high = (bound.as_py() for bound in pc.min_max(values).values())
        return pa.null() if low is None else _kind_of_range(low, high)
    if pa.types.is_list(kind):
        return pa.list_(kind_of(pc.list_flatten(values)))
    if pa.types.is_struct(kind):
        chunks = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
        columns = [pa.chunked_array([chunk.field(i) for chunk in chunks], kind[i].type) for i in range(len(kind))]
        return pa.struct([(kind[i].name, kind_of(column)) for i, column in enumerate(columns)])
    return kind


def has_large_floats(values: pa.Array | pa.ChunkedArray) -> bool:
    """Whether some float is so large that it may be an integer that was rounded."""
    kind = values.type
    if pa.types.is_floating(kind):
        low, high = (bound.as_py() for bound in pc.min_max(values).values())
        return low is not None and max(high, -low) >= EXACT_IN_FLOAT
    if pa.types.is_list(kind):
        return has_large_floats(pc.list_flatten(values))
    if pa.types.is_struct(kind):
        chunks = values.chunks if isinstance(values, pa.ChunkedArray) else [values]
        return any(has_large_floats(chunk.field(i)) for chunk in chunks for i in range(len(kind)))
    return False


def exact_kind(name: str, values: Sequence[Any], kind: pa.DataType) -> pa.DataType:
    """The kind of parsed JSON values that were read as `kind`, with exact integers.

    Raises SourceError where integers would be rounded, for no type of 64 bits holds all values of the column.

    >>> exact_kind("x", [1, 2**63], pa.float64())
    DataType(uint64)
    """
    present = [value for value in values if value is not None]
    if pa.types.is_list(kind):
        return pa.list_(exact_kind(name, [item for value in present for item in value], kind.value_type))
    if pa.types.is_struct(kind):
        fields = [(field.name, [value.get(field.name) for value in present], field.type) for field in kind]
        return pa.struct([(key, exact_kind(name, items, item_kind)) for key, items, item_kind in fields])
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        return kind
    integers = [value for value in present if isinstance(value, int)]
    if pa.types.is_integer(kind):
        return _kind_of_range(min(integers), max(integers)) if integers else pa.null()
    rounded = [value for value in integers if abs(value) > EXACT_IN_FLOAT]
    if not rounded:
        return kind
    found = _kind_of_range(min(integers), max(integers)) if len(integers) == len(present) else None
    if found is None:
        raise SourceError(
            f"column {name!r} has the integer {rounded[0]}, and no type of 64 bits holds it and the column's other "
            'values exactly; give the column a type, as with schema={"' + name + '": "float64"}'
        )
    return found


def text_stays_text(kind: pa.DataType) -> pa.DataType:
    """The type with strings for the timestamps that pyarrow makes of JSON strings.

    >>> text_stays_text(pa.list_(pa.timestamp("s")))
    ListType(list<item: string>)
    """
    if pa.types.is_timestamp(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(text_stays_text(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, text_stays_text(field.type)) for field in kind])
    return kind


def settled(kind: pa.DataType) -> pa.DataType:
    """The type with int64 or uint64 for each kind of integer.

    >>> settled(pa.list_(pa.uint8()))
    ListType(list<item: int64>)
    """
    if kind in _KINDS:
        return pa.uint64() if _KINDS[kind][1] == 2 else pa.int64()
    if pa.types.is_list(kind):
        return pa.list_(settled(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, settled(field.type)) for field in kind])
    return kind


def merge_schemas(schemas: Sequence[pa.Schema], path: Path | ObjectPath, *, text_wins: bool) -> pa.Schema:
    """All columns, in the order of their first appearance, with a type that holds the values of every schema.

    `text_wins`: types that don't fit become a string (CSV, where the text is at hand); else SourceError names `path`.

    >>> merge_schemas([pa.schema({"a": pa.uint8()}), pa.schema({"a": pa.float64()})], Path("x"), text_wins=False)
    a: double
    """
    types: dict[str, pa.DataType] = {}
    for schema in schemas:
        for field in schema:
            merged = merge_types(types.get(field.name, pa.null()), field.type)
            if merged is None and not text_wins:
                raise SourceError(
                    f"{path}: column {field.name!r} is {settled(types[field.name])} in some rows and "
                    f"{settled(field.type)} in others, and no type holds both exactly; give it one type, as with "
                    'schema={"' + field.name + '": "float64"}'
                )
            types[field.name] = pa.string() if merged is None else merged
    return pa.schema(types)


def merge_types(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both exactly, of the types that are inferred, or None.

    >>> merge_types(pa.list_(pa.null()), pa.list_(pa.uint8())) == pa.list_(pa.uint8())
    True
    >>> merge_types(pa.uint16(), pa.float64()) is None
    True
    """
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    if pa.types.is_list(a) and pa.types.is_list(b):
        item = merge_types(a.value_type, b.value_type)
        return None if item is None else pa.list_(item)
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        return _merge_structs(a, b)
    if a in _KINDS and b in _KINDS:
        return _TYPE_OF_KIND.get((_KINDS[a][0] or _KINDS[b][0], max(_KINDS[a][1], _KINDS[b][1])))
    if pa.float64() in (a, b) and any(kind in _KINDS and _KINDS[kind][1] == 0 for kind in (a, b)):
        return pa.float64()
    if {a, b} == {pa.string(), pa.binary()}:
        return pa.binary()
    if pa.types.is_temporal(a) and pa.types.is_temporal(b) and (instant := _merge_instants(a, b)) is not None:
        return instant
    texts = [kind for kind in (a, b) if pa.types.is_string(kind) or pa.types.is_temporal(kind)]
    return pa.string() if len(texts) == 2 else None


def _merge_structs(a: pa.StructType, b: pa.StructType) -> pa.StructType | None:
    fields = {field.name: field.type for field in a}
    for field in b:
        merged = merge_types(fields.get(field.name, pa.null()), field.type)
        if merged is None:
            return None
        fields[field.name] = merged
    return pa.struct(list(fields.items()))


def _merge_instants(a: pa.DataType, b: pa.DataType) -> pa.TimestampType | None:
    """Dates and timestamps without a time zone as the finest timestamp; None for anything else."""
    stamps = [kind for kind in (a, b) if pa.types.is_timestamp(kind)]
    if not stamps or len({kind.tz for kind in stamps}) > 1:
        return None
    if len(stamps) == 2:
        return pa.timestamp("ns", stamps[0].tz)
    return stamps[0] if stamps[0].tz is None and pa.types.is_date32(a if stamps[0] == b else b) else None
