"""attach_profiler on a real two-rank ZeRO-3 run: it finds what DeepSpeed's own profiler logs for the same run."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import polars as pl
import pytest

from arrowds.errors import ProfilerError
from arrowds.integrations.deepspeed.profiler import attach_profiler
from arrowds.stats.profiler import read_events
from arrowds.stats.profiler.summary import stragglers

pytest.importorskip("deepspeed", reason="deepspeed is an extra")

# DeepSpeed imports deprecated parts of torch and of the standard library when it is loaded.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

SCRIPT = Path(__file__).with_name("profiled_zero3_run.py")
ROOT = SCRIPT.parents[2]
RANKS = 2


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", str(RANKS), "--master_port"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    finished = subprocess.run(
        [*launcher, str(free_port()), str(SCRIPT), str(path)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    return path


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict]:
    return [json.loads((folder / f"result-{rank}.json").read_text()) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def events(folder: Path) -> pl.DataFrame:
    return pl.from_arrow(read_events(folder)).with_columns(pl.col("event", "elements_of").cast(pl.String))


def test_counts_and_elements_are_those_that_deepspeed_logs(results: list[dict], events: pl.DataFrame) -> None:
    logged = results[0]["logged"]
    assert len(logged) >= 4
    steps = events.filter(rank=0).partition_by("step", "micro_step", maintain_order=True)
    assert len(steps) == 8
    compared = set()
    # DeepSpeed logs nothing before its trace is complete, so its last boundary is our last micro-step, and so on back.
    for theirs, ours in zip(reversed(logged), reversed(steps), strict=False):
        counted = ours.group_by("event").agg(pl.len(), pl.col("num_elements").sum())
        found = {name: [count, elements] for name, count, elements in counted.iter_rows()}
        assert found == {name: counts for name, counts in theirs.items() if counts[0]}
        compared |= set(found)
    assert compared >= {"forward_fetch_wait", "forward_prefetch_submit", "forward_all_gather", "backward_all_gather"}


def test_steps_are_those_of_the_engine(events: pl.DataFrame) -> None:
    found = events.select("rank", "step", "micro_step").unique(maintain_order=True).rows()
    assert found == [(rank, step, micro) for rank in range(RANKS) for step in (1, 2, 3, 4) for micro in (0, 1)]


def test_rows_tell_elements_bytes_and_phase(events: pl.DataFrame) -> None:
    assert events.filter(pl.col("bytes") != 4 * pl.col("num_elements")).is_empty()
    gathered = events.filter(pl.col("event").str.ends_with("all_gather"))
    assert gathered["elements_of"].unique().to_list() == ["full"]
    # A layer has 32 x 32 weights and 32 biases; each all-gather moves whole parameters.
    assert set(gathered["num_elements"].unique()) <= {1024, 32, 1056, 2080, 2112}
    waits = events.filter(pl.col("event").str.ends_with("fetch_wait"))
    assert waits["elements_of"].unique().to_list() == ["partition"]
    assert waits["num_elements"].max() == (1024 + 32) // RANKS


def test_the_rank_that_was_held_up_is_the_straggler(folder: Path) -> None:
    found = stragglers(read_events(folder))
    assert found.filter("straggler")["rank"].to_list() == [1]


def test_deepspeeds_own_profiler_is_silent_meanwhile_and_back_afterwards(results: list[dict]) -> None:
    for result in results:
        assert result["attached"]
        assert result["restored"]
        assert result["same_slots"]
        assert result["logged_while_attached"] == 0
    assert results[0]["logged_after"][0]["forward_fetch_wait"][0] > 0


def test_an_engine_without_optimizer_and_without_deepspeeds_profiler_is_recorded_too(results: list[dict]) -> None:
    assert all(result["quiet_rows"] > 0 for result in results)


def test_a_second_profiler_and_another_stage_are_refused(results: list[dict]) -> None:
    assert "already attached to this engine" in results[0]["twice"]
    assert "expected an engine of ZeRO stage 3, which alone fetches parameters, got stage 1" in results[0]["stage 1"]


def test_an_unknown_coordinator_is_refused(tmp_path: Path) -> None:
    class Coordinator:
        pass

    offload = SimpleNamespace(get_param_coordinator=Coordinator)
    engine = SimpleNamespace(optimizer=SimpleNamespace(parameter_offload=offload), global_steps=0, global_rank=0)
    with pytest.raises(ProfilerError, match=r"does not support the Coordinator of DeepSpeed.*0\.17\.0 to 0\.19"):
        attach_profiler(engine, tmp_path)
    with pytest.raises(ProfilerError, match="got str"):
        attach_profiler("engine", tmp_path)


def test_detach_leaves_a_later_profiler_where_it_is(tmp_path: Path) -> None:
    import torch
    from deepspeed.runtime.zero.partitioned_param_profiler import PartitionedParameterProfiler

    class PartitionedParameterCoordinator:
        def __init__(self) -> None:
            self.__profiler = PartitionedParameterProfiler(None)

        def replace(self) -> None:
            self.__profiler = PartitionedParameterProfiler(None)

    coordinator = PartitionedParameterCoordinator()
    engine = SimpleNamespace(
        optimizer=SimpleNamespace(get_param_coordinator=lambda: coordinator),
        module=torch.nn.Linear(2, 2),
        global_steps=0,
        global_rank=0,
    )
    profiler = attach_profiler(engine, tmp_path)
    coordinator.replace()
    with pytest.raises(ProfilerError, match="detach that one first"):
        profiler.detach()
