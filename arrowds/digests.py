"""What decides the result of a Python callable, as a digest: the one place that says what may be used again.

Content is digested where it can be: code and what it names, wherever the user has written it; plain data, arrays,
tensors and models by their bytes; other objects by what they pickle. Installed packages count by their version. What
has no content that can be told (an open file, a connection, a lock) is named: results that depend on it are not used
again.
"""

from __future__ import annotations

import functools
import io
import pickle
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash

from arrowds.batch import as_numpy

_MISSING = object()


@dataclass(frozen=True, slots=True)
class CallableDigest:
    """The digest of a callable.

    Attributes:
        digest: 32 hexadecimal digits over what decides its result, as far as that can be told.
        unknown: what can't be told, in words; empty where everything can.
    """

    digest: str
    unknown: str


def callable_digest(function: Callable[..., object]) -> CallableDigest:
    """Digest what decides the result of a callable; the same in every process that runs the same script.

    That is its code, constants, defaults and closure; the functions, classes and objects that it names, in its own
    module and in other modules of the user, with what decides theirs; arrays, tensors, models and other objects by
    their content.
    What it reads from files, the network or the environment while it runs is not known here.

    >>> callable_digest(lambda x: x + 1) == callable_digest(lambda x: x + 2)
    False
    """
    return content_digest(function)


def content_digest(value: object, *, modes: bool = True) -> CallableDigest:
    """Digest an object by its content, as :func:`callable_digest` does those that a callable names.

    Args:
        value: plain data, arrays, tensors, models, or any other object.
        modes: whether it counts that a model is in training mode.

    >>> content_digest({"a": [1, 2]}) == content_digest({"a": [1, 3]})
    False
    """
    walk = _Walk(modes=modes)
    walk.update(value)
    return CallableDigest(walk.state.hexdigest(), "; ".join(dict.fromkeys(walk.unknown)))


class _Walk:
    """One pass over everything that a value reaches, each object that can contain itself once."""

    def __init__(self, *, modes: bool) -> None:
        self.modes = modes
        self.state = xxhash.xxh3_128()
        self.unknown: list[str] = []
        self._seen: dict[int, object] = {}

    def update(self, value: object) -> None:
        """Feed a value to the digest."""
        if isinstance(value, int | float | complex | str | bytes | bool | None | types.EllipsisType):
            self.state.update(f"{type(value).__name__}:{value!r};".encode())
            return
        if id(value) in self._seen:
            self.state.update(b"^")
            return
        # Equal constants may or may not be one object, so they count every time. What is seen is kept, or its id would
        # go to another object.
        if not isinstance(value, tuple | frozenset | types.CodeType):
            self._seen[id(value)] = value
        self.state.update(f"<{type(value).__module__}.{type(value).__qualname__}".encode())
        for part in self._parts(value):
            self.update(part)
        self.state.update(b">")

    def _parts(self, value: object) -> Iterable[object]:  # a list of cases
        """What an object consists of, as far as it decides what a callable does."""
        array = np.asarray(value) if isinstance(value, np.generic) else as_numpy(value)
        if array is not None:
            if array.dtype.kind == "O":
                return [array.dtype.str, str(array.shape), *array.reshape(-1)]
            return [array.dtype.str, str(array.shape), array.tobytes()]
        match value:
            case types.CodeType():
                return [value.co_code, value.co_names, *value.co_consts]
            case types.MethodType():
                return [value.__func__, value.__self__]
            case functools.partial():
                return [value.func, value.args, value.keywords]
            case dict():
                return [item for pair in value.items() for item in pair]
            case list() | tuple():
                return list(value)
            case set() | frozenset():
                return sorted(map(repr, value))  # sets have no order that two processes share
            case types.ModuleType():
                return [value.__name__, _version(value.__name__)]
            case types.FunctionType():
                return self._function(value) if _is_users(value.__module__) else _name(value)
            case type():
                return self._class(value) if _is_users(value.__module__) else _name(value)
            case (
                types.BuiltinFunctionType() | np.ufunc() | types.MethodDescriptorType() | types.WrapperDescriptorType()
            ):
                return _name(value)
            case classmethod() | staticmethod():
                return [value.__func__]
            case property():
                return [value.fget]
        return self._object(value)

    def _function(self, function: types.FunctionType) -> list[object]:
        cells = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
        names = sorted(set(_names(function.__code__)))
        named = [found for name in names if (found := function.__globals__.get(name, _MISSING)) is not _MISSING]
        modules = [found for found in named if isinstance(found, types.ModuleType) and _is_users(found.__name__)]
        # The code says `module.helper`: both are among its names.
        reached = [getattr(module, name) for module in modules for name in names if hasattr(module, name)]
        return [function.__code__, function.__defaults__, function.__kwdefaults__, cells, named, reached]

    def _class(self, kind: type) -> list[object]:
        hidden = ("__dict__", "__weakref__", "__module__", "__doc__", "__annotations__", "__firstlineno__")
        return [kind.__qualname__, kind.__bases__, *(found for name, found in vars(kind).items() if name not in hidden)]

    def _object(self, value: object) -> Iterable[object]:
        """An object of a class: its class, and its attributes or what it pickles."""
        kind = type(value)
        if _is_torch_module(value):
            model: Any = value
            mode = [model.training] if self.modes else []
            return [kind, *mode, *model.state_dict().items(), self._plain_attributes(value)]
        attributes = getattr(value, "__dict__", None)
        if _is_users(kind.__module__) and isinstance(attributes, dict):
            return [kind, attributes]
        pickled = _pickled(value)
        if pickled is None:
            self.unknown.append(f"a {kind.__module__}.{kind.__qualname__}")
            return [kind]
        return [kind, pickled]

    def _plain_attributes(self, model: Any) -> list[object]:
        """What a model has beside its parameters, buffers and submodules: sizes, probabilities, names of modes."""
        attributes = [(name, value) for name, value in vars(model).items() if not name.startswith("_")]
        kept = [(name, value) for name, value in attributes if self.modes or name != "training"]
        children = [(name, self._plain_attributes(child), type(child)) for name, child in model.named_children()]
        return [*kept, *children]


def _is_torch_module(value: object) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.nn.Module)


def _pickled(value: object) -> bytes | None:
    """The content of an object as bytes that are written here and never read; None where it has none."""
    sink = io.BytesIO()
    try:
        pickle.Pickler(sink, protocol=5).dump(value)
    except Exception:
        return None
    return sink.getvalue()


@functools.lru_cache(maxsize=1024)
def _is_users(module: str | None) -> bool:
    """Whether a module is the user's own: neither of the standard library nor of an installed package."""
    if not module or module == "builtins":
        return False
    top = module.partition(".")[0]
    if top in sys.stdlib_module_names and top != "__main__":
        return False
    found = sys.modules.get(module) or sys.modules.get(top)
    path = getattr(found, "__file__", None)
    return path is None or not path.startswith(_installed())


@functools.cache
def _installed() -> tuple[str, ...]:
    return tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})


def _name(value: Any) -> list[object]:
    """A function or class of an installed package, by its name and the version of the package."""
    module = getattr(value, "__module__", None) or ""
    return [module, getattr(value, "__qualname__", getattr(value, "__name__", "")), _version(module)]


def _version(module: str) -> str:
    top = sys.modules.get(module.partition(".")[0])
    return str(getattr(top, "__version__", ""))


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the global names in a function, those in its lambdas and comprehensions included."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_filled(cell: types.CellType) -> bool:
    try:
        _ = cell.cell_contents
    except ValueError:
        return False
    return True
