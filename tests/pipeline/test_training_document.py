"""Every example of training.md, deepspeed.md and profiler.md runs; resumed runs end like those in one go."""

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
from documents import DOCS, blocks_of, run, run_command

from arrowds.pipeline import load_config

DOCUMENT = DOCS / "training.md"
FILE = "A run from a file"
TRAINERS = {
    "Plain PyTorch": "torch",
    "Hugging Face Trainer": "transformers",
    "Accelerate": "accelerate",
    "Lightning": "lightning",
    "DeepSpeed": "deepspeed",
    "Mixtures by property": "torch",
}
PARTS = TRAINERS | {"Grain": "grain", "deepspeed.md": "deepspeed", "profiler.md": "deepspeed"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Run all sections in one process: importing these packages takes longer than the examples."""
    folder = tmp_path_factory.mktemp("document")
    write_corpus(folder)
    launchers = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in launchers}
    process = subprocess.run(
        [sys.executable, Path(__file__).with_name("trainers_of_documents.py"),
         *(f"{title}={package}" for title, package in PARTS.items())],
        capture_output=True, text=True, check=False, timeout=600, cwd=folder,
        env={**environment, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
             "PYTHONPATH": os.pathsep.join([str(DOCS.parent / "tests"), *sys.path])},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-4000:]
    return json.loads(process.stdout.split("RESULT ")[-1])


def write_corpus(folder):
    import polars as pl

    pl.DataFrame({"text": ["ab" * (1 + number % 29) for number in range(120)]}).write_parquet(folder / "corpus.parquet")


def test_the_extra_all_has_what_the_examples_import():
    blocks = [block.code for title in TRAINERS for block in blocks_of(DOCUMENT, "python", section=title)]
    nodes = [node for block in blocks for node in ast.walk(ast.parse(block))]
    imported = {name.name for node in nodes if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    packages = {name.split(".")[0] for name in imported} - {"arrowds", "polars", *sys.stdlib_module_names}
    extras = tomllib.loads((DOCUMENT.parents[1] / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    nested = [requirement for requirement in extras["all"] if requirement.startswith("arrowds[")]
    names = [name.strip() for requirement in nested for name in requirement[8:-1].split(",")]
    brought = {re.split(r"[^\w-]", text)[0] for name in names for text in extras[name]}
    assert packages == {"torch", "transformers", "accelerate", "lightning", "trl"} and packages <= brought


def test_every_section_with_code_is_run():
    blocks = blocks_of(DOCUMENT, "python", "bash", "yaml")
    run_here = [block for title in ["What all have in common", *PARTS, FILE] if "." not in title
                for block in blocks_of(DOCUMENT, "python", "bash", "yaml", section=title)]  # fmt: skip
    assert [block for block in blocks if block not in run_here and block.not_run is None] == []


def result_of(results, title):
    if title not in results:
        pytest.skip(f"{PARTS[title]} is not installed; the extras all and dev bring it")
    return results[title]


@pytest.mark.parametrize("title", TRAINERS)
def test_resumed_example_ends_like_the_one_in_one_go(results, title):
    in_one_go, resumed = result_of(results, title)
    assert resumed == in_one_go < 5.0  # an untrained model has log(256) = 5.5


def test_grain_draws(results):
    assert result_of(results, "Grain")[0] == 4  # samples of a microbatch


def test_deepspeed_trains_all_epochs_of_its_page(results):
    steps, expected, microbatches = result_of(results, "deepspeed.md")
    assert steps == expected and microbatches == 4 * expected


def test_commands_of_the_profiler_show_the_recorded_run(results):
    (output,) = result_of(results, "profiler.md")
    assert re.search(r"16\W+forward_fetch_wait\W.*\b512\b", output) and "wrote profile.png" in output


def test_configuration_runs_and_python_goes_on_from_it(tmp_path, monkeypatch):
    write_corpus(tmp_path)
    monkeypatch.chdir(tmp_path)
    configuration, *python = blocks_of(DOCUMENT, "yaml", "python", section=FILE)
    run([configuration])
    run_command(["arrowds", "run", "run.yaml", "--steps", "4"])
    (ran,) = run(python)
    assert ran.output == "10 10 10\n" and ran.names["run"].resumed_from == 4
    section = DOCUMENT.read_text(encoding="utf-8").partition(f"## {FILE}")[2]
    documented = re.findall(r"^\| `(.*?)` \|", section, flags=re.MULTILINE)
    assert documented == ["losses.parquet", "difficulties.parquet", "run.svg", "checkpoints/"]
    assert all((tmp_path / "run" / name).exists() for name in documented)


def test_configuration_shows_every_key_but_those_in_comments():
    (shown,) = blocks_of(DOCUMENT, "yaml")
    values = yaml.safe_load(re.sub(r"^  # (?=\w+: )", "  ", shown.code, flags=re.MULTILINE))
    config = load_config(values)
    for name in ("data", "batches", "model", "training"):
        assert set(values[name]) == set(type(getattr(config, name)).model_fields), name
