"""States of every sampler, loader and scheduler, mutated."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from copy import deepcopy
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

import arrowds
from arrowds.errors import ArrowdsError
from arrowds.integrations.deepspeed.data_loader import DeepSpeedDataLoader
from arrowds.integrations.deepspeed.data_sampler import DeepSpeedDataSampler
from arrowds.integrations.deepspeed.epoch_batches import EpochBatches
from arrowds.loading import RepeatingLoader, scale_lr_by_batch_size
from fuzzed.damage import mutated
from fuzzed.indexes import METRICS, rows

SAMPLES = 200
CURRICULUM: dict[str, dict[str, Any]] = {
    "seqlen": {
        "difficulty_type": "value",
        "clustering_type": "schedule_based",
        "min_difficulty": 2,
        "max_difficulty": 6,
        "schedule_type": "fixed_linear",
        "schedule_config": {"total_curriculum_step": 20, "difficulty_step": 1},
    }
}


SIZES = {"micro_batch_size": 3, "gradient_accumulation_steps": 2, "num_epochs": 2}


def make_index(folder: Path) -> arrowds.Index:
    """An index of 200 samples."""
    return arrowds.analyze(rows(0, SAMPLES), METRICS, folder / "index", workers=1, progress=False)


def curriculum(index: arrowds.Index, **options: Any) -> arrowds.CurriculumSampler:
    return arrowds.CurriculumSampler(index, CURRICULUM, **SIZES, **options)


def plan(index: arrowds.Index) -> Any:
    return arrowds.batch_by_tokens(index["seqlen"].values, 20, world_size=2)


def token_batches(index: arrowds.Index) -> arrowds.TokenBudgetBatchSampler:
    return arrowds.TokenBudgetBatchSampler(plan(index), rank=1, world_size=2)


def efficiency(index: arrowds.Index) -> dict[str, Any]:
    """DeepSpeed's configuration of the curriculum."""
    learning = {
        "enabled": True,
        "curriculum_metrics": {"seqlen": CURRICULUM["seqlen"] | {"index_path": str(index.path)}},
    }
    return {"data_sampling": {"num_epochs": 2, "curriculum_learning": learning}}


def deepspeed_loader(index: arrowds.Index) -> DeepSpeedDataLoader:
    config = {"curriculum_learning": True, "data_efficiency": efficiency(index), "num_workers": 0}
    return DeepSpeedDataLoader(range(SAMPLES), 3, False, 0, None, deepspeed_dataloader_config=config)


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


MAKE: dict[str, Callable[[arrowds.Index], Any]] = {
    "curriculum": curriculum,
    "curriculum, some steps excluded": lambda index: curriculum(index, exclude_steps=[2, 5], drop_last=False),
    "curriculum of a token budget": lambda index: arrowds.CurriculumSampler(
        index, CURRICULUM, max_tokens=15, gradient_accumulation_steps=2, num_epochs=2
    ),
    "curriculum, draws of DeepSpeed": lambda index: curriculum(index, order="deepspeed"),
    "mixture": lambda index: arrowds.MixtureSampler({"a": index, "b": index}, {"a": 2, "b": 1}, **SIZES),
    "token batches": token_batches,
    "loader": lambda index: arrowds.CurriculumDataLoader(range(SAMPLES), curriculum(index)),
    "loader of token batches": lambda index: arrowds.CurriculumDataLoader(range(SAMPLES), token_batches(index)),
    "repeating loader": lambda index: RepeatingLoader(arrowds.CurriculumDataLoader(range(SAMPLES), curriculum(index))),
    "sampler for DeepSpeed": lambda index: DeepSpeedDataSampler(efficiency(index), SAMPLES, 3, 0, 1, None, 2, 0),
    "loader for DeepSpeed": deepspeed_loader,
    "epochs of batches": lambda index: EpochBatches(range(SAMPLES), 3, drop_last=False),
    "learning rates": lambda index: scale_lr_by_batch_size(
        torch.optim.lr_scheduler.StepLR(optimizer(), 3), [3, 5, 7], base_batch_size=4
    ),
    "learning rates of a plan": lambda index: scale_lr_by_batch_size(optimizer(), plan(index), base_batch_size=4),
}
"""By name: what makes a thing with a state; the same each time, as in a run that resumes."""


def _steps(one: Any, count: int) -> list[Any]:
    """Take some steps, and return what each has given."""
    if isinstance(one, Iterable):
        batches = [np.asarray(batch).tolist() for batch in islice(one, count)]
        assert all(0 <= sample < SAMPLES * 2 for batch in batches for sample in batch), "an id of no sample"
        return batches
    rates = []
    for _ in range(count):
        one.optimizer.step()
        one.step()
        rates.append(one.get_last_lr())
    return rates


def states(kind: str) -> Callable[[Path], Callable[[random.Random], None]]:
    """Return what prepares to load mutated states: what is refused changes nothing, what is accepted can go on."""

    def prepare(folder: Path) -> Callable[[random.Random], None]:
        index = make_index(folder)
        saved = []
        for count in (0, 1, 4, 7, 40):
            one = MAKE[kind](index)
            _steps(one, count)
            saved.append(one.state_dict())
        ahead = MAKE[kind](index)
        ahead.load_state_dict(deepcopy(saved[1]))
        next_steps = _steps(ahead, 3)

        def read(rng: random.Random) -> None:
            one = MAKE[kind](index)
            one.load_state_dict(deepcopy(saved[1]))
            state = mutated(rng.choice(saved), rng) if rng.random() < 0.95 else mutated([saved[0]], rng)
            if isinstance(state, dict) and isinstance(state.get("below"), dict):
                state["below"] = deepcopy(saved[0]["below"])  # torch's own, which torch does not check
            try:
                one.load_state_dict(state)
            except ArrowdsError:
                assert one.state_dict() == saved[1], "a state that was refused has changed the position"
                assert _steps(one, 3) == next_steps, "a state that was refused has changed what comes"
                raise
            one.state_dict()
            _steps(one, 3)
            one.state_dict()

        return read

    return prepare


READERS = {f"state of {kind}": states(kind) for kind in MAKE}
