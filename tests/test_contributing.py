"""What contributors are told is true: files exist, and every way to check a change runs the same checks."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from documents import DOCS, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
SCRIPT = (ROOT / ".ci/run").read_text(encoding="utf-8")


def test_every_file_that_the_page_names_exists() -> None:
    page = (DOCS / "contributing.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:arrowds|docs|tests|\.ci)/[\w./-]+)`|`(\.?\w+\.(?:toml|yml))`", page)
    paths = [first or second for first, second in named]
    assert len(paths) > 25
    assert [path for path in paths if "NAME" not in path and not (ROOT / path).exists()] == []


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("class TextMetric", "arrowds/metrics/text/measures.py"),
        ("_STORED", "arrowds/metrics/__init__.py"),
        ("class DataFile", "arrowds/sources/files.py"),
        ("FORMATS", "arrowds/sources/listing.py"),
        ("def source_from_spec", "arrowds/sources/opening.py"),
        ("def check_columnar", "tests/sources/source_contract.py"),
        ("def engine_named", "arrowds/build/engines/choice.py"),
    ],
)
def test_what_the_page_tells_to_change_is_there(name: str, file: str) -> None:
    assert name.rpartition(" ")[2] in (DOCS / "contributing.md").read_text(encoding="utf-8")
    assert name in (ROOT / file).read_text(encoding="utf-8")


def test_the_workflow_checks_what_the_script_checks_on_the_versions_that_are_supported() -> None:
    (job,) = WORKFLOW["jobs"].values()
    supported = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert job["strategy"]["matrix"]["python"] == supported
    runs = " && ".join(step["run"] for step in job["steps"] if "run" in step)
    checks = re.findall(r"^(?:NO_MKDOCS_2_WARNING=1 )?\.venv-test/bin/(.*)$", SCRIPT, flags=re.MULTILINE)
    assert [check.split()[0] for check in checks] == ["ruff", "ruff", "mypy", "mkdocs"]
    assert [check for check in checks if check not in runs] == []
    for part in ("-c tests/constraints.txt -e '.[all,dev]'", "pytest -q -n 2"):
        assert part in (ROOT / "README.md").read_text(encoding="utf-8") and part in runs


def test_hooks_need_no_network_and_run_the_same_tools() -> None:
    settings = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    (repository,) = settings["repos"]
    assert repository["repo"] == "local"
    assert {hook["language"] for hook in repository["hooks"]} == {"system"}
    assert [hook["entry"].split(" --")[0] for hook in repository["hooks"]] == ["ruff check", "ruff format", "mypy"]


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("[!c]*.yml")), ids=lambda path: path.stem
)
def test_templates_have_what_github_asks_for(path: Path) -> None:
    template = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= template.keys()
    assert all(part["type"] == "textarea" and part["attributes"]["label"] for part in template["body"])


def test_every_requirement_of_the_site_is_pinned() -> None:
    pinned = {line.split("==")[0] for line in (ROOT / "tests/constraints.txt").read_text().split() if "==" in line}
    needed = {re.split(r"[^\w-]", text)[0] for text in PROJECT["optional-dependencies"]["docs"]}
    assert needed and needed <= pinned
    assert "arrowds[docs]" in PROJECT["optional-dependencies"]["dev"]
