"""What only a CUDA device shows: its clock, pinned batches, nccl, a loss computed on it. Skipped without one.

pytest tests/test_cuda.py tests/test_model_metrics.py -k cuda
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

import arrowds
from arrowds.build.engines import device
from arrowds.pipeline import run_pipeline
from arrowds.stats.profiler import NoTimers, PartitionedParameterProfiler

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "1"]


def test_cuda_events_time_the_device_and_not_the_host():
    matrix = torch.randn(4096, 4096, device="cuda")

    def work(times: int) -> None:
        for _ in range(times):
            torch.mm(matrix, matrix)

    work(5)
    torch.cuda.synchronize()
    profiler = PartitionedParameterProfiler(
        NoTimers(), device_events=lambda: torch.cuda.Event(enable_timing=True), element_size=4
    )
    profiler.reset_events()
    own = []
    for times in (10, 40):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        profiler.start_event("forward_all_gather")
        start.record()
        work(times)
        end.record()
        profiler.stop_event("forward_all_gather", 1024)
        own.append((start, end))
    profiler.reset_events()
    torch.cuda.synchronize()
    rows = profiler.to_arrow()
    assert set(rows["clock"].to_pylist()) == {"device"}
    milliseconds = np.array(rows["duration_ns"].to_pylist()) / 1e6
    expected = np.array([start.elapsed_time(end) for start, end in own])
    assert milliseconds == pytest.approx(expected, rel=0.05, abs=0.05)
    assert milliseconds[1] > 2 * milliseconds[0]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_cuda_takes_pinned_batches_of_a_curriculum(tmp_path, num_workers):
    data = pl.DataFrame({"input_ids": [[number] * (1 + number % 30) for number in range(400)]})
    data.write_parquet(tmp_path / "data.parquet")
    index = arrowds.analyze(tmp_path / "data.parquet", arrowds.metrics.seqlen(), tmp_path / "index", progress=False)
    curriculum = {
        "seqlen": {
            "difficulty_type": "value",
            "clustering_type": "schedule_based",
            "min_difficulty": 5,
            "max_difficulty": 30,
            "schedule_type": "fixed_linear",
            "schedule_config": {"total_curriculum_step": 10, "difficulty_step": 1},
        }
    }
    sampler = arrowds.CurriculumSampler(index, curriculum, micro_batch_size=8)
    dataset = arrowds.ArrowDataset(str(tmp_path / "data.parquet"), columns=["input_ids"])
    loader = arrowds.CurriculumDataLoader(dataset, sampler, num_workers=num_workers, pin_memory=True, collate_fn=padded)
    for step, batch in enumerate(loader, start=1):
        assert batch.is_pinned()
        moved = batch.to("cuda", non_blocking=True)
        ids = sampler.global_batch_at(step)
        assert sorted(moved.max(dim=1).values.tolist()) == sorted(int(each) for each in ids)
        if step == 20:
            break
    assert loader.state_dict()


def padded(rows: list) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.as_tensor(row["input_ids"]) for row in rows], batch_first=True)


def losses_of(batch) -> torch.Tensor:
    """A loss on the device that the engine has for this process."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1).to(device())
    values = torch.tensor(np.stack(batch["x"].to_numpy(zero_copy_only=False))).to(device())
    with torch.no_grad():
        return (model(values) ** 2).squeeze(1)


def test_cuda_computes_a_loss_that_the_cpu_computes_too(tmp_path):
    rng = np.random.default_rng(0)
    data = pl.DataFrame({"x": rng.normal(size=(300, 8)).astype(np.float32).tolist()}, schema={"x": pl.List(pl.Float32)})
    metric = arrowds.metrics.function("loss", on_cuda, columns=["x"], dtype="float32")
    index = arrowds.analyze(data, metric, tmp_path / "index", workers=1, progress=False)
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1)
    expected = (model(torch.tensor(data["x"].to_list())) ** 2).squeeze(1).detach().numpy()
    assert index["loss"].values == pytest.approx(expected, rel=1e-3, abs=1e-5)


def on_cuda(batch) -> torch.Tensor:
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 1).cuda()
    rows = torch.tensor(batch["x"].to_pylist(), device="cuda")
    with torch.no_grad():
        return (model(rows) ** 2).squeeze(1)


def test_cuda_ranks_of_torchrun_measure_on_their_device(tmp_path):
    script = tmp_path / "measure.py"
    script.write_text(
        f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}]
import polars as pl, torch, torch.distributed as dist, arrowds
from test_cuda import losses_of
dist.init_process_group("nccl")
data = pl.DataFrame({{"x": [[float(number)] * 8 for number in range(500)]}}, schema={{"x": pl.List(pl.Float32)}})
metric = arrowds.metrics.function("loss", losses_of, columns=["x"], dtype="float32", version="1")
index = arrowds.analyze(data, metric, {str(tmp_path / "index")!r}, engine="torch", progress=False)
print("measured", len(index), torch.cuda.memory_allocated() > 0)
dist.destroy_process_group()
"""
    )
    done = subprocess.run([*TORCHRUN, script], capture_output=True, text=True, check=False, env={**os.environ})
    assert "measured 500 True" in done.stdout, done.stderr[-2000:]
    values = arrowds.open_index(tmp_path / "index")["loss"].values
    assert len(np.unique(values)) > 400


def test_cuda_trains_a_run_over_nccl_and_resumes(tmp_path):
    texts = [("the stone rolls " * (1 + number % 9)).strip() for number in range(400)]
    pl.DataFrame({"text": texts}).write_parquet(tmp_path / "data.parquet")
    values = {
        "data": {"source": str(tmp_path / "data.parquet"), "tokenizer": "bytes"},
        "index": {"path": str(tmp_path / "index"), "metrics": [{"kind": "seqlen"}]},
        "curriculum": {
            "seqlen": {
                "difficulty_type": "value",
                "clustering_type": "schedule_based",
                "min_difficulty": 32,
                "max_difficulty": 160,
                "schedule_type": "fixed_linear",
                "schedule_config": {"total_curriculum_step": 6, "difficulty_step": 8},
            }
        },
        "batches": {"micro_batch_size": 8},
        "model": {"factory": "bytes", "arguments": {"width": 16, "layers": 1, "heads": 2, "max_length": 160}},
        "training": {"engine": "torch", "device": "cuda", "steps": 10, "learning_rate": 0.01, "checkpoint_every": 5},
        "output": str(tmp_path / "whole"),
    }
    whole = run_pipeline(values)
    assert torch.cuda.max_memory_allocated() > 0
    for steps in (5, 10):
        part = {**values, "output": str(tmp_path / "parts"), "training": {**values["training"], "steps": steps}}
        resumed = run_pipeline(part)
    assert resumed.resumed_from == 5
    assert np.array(resumed.losses["loss"]) == pytest.approx(np.array(whole.losses["loss"]), rel=1e-4)
    assert whole.losses["loss"][9].as_py() < whole.losses["loss"][0].as_py()
