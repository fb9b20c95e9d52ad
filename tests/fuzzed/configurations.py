"""Configurations in JSON and YAML: of DeepSpeed for the drop-ins, of `arrowds run`, and curricula."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

import arrowds
from arrowds.integrations.deepspeed.data_loader import DeepSpeedDataLoader
from arrowds.integrations.deepspeed.data_sampler import DeepSpeedDataSampler
from arrowds.integrations.deepspeed.scheduler import CurriculumScheduler
from arrowds.pipeline.config import load_config
from arrowds.pipeline.sampler_settings import sampler_from_settings
from fuzzed.damage import as_json, damaged, mutated
from fuzzed.states import CURRICULUM, SAMPLES, make_index


def _metric(kind: str, settings: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    return CURRICULUM["seqlen"] | {"schedule_type": kind, "schedule_config": dict(settings)} | more


CURRICULA: list[dict[str, Any]] = [
    CURRICULUM,
    {"seqlen": _metric("fixed_root", {"total_curriculum_step": 20, "difficulty_step": 2, "root_degree": 2})},
    {"seqlen": _metric("fixed_discrete", {"difficulty": [2, 4, 6], "max_step": [5, 9]})},
    {"seqlen": _metric("piecewise", {"points": [[1, 2], [9, 6]], "difficulty_step": 1, "interpolation": "linear"})},
    {
        "seqlen": _metric(
            "fixed_linear",
            {"total_curriculum_step": 20, "difficulty_step": 5},
            difficulty_type="percentile",
            min_difficulty=10,
            max_difficulty=100,
        ),
        "label": _metric("fixed_discrete", {"difficulty": [0, 149], "max_step": [5]}, max_difficulty=149),
    },
]
RUN = {
    "data": {"source": "data.parquet", "token_column": "ids"},
    "index": {
        "path": "index",
        "metrics": [{"kind": "seqlen", "column": "ids"}, {"kind": "expr", "name": "n", "sql": "n + 1"}],
        "workers": 1,
    },
    "curriculum": CURRICULUM,
    "batches": {"micro_batch_size": 3, "gradient_accumulation_steps": 2, "num_epochs": 2, "max_length": 6},
    "model": {"factory": "bytes", "arguments": {"width": 8}},
    "training": {"engine": "torch", "steps": 3, "learning_rate": 0.001, "max_grad_norm": 1.0, "deepspeed": {"a": 1}},
    "output": "run",
}


def _draw(sampler: Any) -> None:
    for step, ids in enumerate(islice(sampler, 3), 1):
        assert len(ids) and all(0 <= sample < SAMPLES for sample in ids), "an id of no sample"
        sampler.difficulties_at(step)
    sampler.state_dict()


def curricula(folder: Path) -> Callable[[random.Random], None]:
    """Prepare to draw by mutated curricula, and to follow their schedules."""
    index = make_index(folder)

    def read(rng: random.Random) -> None:
        curriculum = mutated(rng.choice(CURRICULA), rng)
        if isinstance(curriculum, dict) and rng.random() < 0.3:
            for settings in curriculum.values():
                scheduler = CurriculumScheduler(settings)
                for step in (1, 2, 10, 100, 10**9):
                    scheduler.update_difficulty(step)
        order = rng.choice(["stateless", "deepspeed"])
        _draw(arrowds.CurriculumSampler(index, curriculum, micro_batch_size=3, num_epochs=2, order=order))

    return read


def of_deepspeed(folder: Path) -> Callable[[random.Random], None]:
    """Prepare to read mutated JSON of DeepSpeed, from a file and from its dictionaries."""
    index = make_index(folder)
    path = folder / "ds_config.json"

    def read(rng: random.Random) -> None:
        metrics = {name: settings | {"index_path": str(index.path)} for name, settings in rng.choice(CURRICULA).items()}
        sampling = {
            "enabled": True,
            "num_epochs": 2,
            "num_workers": 0,
            "order": rng.choice(["stateless", "deepspeed"]),
            "exclude_steps": [2],
            "exclude_ids": [5],
            "curriculum_learning": {"enabled": True, "curriculum_metrics": metrics},
        }
        whole = {
            "train_batch_size": 6,
            "train_micro_batch_size_per_gpu": 3,
            "gradient_accumulation_steps": 2,
            "data_efficiency": {"enabled": True, "seed": 3, "data_sampling": sampling},
        }
        match rng.randrange(4):
            case 0:
                path.write_bytes(as_json(mutated(whole, rng), rng))
                _draw(sampler_from_settings(index, path))
            case 1:
                path.write_bytes(damaged(as_json(whole, rng), rng))
                _draw(sampler_from_settings(index, path))
            case 2:
                _draw(DeepSpeedDataSampler(mutated(whole["data_efficiency"], rng), SAMPLES, 3, 0, 1, None, 2, 0))
            case _:
                config = {"curriculum_learning": True, "data_efficiency": whole["data_efficiency"], "num_workers": 0}
                config = mutated(config, rng)
                if isinstance(config, dict) and config.get("num_workers") in range(1, 5000):
                    config["num_workers"] = 0
                loader = DeepSpeedDataLoader(range(SAMPLES), 3, False, 0, None, deepspeed_dataloader_config=config)
                for _ in islice(loader, 3):
                    pass

    return read


def runs(folder: Path) -> Callable[[random.Random], None]:
    """Prepare to read mutated configurations of `arrowds run`, in JSON and YAML."""
    index = make_index(folder)

    def read(rng: random.Random) -> None:
        path = folder / rng.choice(["run.yaml", "run.json"])
        document = mutated(RUN, rng) if rng.random() < 0.7 else RUN
        text = as_json(document, rng)
        if path.suffix == ".yaml" and rng.random() < 0.5:
            text = yaml.safe_dump(document, allow_unicode=True).encode()
        path.write_bytes(text if document is not RUN else damaged(text, rng))
        load_config(path)
        _draw(sampler_from_settings(index, path))

    return read


READERS = {"curricula": curricula, "configuration of DeepSpeed": of_deepspeed, "configuration of a run": runs}
