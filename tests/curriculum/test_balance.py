"""Equal work for ranks: within the cap, near the optimum, and of the same samples for every number of ranks."""

from __future__ import annotations

import heapq
from itertools import count, product

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_index import MemoryIndex

import arrowds
from arrowds.cost import LengthCost, transformer
from arrowds.curriculum.sampler import CurriculumSampler
from arrowds.curriculum.token_budget import balanced
from arrowds.errors import ConfigError, StateMismatchError


def karmarkar_karp(costs: np.ndarray, ranks: int) -> float:
    """The largest sum of the largest differencing method: merge the two most uneven partitions until one is left."""
    number = count()
    heap = [(-cost, next(number), [cost] + [0.0] * (ranks - 1)) for cost in costs.tolist()]
    heapq.heapify(heap)
    while len(heap) > 1:
        (_, _, one), (_, _, other) = heapq.heappop(heap), heapq.heappop(heap)
        merged = sorted((a + b for a, b in zip(one, reversed(other), strict=True)), reverse=True)
        heapq.heappush(heap, (-(merged[0] - merged[-1]), next(number), merged))
    return max(heap[0][2])


@given(
    lengths=st.lists(st.integers(1, 100), min_size=4, max_size=9).map(np.array),
    ranks=st.sampled_from([2, 3]),
    slack=st.floats(1.1, 2),
)
@settings(max_examples=60, deadline=None)
def test_small_steps_are_near_the_optimum_within_the_cap(lengths, ranks, slack):
    costs = lengths + 0.05 * lengths**2.0
    capacity = int(max(lengths.max(), slack * lengths.sum() / ranks))
    best = np.inf
    for division in product(range(ranks), repeat=len(lengths)):
        rank = np.array(division)
        if len(set(division)) == ranks and np.bincount(rank, lengths).max() <= capacity:
            best = min(best, np.bincount(rank, costs).max())
    place = balanced(lengths, costs, ranks=ranks, microbatches=1, capacity=capacity)
    if place is None:
        return
    assert np.bincount(place, lengths).max() <= capacity
    assert np.bincount(place, minlength=ranks).min() >= 1
    assert best <= np.bincount(place, costs).max() <= 4 / 3 * best + 1e-9 or slack < 1.5


@pytest.mark.parametrize("ranks", [2, 8, 64])
def test_large_steps_are_as_even_as_those_of_karmarkar_and_karp(ranks):
    random = np.random.default_rng(ranks)
    lengths = random.lognormal(6.5, 1, 60 * ranks).astype(np.int64) + 1
    costs = LengthCost(1, 1e-4)(lengths)
    place = balanced(lengths, costs, ranks=ranks, microbatches=1, capacity=int(lengths.sum()))
    work = np.bincount(place, costs, minlength=ranks)
    assert work.max() <= 1.01 * max(karmarkar_karp(costs, ranks), costs.max())


def heavy_tailed(samples: int, budget: int) -> np.ndarray:
    random = np.random.default_rng(7)
    heavy = random.random(samples) < 0.03
    lengths = np.where(heavy, random.lognormal(9.8, 0.9, samples), random.lognormal(6.5, 1, samples))
    return np.clip(lengths, 1, budget).astype(np.int64)


@pytest.mark.parametrize(("world", "accumulation"), [(8, 4), (16, 2), (4, 8), (32, 1), (2, 2)])
def test_ranks_get_equal_work_of_the_same_samples(world, accumulation):
    budget = 131_072
    index = MemoryIndex(seqlen=heavy_tailed(60_000, budget))
    lengths = index["seqlen"].values
    cost = LengthCost(1.0, 1.85e-5)
    options = {"max_tokens": budget, "world_size": world, "gradient_accumulation_steps": accumulation}
    priced = CurriculumSampler(index, {}, cost=cost, **options)
    other = CurriculumSampler(
        index, {}, cost=cost, max_tokens=budget, world_size=1, gradient_accumulation_steps=world * accumulation
    )
    plain = CurriculumSampler(index, {}, **options)
    ratios, before = [], []
    for step in range(1, 12 if world > 2 else 60):
        assert sorted(priced.global_batch_at(step)) == sorted(other.global_batch_at(step))
        tokens = priced.tokens_at(step)
        assert tokens.min() > 0 and tokens.max() <= budget
        costs = priced.costs_at(step)
        ids = priced.global_batch_at(step)
        assert costs.shape == (accumulation, world)
        assert costs.sum() == pytest.approx(cost(lengths[ids]).sum())
        work = costs.sum(axis=0)
        ratios.append(work.max() / max(work.mean(), cost(lengths[ids]).max()))
        work = [cost(lengths[plain._samples_of(step, rank, rank + 1)]).sum() for rank in range(world)]
        before.append(max(work) / np.mean(work))
    assert np.median(ratios) < 1.03 or accumulation == 1  # with one microbatch a rank with a long sample has no other
    assert np.median(ratios) < np.median(before)


def test_ranks_yield_the_division_and_resume_in_it():
    index = MemoryIndex(seqlen=heavy_tailed(20_000, 20_000))
    options = {"max_tokens": 20_000, "world_size": 4, "gradient_accumulation_steps": 2, "cost": (1, 1e-4)}
    ranks = [CurriculumSampler(index, {}, rank=rank, **options) for rank in range(4)]
    yielded = [list(sampler) for sampler in ranks]
    first = ranks[0]
    assert {i for ids in yielded for batch in ids for i in batch} == set(
        np.concatenate([first.global_batch_at(step) for step in range(1, first.num_steps + 1)]).tolist()
    )
    work = np.array([[LengthCost(1, 1e-4)(index["seqlen"].values[batch]).sum() for batch in ids] for ids in yielded])
    assert work.reshape(4, -1, 2).transpose(1, 2, 0)[4] == pytest.approx(first.costs_at(5))
    saved = CurriculumSampler(index, {}, rank=3, **options)
    iterator = iter(saved)
    begun = [next(iterator) for _ in range(7)]
    resumed = CurriculumSampler(index, {}, rank=3, **options)
    resumed.load_state_dict(saved.state_dict())
    assert begun + list(resumed) == yielded[3]
    with pytest.raises(StateMismatchError, match="token_budget"):
        CurriculumSampler(index, {}, **(options | {"cost": (1, 2e-4)})).load_state_dict(saved.state_dict())


def test_a_metric_is_a_cost(tmp_path):
    random = np.random.default_rng(1)
    frame = pl.DataFrame({"seqlen": random.integers(1, 60, 5000), "seconds": random.exponential(1, 5000)})
    metrics = [arrowds.metrics.expr(name, pl.col(name)) for name in frame.columns]
    index = arrowds.analyze(frame, metrics, tmp_path / "index", progress=False)
    sampler = CurriculumSampler(index, {}, max_tokens=2000, world_size=8, cost="seconds")
    for step in (1, 2, sampler.num_steps):
        assert sampler.costs_at(step).sum() == pytest.approx(
            frame["seconds"].to_numpy()[sampler.global_batch_at(step)].sum()
        )
    ratios = [sampler.costs_at(step).max() / sampler.costs_at(step).mean() for step in range(1, sampler.num_steps + 1)]
    assert np.median(ratios) < 1.02


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        ((1, -1), "two factors >= 0"),
        ((0, 0), "not both zero"),
        ((float("nan"), 1), "two factors >= 0"),
        (3, "cost must be a pair of factors, a metric or a LengthCost, got 3"),
        ("loss", "costs can't be negative, but sample 2 has -1.0 of 'loss'"),
        ("missing", "1 samples have no value of 'missing'"),
        ("unknown", "unknown"),
    ],
)
def test_costs_that_are_none_are_refused(cost, message):
    index = MemoryIndex(
        seqlen=np.array([5, 6, 7] * 9),
        loss=np.array([1.0, 2.0, -1.0] + [1.0] * 24),
        missing=np.array([float("nan")] + [1.0] * 26),
    )
    with pytest.raises((ConfigError, KeyError), match=message):
        CurriculumSampler(index, {}, max_tokens=20, cost=cost)
    with pytest.raises(ConfigError, match="cost does not go with padded"):
        CurriculumSampler(index, {}, max_tokens=20, cost=(1, 1), padded=True)


def test_operations_of_a_transformer_are_counted_as_its_matrices_say():
    """Of a small one, matrix by matrix: 2 m n k operations for a product, three times that with the backward pass."""
    layers, hidden, ffn, vocab, length = 3, 8, 20, 11, 7
    products = [
        *layers * [(length, hidden, hidden)] * 4,  # queries, keys, values, output
        *layers * [(length, length, hidden)] * 2,  # scores, weighted values
        *layers * [(length, hidden, ffn)] * 2,
        (length, hidden, vocab),
    ]
    wanted = 3 * sum(2 * m * n * k for m, n, k in products)
    cost = transformer(layers=layers, hidden=hidden, ffn=ffn, vocab=vocab, causal=False)
    assert cost(np.array([length])).tolist() == [wanted]
    half = transformer(layers=layers, hidden=hidden, ffn=ffn, vocab=vocab)
    assert half.quadratic * 2 == cost.quadratic and half.linear == cost.linear
    gated = transformer(layers=1, hidden=8, ffn=20, ffn_matrices=3, kv_hidden=2)
    assert gated.linear == 6 * (2 * 64 + 2 * 16 + 3 * 160)
    with pytest.raises(ConfigError, match="layers must be at least 1"):
        transformer(layers=0, hidden=8)
