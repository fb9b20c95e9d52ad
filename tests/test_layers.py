"""The structure that docs/architecture.md draws: who may import whom, and what importing arrowds must not load."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import arrowds

PACKAGE = Path(arrowds.__file__).parent
ARCHITECTURE = PACKAGE.parent / "docs" / "architecture.md"


def documented_layers() -> dict[str, int]:
    rows = [line.split("|") for line in ARCHITECTURE.read_text().splitlines() if line.startswith("| ")]
    return {
        name.strip().strip("`").rstrip("/"): int(row[1])
        for row in rows
        if row[1].strip().isdigit()
        for name in row[2].split(",")
    }


LAYERS = documented_layers()


def owner(module: str) -> str:
    """The entry of the table that a dotted module belongs to: its first name below arrowds."""
    return module.split(".")[1] if "." in module else ""


def imports_of(path: Path) -> set[str]:
    """The arrowds modules that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "arrowds":
            if node.module == "arrowds":
                found |= {f"arrowds.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.startswith("arrowds.")}
    return found


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down_the_documented_layers(path: Path) -> None:
    mine = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert mine in LAYERS, f"{mine} is not in the table of docs/architecture.md"
    for module in imports_of(path):
        theirs = owner(module)
        assert theirs == mine or LAYERS[theirs] < LAYERS[mine], f"{mine} (layer {LAYERS[mine]}) imports {module}"


def test_every_documented_module_exists() -> None:
    there = {path.name.removesuffix(".py") for path in PACKAGE.iterdir()}
    assert set(LAYERS) <= there


@pytest.mark.parametrize("module", ["arrowds", "arrowds.integrations.deepspeed", "arrowds.report", "arrowds.cli"])
def test_importing_loads_no_optional_package(module: str) -> None:
    code = f"""
import sys, {module}
optional = {{"torch", "deepspeed", "duckdb", "ray", "datasets", "tokenizers", "matplotlib", "altair", "jinja2", "s3fs"}}
loaded = optional & set(sys.modules)
sys.exit(f"loaded {{sorted(loaded)}}" if loaded else 0)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_importing_arrowds_loads_what_is_used_and_when() -> None:
    code = """
import sys, arrowds
slow = {"numpy", "polars", "pyarrow", "pydantic"}
print(sorted(slow & {*sys.modules}), sorted(name for name in sys.modules if name.startswith("arrowds.")))
print(arrowds.analyze.__module__, arrowds.index.open_index is arrowds.open_index, "compact" in dir(arrowds))
print("arrowds.curriculum" in sys.modules, hasattr(arrowds, "nothing"), hasattr(arrowds, "_homes"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.splitlines() == ["[] []", "arrowds.build.api True True", "False False False"]


def test_every_order_is_known_to_a_program_that_has_imported_nothing_else() -> None:
    code = "from arrowds.curriculum.draws import find_draws; print(find_draws('deepspeed').__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "DeepSpeedDraws\n"


def test_names_are_imported_from_where_the_type_checker_finds_them() -> None:
    (block,) = (node for node in ast.parse((PACKAGE / "__init__.py").read_text()).body if isinstance(node, ast.If))
    found = {
        alias.name: str(node.module)
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert {*found} == {*arrowds.__all__}
    assert {name: home for name, home in found.items() if home != "arrowds"} == arrowds._HOMES


def test_exported_names_are_sorted_and_there() -> None:
    assert arrowds.__all__ == sorted(arrowds.__all__)
    for name in arrowds.__all__:
        assert getattr(arrowds, name) is not None


def test_only_the_command_line_prints() -> None:
    printing = [
        path.relative_to(PACKAGE)
        for path in MODULES
        if path.relative_to(PACKAGE).parts[0] != "cli"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert printing == []


def test_nothing_asserts_instead_of_raising() -> None:
    asserting = [
        path for path in MODULES for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)
    ]
    assert asserting == []
