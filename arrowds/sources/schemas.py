"""One schema for files whose schemas differ in ways that lose nothing; pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import pyarrow as pa

from arrowds.errors import ConfigError
from arrowds.sources.base import plain_schema

_SIGNED = (pa.int8(), pa.int16(), pa.int32(), pa.int64())
_UNSIGNED = (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())
_FLOATS = (pa.float16(), pa.float32(), pa.float64())
# Bits of an integer that a float of each width holds.
_MANTISSA = {16: 11, 32: 24, 64: 53}
_UNITS = ("s", "ms", "us", "ns")

SchemaLike: TypeAlias = "pa.Schema | Mapping[str, pa.DataType | str]"
"""Columns and their types, which may be given by name."""


def schema_of(columns: SchemaLike | None) -> pa.Schema:
    """The schema that was given, without metadata; raises ConfigError for an unknown type.

    >>> schema_of({"id": "uint64", "tokens": "list<int32>"})
    id: uint64
    tokens: list<item: int32>
      child 0, item: int32
    """
    if isinstance(columns, pa.Schema):
        return plain_schema(columns)
    if not isinstance(columns, Mapping | None):
        raise ConfigError(f"expected a pyarrow.Schema or a mapping of columns to types, got {columns!r}")
    return pa.schema([(name, _type_of(name, kind)) for name, kind in (columns or {}).items()])


def _type_of(column: str, kind: pa.DataType | str) -> pa.DataType:
    if isinstance(kind, pa.DataType):
        return kind
    text = str(kind).replace(" ", "")
    if text.startswith("list<") and text.endswith(">"):
        return pa.list_(_type_of(column, text[5:-1]))
    try:
        return pa.type_for_alias(text)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"unknown type {kind!r} of column {column!r}; expected a name such as int64, uint64, float64, string, "
            "bool, timestamp[us] or list<int32>"
        ) from error


def schema_difference(expected: pa.Schema, found: pa.Schema) -> str:
    """What `found` lacks, has too much or types otherwise than `expected`, in words; empty where nothing. Pure.

    >>> schema_difference(pa.schema({"a": pa.int8(), "b": pa.int8()}), pa.schema({"a": pa.string()}))
    "column 'b' is missing; column 'a' is string instead of int8"
    """
    missing = [f"column {name!r} is missing" for name in expected.names if name not in found.names]
    extra = [f"column {name!r} is additional" for name in found.names if name not in expected.names]
    other = [
        f"column {field.name!r} is {found.field(field.name).type} instead of {field.type}"
        for field in expected
        if field.name in found.names and found.field(field.name).type != field.type
    ]
    return "; ".join([*missing, *extra, *other])


def common_type(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both without a loss, or None.

    >>> common_type(pa.string(), pa.large_string()), common_type(pa.list_(pa.int32()), pa.large_list(pa.int64()))
    (DataType(large_string), LargeListType(large_list<item: int64>))
    >>> common_type(pa.int64(), pa.float64()) is None
    True
    """
    if a == b or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    for kind, other in ((a, b), (b, a)):
        if pa.types.is_dictionary(kind):
            return common_type(kind.value_type, other.value_type if pa.types.is_dictionary(other) else other)
    for is_kind, large in ((_is_text, pa.large_string()), (_is_binary, pa.large_binary())):
        if is_kind(a) and is_kind(b):
            return large
    if _is_list(a) and _is_list(b):
        item = common_type(a.value_type, b.value_type)
        wide = pa.types.is_large_list(a) or pa.types.is_large_list(b)
        return None if item is None else pa.large_list(item) if wide else pa.list_(item)
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        return _common_struct(a, b)
    if pa.types.is_timestamp(a) and pa.types.is_timestamp(b) and a.tz == b.tz:
        return pa.timestamp(max(a.unit, b.unit, key=_UNITS.index), a.tz)
    return _common_number(a, b)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _common_struct(a: pa.StructType, b: pa.StructType) -> pa.StructType | None:
    if [field.name for field in a] != [field.name for field in b]:
        return None
    types = [common_type(first.type, second.type) for first, second in zip(a, b, strict=True)]
    return None if None in types else pa.struct([(field.name, kind) for field, kind in zip(a, types, strict=True)])


def _common_number(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """The smallest integer or float type that holds both."""
    for family in (_SIGNED, _UNSIGNED, _FLOATS):
        if a in family and b in family:
            return max(a, b, key=lambda kind: kind.bit_width)
    for kind, other in ((a, b), (b, a)):
        if kind in _UNSIGNED and other in _SIGNED:
            return next((wide for wide in _SIGNED if wide.bit_width >= max(2 * kind.bit_width, other.bit_width)), None)
        if kind in (*_UNSIGNED, *_SIGNED) and other in _FLOATS:
            bits = kind.bit_width - (kind in _SIGNED)
            return other if bits <= _MANTISSA[other.bit_width] else pa.float64() if bits <= 53 else None
    return None
