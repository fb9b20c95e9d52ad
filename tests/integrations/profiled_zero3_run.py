"""A two-rank ZeRO-3 run on CPU, recorded by DeepSpeed's profiler and by arrowds' in turn; test_profiler.py runs it."""

import json
import logging
import os
import sys
import time
from pathlib import Path

import deepspeed
import torch
from deepspeed.runtime.zero import partitioned_param_coordinator
from deepspeed.utils.logging import logger

from arrowds.errors import ProfilerError
from arrowds.integrations.deepspeed.profiler import attach_profiler

SLOT = "_PartitionedParameterCoordinator__profiler"
MICRO_STEPS = 2
STEPS = 4
SLOW_RANK = 1


class Layer(torch.nn.Linear):
    """A layer that holds up one rank."""

    delay = 0.0

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        time.sleep(self.delay)
        return super().forward(batch)


def configuration(stage: int) -> dict[str, object]:
    return {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": MICRO_STEPS,
        "optimizer": {"type": "Adam", "params": {"torch_adam": True}},
        "wall_clock_breakdown": True,
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": 0,
            "stage3_prefetch_bucket_size": 2000,
            "stage3_max_live_parameters": 3000,
            "stage3_max_reuse_distance": 0,
        },
    }


def new_engine(stage: int = 3, *, optimizer: bool = True) -> deepspeed.DeepSpeedEngine:
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[Layer(width, width) for width in (32, 32, 32, 32)])
    config = configuration(stage)
    if not optimizer:
        del config["optimizer"]
    engine, *_ = deepspeed.initialize(model=model, config=config)
    return engine


def train(engine: deepspeed.DeepSpeedEngine, micro_steps: int) -> None:
    for _ in range(micro_steps):
        loss = engine(torch.ones(2, 32)).sum()
        engine.backward(loss)
        engine.step()


def coordinator(engine: deepspeed.DeepSpeedEngine) -> object:
    offload = getattr(engine.optimizer, "parameter_offload", engine.optimizer)
    return offload.get_param_coordinator()


def refusal(engine: object, folder: Path) -> str:
    try:
        attach_profiler(engine, folder)
    except ProfilerError as error:
        return str(error)
    return "accepted"


class Counts(logging.Handler):
    """The counters that DeepSpeed's profiler logs, one dictionary per step boundary."""

    def __init__(self) -> None:
        super().__init__()
        self.boundaries: list[dict[str, list[int]]] = []

    def emit(self, record: logging.LogRecord) -> None:
        name, found, rest = record.getMessage().rpartition(": count = ")
        if found:
            name = name.split()[-1]
            if not self.boundaries or name in self.boundaries[-1]:
                self.boundaries.append({})
            self.boundaries[-1][name] = [int(number) for number in rest.split(", numel = ")]


def main(folder: Path) -> None:
    counts = Counts()
    logger.setLevel(logging.INFO)
    logger.addHandler(counts)
    result: dict[str, object] = {}

    partitioned_param_coordinator.ENABLE_PROFILER = True
    logged = new_engine()
    train(logged, STEPS * MICRO_STEPS + 1)  # the counters of a micro-step are logged where the next begins
    result["logged"] = counts.boundaries[:]

    engine = new_engine()
    Layer.delay = 0.05 if engine.global_rank == SLOW_RANK else 0.0
    slots = dict(vars(coordinator(engine)))
    logged_before = len(counts.boundaries)
    profiler = attach_profiler(engine, folder)
    result["attached"] = getattr(coordinator(engine), SLOT) is profiler
    result["twice"] = refusal(engine, folder)
    train(engine, STEPS * MICRO_STEPS)
    result["logged_while_attached"] = len(counts.boundaries) - logged_before
    profiler.detach()
    profiler.detach()
    result["restored"] = getattr(coordinator(engine), SLOT) is slots[SLOT]
    result["same_slots"] = set(vars(coordinator(engine))) == set(slots)
    Layer.delay = 0.0
    train(engine, 2)
    result["logged_after"] = counts.boundaries[-1:]
    result["rows"] = profiler.to_arrow().num_rows

    partitioned_param_coordinator.ENABLE_PROFILER = False
    quiet = new_engine(optimizer=False)
    with attach_profiler(quiet, folder / "quiet") as quiet_profiler:
        quiet.eval()
        with torch.no_grad():
            quiet(torch.ones(2, 32))
    result["quiet_rows"] = quiet_profiler.to_arrow().num_rows
    result["stage 1"] = refusal(new_engine(stage=1), folder)
    (folder / f"result-{engine.global_rank}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may outlive the interpreter, and then abort it on the way out
