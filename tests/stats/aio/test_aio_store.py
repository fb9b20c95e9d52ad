from datetime import UTC, datetime
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from arrowds.errors import LogFormatError
from arrowds.stats.aio import append, best, load, read_logs
from arrowds.stats.aio.store import STORED_SCHEMA

SWEEP = Path(__file__).parent / "fixtures" / "sweep"
ODD = Path(__file__).parent / "fixtures" / "odd"


def test_runs_are_appended_with_their_id_and_time_and_other_tools_read_them(tmp_path: Path) -> None:
    path = tmp_path / "new" / "aio.parquet"
    before = datetime.now(UTC)
    first = append(read_logs(SWEEP), path)
    second = append(read_logs(ODD), path, run_id="by-hand")
    assert (first.added, second.added, second.run_id) == (8, 6, "by-hand")
    assert load(path).schema == STORED_SCHEMA
    columns = "run_id, count(*), count(e2e_speed_gib_s), epoch_us(max(imported_at))"
    rows = duckdb.sql(f"select {columns} from '{path}' group by 1 order by 2").fetchall()
    assert [row[:3] for row in rows] == [("by-hand", 6, 3), (first.run_id, 8, 8)]
    start = before.timestamp() * 1e6
    assert all(start - 1 <= row[3] <= start + 60e6 for row in rows)
    assert best(load(path)) == best(read_logs(SWEEP))
    assert [entry.name for entry in path.parent.iterdir()] == ["aio.parquet"]


def test_a_log_that_is_there_already_is_refused_from_any_folder(tmp_path: Path) -> None:
    path = tmp_path / "aio.parquet"
    append(read_logs(SWEEP / "_aio_bench_read_logs"), path)
    content = path.read_bytes()
    again = append(read_logs(SWEEP / "_aio_bench_read_logs"), path)
    assert (again.added, again.duplicates) == (0, 4)
    assert path.read_bytes() == content
    more = append(pa.concat_tables([read_logs(SWEEP)] * 2), path)
    assert (more.added, more.duplicates) == (4, 12)
    assert load(path)["file"].to_pylist()[-4:] == read_logs(SWEEP)["file"].to_pylist()[4:]


def test_both_rows_of_one_log_are_kept(tmp_path: Path) -> None:
    results = "".join(f"E2E {operation} Speed = 2.0 GB/sec\n" for operation in ("Read", "Write"))
    (tmp_path / "log.txt").write_text("args = Namespace(queue_depth=4)\n" + results)
    assert append(read_logs(tmp_path), tmp_path / "aio.parquet").added == 2


def test_a_log_that_was_written_again_is_another_log(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "read_block_overlap_ftd1_d4_bs1M_p1.txt"
    log.parent.mkdir()
    for speed in (1.0, 2.0):
        log.write_text(f"E2E Read Speed = {speed} GB/sec\n")
        assert append(read_logs(log.parent), tmp_path / "aio.parquet").added == 1
    assert load(tmp_path / "aio.parquet")["e2e_speed_gib_s"].to_pylist() == [1.0, 2.0]


def test_what_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"x": [1]}), path)
    content = path.read_bytes()
    with pytest.raises(LogFormatError, match="not a table of benchmark logs"):
        append(read_logs(SWEEP), path)
    assert path.read_bytes() == content
    pq.write_table(STORED_SCHEMA.empty_table().replace_schema_metadata({"arrowds.aio.version": "2"}), path)
    with pytest.raises(LogFormatError, match="has version 2, this arrowds reads up to 1"):
        load(path)
    with pytest.raises(LogFormatError, match="does not exist; create it with"):
        load(tmp_path / "gone.parquet")
