from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_index import MemoryIndex, discrete, linear

from arrowds.curriculum import pools as pools_module
from arrowds.curriculum.config import CurriculumMetric, parse_curriculum
from arrowds.curriculum.metric_values import DerivedMetric, evaluate
from arrowds.curriculum.pools import Phases, Pools, build_pools
from arrowds.curriculum.schedule import SCHEDULE_KEYS
from arrowds.errors import ConfigError, EmptyPoolError

values = st.lists(st.integers(0, 9), min_size=1, max_size=40)


@st.composite
def indexes(draw: st.DrawFn) -> MemoryIndex:
    """One metric of integers, one of floats with NaN, one masked; many ties."""
    whole = np.array(draw(values))
    floats = np.array(
        draw(st.lists(st.sampled_from([0.5, 1.5, 2.5, np.nan]), min_size=len(whole), max_size=len(whole)))
    )
    mask = draw(st.lists(st.booleans(), min_size=len(whole), max_size=len(whole)))
    floats[0], mask[0] = 1.5, False
    return MemoryIndex(whole=whole, floats=floats, masked=np.ma.MaskedArray(whole, mask=mask))


@st.composite
def curricula(draw: st.DrawFn) -> dict[str, Any]:
    found = {}
    for name in draw(st.sets(st.sampled_from(["whole", "floats", "masked"]), min_size=1)):
        percentile = draw(st.booleans())
        levels = draw(st.lists(st.integers(1, 100) if percentile else st.integers(0, 9), min_size=2, max_size=5))
        last = sorted(draw(st.sets(st.integers(1, 9), min_size=len(levels) - 1, max_size=len(levels) - 1)))
        levels = sorted(levels) if draw(st.booleans()) else levels
        found[name] = discrete(levels, last, difficulty_type="percentile" if percentile else "value")
        found[name]["max_difficulty"] = 100
        if draw(st.integers(0, 4)) == 0:
            found[name]["clustering_type"] = "single_cluster"
        elif draw(st.booleans()):
            lower = draw(st.lists(st.integers(0, 99) if percentile else st.integers(0, 9), min_size=2, max_size=4))
            last = sorted(draw(st.sets(st.integers(1, 9), min_size=len(lower) - 1, max_size=len(lower) - 1)))
            known = discrete(lower, last)
            found[name]["lower"] = {key: known[key] for key in SCHEDULE_KEYS}
    return found


def admitted(
    index: MemoryIndex, metrics: tuple[CurriculumMetric, ...], allowed: set[int], phases: Phases, at: int
) -> set[int]:
    """What a phase admits, by brute force."""
    ids = set(allowed)
    for metric in metrics:
        if not metric.clustered:
            continue
        level, order = phases.levels[metric.name][at], index[metric.name].order
        if metric.percentile:
            ids &= set(order[: len(order) * level // 100].tolist())
        else:
            ids &= {int(i) for i in order if index[metric.name].values[i] <= level}
        if metric.lower is not None:
            level = phases.levels[f"{metric.name}_lower"][at]
            if metric.percentile:
                ids -= set(order[: len(order) * level // 100].tolist())
            else:
                ids = {i for i in ids if index[metric.name].values[i] >= level}
    return ids


def clusters_of(pools: Pools) -> list[list[int]]:
    return [pools.samples(np.full(size, k), np.arange(size)).tolist() for k, size in enumerate(pools.sizes.tolist())]


@settings(deadline=None, max_examples=300)
@given(indexes(), curricula(), st.booleans(), st.sampled_from([4, 1 << 20]))
def test_the_clusters_of_a_phase_are_what_brute_force_admits(
    index: MemoryIndex, curriculum: dict[str, Any], filtered: bool, block: int
) -> None:
    metrics = parse_curriculum(curriculum)
    phases = Phases.of(metrics, limit=20)
    allowed = index["whole"].values % 3 > 0 if filtered else None
    ids = set(range(index.num_samples)) if allowed is None else set(np.flatnonzero(allowed).tolist())
    expected = [admitted(index, metrics, ids, phases, at) for at in range(len(phases.start))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pools_module, "BLOCK", block)
        try:
            pools = build_pools(index, metrics, {}, allowed, phases)
        except EmptyPoolError:
            assert not all(expected)
            return
        except ConfigError:
            return  # A lowest difficulty above the largest value.
    clusters = clusters_of(pools)
    assert len({i for cluster in clusters for i in cluster}) == pools.sizes.sum()
    weights = np.zeros((len(clusters), len(phases.start)), np.int64)
    np.add.at(weights, (pools.changes.leaf, pools.changes.phase), pools.changes.delta)
    weights = np.cumsum(weights, axis=1)
    for at, ids in enumerate(expected):
        assert set(np.unique(weights[:, at])) <= {0, *pools.sizes.tolist()}
        assert {i for k in np.flatnonzero(weights[:, at]) for i in clusters[k]} == ids


def test_a_cluster_is_what_a_change_newly_admits() -> None:
    index = MemoryIndex(seqlen=np.array([5, 1, 3, 2, 4, 3]))
    phases = Phases(np.array([1, 5, 9]), {"seqlen": [2, 3, 9]})
    metrics = parse_curriculum({"seqlen": linear(2, 9)})
    pools = build_pools(index, metrics, {}, None, phases)
    assert clusters_of(pools) == [[1, 3], [2, 5], [4, 0]]
    assert pools.ids is index["seqlen"].order
    gathered = build_pools(index, metrics, {}, np.ones(6, np.bool_), phases)
    assert [set(cluster) for cluster in clusters_of(gathered)] == [{1, 3}, {2, 5}, {0, 4}]


def test_an_empty_pool_names_metric_difficulty_and_smallest_value() -> None:
    index = MemoryIndex(seqlen=np.array([50, 60]), loss=np.array([0.5, 0.25]))
    metrics = parse_curriculum({"seqlen": linear(8, 64)})
    with pytest.raises(EmptyPoolError, match=r"step 1: 'seqlen' has the difficulty 10, and its smallest value is 50"):
        build_pools(index, metrics, {}, None, Phases.of(metrics, limit=9))


def test_a_difficulty_outside_the_values_is_refused() -> None:
    index = MemoryIndex(seqlen=np.array([1, 2]))
    metrics = parse_curriculum({"seqlen": linear(8, 64)})
    with pytest.raises(ConfigError, match="its largest value is 2"):
        build_pools(index, metrics, {}, None, Phases.of(metrics, limit=9))


def test_expressions_see_all_samples_and_do_not_wrap_around() -> None:
    index = MemoryIndex(a=np.array([250, 1, 4], np.uint8))
    assert evaluate(index, pl.col("a") - pl.col("a").mean()).tolist() == [165.0, -84.0, -81.0]
    assert evaluate(index, pl.col("a") * 2 - 10).tolist() == [490, -8, -2]
    with pytest.raises(ConfigError, match="expected a Polars expression"):
        evaluate(index, "a > 2")
    with pytest.raises(ConfigError, match="gives 1 values for 3 samples; it must give one each"):
        evaluate(index, pl.col("a").max())


def test_expressions_keep_nulls_and_nan_out_of_the_order() -> None:
    index = MemoryIndex(a=np.ma.MaskedArray([4, 0, 2, 3, 1], mask=[0, 1, 0, 0, 0]), b=np.array([1.0, 1, 2, 3, np.nan]))
    product = DerivedMetric(evaluate(index, pl.col("a") * pl.col("b")))
    assert product.order.tolist() == [0, 2, 3]
    assert product.rank(4) == 2
    with pytest.raises(ConfigError, match="no metric 'c'; it has a, b"):
        evaluate(index, pl.col("c") + 1)
