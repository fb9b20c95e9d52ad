"""The installed DeepSpeed scheduler and sampler as an oracle: `python sampler_oracle.py` answers lines of JSON.

Its sampler runs in one process, with a world size that only slices batches, over index files from its own builder.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


class Oracle:
    """A process that imports DeepSpeed once and answers many questions."""

    def __init__(self) -> None:
        command = [sys.executable, __file__]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    def ask(self, **question: Any) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=30)


def difficulties(config: dict[str, Any], steps: int) -> list[list[float]]:
    """Return `get_difficulty` and `update_difficulty` of steps 1, 2, ..."""
    from deepspeed.runtime.data_pipeline.curriculum_scheduler import CurriculumScheduler

    scheduler = CurriculumScheduler(config)
    if config["schedule_type"] == "custom":
        scheduler.set_custom_get_difficulty(lambda step: config["min_difficulty"] + step // 4)
    return [[scheduler.get_difficulty(step), scheduler.update_difficulty(step)] for step in range(1, steps + 1)]


def microbatches(
    values: dict[str, list[int]],
    metrics: dict[str, Any],
    *,
    micro: int,
    accumulation: int,
    world: int,
    seed: int,
    epochs: int,
) -> dict[str, Any]:
    """Return the microbatches over all ranks, as DeepSpeed draws them, and whether a global batch came out short."""
    import deepspeed.comm as dist
    from deepspeed.runtime.data_pipeline.data_sampling.data_sampler import DeepSpeedDataSampler

    count = len(next(iter(values.values())))
    with tempfile.TemporaryDirectory() as folder:
        configs = {}
        for name, config in metrics.items():
            write_index(Path(folder), name, np.array(values[name]))
            paths = {"index_to_sample_path": f"{folder}/{name}_s", "index_to_metric_path": f"{folder}/{name}_m"}
            configs[name] = config | paths
        learning = {"enabled": True, "data_cluster_path": f"{folder}/clusters", "curriculum_metrics": configs}
        config = {"seed": seed, "data_sampling": {"num_epochs": epochs, "curriculum_learning": learning}}
        sampler = DeepSpeedDataSampler(config, count, micro, 0, world, dist.get_world_group(), accumulation, 0)
        sampler.get_start_end_idx = lambda length=None: (0, length)
        draw, sizes = sampler.get_next_global_batch, set()

        def draw_and_measure() -> None:
            draw()
            sizes.add(len(sampler.batch))

        sampler.get_next_global_batch = draw_and_measure
        drawn = list(sampler)
        return {"microbatches": drawn, "short": min(sizes) < micro * world * accumulation}


def write_index(folder: Path, name: str, values: np.ndarray) -> None:
    from deepspeed.runtime.data_pipeline.data_sampling.utils import (
        close_mmap_dataset_builder,
        create_mmap_dataset_builder,
        find_fit_int_dtype,
    )

    ids, kind = find_fit_int_dtype(0, len(values) - 1), find_fit_int_dtype(int(values.min()), int(values.max()))
    samples = create_mmap_dataset_builder(f"{folder}/{name}_s", ids)
    metric = create_mmap_dataset_builder(f"{folder}/{name}_m", kind)
    for value in np.unique(values):
        samples.add_item_numpy(np.flatnonzero(values == value).astype(ids))
        metric.add_item_numpy(np.array([value], kind))
    close_mmap_dataset_builder(samples, f"{folder}/{name}_s")
    close_mmap_dataset_builder(metric, f"{folder}/{name}_m")


def serve() -> None:
    # DeepSpeed prints to the standard output, which is where the answers go.
    answers, sys.stdout = sys.stdout, sys.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    import deepspeed.comm as dist
    from deepspeed.utils import logger

    logger.setLevel(logging.ERROR)
    dist.init_distributed(dist_backend="gloo", verbose=False)
    for line in sys.stdin:
        question = json.loads(line)
        answer = {"difficulties": difficulties, "microbatches": microbatches}[question.pop("what")](**question)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
