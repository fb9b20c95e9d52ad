"""Every test that docs/reliability.md names is there, and every row of its tables names one."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TEXT = (TESTS.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`([\w/]+\.py(?:::\w+)+)`", TEXT)


@cache
def functions(path: Path) -> set[str]:
    """The names of the tests of a file, those of a class after its name; a class has those of its bases here, too."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
            if any(isinstance(base, ast.Name) and base.id == "StoreContract" for base in node.bases):
                contract = functions(TESTS / "store_contract.py")
                found |= {name.replace("StoreContract", node.name) for name in contract}
    return found


@pytest.mark.parametrize("named", NAMED)
def test_a_named_test_is_there(named):
    path, name = named.split("::", 1)
    assert Path(path).name.startswith("test_") and name.split("::")[-1].startswith("test_")
    assert (TESTS / path).is_file() and name in functions(TESTS / path)


def test_every_promise_names_a_test_and_none_is_named_in_another_way():
    rows = [line for line in TEXT.splitlines() if line.startswith("| ") and not line.startswith("| promise |")]
    assert len(rows) > 40
    assert all(len(re.findall(r"\.py::", row.split(" | ")[2])) >= 1 for row in rows)
    assert TEXT.count("::test_") == len(NAMED) == len(set(NAMED))
