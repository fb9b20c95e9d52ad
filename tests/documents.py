"""The code of docs/*.md and README.md, and how tests run it: in order, in one namespace, in the current folder.

A block that can't run has a comment above its fence that says why: ``<!-- not run: it needs a cluster -->``.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from arrowds import cli

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^>]+?) -->\n+)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it is, its language and code, and why it is not run (None: it is)."""

    page: Path
    line: int
    language: str
    code: str
    not_run: str | None


@dataclass(frozen=True)
class Ran:
    """What running a block left: what it printed, and the names that were there after it."""

    block: Block
    output: str
    names: dict[str, Any] = field(repr=False)


def blocks_of(page: Path, *languages: str, section: str | None = None) -> list[Block]:
    """Return the blocks of a page or of one of its sections, in their sequence; of all languages or those given."""
    text = page.read_text(encoding="utf-8")
    start, end = 0, len(text)
    if section is not None:
        found = re.search(rf"^## {re.escape(section)}\n.*?(?=^## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
        if found is None:
            raise ValueError(f"{page.name} has no section {section!r}")
        start, end = found.span()
    return [
        Block(page, text.count("\n", 0, match.start("code")), match["language"], match["code"], match["reason"])
        for match in _BLOCK.finditer(text, start, end)
        if not languages or match["language"] in languages
    ]


def run(blocks: Iterable[Block], names: Mapping[str, Any] | None = None, *, yaml: str = "run.yaml") -> list[Ran]:
    """Run blocks one after the other: Python in one namespace, shell commands, YAML into a file of that name."""
    namespace: dict[str, Any] = {"__name__": "document", **(names or {})}
    ran = []
    for block in blocks:
        output = io.BytesIO()
        if block.not_run is None:
            with contextlib.redirect_stdout(io.TextIOWrapper(output, encoding="utf-8", write_through=True)) as stream:
                run_one(block, namespace, yaml)
                stream.detach()
        ran.append(Ran(block, output.getvalue().decode(), dict(namespace)))
    return ran


def run_one(block: Block, namespace: dict[str, Any], yaml: str) -> None:
    if block.language == "python":
        exec(compile("\n" * block.line + block.code, str(block.page), "exec"), namespace)  # with the line of the page
    elif block.language == "yaml":
        Path(yaml).write_text(block.code, encoding="utf-8")
    elif block.language == "console":
        run_shell("\n".join(re.findall(r"^\$ (.*)$", block.code, flags=re.MULTILINE)))
    elif block.language == "bash":
        run_shell(block.code)
    else:
        raise ValueError(
            f"{block.page.name}, line {block.line}: a block of {block.language or 'no language'} can't run"
        )


def run_shell(code: str) -> None:
    """Run commands of arrowds in this process, and anything more than that by bash."""
    lines = [shlex.split(line, comments=True) for line in code.replace("\\\n", " ").splitlines()]
    commands = [line for line in lines if line]
    if all(command[0] == "arrowds" and not {"&", "|", ">", "&&"}.intersection(command) for command in commands):
        for command in commands:
            run_command(command)
        return
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
    }
    process = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    print(process.stdout)
    assert process.returncode == 0, f"{code}\n{process.stdout}\n{process.stderr}"


def run_command(command: list[str]) -> None:
    with mock.patch.object(sys, "argv", command), mock.patch.object(sys, "path", list(sys.path)):
        try:
            cli.main()
        except SystemExit as ended:
            assert not ended.code, command
