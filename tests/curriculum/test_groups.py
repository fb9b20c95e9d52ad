"""Mixtures of groups of one index: shares, passes and caps against counting, any division, any place to resume."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_index import MemoryIndex, discrete, linear

import arrowds
from arrowds.curriculum.mixture import MixtureSampler, quantile_groups
from arrowds.curriculum.trace import read_records
from arrowds.errors import ConfigError, StateMismatchError

SIZES = [(1, 1), (2, 2), (1, 4), (3, 1)]
LONGEST = 40


@st.composite
def runs(draw: st.DrawFn) -> tuple[MemoryIndex, dict[str, Any]]:
    """An index of samples in some groups, and the arguments of a sampler."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    count, groups = draw(st.integers(60, 300)), draw(st.integers(1, 6))
    lengths = random.integers(1, LONGEST + 1, count) if draw(st.booleans()) else random.choice([1, LONGEST], count)
    codes = np.concatenate([np.arange(groups), random.integers(0, groups, count - groups)])
    index = MemoryIndex(seqlen=lengths, code=codes, rank=random.integers(0, 100, count))
    rows = st.lists(st.integers(0, 9), min_size=groups, max_size=groups).filter(sum)
    weights = [
        (1 + 5 * number, {f"g{group}": share for group, share in enumerate(row)})
        for number, row in enumerate(draw(st.lists(rows, min_size=1, max_size=3)))
    ]
    world, accumulation = draw(st.sampled_from(SIZES))
    bound = draw(st.sampled_from(["micro_batch_size", "max_tokens"]))
    curricula = [{}, {"g0": {"rank": linear(60, 99, total=7)}}, {"g0": {"rank": discrete([70, 99, 80], [3, 9])}}]
    return index, {
        "weights": weights,
        "groups": {f"g{group}": pl.col("code") == group for group in range(groups)},
        "unit": draw(st.sampled_from(["samples", "tokens"])),
        "curricula": draw(st.sampled_from(curricula)) if (codes == 0).sum() > 20 else {},
        "num_epochs": draw(st.integers(1, 3)),
        "drop_last": draw(st.booleans()),
        "seed": draw(st.integers(0, 5)),
        "world_size": world,
        "gradient_accumulation_steps": accumulation,
        **({bound: 4} if bound == "micro_batch_size" else {bound: 100}),
    }


def sampler_of(run: tuple[MemoryIndex, dict[str, Any]], **changed: Any) -> MixtureSampler:
    return MixtureSampler(run[0], **(run[1] | changed))


def fits(run: tuple[MemoryIndex, dict[str, Any]]) -> bool:
    """Whether the samples are enough for a step; a sampler of fewer is refused, and so is an empty pool."""
    try:
        _ = len(sampler_of(run))
    except ConfigError as error:
        assert "do not fill" in str(error) or "no sample is admitted" in str(error)
        return False
    return True


def steps_of(sampler: MixtureSampler) -> list[list[list[int]]]:
    """All microbatches of all ranks, step by step."""
    return [
        [ids.tolist() for ranks in sampler.microbatches_at(step) for ids in ranks]
        for step in range(1, sampler.num_steps + 1)
    ]


def yielded(run: tuple[MemoryIndex, dict[str, Any]], **changed: Any) -> list[list[int]]:
    """The microbatches of all ranks, as they yield them together."""
    world = (run[1] | changed)["world_size"]
    ranks = [list(sampler_of(run, rank=rank, **changed)) for rank in range(world)]
    return [ids for together in zip(*ranks, strict=True) for ids in together]


@settings(deadline=None, max_examples=80)
@given(runs())
def test_groups_keep_their_shares_and_are_drawn_through(run: Any) -> None:
    if not fits(run):
        return
    index, arguments = run
    sampler = sampler_of(run)
    steps = steps_of(sampler)
    assert [ids for step in steps for ids in step if ids] == [ids for ids in yielded(run) if ids]
    lengths, code = index["seqlen"].values, index["code"].values
    groups = len(arguments["groups"])
    if "max_tokens" in arguments:
        assert all(0 < lengths[ids].sum() <= 100 for step in steps for ids in step)
    times = np.zeros(index.num_samples, np.int64)
    due, drawn, changes = np.zeros(groups), np.zeros(groups), 0
    schedule = dict(arguments["weights"])
    shares = np.zeros(groups)
    for number, step in enumerate(steps, start=1):
        if number in schedule:
            shares = np.array(list(schedule[number].values())) / sum(schedule[number].values())
            changes += 1
        ids = np.array([i for microbatch in step for i in microbatch], np.int64)
        np.add.at(times, ids, 1)
        value = lengths[ids] if arguments["unit"] == "tokens" else np.ones(len(ids))
        drawn += np.bincount(code[ids], weights=value, minlength=groups)
        due += shares * value.sum()
        if arguments["unit"] == "tokens":
            # Weights that change may ask at once for what several groups were about to get.
            assert np.abs(drawn - due).max() <= LONGEST * (1 if changes == 1 else changes + groups / 2) + 1e-6
        elif "max_tokens" not in arguments:
            assert np.abs(drawn - due).max() < 2 + (changes - 1)
        if arguments["curricula"] and number > 3:
            level = sampler.difficulties_at(number)["g0.rank"]
            assert (index["rank"].values[ids[code[ids] == 0]] <= level).all()
    for group in range(groups):
        if not (group == 0 and arguments["curricula"]):
            assert np.ptp(times[code == group]) <= 1 or "max_tokens" in arguments
            assert np.ptp(times[code == group]) <= 2


@settings(deadline=None, max_examples=60)
@given(runs(), st.sampled_from([(1, 4), (4, 1), (2, 2)]), st.data())
def test_a_run_resumes_anywhere_on_any_division(run: Any, division: tuple[int, int], data: Any) -> None:
    run[1].update(world_size=2, gradient_accumulation_steps=2, drop_last=True)  # else fewer samples than ranks are left
    if not fits(run):
        return
    whole = sampler_of(run, rank=0)
    total = len(whole)
    count = data.draw(st.integers(0, total))
    for _ in islice(whole, count):
        pass
    state = json.loads(json.dumps(whole.state_dict()))
    world, accumulation = division
    if count % 2 and world == 4:
        world, accumulation = 2, 2  # the rest of a step does not divide
    resumed = []
    for rank in range(world):
        one = sampler_of(run, rank=rank, world_size=world, gradient_accumulation_steps=accumulation)
        one.load_state_dict(state)
        assert one.position == whole.position
        resumed.append(list(one))
    together = sorted(i for ranks in resumed for ids in ranks for i in ids)
    rest = yielded(run)[2 * count :]
    assert together == sorted(i for ids in rest for i in ids)


@settings(deadline=None, max_examples=60)
@given(runs(), st.data())
def test_weights_set_during_the_run_are_in_the_state(run: Any, data: Any) -> None:
    if not fits(run):
        return
    groups = len(run[1]["groups"])
    sampler = sampler_of(run)
    before = steps_of(sampler_of(run))
    stream = iter(sampler)
    given, taken = [], 0
    for _ in range(data.draw(st.integers(1, 3))):
        taken += sum(1 for _ in islice(stream, data.draw(st.integers(0, 12))))
        with pytest.raises(ConfigError, match="drawn already|at least 1"):
            sampler.set_weights(sampler.step, {"g0": 1})
        shares = {f"g{group}": data.draw(st.integers(0, 5)) for group in range(groups)}
        shares["g0"] += 1
        step = sampler.step + 1
        while True:  # under a token budget a block of steps is filled together
            try:
                sampler.set_weights(step, shares)
                break
            except ConfigError as error:
                assert "drawn already" in str(error)
                step += 1
        given.append((step, shares))
    ahead = list(islice(stream, data.draw(st.integers(0, 12))))
    state = json.loads(json.dumps(sampler.state_dict()))
    rest = list(stream)
    resumed = sampler_of(run)
    resumed.load_state_dict(state)
    assert list(resumed) == rest
    assert given[0][0] == 1 or steps_of(resumed)[: given[0][0] - 1] == before[: given[0][0] - 1]
    listed = [entry for entry in run[1]["weights"] if entry[0] < given[0][0]]
    for step, shares in given:
        listed = [entry for entry in listed if entry[0] < step] + [(step, shares)]
    if listed[0][0] == 1 and listed[0] == run[1]["weights"][0]:
        planned = sampler_of(run, weights=listed)
        assert steps_of(planned) == steps_of(resumed)
        everything = list(planned)
        assert everything[taken : taken + len(ahead)] == ahead
        assert everything[taken + len(ahead) :] == rest
    elsewhere = sampler_of(run, weights={"g0": 7} | {f"g{group}": 1 for group in range(1, groups)}, seed=9)
    with pytest.raises(StateMismatchError, match=r"weights|seed"):
        elsewhere.load_state_dict(state)
    assert elsewhere.position == 0
