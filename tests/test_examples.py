"""The programs of docs/examples run, and what they print is true; docs/examples.md includes each."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from documents import DOCS, ROOT, blocks_of

PROGRAMS = sorted((DOCS / "examples").glob("*.py"))


def run_program(name: str, folder: Path, *arguments: str) -> str:
    launchers = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {key: value for key, value in os.environ.items() if key not in launchers}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.run(
        [sys.executable, DOCS / "examples" / name, *arguments],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_the_page_includes_and_calls_every_program() -> None:
    page = DOCS / "examples.md"
    included = [re.search(r'"examples/(\w+\.py)"', block.code) for block in blocks_of(page, "python")]
    assert sorted(match[1] for match in included if match) == [path.name for path in PROGRAMS]
    called = {block.code.split()[1] for block in blocks_of(page, "bash")}
    assert called == {f"docs/examples/{path.name}" for path in PROGRAMS}


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_a_program_can_be_read_at_once_and_tells_its_options(path: Path, tmp_path: Path) -> None:
    assert 60 <= len(path.read_text(encoding="utf-8").splitlines()) <= 150
    shown = run_program(path.name, tmp_path, "--help")
    assert "--folder" in shown and f"python docs/examples/{path.name}" in shown


def test_the_hardest_samples_are_those_of_brute_force(tmp_path: Path) -> None:
    printed = run_program("hardest.py", tmp_path, "--modules", "json", "http", "--least-words", "10")
    data = pl.read_parquet(tmp_path / "arrowds-examples/hardest/docstrings.parquet")
    texts = [re.findall(r"\w+", text.lower()) for text in data["text"]]
    counts = Counter(word for words in texts for word in words)
    total = sum(counts.values())
    information = {word: -math.log(count / total) for word, count in counts.items()}
    long = [(words, place) for words, place in zip(texts, data["place"], strict=True) if len(words) >= 10]
    expected = sorted(((sum(map(information.get, words)) / len(words), place) for words, place in long), reverse=True)
    found = re.findall(r"^ ?\d+\. +([\d.]+) nats per word, \d+ words, (\S+)$", printed, flags=re.MULTILINE)
    assert found == [(f"{nats:.2f}", place) for nats, place in expected[:10]]


def test_a_resumed_run_has_the_losses_of_the_one_in_one_go(tmp_path: Path) -> None:
    printed = run_program("stop_and_resume.py", tmp_path, "--steps", "12", "--batch-size", "4")
    assert "resumed after step 6" in printed and printed.endswith("the same 12 losses, to the last bit\n")


def test_ranks_have_equal_work(tmp_path: Path) -> None:
    printed = run_program("equal_work.py", tmp_path, "--steps", "3")
    losses = [float(loss) for loss in re.findall(r"^step \d: loss ([\d.]+)", printed, flags=re.MULTILINE)]
    assert len(losses) == 3 and losses[-1] < losses[0]
    by_cost, by_tokens = map(float, re.search(r"by cost ([\d.]+), by tokens ([\d.]+)\n", printed).groups())
    assert 1 <= by_cost < 1.001 < by_tokens


def test_a_mixture_changes_in_the_middle_and_why_names_the_samples(tmp_path: Path) -> None:
    printed = run_program("mixture.py", tmp_path, "--steps", "20", "--step", "15")
    rows = re.findall(r"^(\w+) +half, (\w+) *: +([\d.]+)% of the bytes", printed, flags=re.MULTILINE)
    shares = {(half, kind): float(share) for half, kind, share in rows}
    assert shares.keys() == {
        (half, kind) for half in ("first", "second") for kind in ("class", "docstring", "function")
    }
    assert all(sum(share for (half, _), share in shares.items() if half == name) > 99.8 for name in ("first", "second"))
    assert shares["first", "docstring"] > 70 and shares["second", "function"] > 70
    losses = [
        float(loss)
        for loss in re.findall(r"^loss ([\d.]+), \w+, \d+ bytes, \S+\.py:\d+: ", printed, flags=re.MULTILINE)
    ]
    assert len(losses) == 5 and losses == sorted(losses, reverse=True)
