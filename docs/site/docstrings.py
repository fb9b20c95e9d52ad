"""A Griffe extension: docstrings for Sphinx and doctest as Markdown, and the defaults of options that are passed on."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod|obj):`~?([\w.]+)`")
_DOCTEST = re.compile(r"^( *)>>> .*(?:\n.*\S.*)*", flags=re.MULTILINE)


class Docstrings(griffe.Extension):
    """Make roles such as ``:func:`analyze``` references, and doctests blocks of code."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of one object."""
        if obj.docstring is not None:
            text = _ROLE.sub(lambda role: reference(obj, role[1]), obj.docstring.value)
            obj.docstring.value = _DOCTEST.sub(lambda code: f"{code[1]}```pycon\n{code[0]}\n{code[1]}```", text)

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        """Give options that a constructor passes on, as ``**options: Unpack[...]``, their defaults in its base."""
        for base in func.parent.resolved_bases if isinstance(func.parent, griffe.Class) else ():
            if isinstance(passed_on := base.members.get(func.name), griffe.Function):
                for parameter in func.parameters:
                    if parameter.default == "..." and parameter.name in passed_on.parameters:
                        parameter.default = passed_on.parameters[parameter.name].default


def reference(obj: griffe.Object, name: str) -> str:
    """Return the HTML of a reference to a name as it is meant in the docstring of an object.

    It is optional: a name without an entry of its own stays code.
    """
    return f'<autoref optional identifier="{target(obj, name)}"><code>{name}</code></autoref>'


def target(obj: griffe.Object, name: str) -> str:
    """Return the full name: members of the class first, then names of the module, else the name as it is."""
    first, _, rest = name.partition(".")
    if obj.parent is not None and obj.parent.is_class and first in obj.parent.members and not rest:
        return f"{obj.parent.path}.{name}"
    try:
        return f"{obj.resolve(first)}.{rest}".rstrip(".")
    except griffe.NameResolutionError:
        return name
