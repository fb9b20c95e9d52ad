"""Every example of docs/training.md runs as it stands, and its resumed run ends with the loss of the one in one go."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from arrowds import cli
from arrowds.pipeline import load_config

DOCUMENT = Path(__file__).parents[2] / "docs" / "training.md"
PACKAGES = {
    "Plain PyTorch": "torch",
    "Hugging Face Trainer": "transformers",
    "Accelerate": "accelerate",
    "Lightning": "lightning",
    "DeepSpeed": "deepspeed",
    "Mixtures by property": "torch",
}


@pytest.fixture(scope="module")
def losses(tmp_path_factory):
    """Run all sections in one process: importing these packages takes longer than the examples."""
    folder = tmp_path_factory.mktemp("document")
    write_corpus(folder)
    launchers = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in launchers}
    process = subprocess.run(
        [sys.executable, Path(__file__).with_name("document_blocks.py"), DOCUMENT,
         *(f"{title}={package}" for title, package in PACKAGES.items())],
        capture_output=True, text=True, check=False, timeout=300, cwd=folder,
        env={**environment, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads(process.stdout.split("RESULT ")[-1])


def write_corpus(folder):
    import polars as pl

    pl.DataFrame({"text": ["ab" * (1 + number % 29) for number in range(120)]}).write_parquet(folder / "corpus.parquet")


def test_the_extra_all_has_what_the_examples_import():
    blocks = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL)
    nodes = [node for block in blocks for node in ast.walk(ast.parse(block))]
    imported = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    packages = {name.split(".")[0] for name in imported} - {"arrowds", "polars", *sys.stdlib_module_names}
    extras = tomllib.loads((DOCUMENT.parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    nested = [requirement for requirement in extras["all"] if requirement.startswith("arrowds[")]
    names = [name.strip() for requirement in nested for name in requirement[8:-1].split(",")]
    brought = {re.split(r"[^\w-]", text)[0] for name in names for text in extras[name]}
    assert packages == {"torch", "transformers", "accelerate", "lightning"} and packages <= brought


@pytest.mark.parametrize("title", PACKAGES)
def test_resumed_example_ends_like_the_one_in_one_go(losses, title):
    if title not in losses:
        pytest.skip(f"{PACKAGES[title]} is not installed; the extra all brings it")
    in_one_go, resumed = losses[title]
    assert resumed == in_one_go < 5.0  # an untrained model has log(256) = 5.5


def test_configuration_runs_and_python_goes_on_from_it(tmp_path, monkeypatch, capsys):
    text = DOCUMENT.read_text(encoding="utf-8")
    section = text[text.index("## A run from a file") :]
    configuration = re.search(r"```yaml\n(.*?)```", section, flags=re.DOTALL)[1]
    write_corpus(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(configuration)
    monkeypatch.setattr(sys, "argv", ["arrowds", "run", "run.yaml", "--steps", "4"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert not caught.value.code
    python = re.search(r"```python\n(.*?)```", section, flags=re.DOTALL)[1]
    capsys.readouterr()
    names = {}
    exec(compile(python, str(DOCUMENT), "exec"), names)
    assert capsys.readouterr().out == "10 10 10\n" and names["run"].resumed_from == 4
    documented = re.findall(r"^\| `(.*?)` \|", section, flags=re.MULTILINE)
    assert documented == ["losses.parquet", "difficulties.parquet", "run.svg", "checkpoints/"]
    assert all((tmp_path / "run" / name).exists() for name in documented)


def test_configuration_shows_every_key_but_those_in_comments():
    text = DOCUMENT.read_text(encoding="utf-8")
    shown = re.search(r"```yaml\n(.*?)```", text, flags=re.DOTALL)[1]
    values = yaml.safe_load(re.sub(r"^  # (?=\w+: )", "  ", shown, flags=re.MULTILINE))
    config = load_config(values)
    for name in ("data", "batches", "model", "training"):
        assert set(values[name]) == set(type(getattr(config, name)).model_fields), name
