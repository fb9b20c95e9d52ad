"""Megatron-LM's sampler by its arguments: places of a dealt-out batch, at any position, on any number of ranks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import arrowds
from arrowds.errors import ConfigError
from arrowds.integrations.megatron import MegatronPretrainingSampler

SAMPLES = 97
LENGTHS = np.random.default_rng(5).integers(1, 33, SAMPLES)
CURRICULUM = {
    "seqlen": {
        "difficulty_type": "value",
        "clustering_type": "schedule_based",
        "min_difficulty": 8,
        "max_difficulty": 32,
        "schedule_type": "fixed_linear",
        "schedule_config": {"total_curriculum_step": 6, "difficulty_step": 8},
    }
}


@pytest.fixture(scope="module")
def index(make_index: Callable[..., arrowds.Index]) -> arrowds.Index:
    return make_index({"seqlen": pa.array(LENGTHS)})


@pytest.fixture(params=["curriculum", "mixture"])
def draw(request: pytest.FixtureRequest, index: arrowds.Index) -> Any:
    """A function that makes the sampler, for two epochs."""
    if request.param == "mixture":
        return partial(arrowds.MixtureSampler, {"a": index}, {"a": 1}, curricula={"a": CURRICULUM}, num_epochs=2)
    return partial(arrowds.CurriculumSampler, index, CURRICULUM, num_epochs=2)


def megatron(draw: Any, consumed: int, rank: int, size: int, micro: int = 3, **options: Any) -> Any:
    """Make the sampler as ``build_pretraining_data_loader`` does."""
    return MegatronPretrainingSampler(
        total_samples=SAMPLES,
        consumed_samples=consumed,
        micro_batch_size=micro,
        data_parallel_rank=rank,
        data_parallel_size=size,
        global_batch_size=12,
        sampler=draw,
        **options,
    )


def stream(draw: Any, steps: int) -> list[int]:
    """The ids that all ranks consume, in the sequence of a run."""
    sampler = draw(micro_batch_size=12)
    return list(itertools.chain.from_iterable(sampler.global_batch_at(step).tolist() for step in range(1, steps + 1)))


@pytest.mark.parametrize(("size", "micro"), [(1, 3), (2, 3), (4, 3), (2, 6), (6, 1)])
@pytest.mark.parametrize("consumed", [0, 12, 60, 180])
def test_every_rank_has_its_consecutive_part_of_each_microbatch_from_the_consumed_samples_on(
    draw: Any, consumed: int, size: int, micro: int
) -> None:
    steps = 2 * SAMPLES // 12
    ids, all_ranks = stream(draw, steps), micro * size
    batches = [ids[start : start + all_ranks] for start in range(consumed, len(ids), all_ranks)]
    parts = [[batch[rank * micro : (rank + 1) * micro] for batch in batches] for rank in range(size)]
    found = [list(megatron(draw, consumed, rank, size, micro)) for rank in range(size)]
    assert found == parts


def test_a_loader_of_torch_resumes_from_consumed_samples_alone_also_after_a_pass(draw: Any) -> None:
    """Two passes in one go; then a sampler made anew at each step, as Megatron does after a kill."""
    sampler = megatron(draw, 0, 1, 2)
    loader = torch.utils.data.DataLoader(range(SAMPLES), batch_sampler=sampler, collate_fn=list, num_workers=0)
    whole, consumed = [], []
    for _ in range(2):
        for batch in loader:
            whole.append(batch)
            consumed.append(sampler.consumed_samples)
    assert consumed == [6 * number for number in range(1, len(whole) + 1)]
    assert len(whole) > 2 * SAMPLES * 2 // 6 - 3
    for number in range(0, len(whole) - 1, 3):
        assert next(iter(megatron(draw, consumed[number], 1, 2))) == whole[number + 1]


def test_what_does_not_fit_is_refused(draw: Any, index: arrowds.Index) -> None:
    with pytest.raises(ConfigError, match=r"global_batch_size=12 is not a multiple of .* = 10"):
        megatron(draw, 0, 0, 2, 5)
    with pytest.raises(ConfigError, match="consumed_samples=-1"):
        megatron(draw, -1, 0, 2)
    with pytest.raises(ConfigError, match="the dataset has 96 samples but the index 97"):
        MegatronPretrainingSampler(96, 0, 3, 0, 2, sampler=partial(arrowds.CurriculumSampler, index, CURRICULUM))
    assert len(megatron(draw, 0, 0, 2)) == SAMPLES
