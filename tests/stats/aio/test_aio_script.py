import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from arrowds.errors import ConfigError, LogFormatError
from arrowds.stats.aio import parse_aio_stats as ours

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:deepspeed.*")  # raised while DeepSpeed is imported

FIXTURES = Path(__file__).parent / "fixtures"
FOLDERS = [FIXTURES / "sweep" / "_aio_bench_read_logs", FIXTURES / "sweep" / "_aio_bench_write_logs"]


@pytest.fixture(scope="module")
def theirs():  # type: ignore[no-untyped-def]  # a module
    from deepspeed.nvme import parse_nvme_stats

    return parse_nvme_stats


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("metric", ours.PERF_METRICS)
def test_results_are_deepspeeds(theirs, folder: Path, metric: str) -> None:  # type: ignore[no-untyped-def]
    assert ours.get_sorted_results(str(folder), metric) == theirs.get_sorted_results(str(folder), metric)
    files = [str(path) for path in folder.iterdir()]
    assert ours.get_results(files, metric) == theirs.get_results(files, metric)
    assert (ours.PERF_METRICS, ours.METRIC_SEARCH) == (theirs.PERF_METRICS, theirs.METRIC_SEARCH)


@pytest.mark.parametrize(
    "tag", ["read", "ftd12", "d", "d4", "t8", "p1x", "bs", "bs4096", "bs128K", "bs2M", "bsM", "ds_x", "dsa", "", "b"]
)
def test_tags_have_deepspeeds_values(theirs, tag: str) -> None:  # type: ignore[no-untyped-def]
    assert ours.extract_value(tag, "log.txt") == theirs.extract_value(tag, "log.txt")
    assert ours.get_file_key(f"a.b/{tag}_d4.txt") == theirs.get_file_key(f"a.b/{tag}_d4.txt")


def test_what_crashes_deepspeeds_script_has_a_result(theirs, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert theirs.extract_value("bs1G", "log.txt") is None
    assert ours.extract_value("bs1G", "log.txt") == 1 << 30
    for name, text in (
        ("read_d4.txt", "E2E Read Speed = 2.0 GB/sec\n"),
        ("read_dx.txt", "E2E Read Speed = 3.0 GB/sec\n"),
        ("read__tuned.txt", "E2E Read Speed = cut"),
        ("read_b.txt", b"\xff\xfe\n"),
    ):
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises((TypeError, ValueError, IndexError)):
        theirs.get_sorted_results(str(tmp_path), "read_speed")
    keys, results = ours.get_sorted_results(str(tmp_path), "read_speed")
    assert [(key, results[key]) for key in keys] == [
        (("read", None), 3.0),
        (("read", None, None), None),
        (("read", 4), 2.0),
        (("read", "b"), None),
    ]
    assert ours.get_thread_count("read__tuned_t4.txt") == 4
    assert ours.get_metric(tmp_path / "gone.txt", "read_speed") is None
    with pytest.raises(ConfigError, match="metric is 'speed'"):
        ours.get_metric(tmp_path / "read_d4.txt", "speed")
    with pytest.raises(LogFormatError, match="folder is not existent"):
        ours.get_sorted_results(tmp_path / "gone", "read_speed")


def test_the_script_prints_what_deepspeeds_prints(tmp_path: Path) -> None:
    for path in FOLDERS[0].iterdir():
        shutil.copy(path, tmp_path)
    (tmp_path / "once_dx.txt").write_text("E2E Read Speed = 3.0 GB/sec\n")
    for arguments, status in (
        (["--log_dir", str(tmp_path), "--metric", "read_speed"], 0),
        (["--log_dir", str(tmp_path), "--metric", "speed"], 1),
    ):
        printed = []
        for module in ("deepspeed.nvme.parse_nvme_stats", "arrowds.stats.aio.parse_aio_stats"):
            command = [sys.executable, "-m", module, *arguments]
            run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            lines = run.stdout.splitlines(keepends=True)
            printed.append([line for line in lines if "real_accelerator" not in line])
        assert printed[0] == printed[1]
        assert (len(printed[1]) > 2, run.returncode) == (True, status)
