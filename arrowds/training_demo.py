"""Train on the demo's index, stop, resume, and compare with the run that was never stopped."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from arrowds.curriculum.trace import CONSUMED, read_records
from arrowds.demo import Demo
from arrowds.errors import MissingExtraError
from arrowds.pipeline.run import Progress, TrainingRun, run_pipeline

LONGEST = 192


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingDemo:
    """Two runs of the same training: one in one go, one stopped after half of its steps and resumed.

    Attributes:
        whole: the run in one go.
        resumed: the second half of the other run; its tables have both halves.
        whole_samples: which samples the first run drew, in order (``step``, ``micro_batch``, ``rank``, ``sample_id``).
        resumed_samples: which the other run drew.
    """

    whole: TrainingRun
    resumed: TrainingRun
    whole_samples: pa.Table
    resumed_samples: pa.Table

    @property
    def same_batches(self) -> bool:
        """Whether both runs drew the same samples in the same order, and as many as the steps need."""
        return bool(self.whole_samples.num_rows and self.whole_samples.equals(self.resumed_samples))

    @property
    def largest_difference(self) -> float:
        """The largest difference of the losses of a step; 0 when they are equal to the last bit."""
        whole, resumed = (run.losses["loss"].to_numpy() for run in (self.whole, self.resumed))
        return float(np.abs(whole - resumed).max())


def require_packages(engine: str = "deepspeed") -> None:
    """Make sure of what the training needs, before anything takes time.

    Raises:
        MissingExtraError: when torch or DeepSpeed is not installed.
    """
    for package in ("torch", engine):
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, package)


def run_training_demo(
    demo: Demo, *, engine: str = "deepspeed", steps: int = 30, progress: Progress | None = None
) -> TrainingDemo:
    """Train a small model on the bytes of the demo's functions, short ones first, into ``training/`` beside the data.

    Args:
        demo: what ``run_demo`` returned.
        engine: "deepspeed" (ZeRO stage 3) or "torch".
        steps: of each run; the second one is stopped after half of them.
        progress: is called after every step.

    Raises:
        MissingExtraError: when torch or DeepSpeed is not installed.
    """
    require_packages(engine)
    folder = demo.data.parent / "training"
    shutil.rmtree(folder, ignore_errors=True)
    config = training_config(demo, engine=engine, steps=steps)
    whole = run_pipeline({**config, "output": folder / "whole"}, progress=progress)
    stopped = {**config, "output": folder / "resumed"}
    run_pipeline({**stopped, "training": {**config["training"], "steps": steps // 2}}, progress=progress)
    resumed = run_pipeline(stopped, progress=progress)
    return TrainingDemo(
        whole=whole,
        resumed=resumed,
        whole_samples=read_records(whole.output / CONSUMED),
        resumed_samples=read_records(resumed.output / CONSUMED),
    )


def training_config(demo: Demo, *, engine: str, steps: int) -> dict[str, Any]:
    """Return the configuration of the demo's training, without its output: a start for one's own."""
    length = {
        "difficulty_type": "value",
        "clustering_type": "schedule_based",
        "min_difficulty": 48,
        "max_difficulty": LONGEST,
        "schedule_type": "fixed_linear",
        "schedule_config": {"total_curriculum_step": max(1, steps * 2 // 3), "difficulty_step": 8},
    }
    return {
        "data": {"source": str(demo.data), "tokenizer": "bytes", "token_column": "text_bytes"},
        "index": {"path": str(demo.index.path)},
        "curriculum": {"bytes": length},
        "batches": {"micro_batch_size": 8, "gradient_accumulation_steps": 2, "record": True},
        "model": {"factory": "bytes", "arguments": {"max_length": LONGEST}},
        "training": {
            "engine": engine,
            "steps": steps,
            "learning_rate": 0.003,
            "warmup_steps": 5,
            "device": "cpu",
            "deepspeed": {"zero_optimization": {"stage": 3}} if engine == "deepspeed" else {},
        },
    }
