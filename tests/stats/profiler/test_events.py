"""The profiler: DeepSpeed's methods and counters, and a row per event."""

import gc
import logging
import random
import threading
from pathlib import Path
from time import sleep, time_ns

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowds.errors import ConfigError, ProfilerError, StorageError
from arrowds.stats.profiler import NoTimers, PartitionedParameterProfiler, read_events
from arrowds.stats.profiler.buffer import DEEPSPEED_EVENTS, EVENT_SCHEMA

# DeepSpeed imports deprecated parts of torch and of the standard library when it is loaded.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

names = st.sampled_from([*DEEPSPEED_EVENTS, "my_event"])
actions = st.lists(st.one_of(st.tuples(names, st.integers(0, 2**40)), st.none()), max_size=60)


def record(profiler: PartitionedParameterProfiler, name: str, elements: int) -> None:
    profiler.start_event(name)
    profiler.stop_event(name, elements)


def test_without_timers_nothing_happens() -> None:
    profiler = PartitionedParameterProfiler(None)
    profiler.stop_event("never started", 1)
    record(profiler, "forward_fetch_wait", 7)
    profiler.reset_events()
    profiler.log_events()
    assert profiler.event_counters == {}
    assert profiler.to_arrow().num_rows == 0
    assert profiler.to_arrow().schema == EVENT_SCHEMA


def test_stopping_an_event_that_was_not_started_says_which_are_open() -> None:
    profiler = PartitionedParameterProfiler(NoTimers())
    profiler.start_event("forward_fetch_wait")
    with pytest.raises(ProfilerError, match=r"'backward_fetch_wait'.*open events: \['forward_fetch_wait'\]"):
        profiler.stop_event("backward_fetch_wait", 1)
    profiler.stop_event("forward_fetch_wait", 1)
    with pytest.raises(ProfilerError, match="without a start_event"):
        profiler.stop_event("forward_fetch_wait", 1)
    assert profiler.to_arrow().num_rows == 1


@settings(max_examples=40, deadline=None)
@given(actions=actions)
def test_counters_are_those_of_deepspeed(actions: list[tuple[str, int] | None]) -> None:
    from deepspeed.runtime.zero.partitioned_param_profiler import PartitionedParameterProfiler as DeepSpeedProfiler
    from deepspeed.utils.timer import NoopTimer

    theirs, ours = DeepSpeedProfiler(NoopTimer()), PartitionedParameterProfiler(NoopTimer())
    for action in actions:
        for profiler in (theirs, ours):
            if action is None:
                profiler.reset_events()
            else:
                record(profiler, *action)
    expected = {name: (counter.count, counter.num_elem) for name, counter in theirs.event_counters.items()}
    assert {name: (c.count, c.num_elem) for name, c in ours.event_counters.items()} == expected
    rows = ours.to_arrow()
    assert rows["event"].to_pylist() == [action[0] for action in actions if action]
    assert rows["num_elements"].to_pylist() == [action[1] for action in actions if action]


def test_timers_run_and_are_logged_as_deepspeed_does(caplog: pytest.LogCaptureFixture) -> None:
    from deepspeed.utils.timer import SynchronizedWallClockTimer

    timers = SynchronizedWallClockTimer()
    profiler = PartitionedParameterProfiler(timers)
    record(profiler, "forward_fetch_wait", 5)
    record(profiler, "forward_fetch_wait", 6)
    assert len(timers("forward_fetch_wait").event_timers) == 2
    with caplog.at_level(logging.INFO, "arrowds"):
        profiler.log_events()
    assert caplog.messages == ["forward_fetch_wait: count = 2, numel = 11"]
    assert timers("forward_fetch_wait").event_timers == []


def test_other_ranks_and_quiet_profilers_log_no_counters(caplog: pytest.LogCaptureFixture) -> None:
    for options in ({"rank": 1}, {"log": False}):
        profiler = PartitionedParameterProfiler(NoTimers(), **options)
        record(profiler, "forward_fetch_wait", 5)
        with caplog.at_level(logging.INFO, "arrowds"):
            profiler.log_events()
    assert caplog.messages == []


def test_a_row_says_what_an_event_was() -> None:
    profiler = PartitionedParameterProfiler(NoTimers(), rank=3, element_size=2)
    before = time_ns()
    profiler.reset_events()
    profiler.start_event("backward_fetch_submit")
    profiler.start_event("backward_all_gather")
    sleep(0.002)
    profiler.stop_event("backward_all_gather", 100)
    profiler.stop_event("backward_fetch_submit", 50)
    record(profiler, "my_event", 1)
    inner, outer, other = profiler.to_arrow().to_pylist()
    assert (inner["rank"], inner["step"], inner["micro_step"], inner["clock"]) == (3, 1, 0, "host")
    assert (inner["phase"], inner["elements_of"], inner["bytes"]) == ("backward", "full", 200)
    assert (outer["elements_of"], outer["bytes"]) == ("partition", 100)
    assert (other["phase"], other["elements_of"], other["event"]) == (None, None, "my_event")
    assert inner["duration_ns"] >= 2_000_000
    assert outer["start_ns"] <= inner["start_ns"]
    assert outer["duration_ns"] > inner["duration_ns"]
    assert before - 1_000_000 <= outer["start_ns"] <= time_ns() + 1_000_000


def test_fetches_count_partitions_and_the_rest_counts_whole_parameters() -> None:
    profiler = PartitionedParameterProfiler(NoTimers())
    for name in DEEPSPEED_EVENTS:
        record(profiler, name, 1)
    rows = profiler.to_arrow()
    found = dict(zip(rows["event"].to_pylist(), rows["elements_of"].to_pylist(), strict=True))
    for phase in ("forward", "backward"):
        assert found[f"{phase}_fetch_submit"] == found[f"{phase}_fetch_wait"] == "partition"
        assert found[f"{phase}_prefetch_submit"] == found[f"{phase}_all_gather"] == "full"


def test_bytes_are_null_where_the_element_size_is_unknown() -> None:
    profiler = PartitionedParameterProfiler(NoTimers())
    record(profiler, "forward_fetch_wait", 5)
    assert profiler.to_arrow()["bytes"].to_pylist() == [None]
    assert profiler.summary()["gb_per_s"].to_list() == [None]


def test_durations_leave_out_the_timers_own_cost() -> None:
    class SlowTimers(NoTimers):
        def start(self) -> None:
            sleep(0.02)

        stop = start

    profiler = PartitionedParameterProfiler(SlowTimers())
    record(profiler, "forward_fetch_wait", 5)
    assert profiler.to_arrow()["duration_ns"][0].as_py() < 20_000_000


def test_events_of_one_name_may_nest() -> None:
    profiler = PartitionedParameterProfiler(NoTimers())
    profiler.start_event("my_event")
    profiler.start_event("my_event")
    profiler.stop_event("my_event", 1)
    profiler.stop_event("my_event", 2)
    rows = profiler.to_arrow()
    assert rows["num_elements"].to_pylist() == [1, 2]
    assert rows["duration_ns"][0].as_py() < rows["duration_ns"][1].as_py()


def test_each_reset_begins_a_step() -> None:
    profiler = PartitionedParameterProfiler(NoTimers())
    for _ in range(3):
        record(profiler, "forward_fetch_wait", 1)
        profiler.reset_events()
    assert profiler.to_arrow()["step"].to_pylist() == [0, 1, 2]


def test_resets_within_a_step_begin_micro_steps() -> None:
    steps = iter([5, 5, 5, 6, 6, 7])
    profiler = PartitionedParameterProfiler(NoTimers(), step_of=lambda: next(steps))
    for _ in range(5):
        profiler.reset_events()
        record(profiler, "forward_fetch_wait", 1)
    rows = profiler.to_arrow()
    assert rows["step"].to_pylist() == [5, 5, 6, 6, 7]
    assert rows["micro_step"].to_pylist() == [0, 1, 0, 1, 0]


@settings(max_examples=25, deadline=None)
@given(events=st.lists(st.tuples(st.text(max_size=6), st.integers(0, 9)), max_size=80), flush_rows=st.integers(1, 9))
def test_rows_survive_any_flushing_and_new_names(events: list[tuple[str, int]], flush_rows: int) -> None:
    profiler = PartitionedParameterProfiler(NoTimers(), flush_rows=flush_rows)
    for name, elements in events:
        if elements == 0:
            profiler.reset_events()
        record(profiler, name, elements)
    rows = profiler.to_arrow()
    assert list(zip(rows["event"].to_pylist(), rows["num_elements"].to_pylist(), strict=True)) == events


def test_a_step_boundary_flushes_after_enough_seconds(tmp_path: Path) -> None:
    profiler = PartitionedParameterProfiler(NoTimers(), path=tmp_path, flush_seconds=0)
    record(profiler, "forward_fetch_wait", 1)
    profiler.reset_events()
    assert read_events(tmp_path).num_rows == 1
    profiler.close()


def test_threads_lose_no_row() -> None:
    profiler = PartitionedParameterProfiler(NoTimers(), flush_rows=50)

    def work() -> None:
        for _ in range(1000):
            record(profiler, "backward_fetch_wait", 1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = profiler.to_arrow()
    assert rows.num_rows == 4000
    assert pa.compute.sum(rows["num_elements"]).as_py() == 4000


def test_a_file_that_cannot_be_written_does_not_stop_the_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "rank=0").write_text("in the way")
    profiler = PartitionedParameterProfiler(NoTimers(), path=tmp_path, flush_rows=1)
    for _ in range(9):
        record(profiler, "forward_fetch_wait", 1)
        profiler.reset_events()
    assert profiler.dropped == 9
    assert len(caplog.messages) == 1
    assert "the run continues" in caplog.messages[0]
    with pytest.raises(StorageError, match="9 profiler events were dropped"):
        profiler.flush()


def test_a_profiler_that_is_dropped_keeps_its_rows_and_removes_its_temporary_folder(tmp_path: Path) -> None:
    kept = PartitionedParameterProfiler(NoTimers(), path=tmp_path)
    record(kept, "forward_fetch_wait", 1)
    temporary = PartitionedParameterProfiler(NoTimers())
    record(temporary, "forward_fetch_wait", 1)
    (written,) = temporary.write(tmp_path / "copy")
    folder = temporary._recorder._files[0]
    assert folder.exists()
    del kept, temporary
    gc.collect()
    assert not folder.parent.parent.exists()
    assert written.exists()
    assert read_events(tmp_path).num_rows == 1


@pytest.mark.parametrize("options", [{"rank": -1}, {"flush_rows": 0}, {"element_size": 0}, {"flush_seconds": -1}])
def test_options_without_sense_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="got"):
        PartitionedParameterProfiler(NoTimers(), **options)


def test_summary_equals_numpy() -> None:
    profiler = PartitionedParameterProfiler(NoTimers(), element_size=4)
    generator = random.Random(0)
    for _ in range(300):
        if generator.random() < 0.05:
            profiler.reset_events()
        record(profiler, generator.choice(DEEPSPEED_EVENTS), generator.randrange(1000))
    events = pl.from_arrow(profiler.to_arrow())
    summary = profiler.summary()
    assert summary["count"].sum() == 300
    for row in summary.iter_rows(named=True):
        group = events.filter((pl.col("step") == row["step"]) & (pl.col("event") == row["event"]))
        durations = group["duration_ns"].to_numpy()
        assert row["count"] == len(durations)
        assert row["phase"] == row["event"].split("_")[0]
        assert row["elements"] == group["num_elements"].sum()
        assert row["total_ns"] == durations.sum()
        assert row["mean_ns"] == pytest.approx(durations.mean())
        assert row["p50_ns"] == pytest.approx(np.quantile(durations, 0.5))
        assert row["p99_ns"] == pytest.approx(np.quantile(durations, 0.99))
        assert row["gb_per_s"] == pytest.approx(4 * row["elements"] / 1e9 / (durations.sum() / 1e9))
