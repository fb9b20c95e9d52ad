"""``arrowds profile``: the table, the stragglers and the picture of a recorded run."""

import csv
import io
from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner, Result

from arrowds.cli.profile import app
from arrowds.errors import ConfigError, ProfilerError
from arrowds.stats.profiler import NoTimers, PartitionedParameterProfiler


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile")
    for rank in range(2):
        with PartitionedParameterProfiler(NoTimers(), rank=rank, path=path, element_size=2) as profiler:
            for _ in range(7):
                profiler.reset_events()
                for name in ("forward_fetch_wait", "forward_all_gather"):
                    profiler.start_event(name)
                    profiler.stop_event(name, 1000 * (rank + 1))
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_show_prints_the_last_steps_and_the_rule(folder: Path) -> None:
    result = run("show", folder)
    assert result.exit_code == 0
    lines = [line for line in result.stdout.splitlines() if "forward_fetch_wait" in line]
    assert [line.split("│")[1].strip() for line in lines] == ["3", "4", "5", "6", "7"]
    assert all(" 3000 " in line for line in lines)
    assert "Rule: late = waits less in *_fetch_wait than the median rank by over 10% of the step" in result.stdout


def test_show_prints_as_many_steps_as_asked(folder: Path) -> None:
    rows = csv.DictReader(io.StringIO(run("show", folder, "--last", 2, "--csv").stdout))
    assert sorted({row["step"] for row in rows}) == ["6", "7"]


def test_show_by_rank_as_csv_joins_difficulties(folder: Path, tmp_path: Path) -> None:
    table = pl.DataFrame({"step": [2], "metric": ["seqlen"], "difficulty": [16]})
    table.write_parquet(tmp_path / "difficulties.parquet")
    result = run("show", folder, "--step", 2, "--by-rank", "--csv", "--difficulties", tmp_path)
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [(row["rank"], row["event"], row["elements"], row["seqlen"]) for row in rows] == [
        ("0", "forward_fetch_wait", "1000", "16.0"),
        ("0", "forward_all_gather", "1000", "16.0"),
        ("1", "forward_fetch_wait", "2000", "16.0"),
        ("1", "forward_all_gather", "2000", "16.0"),
    ]


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_plot_writes_a_picture(folder: Path, tmp_path: Path, ending: str) -> None:
    output = tmp_path / f"profile.{ending}"
    result = run("plot", folder, "-o", output)
    assert result.exit_code == 0
    assert result.stdout == f"wrote {output}\n"
    assert output.read_bytes().startswith(b"\x89PNG" if ending == "png" else b"<?xml")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("show", "{empty}"), ProfilerError, "no profiler events in"),
        (("plot", "{empty}"), ProfilerError, "no profiler events in"),
        (("show", "{folder}", "--step", "70"), ConfigError, "no events of step 70; steps are 1 to 7"),
        (("plot", "{folder}", "-o", "{empty}/x.what"), ConfigError, "not an image format"),
        (("plot", "{folder}", "-o", "{empty}/none/x.png"), OSError, "can't write"),
        (("show", "{folder}", "--difficulties", "{empty}"), ConfigError, "no difficulties in"),
    ],
)
def test_wrong_input_is_said(
    folder: Path, tmp_path: Path, arguments: tuple[str, ...], error: type[Exception], message: str
) -> None:
    result = run(*(argument.format(empty=tmp_path, folder=folder) for argument in arguments))
    assert result.exit_code == 1
    assert isinstance(result.exception, error)
    assert message in str(result.exception)


def test_help_shows_an_example() -> None:
    for command in ("show", "plot"):
        assert "Example: arrowds profile" in run(command, "--help").stdout
