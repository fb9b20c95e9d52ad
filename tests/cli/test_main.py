"""Exit statuses, one line on stderr, and a help that needs none of the optional packages."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

import arrowds
from arrowds import cli
from arrowds.errors import IndexCorruptError

COMMANDS = [
    "analyze", "append", "add-metric", "plan", "map", "reduce", "compact", "vacuum", "versions", "info", "sql", "plot",
    "verify", "export", "import", "batch", "run", "demo",
]  # fmt: skip


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command line as the console script does; give its exit status, stdout and stderr."""

    def run_main(*arguments):
        monkeypatch.setattr(sys, "argv", ["arrowds", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code or 0, *capsys.readouterr()

    return run_main


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command_shows_an_example(command):
    result = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    assert f"Example: arrowds {command} " in result.output


def test_help_lists_every_command(run):
    status, out, _ = run("--help")
    assert status == 0
    assert all(command in out for command in [*COMMANDS, "profile", "aio"])


def test_version(run):
    assert run("--version") == (0, f"arrowds {arrowds.__version__}\n", "")


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["info"], ["info", "a", "b"], ["sql", "x", "select 1", "--csv", "--json"]]
)
def test_wrong_usage_is_status_2(run, arguments):
    status, out, err = run(*arguments)
    assert status == 2
    assert out == "" and "Usage" in err


def test_failure_is_status_1_and_one_line(run, tmp_path):
    status, out, err = run("info", tmp_path / "nothing")
    assert (status, out) == (1, "")
    assert err.startswith("arrowds: error: ") and "nothing" in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            IndexCorruptError("2 files are damaged:\n  a: gone\n  b: short\nrestore them"),
            "2 files are damaged: a: gone; b: short; restore them",
        ),
        (PermissionError(13, "Permission denied", "x"), "[Errno 13] Permission denied: 'x'"),
        (ConnectionResetError(), "ConnectionResetError"),
    ],
)
def test_any_expected_error_becomes_one_line(run, monkeypatch, error, line):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("arrowds.index.open_index", fail)
    assert run("verify", "index") == (1, "", f"arrowds: error: {line}\n")


def test_interrupt_is_status_130(run, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("arrowds.index.open_index", interrupt)
    assert run("info", "index") == (130, "", "arrowds: interrupted\n")
    monkeypatch.setattr("arrowds.build.shards.map_shard", interrupt)
    assert run("map", "index", "--shard", "1/2") == (
        130, "", "arrowds: interrupted; run the same command again to resume\n",
    )  # fmt: skip


def test_programming_errors_are_not_hidden(run, monkeypatch):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr("arrowds.index.open_index", fail)
    with pytest.raises(ZeroDivisionError):
        run("info", "index")


def test_command_line_loads_no_optional_package():
    optional = ("torch", "deepspeed", "duckdb", "ray", "datasets", "matplotlib", "tokenizers")
    code = f"import sys, arrowds.cli; print([name for name in {optional} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "[]\n"
