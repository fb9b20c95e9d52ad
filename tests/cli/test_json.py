"""Every command that tells something tells it as JSON, too, and nothing else on its standard output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import typer
from typer.testing import CliRunner

from arrowds.cli import app


def answer(*arguments: object) -> dict:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def rows(*arguments: object) -> list[dict]:
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pl.DataFrame({"x": [3, 1, 2], "name": ["a", "b", "a"]}).write_parquet("0.parquet")
    return tmp_path


def test_every_command_has_it():
    without = {
        name
        for name, command in typer.main.get_command(app).commands.items()
        if name not in ("profile", "aio", "demo", "report")
        and not any("--json" in parameter.opts for parameter in command.params)
    }
    assert without == set()


def test_a_life_of_an_index(data):
    made = answer("analyze", "*.parquet", "-o", "i", "--metric", "column:x")
    assert (made["num_samples"], made["version"], made["metrics"][0]["max"]) == (3, 1, 3)
    assert answer("info", "i") == made
    pl.DataFrame({"x": [9], "name": ["b"]}).write_parquet("1.parquet")
    assert answer("append", "*.parquet", "-o", "i")["num_samples"] == 4
    assert len(answer("add-metric", "*.parquet", "-o", "i", "--metric", "column:name")["metrics"]) == 2
    assert answer("compact", "i") == {
        "path": str(Path("i").absolute()),
        "version": 4,
        "segments_before": 2,
        "segments": 1,
    }
    vacuumed = answer("vacuum", "i")
    assert vacuumed["versions"] == [1, 2, 3] and vacuumed["files"] > 3 and vacuumed["bytes"] > 1000
    assert answer("verify", "i")["version"] == 4
    Path("data").mkdir()
    for name in ("0.parquet", "1.parquet"):
        Path(name).rename(Path("data", name))
    assert answer("move-data", "i", ".", "data")["version"] == 5
    assert rows("plot", "i", "x")[0]["count"] == 1 and sum(bar["count"] for bar in rows("plot", "i", "x")) == 4
    assert rows("plot", "i", "name") == [{"name": "a", "count": 2}, {"name": "b", "count": 2}]
    assert answer("export", "i", "exported", "--metric", "x") == {"folder": "exported"}
    assert answer("import", "exported", "j")["num_samples"] == 4


def test_shards(data):
    assert answer("plan", "0.parquet", "-o", "i", "--metric", "column:x")["samples"] == 3
    assert answer("map", "i", "--shard", "1/1") == {"shard": "1/1", "planned": True, "waiting": []}
    assert answer("reduce", "i", "--shard", "2/2")["committed"] is False
    assert answer("reduce", "i")["num_samples"] == 3
    assert answer("map", "i", "--shard", "1/1")["planned"] is False


def test_completion_knows_the_commands():
    environment = {**os.environ, "_ARROWDS_COMPLETE": "complete_bash", "COMP_WORDS": "arrowds du", "COMP_CWORD": "1"}
    program = Path(sys.executable).with_name("arrowds")
    shown = subprocess.run([program], env=environment, capture_output=True, text=True, check=False)
    assert shown.stdout.split() == ["duplicates"]
