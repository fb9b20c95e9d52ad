"""A state names the version of the index that it was drawn from, and what becomes of it when the index changes."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

import arrowds
from arrowds.errors import ConfigError, StateMismatchError

CURRICULUM = {
    "length": {
        "difficulty_type": "value",
        "clustering_type": "schedule_based",
        "min_difficulty": 8,
        "max_difficulty": 64,
        "schedule_type": "fixed_linear",
        "schedule_config": {"total_curriculum_step": 20, "difficulty_step": 8},
    }
}
LENGTH = arrowds.metrics.expr("length", pl.col("length"))


def lengths(rows: int, seed: int) -> pl.DataFrame:
    return pl.DataFrame({"length": np.random.default_rng(seed).integers(1, 65, rows)})


def sampler(index, **options) -> arrowds.CurriculumSampler:
    return arrowds.CurriculumSampler(index, CURRICULUM, micro_batch_size=4, **options)


@pytest.fixture
def saved(tmp_path):
    """An index, and the state of a sampler after ten steps of it with the twenty that follow."""
    index = arrowds.analyze(lengths(400, 0), LENGTH, tmp_path / "index", progress=False)
    running = sampler(index)
    batches = [next(iterator) for iterator in [iter(running)] for _ in range(10)]
    assert len(batches) == 10
    return tmp_path / "index", running.state_dict(), [running.global_batch_at(step) for step in range(11, 31)]


def after(resumed) -> list[np.ndarray]:
    iterator = iter(resumed)
    return [np.array(next(iterator)) for _ in range(20)]


def test_a_state_fits_after_a_compaction_and_after_more_metrics(saved):
    path, state, expected = saved
    arrowds.add_metrics(lengths(400, 0), arrowds.metrics.expr("double", pl.col("length") * 2), path, progress=False)
    resumed = sampler(arrowds.open_index(path))
    resumed.load_state_dict(state)
    assert np.array_equal(after(resumed), expected)


def test_after_an_append_the_error_says_which_call_opens_the_old_version(saved):
    path, state, expected = saved
    arrowds.append(lengths(100, 1), path, progress=False)
    new = sampler(arrowds.open_index(path))
    with pytest.raises(StateMismatchError, match=r"version 1 of the index, this is version 2: .*version=1\)"):
        new.load_state_dict(state)
    old = sampler(arrowds.open_index(path, version=state["index_version"]))
    old.load_state_dict(state)
    assert np.array_equal(after(old), expected)


def test_on_request_the_steps_that_follow_are_those_of_the_new_data(saved):
    path, state, _ = saved
    index = arrowds.append(lengths(300, 1), path, progress=False)
    resumed = sampler(index)
    resumed.load_state_dict(state, on_new_data="continue")
    found = after(resumed)
    assert np.array_equal(found, [sampler(index).global_batch_at(step) for step in range(11, 31)])
    assert max(map(max, found)) >= 400  # new samples are drawn
    with pytest.raises(ConfigError, match="on_new_data"):
        resumed.load_state_dict(state, on_new_data="ignore")


def test_a_compacted_index_continues_where_its_segments_were(tmp_path):
    arrowds.analyze(lengths(300, 0), LENGTH, tmp_path / "index", progress=False)
    before = sampler(arrowds.append(lengths(200, 1), tmp_path / "index", progress=False))
    state = [before.state_dict() for _ in zip(range(7), before, strict=False)][-1]
    resumed = sampler(arrowds.compact(tmp_path / "index"))
    resumed.load_state_dict(state)
    assert resumed.consumed_samples == before.consumed_samples
    assert all(np.array_equal(resumed.global_batch_at(n), before.global_batch_at(n)) for n in range(1, 60))


def test_refreshed_values_are_other_values(tmp_path):
    tokens = pl.DataFrame({"input_ids": [[i % 7, i % 3] for i in range(200)]})
    index = arrowds.analyze(tokens, arrowds.metrics.vocab_rarity(), tmp_path / "index", progress=False)
    curriculum = {"vocab_rarity": CURRICULUM["length"] | {"difficulty_type": "percentile", "max_difficulty": 100}}
    saved = arrowds.CurriculumSampler(index, curriculum, micro_batch_size=4).state_dict()
    arrowds.append(pl.DataFrame({"input_ids": [[0, 1]] * 50}), tmp_path / "index", progress=False)
    everything = pl.concat([tokens, pl.DataFrame({"input_ids": [[0, 1]] * 50})])
    refreshed = arrowds.add_metrics(
        everything, arrowds.metrics.vocab_rarity(), tmp_path / "index", refresh=True, progress=False
    )
    with pytest.raises(StateMismatchError, match="version 1 of the index, this is version 3"):
        arrowds.CurriculumSampler(refreshed, curriculum, micro_batch_size=4).load_state_dict(saved)


def test_a_state_of_another_index_is_no_state_of_an_earlier_version(tmp_path):
    def index_of(name: str, values: list[int], versions: int) -> arrowds.Index:
        metric = arrowds.metrics.expr("n", pl.col("n"))
        index = arrowds.analyze(pl.DataFrame({"n": values}), metric, tmp_path / name, workers=1, progress=False)
        for _ in range(versions - 1):
            index = arrowds.append(pl.DataFrame({"n": values}), tmp_path / name, workers=1, progress=False)
        return index

    def sampler(index: arrowds.Index) -> arrowds.CurriculumSampler:
        return arrowds.CurriculumSampler(index, {}, micro_batch_size=2)

    other, index = index_of("other", [9, 8, 7, 6], 2), index_of("index", [1, 2, 3, 4], 3)
    for saved in (other, arrowds.open_index(other.path, version=1)):
        for options in ({}, {"on_new_data": "continue"}):
            with pytest.raises(StateMismatchError, match="of another index, and not of an earlier version"):
                sampler(index).load_state_dict(sampler(saved).state_dict(), **options)
    first = sampler(arrowds.open_index(index.path, version=1)).state_dict()
    sampler(index).load_state_dict(first, on_new_data="continue")
    with pytest.raises(StateMismatchError, match=r"resume with arrowds.open_index\(.*version=1\)"):
        sampler(index).load_state_dict(first)
    arrowds.vacuum(index.path)  # then it can't be told
    sampler(index).load_state_dict(first, on_new_data="continue")
