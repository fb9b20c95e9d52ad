"""Stragglers, the join with difficulties, and the figure."""

from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from arrowds.errors import ConfigError
from arrowds.stats.profiler.buffer import EVENT_SCHEMA
from arrowds.stats.profiler.chart import draw_profile
from arrowds.stats.profiler.summary import read_difficulties, stragglers, summarize, with_difficulties

MS = 1_000_000


def events(*rows: tuple[int, int, str, int, int]) -> pa.Table:
    """Make a table of (rank, step, event, start in ms, duration in ms)."""
    columns = {
        "rank": [row[0] for row in rows],
        "step": [row[1] for row in rows],
        "micro_step": [0] * len(rows),
        "phase": [row[2].split("_")[0] for row in rows],
        "event": [row[2] for row in rows],
        "start_ns": [row[3] * MS for row in rows],
        "duration_ns": [row[4] * MS for row in rows],
        "num_elements": [1] * len(rows),
        "bytes": [2] * len(rows),
        "elements_of": ["partition"] * len(rows),
        "clock": ["host"] * len(rows),
    }
    return pa.table(columns).cast(EVENT_SCHEMA)


def waits(per_rank: list[int], *, steps: int = 4) -> pa.Table:
    return events(
        *(
            (rank, step, name, step * 1000 + start, duration)
            for step in range(1, steps + 1)
            for rank, wait in enumerate(per_rank)
            for name, start, duration in (("forward_fetch_wait", 0, wait), ("backward_fetch_wait", 100, 0))
        )
    )


def test_the_rank_that_waits_least_is_late() -> None:
    found = stragglers(waits([50, 52, 5, 49]))
    assert found.filter("straggler")["rank"].to_list() == [2]
    assert found["late_steps"].to_list() == [0, 0, 4, 0]
    assert found["mean_lag_ns"].to_list() == [-0.5 * MS, -2.5 * MS, 44.5 * MS, 0.5 * MS]


def test_of_two_ranks_the_late_one_is_named() -> None:
    assert stragglers(waits([80, 2])).filter("straggler")["rank"].to_list() == [1]


def test_small_differences_name_nobody() -> None:
    assert stragglers(waits([50, 45])).filter("straggler").is_empty()
    assert stragglers(waits([50, 45]), tolerance=0.01).filter("straggler")["rank"].to_list() == [1]


def test_a_rank_that_is_slow_to_submit_is_named() -> None:
    rows = [
        (rank, step, name, step * 1000, duration)
        for step in (1, 2)
        for rank in range(3)
        for name, duration in (
            ("forward_fetch_wait", 10),
            ("forward_prefetch_submit", 60 if rank == 1 else 3),
            ("forward_all_gather", 60 if rank == 1 else 3),
        )
    ]
    found = stragglers(events(*rows))
    assert found.filter("straggler")["rank"].to_list() == [1]
    assert found["slow_steps"].to_list() == [0, 2, 0]
    assert found["mean_excess_ns"].to_list() == [0, 57 * MS, 0]


def test_late_once_is_no_straggler() -> None:
    late_once = pa.concat_tables([waits([50, 50, 50], steps=3), waits([50, 0, 50], steps=4).slice(18)])
    found = stragglers(late_once)
    assert found["late_steps"].to_list() == [0, 1, 0]
    assert found.filter("straggler").is_empty()


def test_one_rank_has_nobody_to_compare_with() -> None:
    assert stragglers(waits([50])).is_empty()


def test_a_summary_by_rank_keeps_ranks_apart() -> None:
    both = summarize(waits([50, 30], steps=1))
    assert both["total_ns"].to_list() == [80 * MS, 0]
    assert both["gb_per_s"].to_list() == [4 / (80 * MS), None]
    apart = summarize(waits([50, 30], steps=1), by_rank=True)
    assert apart.select("rank", "event", "total_ns").rows() == [
        (0, "forward_fetch_wait", 50 * MS),
        (0, "backward_fetch_wait", 0),
        (1, "forward_fetch_wait", 30 * MS),
        (1, "backward_fetch_wait", 0),
    ]


def difficulties() -> pl.DataFrame:
    return pl.DataFrame(
        {"step": [1, 1, 2, 2], "metric": ["seqlen", "rarity", "seqlen", "seqlen"], "difficulty": [8, 5, 16, 24]}
    )


@pytest.mark.parametrize("ending", ["parquet", "arrow", "arrows"])
def test_difficulties_are_joined_by_step(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"difficulties.{ending}"
    frame = difficulties()
    if ending == "parquet":
        frame.write_parquet(path)
    elif ending == "arrow":
        frame.write_ipc(path)
    else:
        frame.write_ipc_stream(path)
    pl.DataFrame({"other": [1]}).write_parquet(tmp_path / "a.parquet")
    (tmp_path / "notes.txt").write_text("nothing")
    for given in (path, tmp_path):
        read = read_difficulties(given)
        assert read.to_dict(as_series=False) == {"step": [1, 2], "seqlen": [8.0, 24.0], "rarity": [5.0, None]}
        joined = with_difficulties(summarize(waits([50], steps=3)), read)
        assert joined["seqlen"].to_list() == [8, 8, 24, 24, None, None]


def test_no_difficulties_say_what_was_expected(tmp_path: Path) -> None:
    pl.DataFrame({"other": [1]}).write_parquet(tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="columns step, metric, difficulty"):
        read_difficulties(tmp_path)
    (tmp_path / "b.parquet").write_text("nothing")
    with pytest.raises(ConfigError, match="can't be read"):
        read_difficulties(tmp_path)


def test_the_figure_has_the_timeline_and_the_bars() -> None:
    figure = draw_profile(waits([50, 30], steps=3), difficulties=read_frame())
    above, below, lines = figure.axes
    assert above.get_title(loc="left") == "Timeline of step 3"
    assert [label.get_text() for label in above.get_yticklabels()][:2] == [
        "rank 0  forward_fetch_wait",
        "rank 0  backward_fetch_wait",
    ]
    heights = [round(bar.get_height(), 6) for bar in below.patches]
    assert heights == [50, 50, 50, 0, 0, 0, 30, 30, 30, 0, 0, 0]
    assert [line.get_label() for line in lines.lines] == ["seqlen"]


def read_frame() -> pl.DataFrame:
    return pl.DataFrame({"step": [1, 2, 3], "seqlen": [8.0, 16.0, 24.0]})


def test_a_timeline_of_a_step_without_events_is_refused() -> None:
    with pytest.raises(ConfigError, match="no events of step 9; steps are 1 to 4"):
        draw_profile(waits([50]), step=9)
    with pytest.raises(ConfigError, match="no events to draw"):
        draw_profile(EVENT_SCHEMA.empty_table())
