"""ads.initialize on real engines: two ranks of ZeRO-3, one killed, resumed; another world size; a pipeline."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

import arrowds
from arrowds.errors import MissingExtraError
from arrowds.integrations import deepspeed as ads
from arrowds.metrics import expr

pytest.importorskip("deepspeed", reason="deepspeed is an extra")

# DeepSpeed imports deprecated parts of torch and of the standard library when it is loaded.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

SCRIPT = Path(__file__).with_name("curriculum_run.py")
VALUES = np.random.default_rng(4).integers(1, 17, 96)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Run:
    """One part of the script on two ranks under torchrun, or on one; stopped where the test is left."""

    def __init__(self, part: str, folder: Path, ranks: int = 2) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
        port, command = str(free_port()), [sys.executable]
        if ranks > 1:
            command += ["-m", "torch.distributed.run", "--nproc_per_node", str(ranks), "--master_port", port]
        else:
            environment |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.output = folder / f"{part}.log"
        self.process = subprocess.Popen(
            [*command, str(SCRIPT), part, str(folder)],
            env=environment | {"PYTHONWARNINGS": "ignore"},
            stdout=self.output.open("w"),
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self, *, fails: bool = False) -> None:
        code = self.process.wait(timeout=300)
        assert (code != 0) == fails, self.output.read_text()[-4000:]

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()  # torchrun ends its ranks, which are in sessions of their own
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("runs")
    metric = expr("seqlen", pl.col("seqlen"))
    arrowds.analyze(pa.table({"seqlen": VALUES}), [metric], path / "index", workers=1, progress=False)
    runs: list[Run] = []
    try:
        runs += [Run("whole", path), Run("killed", path)]
        runs[0].wait()
        runs[1].wait(fails=True)
        runs += [Run("resumed", path), Run("one", path, ranks=1)]
        runs[2].wait()
        runs[3].wait()
        yield path
    finally:
        for run in runs:
            run.stop()


def log(folder: Path, name: str, rank: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"{name}-{rank}.jsonl").read_text().splitlines()]


def facts(folder: Path, rank: int = 0) -> dict[str, Any]:
    return {name: value for line in log(folder, "facts", rank) for name, value in line.items()}


@pytest.mark.parametrize("rank", [0, 1])
def test_losses_are_those_of_a_run_fed_by_hand(folder: Path, rank: int) -> None:
    """Ids, losses to the last bit, and the difficulty that the post-process function gets, with workers ahead."""
    assert log(folder, "whole", rank) == log(folder, "hand", rank)
    assert [line["difficulty"] for line in log(folder, "whole", rank)[::2]] == [4, 6, 8, 10, 12, 14, 16, 16]


def test_ranks_partition_the_global_batch(folder: Path) -> None:
    left, right = (log(folder, "whole", rank) for rank in (0, 1))
    for one, other in zip(left, right, strict=True):
        assert len({*one["ids"], *other["ids"]}) == 4
        assert VALUES[one["ids"] + other["ids"]].max() <= one["difficulty"] == other["difficulty"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_run_goes_on_exactly(folder: Path, rank: int) -> None:
    """Rank 1 died of SIGKILL in step 5; the checkpoint is of step 4."""
    whole = log(folder, "whole", rank)
    before = log(folder, "killed", rank)
    assert before == whole[: len(before)]
    assert before[-1]["step"] == 5
    assert log(folder, "resumed", rank) == whole[8:]


def test_another_world_size_takes_the_same_global_batches(folder: Path) -> None:
    """From the checkpoint of two ranks after step 3, on one."""
    two = [log(folder, "elastic", rank)[6:] for rank in (0, 1)]
    one = log(folder, "one", 0)
    assert [line["ids"] for line in one] == [left["ids"] + right["ids"] for left, right in zip(*two, strict=True)]
    assert [line["difficulty"] for line in one] == [line["difficulty"] for line in two[0]]
    means = [(left["loss"] + right["loss"]) / 2 for left, right in zip(*two, strict=True)]
    np.testing.assert_allclose([line["loss"] for line in one], means, rtol=1e-5)


def test_a_checkpoint_without_a_sampler_loads(folder: Path) -> None:
    assert facts(folder)["without"] == 8


def test_the_length_is_that_of_a_rank_and_the_timer_runs(folder: Path) -> None:
    assert facts(folder)["length"] == 96 * 5 // 4
    assert facts(folder)["timed"] == 16


def test_an_evaluation_is_not_given_the_curriculum(folder: Path) -> None:
    assert [facts(folder, rank)["evaluated"] for rank in (0, 1)] == [[[0, 2], [4, 6], [8]], [[1, 3], [5, 7], [9]]]


def test_the_engine_sets_a_custom_schedule(folder: Path) -> None:
    assert facts(folder)["custom"] == [7, 7, 8, 8, 9, 9]


def test_without_a_curriculum_the_data_are_shuffled_among_the_ranks(folder: Path) -> None:
    left, right = (facts(folder, rank)["shuffled"] for rank in (0, 1))
    assert sorted(row for batch in left + right for row in batch) == list(range(96))
    assert left[0] != [0, 2]


def test_a_pipeline_of_two_stages_resumes_exactly(folder: Path) -> None:
    straight, resumed = log(folder, "pipeline", 0)
    assert log(folder, "pipeline", 1) == [straight, resumed]
    assert straight["seen"][6:] == resumed["seen"]
    assert straight["losses"][3:] == resumed["losses"]
    assert [seen[0] for seen in straight["seen"]] == [4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14]
    assert straight["same"]


def test_ranks_of_an_mpu_are_used() -> None:
    """Four processes, of which two and two share their data."""

    def batches(rank: int) -> list[Any]:
        mpu = SimpleNamespace(get_data_parallel_rank=lambda: rank // 2, get_data_parallel_world_size=lambda: 2)
        engine = SimpleNamespace(
            mpu=mpu,
            local_rank=rank,
            tput_timer=None,
            collate_fn=list,
            curriculum_learning_enabled=lambda: False,
            train_micro_batch_size_per_gpu=lambda: 3,
            dataloader_drop_last=lambda: False,
        )
        return list(ads.deepspeed_io(engine, range(12), num_local_io_workers=0))

    found = [batches(rank) for rank in range(4)]
    assert found[0] == found[1] != found[2] == found[3]
    assert sorted(row for batch in found[0] + found[2] for row in batch) == list(range(12))


def test_a_missing_deepspeed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(MissingExtraError, match=r"arrowds\[deepspeed\]"):
        ads.initialize(model=None)
