"""Token budgets inside a curriculum: what the steps hold, however they are divided, left and taken up again."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import islice

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_index import MemoryIndex, discrete, linear

import arrowds
from arrowds.curriculum.sampler import CurriculumSampler
from arrowds.curriculum.trace import read_records
from arrowds.errors import ConfigError, StateMismatchError, TokenBudgetError

DIVISIONS = [(1, 1), (1, 4), (4, 1), (2, 2), (8, 8), (3, 2)]


@st.composite
def runs(draw):
    """An index and the arguments of a sampler, of any shape of lengths, with or without a curriculum."""
    size = draw(st.integers(40, 400))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    budget = draw(st.sampled_from([32, 100, 1000]))
    shape = draw(st.sampled_from(["lognormal", "all full", "half full", "small", "zeros"]))
    lengths = {
        "lognormal": lambda: np.minimum(random.lognormal(2.5, 1, size).astype(np.int64), budget),
        "all full": lambda: np.full(size, budget),
        "half full": lambda: random.choice([budget, 1], size),
        "small": lambda: random.integers(1, 5, size),
        "zeros": lambda: random.integers(0, 2, size),
    }[shape]()
    index = MemoryIndex(seqlen=lengths, rank=random.integers(0, 100, size))
    curricula = [{}, {"rank": linear(30, 99, total=7)}, {"rank": discrete([50, 80, 99], [3, 9])}]
    world, accumulation = draw(st.sampled_from(DIVISIONS))
    return index, {
        "curriculum": draw(st.sampled_from(curricula)),
        "max_tokens": budget,
        "padded": draw(st.booleans()),
        "num_epochs": draw(st.integers(1, 3)),
        "drop_last": draw(st.booleans()),
        "seed": draw(st.integers(0, 5)),
        "world_size": world,
        "gradient_accumulation_steps": accumulation,
    }


def sampler_of(run, **changed) -> CurriculumSampler:
    index, arguments = run
    return CurriculumSampler(index, **(arguments | changed))


def microbatches_of(run, **changed) -> list[list[list[int]]]:
    """The microbatches of a whole pass by step, as the ranks together yield them."""
    arguments = run[1] | changed
    world, accumulation = arguments["world_size"], arguments["gradient_accumulation_steps"]
    ranks = [list(sampler_of(run, rank=rank, **changed)) for rank in range(world)]
    in_order = [ids for together in zip(*ranks, strict=True) for ids in together]
    size = world * accumulation
    return [in_order[start : start + size] for start in range(0, len(in_order), size)]


def fits(run) -> bool:
    """Whether the samples are enough for a step; a sampler of fewer is refused."""
    try:
        sampler_of(run)
    except ConfigError as error:
        assert "do not fill" in str(error)
        return False
    return True


@given(run=runs())
@settings(max_examples=60, deadline=None)
def test_steps_hold_the_cap_and_every_sample_comes_once_per_epoch(run):
    if not fits(run):
        return
    index, arguments = run
    lengths = np.maximum(index["seqlen"].values, 1)
    steps = microbatches_of(run)
    size = arguments["world_size"] * arguments["gradient_accumulation_steps"]
    for step in steps:
        assert len(step) == size
        for ids in step:
            held = len(ids) * lengths[ids].max() if arguments["padded"] else lengths[ids].sum()
            assert 0 < held <= arguments["max_tokens"]
    counts = Counter(i for step in steps for ids in step for i in ids)
    if not arguments["curriculum"]:
        wanted = arguments["num_epochs"]
        assert max(counts.values()) <= wanted
        left = index.num_samples * wanted - sum(counts.values())
        tokens = size * arguments["max_tokens"]
        # What does not fill a step, or is fewer than its microbatches.
        assert left * (1 if not arguments["drop_last"] else 0) < size
        if arguments["drop_last"] and not arguments["padded"] and lengths.max() * 4 < arguments["max_tokens"]:
            assert left * lengths.mean() < 2.5 * tokens


@given(run=runs())
@settings(max_examples=40, deadline=None)
def test_a_step_is_the_same_however_it_is_divided_and_at_any_time(run):
    if not fits(run):
        return
    steps = microbatches_of(run)
    world, accumulation = run[1]["world_size"], run[1]["gradient_accumulation_steps"]
    assert microbatches_of(run, world_size=world * accumulation, gradient_accumulation_steps=1) == steps
    assert microbatches_of(run, world_size=1, gradient_accumulation_steps=world * accumulation) == steps
    fresh = sampler_of(run)
    for number in (len(steps), 1, (len(steps) + 1) // 2):
        ids = [i for microbatch in steps[number - 1] for i in microbatch]
        assert fresh.global_batch_at(number).tolist() == ids
    assert fresh.num_steps == len(steps)
    assert len(fresh) == len(steps) * accumulation


@given(run=runs(), share=st.floats(0, 1), other=st.sampled_from(DIVISIONS))
@settings(max_examples=40, deadline=None)
def test_a_run_resumes_after_any_microbatch_also_on_another_number_of_ranks(run, share, other):
    if not fits(run):
        return
    world, accumulation = run[1]["world_size"], run[1]["gradient_accumulation_steps"]
    whole = [ids for step in microbatches_of(run) for ids in step]
    done = int(share * (len(whole) // world))
    saved = sampler_of(run)
    list(islice(saved, done))
    state = json.loads(json.dumps(saved.state_dict()))
    assert len(json.dumps(state)) < 1024 + 16 * len(state["mark"][3])
    assert saved.consumed_samples == sum(map(len, whole[: done * world]))
    size = world * accumulation
    new_world = math.gcd(other[0], size)
    if done * world % new_world:
        new_world = 1
    rest = []
    for rank in range(new_world):
        resumed = sampler_of(run, rank=rank, world_size=new_world, gradient_accumulation_steps=size // new_world)
        resumed.load_state_dict(state)
        rest.append(list(resumed))
    assert [ids for together in zip(*rest, strict=True) for ids in together] == whole[done * world :]


def test_a_resume_fills_no_step_before_the_saved_one():
    random = np.random.default_rng(1)
    index = MemoryIndex(seqlen=random.integers(1, 50, 20_000))
    first = CurriculumSampler(index, {}, max_tokens=500)
    list(islice(first, 700))
    resumed = CurriculumSampler(index, {}, max_tokens=500)
    resumed.load_state_dict(first.state_dict())
    filled = []
    fill = resumed._steps._fill
    resumed._steps._fill = lambda mark: filled.append(mark.step) or fill(mark)
    assert next(iter(resumed)) == list(islice(CurriculumSampler(index, {}, max_tokens=500), 701))[-1]
    assert filled and min(filled) > 600


def test_passes_go_on_where_the_last_one_ended_and_differ():
    index = MemoryIndex(seqlen=np.random.default_rng(1).integers(1, 50, 3000))
    both = [list(ids) for ids in CurriculumSampler(index, {}, max_tokens=300, num_epochs=2)]
    sampler = CurriculumSampler(index, {}, max_tokens=300)
    first = list(sampler)
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert first + second == both
    assert sorted(map(tuple, first)) != sorted(map(tuple, second))
    sampler.set_epoch(0)
    assert list(sampler) == first


@pytest.mark.parametrize("world", [1, 8, 64])
def test_budgets_are_filled_and_steps_are_mixed(world):
    random = np.random.default_rng(5)
    lengths = np.minimum(random.lognormal(6.5, 1, 60_000).astype(np.int64) + 1, 16384)
    index = MemoryIndex(seqlen=lengths)
    sampler = CurriculumSampler(index, {}, max_tokens=16384, world_size=world)
    tokens = np.array([sampler.tokens_at(step) for step in range(1, sampler.num_steps + 1)])
    assert tokens.shape == (sampler.num_steps, 1, world)
    assert tokens.mean() / 16384 >= 0.98
    longest = np.array([lengths[sampler.global_batch_at(step)].max() for step in range(1, sampler.num_steps + 1)])
    early, late = longest[: len(longest) // 2], longest[len(longest) // 2 :]
    assert 0.8 < early.mean() / late.mean() < 1.25


def test_difficulties_and_clusters_are_those_of_the_curriculum():
    random = np.random.default_rng(2)
    rank = random.permutation(30_000)
    index = MemoryIndex(seqlen=random.integers(1, 60, 30_000), rank=rank)
    sampler = CurriculumSampler(index, {"rank": discrete([9999, 19999, 29999], [9, 18])}, max_tokens=2000)
    drawn = []
    for step in range(1, sampler.num_steps + 1):
        ids = sampler.global_batch_at(step)
        limit = {0: 9999, 1: 19999}.get((step - 1) // 9, 29999)
        assert sampler.difficulties_at(step) == {"rank": limit}
        assert rank[ids].max() <= limit
        if step > 18:
            drawn += rank[ids].tolist()
            if (step - 18) % 64 == 0:  # the end of a block: each of three equal clusters has a third
                shares = np.bincount(np.array(drawn) // 10_000, minlength=3)
                assert np.abs(shares - len(drawn) / 3).max() <= 2
    assert step > 18 + 6 * 64


def test_filters_exclusions_trace_and_record(tmp_path):
    random = np.random.default_rng(3)
    lengths = random.integers(1, 60, 2000)
    frame = pl.DataFrame({"seqlen": lengths, "ok": random.integers(0, 2, 2000)})
    metrics = [arrowds.metrics.expr(name, pl.col(name)) for name in frame.columns]
    index = arrowds.analyze(frame, metrics, tmp_path / "index", progress=False)
    options = {"max_tokens": 400, "world_size": 2, "gradient_accumulation_steps": 2, "drop_last": False}
    plain = CurriculumSampler(index, {}, **options)
    banned = plain.global_batch_at(3)[:2].tolist()
    chosen = {"where": pl.col("ok") == 1, "exclude_ids": banned, "exclude_steps": [2, 5]}
    ranks = [
        CurriculumSampler(index, {}, rank=rank, record=tmp_path / "record", **chosen, **options) for rank in range(2)
    ]
    yielded = [list(sampler) for sampler in ranks]
    seen = [i for batches in yielded for ids in batches for i in ids]
    without = CurriculumSampler(index, {}, **options, **(chosen | {"exclude_steps": ()}))
    skipped = [i for step in (2, 5) for i in without.global_batch_at(step).tolist()]
    allowed = set(np.flatnonzero(frame["ok"].to_numpy() == 1)) - set(banned)
    assert len(seen) == len(set(seen))
    left = allowed - set(seen) - set(skipped)
    assert set(seen) | set(skipped) <= allowed and len(left) < 4
    steps = [step for step in range(1, ranks[0].num_steps + 1) if step not in (2, 5)]
    trace = pl.DataFrame(ranks[0].trace(steps))
    assert trace.columns == ["step", "micro_batch", "rank", "sample_id", "seqlen", "ok"]
    recorded = pl.DataFrame(read_records(tmp_path / "record"))
    order = ["step", "micro_batch", "rank", "sample_id"]
    assert trace.select(order).sort(order).rows() == recorded.select(order).sort(order).rows()
    tokens = (
        trace.group_by("step", "micro_batch", "rank").agg(pl.col("seqlen").sum()).sort("step", "micro_batch", "rank")
    )
    by_sampler = np.concatenate([ranks[0].tokens_at(step).ravel() for step in steps])
    assert tokens["seqlen"].to_list() == by_sampler.tolist()


def test_a_loader_with_workers_resumes_after_the_batch_that_was_handed_out():
    import torch

    index = MemoryIndex(seqlen=np.random.default_rng(0).integers(1, 30, 3000))
    data = torch.arange(3000)

    def loader() -> arrowds.CurriculumDataLoader:
        sampler = CurriculumSampler(index, {}, max_tokens=200, gradient_accumulation_steps=3)
        return arrowds.CurriculumDataLoader(data, sampler, num_workers=2)

    whole = [batch.tolist() for batch in loader()]
    begun = loader()
    first = [batch.tolist() for batch in islice(begun, 100)]
    resumed = loader()
    resumed.load_state_dict(json.loads(json.dumps(begun.state_dict())))
    assert first + [batch.tolist() for batch in resumed] == whole


INDEX = MemoryIndex(seqlen=np.array([5, 30, 2, 7] * 20))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ConfigError, "pass micro_batch_size, .* or max_tokens"),
        ({"max_tokens": 9, "micro_batch_size": 2}, ConfigError, "not both"),
        ({"max_tokens": 0}, ConfigError, "max_tokens must be a positive integer, got 0"),
        ({"max_tokens": 2.5}, ConfigError, "max_tokens must be a positive integer"),
        ({"max_tokens": 40, "order": "deepspeed"}, ConfigError, "max_tokens needs the order 'stateless'"),
        ({"micro_batch_size": 2, "padded": True}, ConfigError, "padded belongs to max_tokens"),
        ({"max_tokens": 40, "lengths": "tokens"}, ConfigError, "tokens"),
        ({"max_tokens": 40, "overlong": "skip"}, ConfigError, "overlong must be 'raise' or 'truncate'"),
        (
            {"max_tokens": 29},
            TokenBudgetError,
            "20 samples are longer than max_tokens, 29; the longest, sample 1, has 30",
        ),
        ({"max_tokens": 3000}, ConfigError, "do not fill one step of 1 microbatches of 3000 tokens"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        CurriculumSampler(INDEX, {}, **arguments)


def test_samples_without_a_length_are_refused_unless_they_are_left_out(tmp_path):
    frame = pl.DataFrame({"seqlen": [5, None, 7, 9] * 30})
    metric = arrowds.metrics.expr("seqlen", pl.col("seqlen"), nulls="keep")
    index = arrowds.analyze(frame, metric, tmp_path / "index", progress=False)
    with pytest.raises(ConfigError, match="30 samples have no seqlen, the first is sample 1; leave them out"):
        CurriculumSampler(index, {}, max_tokens=40)
    sampler = CurriculumSampler(index, {}, max_tokens=40, where=pl.col("seqlen").is_not_null(), drop_last=False)
    assert sorted(i for ids in sampler for i in ids) == [i for i in range(120) if i % 4 != 1]
    floats = MemoryIndex(seqlen=np.array([1.0, 2.0]))
    with pytest.raises(ConfigError, match="lengths must be integers, but 'seqlen' has float64"):
        CurriculumSampler(floats, {}, max_tokens=40)


def test_long_samples_are_counted_as_the_budget_where_they_are_cut():
    sampler = CurriculumSampler(INDEX, {}, max_tokens=20, overlong="truncate", drop_last=False)
    batches = list(sampler)
    assert sorted(i for ids in batches for i in ids) == list(range(80))
    assert all(len(ids) == 1 for ids in batches if any(i % 4 == 1 for i in ids))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"token_budget": None}, "token_budget"),
        ({"mark": None}, "invalid mark"),
        ({"mark": [1, 0, 0, [5]]}, "invalid mark"),
        ({"mark": [1, -1, 0, [0]]}, "invalid mark"),
        ({"mark": [1, 3, 0, [0, 9]]}, "invalid mark"),
        ({"mark": [1, 3, 0, [0, 2, 3]]}, "does not fit"),
        ({"consumed_microbatches": True}, "expected an integer from 0 on"),
        ({"global_batch_size": 5}, "global_batch_size"),
    ],
)
def test_states_of_other_budgets_and_damaged_ones_are_refused(change, message):
    sampler = CurriculumSampler(INDEX, {}, max_tokens=40)
    next(iter(sampler))
    state = sampler.state_dict()
    sampler.load_state_dict(state)
    with pytest.raises(StateMismatchError, match=message):
        sampler.load_state_dict(state | change)
    for other in ({"max_tokens": 41}, {"max_tokens": 40, "padded": True}, {"micro_batch_size": 2}):
        with pytest.raises(StateMismatchError):
            CurriculumSampler(INDEX, {}, **other).load_state_dict(state)


def test_traced_values_are_of_the_declared_type(tmp_path):
    frame = pl.DataFrame({"n": [3, 7, 250, 1]})
    index = arrowds.analyze(frame, arrowds.metrics.expr("n", pl.col("n")), tmp_path / "index", progress=False)
    sampler = CurriculumSampler(index, {}, micro_batch_size=4)
    assert index["n"].values.dtype == np.uint8
    assert str(sampler.trace(1).schema.field("n").type) == "int64"
    with pytest.raises(ConfigError, match=r"expected an open index: pass arrowds.open_index\('somewhere'\)"):
        CurriculumSampler("somewhere", {}, micro_batch_size=4)
