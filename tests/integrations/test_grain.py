"""Grain's datasets over a sampler: the same batches, resumed exactly by Grain's own state."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

import arrowds
from arrowds.errors import ConfigError
from arrowds.integrations.grain import MicrobatchSource

grain = pytest.importorskip("grain")

ROWS = 96
CURRICULUM = {
    "length": {
        "difficulty_type": "value",
        "clustering_type": "schedule_based",
        "min_difficulty": 8,
        "max_difficulty": 32,
        "schedule_type": "fixed_linear",
        "schedule_config": {"total_curriculum_step": 10, "difficulty_step": 4},
    }
}


@pytest.fixture
def index(tmp_path):
    lengths = np.random.default_rng(2).integers(1, 33, ROWS)
    return arrowds.analyze(
        pl.DataFrame({"length": lengths}), arrowds.metrics.column("length"), tmp_path / "index", progress=False
    )


def sampler_of(index, rank, **options):
    sizes = {"max_tokens": 40, "lengths": "length"} if options.pop("tokens", False) else {"micro_batch_size": 4}
    return arrowds.CurriculumSampler(
        index, CURRICULUM, rank=rank, world_size=2, gradient_accumulation_steps=2, **sizes, **options
    )


@pytest.mark.parametrize("tokens", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_the_batches_are_those_of_the_sampler_and_a_saved_state_continues_them(index, rank, tokens):
    expected = list(sampler_of(index, rank, tokens=tokens))

    def stream():
        return iter(
            grain.MapDataset.source(
                MicrobatchSource(range(ROWS), sampler_of(index, rank, tokens=tokens))
            ).to_iter_dataset()
        )

    assert list(stream()) == expected
    first = stream()
    seen = [next(first) for _ in range(5)]
    state = json.loads(json.dumps(first.get_state()))
    resumed = stream()
    resumed.set_state(state)
    assert seen + list(resumed) == expected


def test_a_source_is_collated_and_keeps_no_record(index, tmp_path):
    source = MicrobatchSource(range(ROWS), sampler_of(index, 1), collate_fn=np.array)
    assert source[3].tolist() == list(sampler_of(index, 1))[3]
    with pytest.raises(ConfigError, match="without record="):
        MicrobatchSource(range(ROWS), sampler_of(index, 0, record=tmp_path / "record"))
