"""Event files: readable after a kill, compacted to Parquet partitioned by rank, never mixed up."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arrowds.errors import ProfilerError
from arrowds.stats.profiler import NoTimers, PartitionedParameterProfiler
from arrowds.stats.profiler.files import event_files, read_events

RECORD = """
import os, sys
from arrowds.stats.profiler import NoTimers, PartitionedParameterProfiler
def record(count, first=0):
    for position in range(first, first + count):
        profiler.start_event("forward_fetch_wait")
        profiler.stop_event("forward_fetch_wait", position)
profiler = PartitionedParameterProfiler(NoTimers(), path=sys.argv[1], flush_rows=64)
"""


def run(body: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", RECORD + body, str(folder)], stdout=subprocess.PIPE, text=True)


def fill(profiler: PartitionedParameterProfiler, values: range) -> None:
    for value in values:
        profiler.start_event("forward_fetch_wait")
        profiler.stop_event("forward_fetch_wait", value)


def test_a_killed_run_is_readable_up_to_its_last_flush(tmp_path: Path) -> None:
    body = """
first = 0
while True:
    record(100, first)
    first += 100
    profiler.reset_events()
    print(first, flush=True)
"""
    with run(body, tmp_path) as process:
        assert process.stdout is not None
        printed = [int(process.stdout.readline()) for _ in range(20)]
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    elements = read_events(tmp_path)["num_elements"].to_pylist()
    assert len(elements) >= printed[-1]
    assert elements == list(range(len(elements)))


def test_a_run_that_ends_without_close_keeps_every_row(tmp_path: Path) -> None:
    with run("record(10)", tmp_path) as process:
        assert process.wait(60) == 0
    assert read_events(tmp_path)["num_elements"].to_pylist() == list(range(10))


def test_a_forked_child_leaves_the_file_to_its_parent(tmp_path: Path) -> None:
    body = """
record(100)
profiler.flush()
record(5, 100)
child = os.fork()
if child == 0:
    record(1000, 5000)
    profiler.reset_events()
    sys.exit(0)  # runs the exit handlers, as os._exit would not
os.waitpid(child, 0)
record(5, 105)
"""
    with run(body, tmp_path) as process:
        assert process.wait(60) == 0
    assert read_events(tmp_path)["num_elements"].to_pylist() == list(range(110))


def test_a_stream_cut_anywhere_gives_the_batches_before_the_cut(tmp_path: Path) -> None:
    profiler = PartitionedParameterProfiler(NoTimers(), path=tmp_path / "whole")
    for batch in range(4):
        fill(profiler, range(batch * 10, batch * 10 + 10))
        profiler.flush()
    profiler.close()
    (whole,) = event_files(tmp_path / "whole")
    content = whole.read_bytes()
    cut = tmp_path / "cut" / "rank=0" / whole.name
    cut.parent.mkdir(parents=True)
    seen = set()
    for size in (*range(0, len(content), 41), len(content)):
        cut.write_bytes(content[:size])
        elements = read_events(tmp_path / "cut")["num_elements"].to_pylist()
        assert elements == list(range(len(elements)))
        seen.add(len(elements))
    assert seen == {0, 10, 20, 30, 40}


def test_write_replaces_the_stream_by_parquet_partitioned_by_rank(tmp_path: Path) -> None:
    profilers = [PartitionedParameterProfiler(NoTimers(), rank=rank, path=tmp_path) for rank in (0, 1, 10)]
    for profiler in profilers:
        fill(profiler, range(20))
        (path,) = profiler.write(tmp_path)
        assert path.parent.name == f"rank={profiler._rank}"
        assert profiler.to_arrow().num_rows == 20
    assert not list(tmp_path.rglob("*.arrows"))
    everything = read_events(tmp_path)
    assert everything["rank"].to_pylist() == [0] * 20 + [1] * 20 + [10] * 20
    frame = pl.read_parquet(tmp_path / "**" / "*.parquet", hive_partitioning=True)
    assert frame.group_by("rank").len().sort("rank").rows() == [(0, 20), (1, 20), (10, 20)]
    duckdb = pytest.importorskip("duckdb", reason="duckdb is an extra")
    query = f"select rank, sum(num_elements) from read_parquet('{tmp_path}/*/*.parquet') group by rank order by rank"
    assert duckdb.sql(query).fetchall() == [(0, 190), (1, 190), (10, 190)]


def test_recording_goes_on_after_write(tmp_path: Path) -> None:
    profiler = PartitionedParameterProfiler(NoTimers(), path=tmp_path)
    fill(profiler, range(5))
    profiler.write(tmp_path)
    fill(profiler, range(5, 8))
    profiler.write(tmp_path / "copy")
    profiler.write(tmp_path / "copy")
    fill(profiler, range(8, 9))
    profiler.close()
    assert read_events(tmp_path)["num_elements"].to_pylist() == list(range(9))
    assert read_events(tmp_path / "copy")["num_elements"].to_pylist() == list(range(8))
    assert profiler.to_arrow().equals(read_events(tmp_path))


def test_two_runs_into_one_folder_keep_both(tmp_path: Path) -> None:
    for first in (0, 5):
        profiler = PartitionedParameterProfiler(NoTimers(), path=tmp_path)
        fill(profiler, range(first, first + 5))
        profiler.close()
    assert read_events(tmp_path)["num_elements"].to_pylist() == list(range(10))


def test_a_kill_between_compaction_and_removal_counts_no_row_twice(tmp_path: Path) -> None:
    profiler = PartitionedParameterProfiler(NoTimers(), path=tmp_path)
    fill(profiler, range(5))
    profiler.close()
    (stream,) = event_files(tmp_path)
    shutil.copy(stream, tmp_path / "kept")
    profiler.write(tmp_path)
    shutil.move(tmp_path / "kept", stream)
    assert read_events(tmp_path).num_rows == 5


def test_a_folder_without_events_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(ProfilerError, match="rank=N/events"):
        read_events(tmp_path)


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rank=0" / "events-1.parquet"
    path.parent.mkdir()
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(ProfilerError, match=r"is not a file of profiler events: got \['x'\]"):
        read_events(tmp_path)
    path.write_bytes(b"PAR1 no parquet")
    with pytest.raises(ProfilerError, match="can't be read as Parquet"):
        read_events(tmp_path)


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    profiler = PartitionedParameterProfiler(NoTimers(), path=tmp_path)
    fill(profiler, range(5))
    (path,) = profiler.write(tmp_path)
    table = pq.read_table(path, partitioning=None)
    metadata = {**table.schema.metadata, b"arrowds.events_version": b"99"}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    with pytest.raises(ProfilerError, match="version 99"):
        read_events(tmp_path)
