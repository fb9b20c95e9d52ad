import itertools
import json
from collections.abc import Callable, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_index import MemoryIndex, discrete, linear
from sampler_oracle import Oracle

from arrowds.curriculum.config import CurriculumMetric
from arrowds.curriculum.sampler import CurriculumSampler
from arrowds.curriculum.trace import read_records
from arrowds.errors import ConfigError, EmptyPoolError, StateMismatchError

RNG = np.random.default_rng(0)
INDEX = MemoryIndex(seqlen=RNG.integers(1, 65, 1000), loss=RNG.random(1000).round(2), rare=RNG.integers(0, 500, 1000))
SEQLEN = {"seqlen": linear(8, 64, multiple=8)}


@st.composite
def curricula(draw: st.DrawFn) -> dict[str, Any]:
    """Rising curricula over seqlen and rare whose first pool is not empty."""
    found = {}
    for name in ("seqlen", "rare"):
        largest = int(INDEX[name].values.max())  # a minimum above it is refused
        if name == "rare" and draw(st.booleans()):
            continue
        percentile = draw(st.booleans())
        high = 100 if percentile else largest
        found[name] = linear(
            draw(st.integers(high // 4, high)),
            high,
            total=draw(st.integers(1, 30)),
            multiple=draw(st.integers(1, 8)),
            difficulty_type="percentile" if percentile else "value",
            clustering_type=draw(st.sampled_from(["schedule_based", "schedule_based", "single_cluster"])),
        )
    return found


layouts = st.sampled_from([(8, 1, 1), (4, 2, 1), (2, 2, 2), (1, 8, 1), (1, 2, 4)])


def samplers(world: int, **arguments: Any) -> list[CurriculumSampler]:
    return [CurriculumSampler(rank=rank, world_size=world, **arguments) for rank in range(world)]


def joined(parts: Iterable[list[int]]) -> list[int]:
    return list(chain.from_iterable(parts))


def in_lockstep(ranks: list[CurriculumSampler]) -> list[list[int]]:
    """The microbatches over all ranks."""
    return [joined(parts) for parts in zip(*ranks, strict=True)]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(150, 400),
    curricula(),
    st.sampled_from([(1, 1, 1), (2, 2, 2), (4, 1, 3), (3, 4, 1)]),
    st.tuples(st.integers(0, 2**31), st.integers(1, 3)),
)
def test_deepspeeds_order_is_deepspeeds(
    deepspeed: Oracle, count: int, curriculum: dict[str, Any], layout: tuple[int, int, int], run: tuple[int, int]
) -> None:
    (micro, accumulation, world), (seed, epochs) = layout, run
    index = MemoryIndex(**{name: INDEX[name].values[:count] for name in ("seqlen", "rare")})
    sizes = {"micro_batch_size": micro, "gradient_accumulation_steps": accumulation, "seed": seed, "num_epochs": epochs}
    try:
        ranks = samplers(world, index=index, curriculum=curriculum, order="deepspeed", **sizes)
        mine = in_lockstep(ranks)
    except EmptyPoolError:
        return
    theirs = deepspeed.ask(
        what="microbatches",
        values={name: index[name].values.tolist() for name in curriculum},
        metrics=curriculum,
        micro=micro,
        accumulation=accumulation,
        world=world,
        seed=seed,
        epochs=epochs,
    )
    assert len(mine) == len(ranks[0]) == count * epochs // (micro * world)
    if theirs["short"]:
        return  # A cluster smaller than its share of a batch: DeepSpeed's batches come out short.
    assert theirs["microbatches"][: len(mine)] == mine


@settings(deadline=None, max_examples=60)
@given(curricula(), layouts, st.integers(0, 2**40), st.integers(1, 2))
def test_ranks_partition_the_same_global_batches_at_every_world_size(
    curriculum: dict[str, Any], layout: tuple[int, int, int], seed: int, epochs: int
) -> None:
    micro, world, accumulation = layout
    sizes = {"micro_batch_size": micro, "gradient_accumulation_steps": accumulation}
    try:
        ranks = samplers(world, index=INDEX, curriculum=curriculum, seed=seed, num_epochs=epochs, **sizes)
    except EmptyPoolError:
        return
    parts = in_lockstep(ranks)
    assert len(parts) == len(ranks[0])
    alone = CurriculumSampler(INDEX, curriculum, micro_batch_size=8, seed=seed, num_epochs=epochs)
    flat = [sample for part in parts for sample in part]
    assert [flat[at : at + 8] for at in range(0, len(flat), 8)] == list(alone)
    assert len(flat) == 1000 * epochs
    other = CurriculumSampler(INDEX, curriculum, micro_batch_size=8, seed=seed, num_epochs=9)
    for step in (125, 3, 70):
        assert other.global_batch_at(step).tolist() == flat[8 * step - 8 : 8 * step]


@settings(deadline=None, max_examples=40)
@given(curricula(), st.integers(0, 2**40))
def test_every_sample_is_admitted_by_its_step(curriculum: dict[str, Any], seed: int) -> None:
    try:
        sampler = CurriculumSampler(INDEX, curriculum, micro_batch_size=8, seed=seed)
    except EmptyPoolError:
        return
    for step in range(1, 60):
        ids = sampler.global_batch_at(step)
        for name, config in curriculum.items():
            level = sampler.difficulties_at(step)[name]
            order = INDEX[name].order
            if config["clustering_type"] == "single_cluster":
                continue
            stop = 1000 * level // 100 if config["difficulty_type"] == "percentile" else INDEX[name].rank(level)
            assert set(ids.tolist()) <= set(order[:stop].tolist())


def test_a_cluster_is_drawn_through_before_it_is_drawn_again() -> None:
    sampler = CurriculumSampler(INDEX, {"seqlen": discrete([20, 64], [30])}, micro_batch_size=8, num_epochs=4)
    drawn = np.concatenate(list(sampler))
    easy = INDEX["seqlen"].values[drawn] <= 20
    for cluster in (drawn[easy], drawn[~easy]):
        size = len(set(cluster.tolist()))
        counts = [np.bincount(cluster[: turn * size], minlength=1000)[np.unique(cluster)] for turn in (1, 2)]
        # Batches are shuffled, so a pass may end within one.
        assert all((count == turn).mean() > 0.95 for turn, count in enumerate(counts, start=1))
        assert np.ptp(np.bincount(cluster)[np.unique(cluster)]) <= 1


def test_without_a_curriculum_an_epoch_is_a_permutation() -> None:
    first, second = (CurriculumSampler(INDEX, {}, micro_batch_size=8, seed=seed) for seed in (1, 2))
    batches = list(first)
    assert sorted(np.concatenate(batches).tolist()) == list(range(1000))
    assert batches != list(second)
    assert batches != [sorted(batch) for batch in batches]


@pytest.mark.parametrize("order", ["stateless", "deepspeed"])
@settings(deadline=None, max_examples=8)
@given(curricula(), layouts, layouts)
def test_resuming_at_every_microbatch_goes_on_at_any_world_size(
    order: Any, curriculum: dict[str, Any], before: tuple[int, int, int], after: tuple[int, int, int]
) -> None:
    index = MemoryIndex(seqlen=INDEX["seqlen"].values[:200], rare=INDEX["rare"].values[:200])

    def ranks_of(layout: tuple[int, int, int]) -> list[CurriculumSampler]:
        micro, world, accumulation = layout
        sizes = {"micro_batch_size": micro, "gradient_accumulation_steps": accumulation}
        return samplers(world, index=index, curriculum=curriculum, order=order, **sizes)

    try:
        running, uninterrupted = ranks_of(before), joined(in_lockstep(ranks_of(before)))
    except EmptyPoolError:
        return
    resumed = ranks_of(after)
    consumed: list[int] = []
    for parts in zip(*running, strict=True):
        consumed += joined(parts)
        state = json.loads(json.dumps(running[0].state_dict()))
        assert len(json.dumps(state)) <= 1024
        if len(consumed) % 24 not in (0, 2, 4):
            continue
        for sampler in resumed:
            sampler.load_state_dict(state)
        assert consumed + joined(in_lockstep(resumed)) == uninterrupted[: len(consumed) + 10**6]
        assert resumed[0].step == 25


def test_state_of_a_finished_run_yields_nothing(caplog: pytest.LogCaptureFixture) -> None:
    sampler = CurriculumSampler(INDEX, SEQLEN, micro_batch_size=8)
    whole = list(sampler)
    assert len(whole) == 125
    again = CurriculumSampler(INDEX, SEQLEN, micro_batch_size=4, gradient_accumulation_steps=2)
    again.load_state_dict(sampler.state_dict())
    assert list(again) == []
    assert "exhausted: raise num_epochs" in caplog.text
    again.reset()
    halves = list(again)
    assert [left + right for left, right in zip(halves[::2], halves[1::2], strict=True)] == whole


def test_a_state_of_something_else_is_refused_by_name() -> None:
    state = CurriculumSampler(INDEX, SEQLEN, micro_batch_size=8).state_dict()
    others = {
        "index": CurriculumSampler(MemoryIndex(seqlen=np.arange(1, 65)), SEQLEN, micro_batch_size=8),
        "curriculum": CurriculumSampler(INDEX, {"seqlen": linear(9, 64)}, micro_batch_size=8),
        "seed": CurriculumSampler(INDEX, SEQLEN, micro_batch_size=8, seed=5),
        "global_batch_size": CurriculumSampler(INDEX, SEQLEN, micro_batch_size=4),
        "order": CurriculumSampler(INDEX, SEQLEN, micro_batch_size=8, order="deepspeed"),
    }
    for name, sampler in others.items():
        with pytest.raises(StateMismatchError, match=f"differs in {name} "):
            sampler.load_state_dict(state)
    with pytest.raises(StateMismatchError, match="version 1"):
        others["seed"].load_state_dict(state | {"version": 2})
    filtered = CurriculumSampler(INDEX, SEQLEN, micro_batch_size=8, where=pl.col("loss") < 0.5)
    with pytest.raises(StateMismatchError, match="curriculum"):
        filtered.load_state_dict(state)
    drawn_otherwise = others["order"].state_dict() | {"generator": {"state": 1, "inc": 3}}
    with pytest.raises(StateMismatchError, match="generator"):
        others["order"].load_state_dict(drawn_otherwise)


@pytest.mark.parametrize("order", ["stateless", "deepspeed"])
def test_a_refused_state_leaves_the_sampler_where_it_was(order: Any) -> None:
    sampler = CurriculumSampler(INDEX, SEQLEN, micro_batch_size=8, order=order)
    stream = iter(sampler)
    for _ in range(3):
        next(stream)
    before, later = sampler.state_dict(), list(CurriculumSampler(INDEX, SEQLEN, micro_batch_size=8, order=order))[3]
    bad = [{"version": 2}, {"seed": 5}, {"consumed_samples": -8}, {"consumed_samples": True}]
    bad += [{"generator": {"state": 1, "inc": 3}}, {"generator": None}] if order == "deepspeed" else []
    for change in bad:
        with pytest.raises(StateMismatchError):
            sampler.load_state_dict(before | {"consumed_samples": 80} | change)
        assert sampler.state_dict() == before
    assert next(stream) == later


@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize("order", ["stateless", "deepspeed"])
@settings(deadline=None, max_examples=12)
@given(count=st.integers(8, 70), micro=st.sampled_from([1, 2, 3]), accumulation=st.sampled_from([1, 2, 3]))
def test_no_rank_gets_an_empty_microbatch_at_the_short_end(
    order: Any, world: int, count: int, micro: int, accumulation: int
) -> None:
    index = MemoryIndex(seqlen=np.arange(count))
    sizes = {"micro_batch_size": micro, "gradient_accumulation_steps": accumulation, "drop_last": False}
    ranks = samplers(world, index=index, curriculum={}, order=order, **sizes)
    by_rank = [list(sampler) for sampler in ranks]
    assert {len(batches) for batches in by_rank} == {len(sampler) for sampler in ranks} == {len(by_rank[0])}
    assert all(batch for batches in by_rank for batch in batches)
    flat = joined(joined(parts) for parts in zip(*by_rank, strict=True))
    left_out = count % (micro * world)
    assert len(flat) == count - (left_out if left_out < world else 0)
    assert order == "deepspeed" or len(set(flat)) == len(flat)
    steps = range(1, ranks[0].num_steps + 1)
    assert sum(ranks[0].samples_at(step) for step in steps) == len(flat) == ranks[0].trace(steps).num_rows
    assert all(ranks[0].samples_at(step) for step in steps)


def test_epochs_added_after_a_short_end_leave_no_rank_without_samples() -> None:
    for count, micro, epoch in [(30, 2, 4), (29, 2, 4), (27, 2, 3), (27, 1, 6), (30, 3, 3)]:
        index = MemoryIndex(seqlen=np.arange(count))
        ranks = samplers(4, index=index, curriculum={}, micro_batch_size=micro, drop_last=False)
        for _ in range(3):
            by_rank = [list(sampler) for sampler in ranks]
            assert epoch - 1 <= len(by_rank[0]) <= epoch + 1
            assert {len(batches) for batches in by_rank} == {len(by_rank[0])}
            assert all(batch for batches in by_rank for batch in batches)
            for sampler in ranks:
                sampler.add_epochs()


@pytest.mark.parametrize("state_of", [26, 28, 29])
def test_a_short_last_step_resumed_at_a_larger_world_size_has_no_empty_microbatch(state_of: int) -> None:
    arguments: dict[str, Any] = {"index": MemoryIndex(seqlen=np.arange(30)), "curriculum": {}, "drop_last": False}
    alone = CurriculumSampler(**arguments, micro_batch_size=1, gradient_accumulation_steps=8)
    state = next(alone.state_dict() for _ in alone if alone.position == state_of)
    ranks = samplers(4, **arguments, micro_batch_size=2)
    for sampler in ranks:
        sampler.load_state_dict(state)
    assert [list(map(len, sampler)) for sampler in ranks] == [[1] if state_of == 26 else []] * 4


def test_fewer_samples_than_ranks_are_refused() -> None:
    with pytest.raises(ConfigError, match="each of 8 ranks needs one"):
        CurriculumSampler(MemoryIndex(seqlen=np.arange(5)), {}, micro_batch_size=2, world_size=8, drop_last=False)


@pytest.mark.parametrize("order", ["stateless", "deepspeed"])
def test_the_last_batch_may_be_short(order: Any) -> None:
    index = MemoryIndex(seqlen=np.arange(1, 31))
    sizes = {"micro_batch_size": 4, "gradient_accumulation_steps": 2, "order": order, "drop_last": False}
    ranks = samplers(2, index=index, curriculum={}, **sizes)
    parts = in_lockstep(ranks)
    assert [len(part) for part in parts] == [8, 8, 8, 6]
    assert len(ranks[0]) == 4
    assert order == "deepspeed" or sorted(joined(parts)) == list(range(30))


def test_difficulties_are_those_of_the_microbatch_last_yielded() -> None:
    sampler = CurriculumSampler(INDEX, SEQLEN, micro_batch_size=4, gradient_accumulation_steps=2)
    assert sampler.current_difficulties == {}
    seen = []
    for _ in sampler:
        seen.append(sampler.current_difficulties["seqlen"])
        assert sampler.state_dict()["current_difficulties"] == sampler.current_difficulties
    assert seen == [sampler.difficulties_at(step)["seqlen"] for step in range(1, 126) for _ in range(2)]


def test_steps_of_an_epoch_begin_at_one() -> None:
    index = MemoryIndex(seqlen=np.arange(1, 21))
    sampler = CurriculumSampler(index, {}, micro_batch_size=8, num_epochs=3, drop_last=False)
    assert [sampler.step_of_epoch for _ in sampler] == [1, 2, 3, 1, 2, 1, 2, 3]


def test_a_falling_difficulty_narrows_the_pool() -> None:
    curriculum = {"seqlen": discrete([16, 64, 8], [5, 10])}
    for order in ("stateless",):
        sampler = CurriculumSampler(INDEX, curriculum, micro_batch_size=16, order=order)
        largest = [int(INDEX["seqlen"].values[sampler.global_batch_at(step)].max()) for step in range(1, 30)]
        assert max(largest[:5]) <= 16 < max(largest[5:10])
        assert max(largest[10:]) <= 8


@pytest.mark.parametrize("order", ["stateless", "deepspeed"])
def test_filters_and_exclusions_keep_samples_out(order: Any) -> None:
    excluded = [int(i) for i in INDEX["seqlen"].order[:30]]
    sampler = CurriculumSampler(
        INDEX, SEQLEN, micro_batch_size=8, where=pl.col("loss") < 0.5, exclude_ids=excluded, order=order, num_epochs=2
    )
    drawn = set(np.concatenate(list(sampler)).tolist())
    kept = set(np.flatnonzero(INDEX["loss"].values < 0.5).tolist()) - set(excluded)
    assert drawn <= kept
    assert sampler.samples_per_epoch == len(kept)


@settings(deadline=None, max_examples=30)
@given(st.sets(st.integers(0, 999), max_size=40))
def test_excluding_samples_leaves_each_other_once_per_pass(excluded: set[int]) -> None:
    plain = CurriculumSampler(INDEX, {}, micro_batch_size=8, drop_last=False)
    sampler = CurriculumSampler(INDEX, {}, micro_batch_size=8, exclude_ids=excluded, drop_last=False)
    batches = list(sampler)
    assert sorted(joined(batches)) == sorted(set(range(1000)) - excluded)
    before = [set(batch) for batch in plain]
    first = next((at for at, batch in enumerate(before) if batch & excluded), len(before))
    assert [set(batch) for batch in batches[:first]] == before[:first]


def test_excluded_steps_leave_the_others_as_they_are() -> None:
    sizes = {"micro_batch_size": 4, "gradient_accumulation_steps": 2}
    plain = list(CurriculumSampler(INDEX, SEQLEN, **sizes))
    sampler = CurriculumSampler(INDEX, SEQLEN, exclude_steps=[1, 5, 6, 125, 999], **sizes)
    assert list(sampler) == plain[2:8] + plain[12:-2]
    assert len(sampler) == 250 - 8


def test_an_expression_is_a_difficulty() -> None:
    product = CurriculumMetric(
        name="hardness",
        difficulty=pl.col("seqlen") * pl.col("loss"),
        min_difficulty=8,
        max_difficulty=64,
        schedule_type="fixed_linear",
        schedule_config={"total_curriculum_step": 20, "difficulty_step": 8},
    )
    values = INDEX["seqlen"].values * INDEX["loss"].values
    for order in ("stateless", "deepspeed"):
        sampler = CurriculumSampler(INDEX, [product], micro_batch_size=8, order=order)
        for step in range(1, 25):
            level = sampler.difficulties_at(step)["hardness"]
            assert values[sampler.global_batch_at(step)].max() <= level
    assert "hardness" in sampler.trace(1).column_names


def test_a_custom_schedule_is_set_later() -> None:
    custom = {"seqlen": SEQLEN["seqlen"] | {"schedule_type": "custom"}}
    del custom["seqlen"]["schedule_config"]
    sampler = CurriculumSampler(INDEX, custom, micro_batch_size=8)
    with pytest.raises(ConfigError, match="set_custom_curriculum_learning_schedule"):
        sampler.global_batch_at(1)
    sampler.set_custom_curriculum_learning_schedule({"seqlen": lambda step: 8 if step < 9 else 32, "other": min})
    assert [sampler.difficulties_at(step)["seqlen"] for step in (8, 9)] == [8, 32]
    assert INDEX["seqlen"].values[sampler.global_batch_at(8)].max() <= 8


def test_trace_lists_what_ranks_get() -> None:
    sizes = {"micro_batch_size": 2, "gradient_accumulation_steps": 2}
    ranks = samplers(2, index=INDEX, curriculum=SEQLEN, **sizes)
    table = pl.DataFrame(ranks[0].trace([3, 1]))
    assert table["step"].to_list() == [3] * 8 + [1] * 8
    for rank, sampler in enumerate(ranks):
        yielded = list(sampler)
        for step in (1, 3):
            for micro in (0, 1):
                part = table.filter(step=step, micro_batch=micro, rank=rank)
                assert part["sample_id"].to_list() == yielded[2 * step - 2 + micro]
                assert part["seqlen"].to_list() == INDEX["seqlen"].values[part["sample_id"]].tolist()
    assert table["difficulty_seqlen"].to_list() == [16] * 8 + [8] * 8


def test_a_record_holds_what_was_yielded(tmp_path: Path) -> None:
    sampler = CurriculumSampler(INDEX, SEQLEN, micro_batch_size=4, record=tmp_path)
    stream = iter(sampler)
    first = [next(stream) for _ in range(3)]
    sampler.close()
    rest = list(stream)
    table = read_records(tmp_path)
    assert table["sample_id"].to_pylist() == joined(first + rest)
    assert table["step"].to_pylist() == [step for step in range(1, 251) for _ in range(4)]
    assert len(list(tmp_path.iterdir())) == 2
    assert read_records(tmp_path).schema.field("sample_id").type == pa.uint64()


def test_a_record_is_complete_up_to_a_saved_state_and_when_the_sampler_is_gone(tmp_path: Path) -> None:
    sampler = CurriculumSampler(INDEX, SEQLEN, micro_batch_size=4, record=tmp_path)
    stream = iter(sampler)
    drawn = [next(stream) for _ in range(3)]
    sampler.state_dict()
    assert read_records(tmp_path)["sample_id"].to_pylist() == joined(drawn)
    drawn.append(next(stream))
    del stream, sampler
    assert read_records(tmp_path)["sample_id"].to_pylist() == joined(drawn)


def test_a_real_index_serves(make_index: Callable[..., Any]) -> None:
    index = make_index({"seqlen": pa.array(INDEX["seqlen"].values), "loss": pa.array(INDEX["loss"].values)})
    curriculum = SEQLEN | {"loss": linear(20, 100, difficulty_type="percentile")}
    memory = MemoryIndex(seqlen=INDEX["seqlen"].values, loss=INDEX["loss"].values)
    for order in ("stateless", "deepspeed"):
        for chosen in (SEQLEN, curriculum):
            real = CurriculumSampler(index, chosen, micro_batch_size=8, order=order, where=pl.col("loss") < 0.9)
            assert list(real) == list(
                CurriculumSampler(memory, chosen, micro_batch_size=8, order=order, where=pl.col("loss") < 0.9)
            )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"micro_batch_size": 0}, "micro_batch_size must be a positive integer"),
        ({"rank": 2, "world_size": 2}, "rank must lie in"),
        ({"order": "random"}, "'stateless' or 'deepspeed'"),
        ({"micro_batch_size": 2000}, "do not fill one batch of 2000"),
        ({"exclude_ids": [1000]}, "exclude_ids must lie in"),
        ({"where": pl.col("loss")}, "must be true or false"),
        ({"where": pl.col("loss") > 2}, "is true for no sample"),
        ({"num_epochs": 0}, "num_epochs=0"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CurriculumSampler(INDEX, SEQLEN, **({"micro_batch_size": 8} | arguments))
    sampler = CurriculumSampler(INDEX, SEQLEN, micro_batch_size=8)
    with pytest.raises(ConfigError, match="count from 1"):
        sampler.global_batch_at(0)
    with pytest.raises(ConfigError, match="no metric 'length'; it has seqlen, loss, rare"):
        CurriculumSampler(INDEX, {"length": SEQLEN["seqlen"]}, micro_batch_size=8)


@pytest.mark.parametrize("clusters", [{}, {"seqlen": discrete([20, 64], [30])}])
def test_every_pass_through_a_cluster_is_in_another_order(clusters: dict[str, Any]) -> None:
    """By the order of the draws: batches of one sample are not shuffled."""
    sampler = CurriculumSampler(INDEX, clusters, micro_batch_size=1, num_epochs=6)
    drawn = np.concatenate(list(sampler))
    easy = INDEX["seqlen"].values[drawn] <= (20 if clusters else 64)
    for cluster in (drawn[easy], drawn[~easy]) if clusters else (drawn,):
        size = len(set(cluster.tolist()))
        passes = [tuple(cluster[at : at + size].tolist()) for at in range(0, len(cluster) - size + 1, size)]
        assert all(sorted(each) == sorted(passes[0]) for each in passes)
        assert len(set(passes)) == len(passes) >= 4


def test_orders_differ_by_seed_epoch_and_cluster() -> None:
    batches = {
        seed: list(CurriculumSampler(INDEX, {}, micro_batch_size=8, seed=seed, num_epochs=2)) for seed in range(4)
    }
    halves = [tuple(map(tuple, half)) for found in batches.values() for half in (found[:125], found[125:])]
    assert len(set(halves)) == len(halves)
    split = CurriculumSampler(INDEX, {"seqlen": discrete([20, 64], [1])}, micro_batch_size=1, num_epochs=3)
    drawn = np.concatenate(list(split))
    easy = INDEX["seqlen"].values <= 20
    ranks = [np.argsort(np.argsort(drawn[easy[drawn] == kind][:200])) for kind in (True, False)]
    assert not np.array_equal(*ranks)


@pytest.mark.parametrize("world", [2, 3, 8])
def test_ranks_of_a_step_share_no_sample(world: int) -> None:
    ranks = samplers(world, index=INDEX, curriculum={}, micro_batch_size=2, gradient_accumulation_steps=2)
    for parts in itertools.islice(zip(*ranks, strict=True), 40):
        assert len({sample for part in parts for sample in part}) == 2 * world


@pytest.mark.parametrize("order", ["stateless", "deepspeed"])
def test_the_first_and_the_last_step_and_those_around_a_change(order: Any) -> None:
    sampler = CurriculumSampler(INDEX, {"seqlen": discrete([8, 30, 64], [5, 60])}, micro_batch_size=8, order=order)
    assert sampler.num_steps == 125
    batches = list(sampler)
    for step in (1, 2, 5, 6, 60, 61, 124, 125):
        assert sampler.global_batch_at(step).tolist() == batches[step - 1]
        assert sampler.trace(step)["sample_id"].to_pylist() == batches[step - 1]
        level = 8 if step <= 5 else 30 if step <= 60 else 64
        assert sampler.difficulties_at(step) == {"seqlen": level}
        assert INDEX["seqlen"].values[batches[step - 1]].max() <= level
    for step in (0, -1):
        with pytest.raises(ConfigError, match="steps count from 1"):
            sampler.global_batch_at(step)


@pytest.mark.parametrize("order", ["stateless", "deepspeed"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"consumed_samples": 2**40}, "are .* steps, it says 1"),
        ({"consumed_samples": 2**70, "curriculum_step": 2**67}, "expected an integer from 0 on"),
        ({"consumed_samples": "8"}, "consumed_samples is '8'"),
        ({"epoch": 2**52}, "it is of epoch"),
        ({"epoch": -1}, "epoch is -1"),
    ],
)
def test_a_damaged_state_is_refused_and_changes_nothing(order: str, change: dict[str, Any], message: str) -> None:
    sampler = CurriculumSampler(INDEX, SEQLEN, micro_batch_size=8, order=order)
    first = next(iter(sampler))
    state = sampler.state_dict()
    with pytest.raises(StateMismatchError, match=message):
        sampler.load_state_dict(state | change)
    assert sampler.state_dict() == state
    assert next(iter(sampler)) == first
