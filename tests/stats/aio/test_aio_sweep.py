import os
import shutil
import sys
import time
from pathlib import Path

import pytest

from arrowds.errors import ConfigError
from arrowds.stats.aio import read_logs
from arrowds.stats.aio.sweep import DEFAULT_SPACE, Sweep, check_sweep, plan_jobs, run_sweep

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:deepspeed.*")  # raised while DeepSpeed is imported

FIXTURES = Path(__file__).parent / "fixtures" / "sweep"

# Stands in for ds_nvme_tune: what it does with a job depends on the job's queue depth.
TUNER = """
import argparse, json, pathlib, shutil, subprocess, sys, time
parser = argparse.ArgumentParser()
parser.add_argument("--nvme_dir", nargs="+")
for name in ("sweep_config", "io_size", "loops", "log_dir"):
    parser.add_argument("--" + name)
for name in ("no_read", "no_write", "gpu", "gds"):
    parser.add_argument("--" + name, action="store_true")
args = parser.parse_args()
depth = json.loads(pathlib.Path(args.sweep_config).read_text())["queue_depth"][0]
operation = "write" if args.no_read else "read"
pathlib.Path(args.nvme_dir[0], f"_aio_{operation}_1024.pt.0_0").write_text("x")
if depth == 1:
    print("  Failing because environment is not properly configured"); sys.exit(0)
name = f"_aio_bench_{operation}_logs/{operation}_block_overlap_ftd1_d{depth}_bs1M_p1.txt"
log = pathlib.Path(args.log_dir, name)
if depth == 2:
    log.write_text("args = Namespace(queue_depth=2)\\n")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pathlib.Path(args.nvme_dir[0], "child").write_text(str(child.pid))
    time.sleep(60)
shutil.copy(pathlib.Path(FIXTURES, name), log)
sys.exit(1)
"""


@pytest.fixture
def tuner(tmp_path: Path) -> list[str]:
    script = tmp_path / "tuner.py"
    script.write_text(f"FIXTURES = {str(FIXTURES)!r}\n{TUNER}")
    return [sys.executable, str(script)]


def plan(tmp_path: Path, depths: list[int], *operations: str, **changes: object) -> Sweep:
    folder = tmp_path / "device"
    folder.mkdir(exist_ok=True)
    jobs = plan_jobs({"queue_depth": depths, "block_size": ["1M"]}, operations=operations or ["read", "write"])
    options = {"folders": (folder,), "log_folder": tmp_path / "logs", "jobs": jobs, "io_size": "1K"}
    return Sweep(**(options | changes))  # type: ignore[arg-type]  # the changes are fields


def test_a_failed_job_and_a_stopped_one_cost_no_other_result(tmp_path: Path, tuner: list[str]) -> None:
    sweep = plan(tmp_path, [1, 2, 4], timeout_s=3.0)
    (sweep.folders[0] / "_aio_read_1024.pt.0_1").write_text("was here before")
    finished = list(run_sweep(sweep, tuner=tuner))
    statuses = ["failed", "timeout", "ok"]
    assert [job.status for job in finished] == statuses * 2
    assert finished[0].error == "Failing because environment is not properly configured"
    assert finished[1].error == "arrowds: stopped after 3 s, the time limit of a job"
    table = read_logs(sweep.log_folder)
    assert table["status"].to_pylist() == statuses * 2
    speeds = [job.speed_gib_s for job in finished]
    assert speeds == table["e2e_speed_gib_s"].to_pylist()
    assert (
        speeds[2] == read_logs(FIXTURES / finished[2].log.relative_to(sweep.log_folder))["e2e_speed_gib_s"][0].as_py()
    )


def test_a_stopped_job_leaves_no_process_and_a_sweep_no_file(tmp_path: Path, tuner: list[str]) -> None:
    sweep = plan(tmp_path, [2], "read", timeout_s=3.0)
    before = sweep.folders[0] / "_aio_read_1024.pt.0_1"
    before.write_text("was here before")
    list(run_sweep(sweep, tuner=tuner))
    child = int((sweep.folders[0] / "child").read_text())
    deadline = time.monotonic() + 10
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)
    assert list(sweep.folders[0].glob("_aio_*")) == [before]


def _runs(process: int) -> bool:
    """Say whether a process does anything; one that is dead and waits to be reaped does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_stopping_early_removes_the_files_too(tmp_path: Path, tuner: list[str]) -> None:
    sweep = plan(tmp_path, [4, 8])
    running = run_sweep(sweep, tuner=tuner)
    next(running)
    assert list(sweep.folders[0].iterdir())
    running.close()  # type: ignore[attr-defined]  # it is a generator
    assert not list(sweep.folders[0].iterdir())


def test_the_cost_is_the_one_of_the_files_that_are_written(tmp_path: Path) -> None:
    sweep = plan(tmp_path, [4, 8, 16], io_size="1M", loops=2, timeout_s=10.0)
    # Three writes of a warm-up and two loops, and the file that the reads read.
    assert sweep.written_bytes == (3 * 3 + 1) << 20
    assert (sweep.disk_bytes, sweep.longest_s) == (2 << 20, 60.0)
    reads = plan(tmp_path, [4], "read", io_size="1M")
    assert (reads.written_bytes, reads.disk_bytes) == (1 << 20, 1 << 20)


def test_the_default_space_and_the_log_names_are_the_tuners() -> None:
    from deepspeed.nvme.perf_run_sweep import DEFAULT_SWEEP_CONFIG, get_log_file, get_sweep_cmd_lines

    assert {name: list(values) for name, values in DEFAULT_SPACE.items()} == DEFAULT_SWEEP_CONFIG
    jobs = plan_jobs(operations=["read"])
    assert len(jobs) == len(get_sweep_cmd_lines(DEFAULT_SWEEP_CONFIG)) == 64
    for job in jobs:
        (line,) = get_sweep_cmd_lines(job.config() | {"folder_to_device_mapping": ["a:0 b:1"]})
        assert job.log_name(folders=2) == f"_aio_bench_read_logs/{get_log_file('read', line)}"


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"threads": [1]}, "the sweep varies threads, expected some of block_size"),
        ({"queue_depth": []}, "expected a list"),
        ({"queue_depth": 4}, "expected a list"),
        ({"queue_depth": [0]}, "queue_depth has the value 0"),
        ({"io_parallel": [True]}, "io_parallel has the value True"),
        ({"block_size": ["1T"]}, "block_size has the value '1T'"),
        ({"single_submit": ["false"]}, "single_submit has the value 'false'"),
    ],
)
def test_an_invalid_space_is_refused(space: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_jobs(space)  # type: ignore[arg-type]  # wrong on purpose


def test_a_sweep_that_can_not_run_is_refused(tmp_path: Path) -> None:
    spaced = tmp_path / "a b"
    spaced.mkdir()
    old = tmp_path / "old"
    (old / "logs").mkdir(parents=True)
    for changes, message in (
        ({"jobs": ()}, "no jobs"),
        ({"loops": 0}, "both must be positive"),
        ({"io_size": "1000"}, "multiple of 1K"),
        ({"folders": (tmp_path / "gone",)}, "is not a folder"),
        ({"folders": (spaced,)}, "simpler path"),
        ({"io_size": "9000000G"}, "GiB free, the sweep needs 18000000.00 GiB"),
        ({"log_folder": old}, "is not empty; choose a new one"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_sweep(plan(tmp_path, [4], **changes))


def test_an_operator_that_can_not_be_built_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tuner = tmp_path / "ds_nvme_tune"
    python = tmp_path / Path(sys.executable).name
    python.write_text("#!/bin/sh\necho 'RuntimeError: Unable to JIT load the async_io op' >&2; exit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr("arrowds.stats.aio.sweep._find_tuner", lambda: str(tuner))
    with pytest.raises(ConfigError, match=r"RuntimeError: Unable to JIT load .*; it needs a C\+\+ compiler and libaio"):
        next(run_sweep(plan(tmp_path, [4])))


def _missing_operator() -> str | None:
    """Say why DeepSpeed's asynchronous I/O can't be built here, or return None."""
    if not Path("/usr/include/libaio.h").exists():
        return "libaio.h is missing (apt-get install libaio-dev)"
    if shutil.which("g++") is None:
        return "there is no C++ compiler"
    return None


def test_a_real_sweep_of_deepspeeds_tuner(tmp_path: Path) -> None:
    missing = _missing_operator()
    if missing and os.environ.get("ARROWDS_REQUIRE_AIO") != "1":
        pytest.skip(missing)
    sweep = plan(tmp_path, [4], io_size="2M", timeout_s=240.0)
    finished = list(run_sweep(sweep))
    assert [(job.status, job.error) for job in finished] == [("ok", None)] * 2
    rows = read_logs(sweep.log_folder).to_pylist()
    found = [(row["operation"], row["block_size_bytes"], row["queue_depth"], row["io_size_bytes"]) for row in rows]
    assert found == [("read", 1 << 20, 4, 2 << 20), ("write", 1 << 20, 4, 2 << 20)]
    assert all(row["target"] == f"{sweep.folders[0]}:0" for row in rows)
    assert not list(sweep.folders[0].iterdir())
