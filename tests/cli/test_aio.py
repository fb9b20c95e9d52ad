import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from arrowds.cli.aio import app
from arrowds.errors import ArrowdsError, ConfigError, LogFormatError
from arrowds.stats.aio import load, read_logs, sweep

FIXTURES = Path(__file__).parents[1] / "stats" / "aio" / "fixtures"
SWEEP = FIXTURES / "sweep"
COMMANDS = ["import", "show", "best", "config", "plot", "sweep"]

# Stands in for ds_nvme_tune: gives a real log for queue depth 4, fails for every other one.
TUNER = """#!{python}
import json, pathlib, shutil, sys
option = lambda name: sys.argv[sys.argv.index(name) + 1]
depth = json.loads(pathlib.Path(option("--sweep_config")).read_text())["queue_depth"][0]
name = "_aio_bench_read_logs/read_block_overlap_ftd1_d4_bs1M_p1.txt"
if depth == 4:
    shutil.copy(pathlib.Path({fixtures!r}, name), pathlib.Path(option("--log_dir"), name))
else:
    print("Traceback (most recent call last):\\nOSError: broken device")
"""


def run(*arguments: object, stdin: str | None = None) -> str:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
    if isinstance(result.exception, ArrowdsError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "aio.parquet"
    run("import", SWEEP, "-o", path, "--run", "monday")
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command: str) -> None:
    assert f"Example: arrowds aio {command}" in run(command, "--help")


def test_import_appends_and_names_the_bad_logs(stored: Path) -> None:
    printed = run("import", SWEEP, FIXTURES / "odd", "-o", stored)
    assert "6 logs added" in printed
    assert "8 logs refused: already imported" in printed
    assert "failed: read_block_overlap_ftd1_d4_bs1M_p3.txt: AssertionError at: assert ret != -1" in printed
    assert load(stored).num_rows == 14
    with pytest.raises(ConfigError, match=r"all 8 logs are already in"):
        run("import", SWEEP, "-o", stored)


def test_show_lists_the_fastest_first_and_filters(stored: Path) -> None:
    run("import", FIXTURES / "odd", "-o", stored)
    lines = [
        line for line in run("show", stored, "--run", "monday", "--operation", "write").splitlines() if "ok" in line
    ]
    speeds = [float(line.split("│")[8]) for line in lines]
    assert len(speeds) == 4
    assert speeds == sorted(speeds, reverse=True)
    failed = run("show", stored, "--status", "failed")
    assert failed.count("failed") == 3
    assert "['missing']" in failed
    assert "13 more; see them with --limit 14" in run("show", stored, "--limit", 1)
    with pytest.raises(ConfigError, match="no logs of run tuesday"):
        run("show", stored, "--run", "tuesday")
    with pytest.raises(ConfigError, match="has no runs"):
        run("show", SWEEP, "--run", "monday")


@pytest.mark.parametrize("by", ["both", "read_speed", "write_speed", "sum"])
def test_best_takes_a_store_or_a_folder(stored: Path, by: str) -> None:
    printed = run("best", stored, "--by", by, "--top", 1)
    assert printed == run("best", SWEEP, "--by", by, "--top", 1)
    assert "1 MiB │     8 │" in printed


def test_config_prints_nothing_but_the_block(stored: Path) -> None:
    command = "from arrowds.cli.aio import app; app()"
    arguments = [sys.executable, "-c", command, "config", str(stored), "--check"]
    printed = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True).stdout
    assert json.loads(printed) == {
        "aio": {
            "block_size": 1 << 20,
            "queue_depth": 8,
            "intra_op_parallelism": 1,
            "single_submit": False,
            "overlap_events": True,
            "use_gds": False,
        }
    }


def test_target_chooses_the_device(tmp_path: Path) -> None:
    path = tmp_path / "aio.parquet"
    run("import", SWEEP, "-o", path)
    run("import", FIXTURES / "odd", "-o", path)
    assert "nvme:0 nvme2:1" in run("best", path, "--by", "write_speed", "--target", "nvme2")
    assert json.loads(run("config", path, "--by", "write_speed", "--target", "nvme2"))["aio"]["single_submit"] is True


def test_plot_writes_the_picture(stored: Path, tmp_path: Path) -> None:
    run("plot", stored, "-o", tmp_path / "aio.png")
    assert (tmp_path / "aio.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments",
    [
        ["best", "x.parquet", "--by", "speed"],
        ["show", "x.parquet", "--status", "fine"],
        ["show", "x.parquet", "--operation", "erase"],
        ["sweep", ".", "--queue-depth", "deep"],
        ["sweep", ".", "--sequential", "maybe"],
        ["import", "logs"],
        ["frobnicate"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_a_failure_is_one_line_and_status_1(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from arrowds.cli import main; main()", "aio", "best", str(tmp_path / "x.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "does not exist; create it with: arrowds aio import" in done.stderr
    with pytest.raises(LogFormatError, match="is empty"):
        run("import", tmp_path, "-o", tmp_path / "aio.parquet")


@pytest.fixture
def tuner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "ds_nvme_tune"
    script.write_text(TUNER.format(python=sys.executable, fixtures=str(SWEEP)))
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sweep, "_find_tuner", lambda: str(script))
    monkeypatch.setattr(sweep, "_build_operator", lambda *_, **__: None)


@pytest.mark.usefixtures("tuner")
def test_sweep_says_what_it_costs_and_keeps_the_results_of_the_jobs_that_work(tmp_path: Path) -> None:
    device = tmp_path / "device"
    device.mkdir()
    options = ["--queue-depth", "3,4", "--block-size", "1M", "--io-parallel", "1", "--single-submit", "no"]
    options += ["--sequential", "no", "--no-write", "--io-size", "1G", "--logs", tmp_path / "logs"]
    options += ["-o", tmp_path / "aio.parquet"]
    result = CliRunner().invoke(app, ["sweep", str(device), *map(str, options)], input="n\n")
    assert (result.exit_code, (tmp_path / "aio.parquet").exists()) == (1, False)
    assert "2 jobs of at most 120 s" in result.stderr
    assert "about 1.00 GiB of disk" in result.stderr
    printed = run("sweep", device, *options, stdin="y\n")
    assert "2 logs added" in printed
    rows = load(tmp_path / "aio.parquet").to_pylist()
    assert [(row["queue_depth"], row["status"], row["error"]) for row in rows] == [
        (3, "failed", "OSError: broken device"),
        (4, "ok", None),
    ]
    assert {row["run_id"] for row in rows} == {path.name for path in (tmp_path / "logs").iterdir()}


@pytest.mark.usefixtures("tuner")
def test_a_sweep_without_any_result_fails_and_still_stores_why(tmp_path: Path) -> None:
    space = tmp_path / "space.json"
    space.write_text(json.dumps({"queue_depth": [3]}))
    output = tmp_path / "aio.parquet"
    options = ["--sweep-config", space, "--io-size", "1K", "--logs", tmp_path / "logs", "-o", output, "--yes"]
    with pytest.raises(
        ConfigError, match="none of the 2 jobs has a result; error of the first: OSError: broken device"
    ):
        run("sweep", tmp_path, *options)
    assert load(output)["status"].to_pylist() == ["failed", "failed"]


def test_a_broken_sweep_configuration_is_a_clear_error(tmp_path: Path) -> None:
    for text, message in (("{", "is not a sweep configuration"), ("[]", "is a list")):
        (tmp_path / "space.json").write_text(text)
        with pytest.raises(ConfigError, match=message):
            run("sweep", tmp_path, "--sweep-config", tmp_path / "space.json", "--yes")


def test_the_fixtures_are_what_the_store_holds(stored: Path) -> None:
    columns = read_logs(SWEEP).column_names
    assert load(stored).select(columns).equals(read_logs(SWEEP))
