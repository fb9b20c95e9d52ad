"""One type for a column of which several blocks of text were read as several types; pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from arrowds.errors import SourceError


def merge_schemas(schemas: Sequence[pa.Schema], path: Path, *, text_wins: bool) -> pa.Schema:
    """All columns, in the order of their first appearance, with a type that holds the values of every schema.

    `text_wins`: types that don't fit become a string (CSV, where the text is at hand); else SourceError names `path`.

    >>> merge_schemas([pa.schema({"a": pa.int64()}), pa.schema({"a": pa.float64()})], Path("x"), text_wins=False)
    a: double
    """
    types: dict[str, pa.DataType] = {}
    for schema in schemas:
        for field in schema:
            merged = merge_types(types.get(field.name, pa.null()), field.type)
            if merged is None and not text_wins:
                raise SourceError(
                    f"{path}: column {field.name!r} is {types[field.name]} in some rows and {field.type} in others; "
                    "give it one type"
                )
            types[field.name] = pa.string() if merged is None else merged
    return pa.schema(types)


def merge_types(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """The type that holds the values of both as pyarrow's JSON and CSV readers infer them, or None.

    >>> merge_types(pa.list_(pa.null()), pa.list_(pa.int64()))
    ListType(list<item: int64>)
    >>> merge_types(pa.int64(), pa.bool_()) is None
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
    if {a, b} == {pa.int64(), pa.float64()}:
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
