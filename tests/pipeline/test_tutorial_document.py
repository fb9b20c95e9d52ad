"""docs/tutorial.md can be followed from top to bottom, and says what is true."""

from __future__ import annotations

import re
import shlex
import sys
from functools import partial
from pathlib import Path

import pytest

from arrowds import cli, demo

DOCUMENT = Path(__file__).parents[2] / "docs" / "tutorial.md"
pytestmark = pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # torch's, of mapped files


@pytest.fixture
def library(tmp_path):
    """A small standard library: 300 functions of 30 to 230 bytes."""
    folder = tmp_path / "library"
    folder.mkdir()
    functions = [f"def f{number}(x):\n    return x{' + 1' * (number % 50)}\n" for number in range(300)]
    (folder / "module.py").write_text("".join(functions))
    return folder


def run_command(line, monkeypatch):
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code, line


def test_tutorial_from_top_to_bottom(tmp_path, monkeypatch, capsys, library):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(demo, "run_demo", partial(demo.run_demo, library=library))
    names, outputs = {}, []
    for language, block in re.findall(r"```(\w+)\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL):
        if language == "yaml":
            (tmp_path / "run.yaml").write_text(block)
        elif language == "bash":
            for line in block.splitlines():
                run_command(line, monkeypatch)
        else:
            exec(compile(block, str(DOCUMENT), "exec"), names)
        outputs.append(capsys.readouterr().out)
    by_hand = next(output for output in outputs if "{'bytes': 64}" in output or "{'bytes': 72}" in output)
    assert len(by_hand.splitlines()) == 15
    assert "True\n" in outputs, "the resumed loader gives step 16"
    commands = next(output for output in outputs if "resumed from the checkpoint of step 15" in output)
    assert "wrote my-run/run.svg" in commands
    assert names["losses"].height == 30 and names["losses"]["loss"][-1] < names["losses"]["loss"][0]
    assert names["difficulties"]["difficulty"].max() == 192
