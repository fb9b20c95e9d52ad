"""A digest of what a Python callable does, equal in every process: finished work is kept only for the same code."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable

import xxhash

from arrowds.batch import as_numpy


def callable_digest(function: Callable[..., object]) -> str:
    """Return 32 hexadecimal digits over the code, constants, defaults, closure and same-module helpers of a callable.

    Unlike a pickle, it is the same in every run of a script. State of objects beyond numbers, strings, arrays and
    containers of them counts only by its type.

    >>> callable_digest(lambda x: x + 1) == callable_digest(lambda x: x + 2)
    False
    """
    digest = xxhash.xxh3_128()
    _update(digest, function, seen=set())
    return digest.hexdigest()


def _update(digest: xxhash.xxh3_128, value: object, *, seen: set[int]) -> None:
    """Feed ``value`` to the digest, each object once."""
    if isinstance(value, int | float | complex | str | bytes | bool | None | types.EllipsisType):
        digest.update(f"{type(value).__name__}:{value!r};".encode())
        return
    if id(value) in seen:
        return
    seen.add(id(value))
    digest.update(f"<{type(value).__module__}.{type(value).__qualname__}".encode())
    for part in _parts(value):
        _update(digest, part, seen=seen)
    digest.update(b">")


def _parts(value: object) -> list[object]:
    """Return what an object consists of, as far as it decides what a callable does."""
    array = as_numpy(value)
    if array is not None:
        return [array.dtype.str, str(array.shape), array.tobytes()]
    if isinstance(value, types.FunctionType):
        return _function_parts(value)
    if isinstance(value, types.CodeType):
        return [value.co_code, value.co_names, *value.co_consts]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, dict):
        return [item for pair in value.items() for item in pair]
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, set | frozenset):
        return [*sorted(map(repr, value))]  # sets have no order that two processes share
    if isinstance(value, types.ModuleType | type | types.BuiltinFunctionType):
        return [getattr(value, "__module__", ""), getattr(value, "__qualname__", getattr(value, "__name__", ""))]
    call = getattr(type(value), "__call__", None)  # noqa: B004  # the function is wanted, not whether there is one
    return [call if isinstance(call, types.FunctionType) else None, getattr(value, "__dict__", None)]


def _function_parts(function: types.FunctionType) -> list[object]:
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    helpers = [
        found
        for name in function.__code__.co_names
        if isinstance(found := function.__globals__.get(name), types.FunctionType)
        and found.__module__ == function.__module__
    ]
    return [function.__code__, function.__defaults__, function.__kwdefaults__, cells, helpers]


def _is_filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
