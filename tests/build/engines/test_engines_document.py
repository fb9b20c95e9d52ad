"""docs/scale.md names every option of the engines; tests/test_documents.py runs its metric function."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from arrowds.build.engines import RayEngine, TorchEngine

TEXT = (Path(__file__).parents[3] / "docs" / "scale.md").read_text(encoding="utf-8")


def test_every_option_of_an_engine_is_named_with_its_default():
    table = re.search(r"\| engine \| option \|.*?\n\n", TEXT, re.DOTALL)[0]
    named: dict[str, list[tuple[str, str]]] = {}
    for row in table.strip().splitlines()[2:]:
        engine, options = (cell.strip() for cell in row.split("|")[1:3])
        current = named.setdefault(engine.strip("`"), []) if engine else named[list(named)[-1]]
        current += re.findall(r"`(\w+)`(?: \((\d+)\))?", options)
    for engine in (RayEngine, TorchEngine):
        parameters = inspect.signature(engine).parameters.values()
        expected = [(one.name, f"{one.default:g}" if one.default is not None else "") for one in parameters]
        assert named[engine.__name__] == expected
