"""docs/launchers.md: its scripts run as they are, with stand-ins for what only a cluster has."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from documents import DOCS, blocks_of
from typer.testing import CliRunner

import arrowds
from arrowds.cli import app

BLOCKS = [(block.language, block.code) for block in blocks_of(DOCS / "launchers.md")]

# Notes its arguments; the test runs them itself, in one process.
ARROWDS = """#!{python}
import fcntl, json, sys
with open({log!r}, "a") as log:
    fcntl.flock(log, fcntl.LOCK_EX)
    log.write(json.dumps(sys.argv[1:]) + "\\n")
"""
# Runs each task of an array at once, and prints a job's number.
SBATCH = """#!/bin/bash
script="${@: -1}"
tasks=$(sed -n 's/^#SBATCH --array=1-//p' "$script")
for task in $(seq "$tasks"); do
    SLURM_ARRAY_TASK_ID=$task SLURM_CPUS_PER_TASK=2 bash "$script" || exit 1
done
echo 4711
"""
# Runs its command for each value after ":::"; for machines without GNU parallel.
PARALLEL = """#!/bin/bash
while [[ $1 == --* ]]; do shift 2; done
command=()
while [[ $1 != ::: ]]; do command+=("$1"); shift; done
shift
for value in "$@"; do "${command[@]//\\{\\}/$value}" || exit 1; done
"""


def block(start: str) -> str:
    """The first block that has a text."""
    return next(code for _, code in BLOCKS if start in code)


@pytest.fixture
def shared(shell):
    """Run a script of the page with /shared as a folder of this test; give the command lines of arrowds."""
    tools, log = shell.folder / "tools", shell.folder / "log"
    tools.mkdir()
    stand_ins = {"arrowds": ARROWDS.format(python=sys.executable, log=str(log)), "sbatch": SBATCH}
    if shutil.which("parallel") is None:
        stand_ins["parallel"] = PARALLEL
    for name, script in stand_ins.items():
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)

    def run(script: str, **environment: str) -> list[list[str]]:
        log.unlink(missing_ok=True)
        environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(shell.folder)} | environment
        text = script.replace("/shared", str(shell.folder))
        subprocess.run(["bash", "-c", text], cwd=shell.folder, env=environment, timeout=300, check=True)
        return [json.loads(line) for line in log.read_text().splitlines()]

    return run


def run_in_rounds(commands: list[list[str]], rounds: list[tuple[str, int]]) -> None:
    """Run command lines, those of each round in a random order, after checking that the rounds are those expected."""
    random.seed(3)
    for name, count in rounds:
        chosen, commands = commands[:count], commands[count:]
        assert {command[0] for command in chosen} == {name}
        if name != "plan":
            shards = sorted(command[command.index("--shard") + 1] for command in chosen)
            assert shards == sorted(f"{number}/{count}" for number in range(1, count + 1))
        for command in random.sample(chosen, len(chosen)):
            result = CliRunner().invoke(app, command)
            assert result.exit_code == 0, (command, result.output, result.exception)
    assert commands == []


def assert_complete(folder: Path) -> None:
    index = arrowds.open_index(folder / "index", verify=True)
    assert (index.num_samples, index.metrics) == (6000, ["seqlen", "vocab_rarity"])


def test_the_slurm_scripts_make_an_index(shell, shared):
    for name, start in (("map.sbatch", "--job-name=arrowds-map"), ("reduce.sbatch", "--job-name=arrowds-reduce")):
        script = block(start).replace("/shared", str(shell.folder))
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        assert "#SBATCH" not in script.split("set -euo pipefail")[1]  # Slurm reads none after the first command
        (shell.folder / name).write_text(script)
    commands = shared(block("sbatch --parsable"))
    run_in_rounds(commands, [("plan", 1), ("map", 40), ("map", 40), ("reduce", 8)])
    assert_complete(shell.folder)


def test_the_kubernetes_jobs_make_an_index(shell, shared):
    jobs = [yaml.safe_load(code) for language, code in BLOCKS if language == "yaml"]
    rounds: list[tuple[str, int]] = []
    lines = block("kubectl apply").splitlines()
    commands = shared(lines[0])
    by_file = dict(zip(("map.yaml", "reduce.yaml"), jobs, strict=True))
    for file in re.findall(r"kubectl (?:apply|replace --force) -f (\S+)", "\n".join(lines)):
        job = by_file[file]["spec"]
        assert job["completionMode"] == "Indexed" and job["template"]["spec"]["restartPolicy"] == "Never"
        [container] = job["template"]["spec"]["containers"]
        assert container["command"] == ["/bin/sh", "-c"]
        claims = {volume["name"] for volume in job["template"]["spec"]["volumes"]}
        assert {mount["name"] for mount in container["volumeMounts"]} == claims
        for index in range(job["completions"]):
            commands += shared(container["args"][0], JOB_COMPLETION_INDEX=str(index))
        rounds.append((container["name"], job["completions"]))
    waited = re.findall(r"job/(\S+)", "\n".join(lines))
    assert set(waited) == {job["metadata"]["name"] for job in jobs}
    run_in_rounds(commands, [("plan", 1), *rounds])
    assert_complete(shell.folder)


@pytest.mark.parametrize("tool", ["parallel --jobs", "xargs -P"])
def test_the_lines_for_one_machine_make_an_index(shell, shared, tool):
    run_in_rounds(shared(block(tool)), [("plan", 1), ("map", 16), ("map", 16), ("reduce", 4)])
    assert_complete(shell.folder)


def test_the_python_script_makes_an_index(shell):
    script = shell.folder / "build.py"
    script.write_text(block("shards.map_shard").replace("/shared", str(shell.folder)))
    for step, shard in (("plan", ""), ("map", "2"), ("map", "1"), ("reduce", "")):
        environment = os.environ | {"SHARD": shard, "SHARDS": "2"}
        subprocess.run([sys.executable, script, step], env=environment, timeout=120, check=True)
    assert arrowds.open_index(shell.folder / "index")["length"].max() == 29
