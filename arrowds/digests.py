"""A digest of what a Python callable does, equal in every process: finished work is kept only for the same code."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator

import numpy as np
import xxhash

from arrowds.batch import as_numpy


def callable_digest(function: Callable[..., object]) -> str:
    """Return 32 hexadecimal digits over what decides the result of a callable, the same in every run of a script.

    That is its code, constants, defaults and closure; the functions of its own module that it names, with what decides
    theirs; the plain data (numbers, strings, arrays and containers) among the global variables that it names; for an
    object, its attributes and the methods of its class. Code of other modules counts by its name.

    >>> callable_digest(lambda x: x + 1) == callable_digest(lambda x: x + 2)
    False
    """
    digest = xxhash.xxh3_128()
    _update(digest, function, seen={})
    return digest.hexdigest()


def _update(digest: xxhash.xxh3_128, value: object, *, seen: dict[int, object]) -> None:
    """Feed ``value`` to the digest, each object that can contain itself once."""
    if isinstance(value, int | float | complex | str | bytes | bool | None | types.EllipsisType):
        digest.update(f"{type(value).__name__}:{value!r};".encode())
        return
    if id(value) in seen:
        digest.update(b"^")
        return
    # Equal constants may or may not be one object, so they count every time. What is seen is kept, or its id would go
    # to another object.
    if not isinstance(value, tuple | frozenset | types.CodeType):
        seen[id(value)] = value
    digest.update(f"<{type(value).__module__}.{type(value).__qualname__}".encode())
    for part in _parts(value):
        _update(digest, part, seen=seen)
    digest.update(b">")


def _parts(value: object) -> list[object]:
    """Return what an object consists of, as far as it decides what a callable does."""
    array = np.asarray(value) if isinstance(value, np.generic) else as_numpy(value)
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
    methods = [found for found in vars(type(value)).values() if isinstance(found, types.FunctionType)]
    return [methods, getattr(value, "__dict__", None)]


def _function_parts(function: types.FunctionType) -> list[object]:
    cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    named = [function.__globals__.get(name) for name in sorted(set(_names(function.__code__)))]
    used = [found for found in named if _is_plain(found) or _is_helper(found, function.__module__)]
    return [function.__code__, function.__defaults__, function.__kwdefaults__, cells, used]


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the global names in a function, those in its lambdas and comprehensions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, (*value.keys(), *value.values())))
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    return isinstance(value, int | float | complex | str | bytes | np.generic) or as_numpy(value) is not None


def _is_helper(value: object, module: str) -> bool:
    return isinstance(value, types.FunctionType | functools.partial) and (
        getattr(value, "__module__", module) == module
    )


def _is_filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
