import argparse
import os
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arrowds.errors import LogFormatError
from arrowds.stats.aio import SCHEMA, STATUSES, read_logs
from arrowds.stats.aio.logs import parse_log
from arrowds.stats.aio.parameters import parse_namespace

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:deepspeed.*")  # raised while DeepSpeed is imported

FIXTURES = Path(__file__).parent / "fixtures"
SWEEP = FIXTURES / "sweep"
ODD = FIXTURES / "odd"
REAL = SWEEP / "_aio_bench_read_logs" / "read_block_overlap_ftd1_d8_bs1M_p1.txt"
RESULTS = (
    "Task Read Latency = 0.25 sec\nTask Read Speed = 4.0 GB/sec\n"
    "E2E Read Latency = 0.5 sec\nE2E Read Speed = 2.0 GB/sec\n"
)
NAME = "read_block_overlap_ftd1_d4_bs1M_p1.txt"


def one_row(folder: Path, name: str, text: str | bytes) -> dict[str, object]:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    rows = read_logs(folder).to_pylist()
    path.unlink()
    assert len(rows) == 1
    return rows[0]


def namespace(**changes: object) -> str:
    arguments = {
        "folder": None,
        "folder_to_device_mapping": ["nvme:0"],
        "io_size": "32M",
        "read": True,
        "multi_process": 1,
        "block_size": "1M",
        "queue_depth": 4,
        "single_submit": False,
        "sequential_requests": False,
        "engine": "aio_handle",
        "loops": 1,
        "io_parallel": 1,
        "gpu": False,
        "use_gds": False,
    }
    return f"args = {argparse.Namespace(**(arguments | changes))}\n"


def test_a_real_sweep_has_the_speeds_and_the_keys_that_deepspeeds_parser_finds() -> None:
    from deepspeed.nvme import parse_nvme_stats as oracle

    table = read_logs(SWEEP)
    assert table.schema == SCHEMA
    assert table.num_rows == 8
    for row in table.to_pylist():
        path = SWEEP / row["file"]
        operation, submit, order, folders, depth, block, parallel = oracle.get_file_key(path)
        assert row["status"] == "ok"
        assert row["e2e_speed_gib_s"] == oracle.get_metric(path, f"{operation}_speed")
        assert (row["operation"], row["queue_depth"], row["block_size_bytes"]) == (operation, depth, block)
        assert (row["io_parallel"], f"ftd{row['processes']}") == (parallel, folders)
        assert (row["single_submit"], row["overlap_events"]) == (submit == "single", order == "overlap")


def test_a_real_log_gives_every_column() -> None:
    (row,) = parse_log(REAL, name=REAL.name)
    stated = {name: row[name] for name in ("engine", "gpu", "use_gds", "loops", "io_size_bytes", "target", "error")}
    assert stated == {
        "engine": "aio_handle",
        "gpu": False,
        "use_gds": False,
        "loops": 1,
        "io_size_bytes": 32 << 20,
        "target": "nvme:0",
        "error": None,
    }
    text = REAL.read_text()
    for column, line in (("task_latency_s", "Task Read Latency"), ("task_speed_gib_s", "Task Read Speed")):
        assert f"{line} = {row[column]} " in text
    # DeepSpeed's GB are 1024**3 bytes: the speed times the latency is the size of the one operation.
    assert row["e2e_speed_gib_s"] * row["e2e_latency_s"] * 1024**3 == pytest.approx(32 << 20)


def test_failed_runs_carry_their_own_reason() -> None:
    rows = {row["file"]: (row["status"], row["error"]) for row in read_logs(ODD).to_pylist()}
    assert rows == {
        "read_block_overlap_ftd1_d4_bs1000_p1.txt": ("ok", None),
        "read_block_overlap_ftd1_d4_bs1M_p1.txt": (
            "failed",
            "Invalid folders in folder_to_device_mapping: ['missing']",
        ),
        "read_block_overlap_ftd1_d4_bs1M_p3.txt": ("failed", "AssertionError at: assert ret != -1"),
        "write_block_overlap_ftd1_d4_bsjunk_p1.txt": (
            "failed",
            "ValueError: invalid literal for int() with base 10: 'junk'",
        ),
        "write_block_overlap_t1_p2_d4_bs256K.txt": ("ok", None),
        "write_single_sequential_ftd2_d4_bs1M_p2.txt": ("ok", None),
    }


@pytest.mark.parametrize(
    ("name", "text", "status", "reason"),
    [
        (NAME, "", "empty", "empty"),
        (NAME, "\n \n", "empty", "empty"),
        (NAME, namespace(), "incomplete", "no E2E speed"),
        (NAME, namespace() + "Task Read Latency = 0.25 sec\nTask Read Speed = 4.0 GB/sec\n", "incomplete", "no E2E"),
        (NAME, namespace() + RESULTS[:-8], "incomplete", "ends within this line"),
        (NAME, namespace() + RESULTS.replace("2.0 GB/sec", "2.0 parsec/s"), "bad_result", "'2.0 parsec/s'"),
        (NAME, namespace() + RESULTS.replace("2.0 GB/sec", "nan GB/sec"), "bad_result", "'nan GB/sec'"),
        (NAME, namespace() + RESULTS.replace("2.0 GB/sec", "0 GB/sec"), "bad_result", "nothing was measured"),
        (NAME, (namespace() + RESULTS) * 2, "bad_result", "several runs"),
        (NAME, namespace(queue_depth=8) + RESULTS, "inconsistent", "queue_depth = 8, the file name says 4"),
        (NAME, namespace(io_parallel=2) + RESULTS, "inconsistent", "io_parallel = 2, the file name says 1"),
        (NAME, namespace(read=False) + RESULTS, "inconsistent", "say write, but the results are of a read"),
        (NAME, namespace(queue_depth="deep") + RESULTS, "bad_arguments", "queue_depth is 'deep'"),
        (NAME, namespace(queue_depth=2**70) + RESULTS, "bad_arguments", "queue_depth is 1180591620717411303424"),
        (NAME, namespace(block_size="1T") + RESULTS, "bad_arguments", "block_size: size is '1T'"),
        (NAME, namespace(single_submit="false") + RESULTS, "bad_arguments", "single_submit is 'false'"),
        (NAME, namespace().replace("queue_depth=4", "queue_depth=4, 5") + RESULTS, "bad_arguments", "literal"),
        (NAME, "args = Namespace(4, read=True)\n" + RESULTS, "bad_arguments", "a value without a name"),
        (NAME, "args = Namespace(**{'read': True})\n" + RESULTS, "bad_arguments", "a value without a name"),
        (NAME, "args = Namespace(a=__import__('os').getpid())\n" + RESULTS, "bad_arguments", "are not literals"),
        (NAME, f"args = Namespace(a={'(' * 500}{')' * 500})\n" + RESULTS, "bad_arguments", "are not literals"),
        ("read_block_overlap_ftd1_d4_bs1M_p1_x9.txt", RESULTS, "bad_arguments", "unknown tags: x9"),
        ("results.txt", RESULTS, "bad_arguments", "the file name lacks parameters"),
        ("notes.txt", "buy milk\n", "not_a_log", "neither"),
        ("other.log", "Traceback (most recent call last):\n  File\nKeyError: 1\n", "not_a_log", "neither"),
        ("picture.png", b"\x89PNG\0\0", "not_a_log", "binary"),
        (NAME, namespace() + "arrowds: stopped after 3 s\n", "timeout", "after 3 s"),
        (NAME, "usage: ds_io\nds_io: error: unrecognized arguments: --x\n", "failed", "unrecognized arguments: --x"),
    ],
)
def test_a_log_that_is_not_good_says_why(
    tmp_path: Path, name: str, text: str | bytes, status: str, reason: str
) -> None:
    row = one_row(tmp_path, name, text)
    assert row["status"] == status
    assert reason in str(row["error"])


@pytest.mark.parametrize(
    "name", ["results.txt", "read_block_overlap_ftd1_d4_bs1M_p1_x9.txt", "read_gpu_block_overlap_t8_p9_d4_bs1M.txt"]
)
def test_the_arguments_are_enough_where_the_name_says_less_or_something_else(tmp_path: Path, name: str) -> None:
    row = one_row(tmp_path, name, namespace() + RESULTS)
    assert (row["status"], row["queue_depth"], row["processes"], row["io_parallel"]) == ("ok", 4, 1, 1)


def test_units_are_converted(tmp_path: Path) -> None:
    mixed = RESULTS.replace("2.0 GB/sec", "2048.0 MB/sec").replace("0.5 sec", "500 ms")
    row = one_row(tmp_path, NAME, namespace() + mixed)
    assert (row["status"], row["e2e_speed_gib_s"], row["e2e_latency_s"]) == ("ok", 2.0, 0.5)


def test_the_older_scripts_arguments_are_understood(tmp_path: Path) -> None:
    arguments = argparse.Namespace(
        read_file=None,
        write_file="/nvme/random_400MB.pt",
        write_size="400M",
        block_size="256K",
        queue_depth=16,
        threads=2,
        single_submit=True,
        overlap_events=True,
        validate=False,
        handle=True,
        loops=3,
        io_parallel=8,
        gpu=False,
    )
    text = f"args = {arguments}\n" + RESULTS.replace("Read", "Write")
    row = one_row(tmp_path, "write_single_overlap_t2_p8_d16_bs256K.txt", text)
    found = {name: row[name] for name in ("operation", "block_size_bytes", "queue_depth", "processes", "io_parallel")}
    assert found == {
        "operation": "write",
        "block_size_bytes": 262144,
        "queue_depth": 16,
        "processes": 2,
        "io_parallel": 8,
    }
    assert (row["status"], row["single_submit"], row["overlap_events"], row["engine"]) == (
        "ok",
        True,
        True,
        "aio_handle",
    )
    assert (row["io_size_bytes"], row["loops"], row["target"]) == (400 << 20, 3, None)


def test_a_name_of_the_older_scripts_stands_in_for_missing_arguments(tmp_path: Path) -> None:
    row = one_row(tmp_path, "read_single_sequential_t2_p8_d16_bs1G.txt", RESULTS)
    assert (row["status"], row["block_size_bytes"], row["processes"], row["io_parallel"]) == ("ok", 1 << 30, 2, 8)
    assert (row["single_submit"], row["overlap_events"], row["arguments"]) == (True, False, None)


def test_a_log_of_a_read_and_a_write_is_two_rows(tmp_path: Path) -> None:
    arguments = "args = Namespace(read_file='a', write_file='b', block_size='1M', queue_depth=4, threads=1)\n"
    (tmp_path / "both.txt").write_text(arguments + RESULTS + RESULTS.replace("Read", "Write").replace("2.0", "3.0"))
    rows = read_logs(tmp_path).to_pylist()
    assert [(row["operation"], row["e2e_speed_gib_s"], row["status"]) for row in rows] == [
        ("read", 2.0, "ok"),
        ("write", 3.0, "ok"),
    ]


def test_folders_are_read_to_any_depth_and_unreadable_files_are_rows(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    (deep / NAME).write_text(namespace() + RESULTS)
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe.txt")
    rows = {row["file"]: (row["status"], row["error"]) for row in read_logs(tmp_path).to_pylist()}
    assert rows == {
        f"a/b/{NAME}": ("ok", None),
        "gone.txt": ("unreadable", "FileNotFoundError: No such file or directory"),
        "pipe.txt": ("unreadable", "not a regular file"),
    }


def test_a_name_that_is_no_text_does_not_stop_the_import(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"bad\xff.txt")).write_text("x")
    assert read_logs(tmp_path).to_pylist()[0]["file"] == "bad\\udcff.txt"


def test_a_folder_without_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LogFormatError, match="is empty"):
        read_logs(tmp_path)
    with pytest.raises(LogFormatError, match="does not exist"):
        read_logs(tmp_path / "nowhere")


def test_a_log_cut_anywhere_is_never_mistaken_for_another_result(tmp_path: Path) -> None:
    content = REAL.read_bytes()
    (whole,) = parse_log(REAL, name=REAL.name)
    path = tmp_path / REAL.name
    statuses = set()
    for end in range(content.index(b"tid 0: task_latency_sec"), len(content)):
        path.write_bytes(content[:end])
        (row,) = parse_log(path, name=path.name)
        statuses.add(row["status"])
        if row["status"] == "ok":
            assert row["e2e_speed_gib_s"] == whole["e2e_speed_gib_s"]
    assert statuses == {"ok", "incomplete"}


@given(content=st.binary(max_size=300), where=st.integers(0, 4000))
def test_any_content_is_a_row(tmp_path_factory: pytest.TempPathFactory, content: bytes, where: int) -> None:
    path = tmp_path_factory.mktemp("logs") / REAL.name
    real = REAL.read_bytes()
    path.write_bytes(real[:where] + content + real[where + len(content) :])
    rows = parse_log(path, name=path.name)
    pa.Table.from_pylist(rows, schema=SCHEMA).validate(full=True)
    assert {row["status"] for row in rows} <= set(STATUSES)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20), lambda inner: st.lists(inner, max_size=3)
)


@given(st.dictionaries(st.from_regex(r"[a-z]{3}_[a-z]{3}", fullmatch=True), values, max_size=5))
def test_whatever_argparse_prints_is_read_back(arguments: dict[str, object]) -> None:
    assert parse_namespace(repr(argparse.Namespace(**arguments))) == arguments


known = [
    "read",
    "folder",
    "folder_to_device_mapping",
    "io_size",
    "block_size",
    "queue_depth",
    "engine",
    "single_submit",
]
surrogates = st.text(st.characters(min_codepoint=0xD800, max_codepoint=0xDFFF), max_size=3)
odd_values = values | surrogates | st.lists(surrogates) | st.dictionaries(st.tuples(st.integers()), st.binary())


@given(st.dictionaries(st.sampled_from(known), odd_values | st.sets(st.integers()), min_size=1))
def test_any_arguments_are_a_row(tmp_path_factory: pytest.TempPathFactory, arguments: dict[str, object]) -> None:
    path = tmp_path_factory.mktemp("logs") / os.fsdecode(b"x\xff.txt")
    path.write_text(f"args = {argparse.Namespace(**arguments)}\n" + RESULTS)
    table = read_logs(path)
    table.validate(full=True)
    assert table["status"][0].as_py() in {"ok", "bad_arguments", "inconsistent"}
