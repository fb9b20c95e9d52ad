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
        with pytest.raises(ConfigError, match=r"drawn already|at least 1"):
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


RNG = np.random.default_rng(3)
INDEX = MemoryIndex(
    seqlen=RNG.integers(1, 65, 1000),
    quality=RNG.random(1000),
    language=RNG.integers(0, 4, 1000),
    holes=np.ma.MaskedArray(RNG.integers(0, 3, 1000), mask=np.arange(1000) % 10 == 0),
)
CODE = {"code": pl.col("language") == 2, "web": pl.col("language") != 2}
WEIGHTS = {"code": 0.3, "web": 0.7}


def mixture(**changed: Any) -> MixtureSampler:
    return MixtureSampler(INDEX, **({"weights": WEIGHTS, "groups": CODE, "micro_batch_size": 8} | changed))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"groups": None}, "needs groups"),
        ({"groups": {}}, "expressions by name"),
        ({"groups": {"code": pl.col("language")}}, "true or false"),
        ({"groups": CODE | {"all": pl.col("language") >= 0}}, r"1000 samples are in several groups.*overlap='first'"),
        ({"groups": {"code": CODE["code"]}}, rf"{(INDEX['language'].values != 2).sum()} samples are in no group"),
        ({"groups": CODE, "rest": "web"}, "is a group already"),
        ({"groups": CODE, "overlap": "last"}, "'raise' or 'first'"),
        ({"groups": "wrong"}, "no metric 'wrong'"),
        ({"groups": "holes", "weights": {"0": 1}}, "100 samples are in no group"),
        ({"groups": CODE | {"none": pl.col("language") > 9}, "weights": {"none": 1}}, "no sample that may be drawn"),
        ({"where": pl.col("language") != 2}, "no sample that may be drawn: 'code'"),
        ({"exclude_ids": np.flatnonzero(INDEX["language"].values == 2)}, "no sample that may be drawn: 'code'"),
        ({"weights": {"code": float("nan")}}, "not finite"),
        ({"weights": {"code": -1, "web": 2}}, "not finite numbers >= 0"),
        ({"weights": {"code": 0, "web": 0}}, "sum is zero"),
        ({"weights": {"cde": 1}}, "'cde' is no group"),
        ({"weights": {"code": "1"}}, "not finite"),
        ({"curricula": {"cde": {}}}, "cde"),
        ({"unit": "bytes"}, "unit must be"),
        ({"order": "deepspeed"}, "'stateless'"),
        ({"unit": "tokens", "lengths": "holes"}, "100 samples have no holes"),
        ({"lengths": "seqlen"}, "belongs to max_tokens"),
    ],
)
def test_impossible_groups_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mixture(**changed)


def test_samples_in_several_groups_or_in_none_go_where_it_is_said() -> None:
    language = INDEX["language"].values
    first = mixture(groups={"code": CODE["code"], "web": pl.col("language") >= 0}, overlap="first")
    assert first.groups == {"code": (language == 2).sum(), "web": (language != 2).sum()}
    left = mixture(groups={"code": CODE["code"]}, rest="leave", weights={"code": 1})
    assert {i for ids in left for i in ids} <= set(np.flatnonzero(language == 2).tolist())
    assert left.samples_per_epoch == (language == 2).sum()
    assert left.locate([int(np.flatnonzero(language != 2)[0])])[0].tolist() == [""]
    named = mixture(groups={"code": CODE["code"]}, rest="other", weights={"code": 1, "other": 1})
    assert named.groups == {"code": (language == 2).sum(), "other": (language != 2).sum()}
    filtered = mixture(groups={"code": CODE["code"]}, where=pl.col("language") == 2, weights={"code": 1})
    assert filtered.groups == {"code": (language == 2).sum()}


def test_the_values_of_a_metric_are_groups() -> None:
    sampler = mixture(groups="language", weights=dict.fromkeys("0123", 1))
    assert sampler.groups == {str(value): (INDEX["language"].values == value).sum() for value in range(4)}
    assert set(sampler.trace([1, 2])["group"].to_pylist()) == set("0123")
    assert mixture(groups="holes", rest="leave", weights={"1": 1}).locate([0, 1])[0][0] == ""


def test_a_mixture_has_what_a_curriculum_has(tmp_path: Any) -> None:
    where, out = pl.col("quality") > 0.2, [5, 6, 7, 8]
    sampler = mixture(
        max_tokens=256,
        micro_batch_size=None,
        unit="tokens",
        cost=(1, 0.01),
        curricula={"web": {"seqlen": linear(30, 64)}},
        where=where,
        exclude_ids=out,
        exclude_steps=[2],
        record=tmp_path / "record",
        gradient_accumulation_steps=2,
    )
    yielded = list(sampler)
    recorded = read_records(tmp_path / "record")
    assert recorded["sample_id"].to_pylist() == [i for ids in yielded for i in ids]
    assert 2 not in recorded["step"].to_pylist()
    table = sampler.trace(range(1, sampler.num_steps + 1))
    assert table.column_names[:5] == ["step", "micro_batch", "rank", "sample_id", "group"]
    values = pl.DataFrame(table.to_pydict())
    assert values.filter(pl.col("step") != 2)["sample_id"].to_list() == recorded["sample_id"].to_pylist()
    assert (values["quality"] > 0.2).all()
    assert not values["sample_id"].is_in(out).any()
    assert ((values["group"] == "code") == (values["language"] == 2)).all()
    assert (
        (values.filter(pl.col("group") == "web").select(pl.col("seqlen") <= pl.col("difficulty_web.seqlen")))
        .to_series()
        .all()
    )
    assert values.group_by("step", "micro_batch").agg(pl.col("seqlen").sum())["seqlen"].max() <= 256
    assert sampler.costs_at(1).shape == (2, 1)


def test_several_indexes_have_token_budgets_traces_and_exclusions() -> None:
    other = MemoryIndex(seqlen=RNG.integers(1, 65, 300), quality=RNG.random(300))
    sampler = MixtureSampler(
        {"web": INDEX, "code": other},
        {"web": 1, "code": 3},
        max_tokens=512,
        unit="tokens",
        where=pl.col("quality") > 0.5,
        exclude_ids=[0, 1000, 1001],
        num_epochs=2,
    )
    lengths = np.concatenate([INDEX["seqlen"].values, other["seqlen"].values])
    quality = np.concatenate([INDEX["quality"].values, other["quality"].values])
    drawn = np.zeros(2)
    for ids in sampler:
        assert lengths[ids].sum() <= 512
        assert quality[ids].min() > 0.5
        assert not {0, 1000, 1001} & set(ids)
        drawn += [lengths[[i for i in ids if i < 1000]].sum(), lengths[[i for i in ids if i >= 1000]].sum()]
        assert abs(drawn[0] - drawn.sum() / 4) <= 64
    table = sampler.trace(1)
    ids = table["sample_id"].to_numpy().astype(int)
    assert table["seqlen"].to_pylist() == lengths[ids].tolist()
    assert table["group"].to_pylist() == ["web" if i < 1000 else "code" for i in ids.tolist()]


def test_states_of_other_samplers_are_refused_by_name() -> None:
    one = mixture()
    curriculum = arrowds.CurriculumSampler(INDEX, {}, micro_batch_size=8)
    batches = arrowds.TokenBudgetBatchSampler(arrowds.batch_by_tokens(INDEX["seqlen"].values, 128))
    for sampler, names in ((one, "a MixtureSampler"), (curriculum, "a CurriculumSampler"), (batches, "a TokenBudget")):
        for other in (one, curriculum, batches):
            if other is not sampler:
                with pytest.raises(StateMismatchError, match=f"of {names}"):
                    other.load_state_dict(sampler.state_dict())


def test_other_groups_units_and_early_weights_are_refused_and_change_nothing() -> None:
    sampler = mixture()
    list(islice(sampler, 20))
    state = sampler.state_dict()
    for changed, message in (
        ({"groups": {"code": pl.col("language") < 2, "web": pl.col("language") >= 2}}, "groups"),
        ({"unit": "tokens"}, "unit"),
        ({"weights": {"code": 1, "web": 1}}, "other weights up to step 20"),
        ({"weights": [(1, WEIGHTS), (20, {"web": 1})]}, "other weights up to step 20"),
        ({"curricula": {"web": {"seqlen": linear(30, 64)}}}, "curricula"),
    ):
        other = mixture(**changed)
        with pytest.raises(StateMismatchError, match=message):
            other.load_state_dict(state)
        assert other.position == 0
    sampler.set_weights(25, {"web": 1})
    later = mixture(weights=[(1, WEIGHTS), (21, {"code": 1})])
    later.load_state_dict(state)
    assert set(later.locate(next(iter(later)))[0].tolist()) == {"code"}
    damaged = sampler.state_dict() | {"weight_changes": [[0, {"web": 1}]]}
    with pytest.raises(StateMismatchError, match="changes of weights"):
        mixture().load_state_dict(damaged)


def test_quantiles_of_a_metric_are_groups_for_an_upsampling_curve() -> None:
    groups = quantile_groups(INDEX, "quality", [0.5, 0.9, 1.0])
    sampler = mixture(groups=groups, weights={"0-50%": 1, "50-90%": 2, "90-100%": 1})
    assert sampler.groups == {"0-50%": 500, "50-90%": 400, "90-100%": 100}
    quality = INDEX["quality"].values
    top = np.flatnonzero(quality > np.sort(quality)[899])
    share = np.isin(np.concatenate(list(sampler)), top).mean()
    assert abs(share - 0.25) < 0.01
    for wrong in ([0.5], [0.5, 0.4, 1], [], [0, 1]):
        with pytest.raises(ConfigError, match="quantiles must"):
            quantile_groups(INDEX, "quality", wrong)
    with pytest.raises(ConfigError, match="choose some that differ"):
        quantile_groups(INDEX, "language", [0.5, 0.51, 1])


def test_ten_thousand_groups_are_drawn_by_share_and_have_a_small_state() -> None:
    index = MemoryIndex(seqlen=RNG.integers(1, 100, 50_000), site=np.arange(50_000) % 10_000)
    for unit in ("samples", "tokens"):
        sampler = MixtureSampler(
            index, {str(site): 1 + site % 7 for site in range(10_000)}, groups="site", unit=unit, micro_batch_size=500
        )
        drawn = np.bincount(np.concatenate(list(sampler)) % 10_000, minlength=10_000)
        exact = 50_000 * (1 + np.arange(10_000) % 7) / sum(1 + site % 7 for site in range(10_000))
        if unit == "samples":
            assert np.abs(drawn - exact).max() < 3
        assert len(json.dumps(sampler.state_dict())) < 1024
        resumed = MixtureSampler(
            index, {str(site): 1 + site % 7 for site in range(10_000)}, groups="site", unit=unit, micro_batch_size=500
        )
        list(islice(iter(sampler), 3))
        resumed.load_state_dict(sampler.state_dict())
        assert next(iter(resumed)) == sampler.global_batch_at(4).tolist()


def test_a_loader_takes_new_weights_from_what_it_has_handed_out() -> None:
    loader = arrowds.CurriculumDataLoader(list(range(1000)), mixture(micro_batch_size=4), num_workers=1)
    stream = iter(loader)
    first = [next(stream).tolist() for _ in range(3)]
    loader.set_weights(4, {"code": 1})
    after = [next(stream).tolist() for _ in range(3)]
    assert first == [mixture(micro_batch_size=4).global_batch_at(step).tolist() for step in (1, 2, 3)]
    assert set(INDEX["language"].values[np.concatenate(after)]) == {2}
    with pytest.raises(ConfigError, match="drawn already"):
        loader.set_weights(6, {"web": 1})


def test_groups_by_the_names_of_a_categorical_metric(tmp_path):
    languages = [["en", "de", "fr"][row % 3] if row % 7 else None for row in range(210)]
    made = []
    for name, values in (("a", languages), ("b", ["it", "de"] * 20)):
        table = pl.DataFrame({"language": values})
        metric = arrowds.metrics.column("language", nulls="keep")
        made.append(arrowds.analyze(table, metric, tmp_path / name, progress=False))
    options = {"micro_batch_size": 10, "num_epochs": 2}
    weights = {"de": 1, "en": 3, "fr": 1}
    sampler = arrowds.MixtureSampler(made[0], groups="language", weights=weights, rest="leave", **options)
    traced = sampler.trace(range(1, 5))
    assert traced["group"].to_pylist() == traced["language"].to_pylist()
    assert traced["group"].to_pylist().count("en") == 24
    both = arrowds.MixtureSampler({"a": made[0], "b": made[1]}, {"a": 1, "b": 1}, **options).trace([1, 2])
    names = [*languages, *["it", "de"] * 20]
    assert both["language"].to_pylist() == [names[row] for row in both["sample_id"].to_pylist()]
