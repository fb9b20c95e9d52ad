import json
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_index import MemoryIndex, linear

from arrowds.curriculum.mixture import MixtureSampler
from arrowds.errors import ConfigError, StateMismatchError
from arrowds.loading import CurriculumDataLoader

RNG = np.random.default_rng(1)
WEB, CODE, BOOKS = (MemoryIndex(seqlen=RNG.integers(1, 65, count)) for count in (500, 300, 64))
INDEXES = {"web": WEB, "code": CODE, "books": BOOKS}
SEQLEN = {"seqlen": linear(8, 64, multiple=8)}

weights = st.fixed_dictionaries(dict.fromkeys(INDEXES, st.integers(0, 20))).filter(lambda found: sum(found.values()))


@settings(deadline=None, max_examples=60)
@given(st.lists(weights, min_size=1, max_size=4), st.sampled_from([4, 32]), st.integers(0, 9))
def test_sources_keep_their_shares_over_any_run_and_are_drawn_through(
    shares: list[dict[str, int]], batch: int, seed: int
) -> None:
    schedule = [(1 + 7 * number, share) for number, share in enumerate(shares)]
    sampler = MixtureSampler(
        INDEXES, schedule, micro_batch_size=batch, curricula={"web": SEQLEN}, num_epochs=2, seed=seed
    )
    batches = list(sampler)
    assert len(batches) == len(sampler) == 864 * 2 // batch
    names = list(INDEXES)
    counts = np.zeros((len(batches), 3))
    drawn: dict[str, list[list[int]]] = {name: [] for name in names}
    for step, ids in enumerate(batches, start=1):
        assert sampler.global_batch_at(step).tolist() == ids
        source, local = sampler.locate(ids)
        for place, name in enumerate(names):
            counts[step - 1, place] = (source == name).sum()
            drawn[name].append(local[source == name].tolist())
        level = sampler.difficulties_at(step)["web.seqlen"]
        assert all(WEB["seqlen"].values[drawn["web"][-1]] <= level)
    exact = np.array(
        [[shares[min((step - 1) // 7, len(shares) - 1)][name] for name in names] for step in range(1, len(batches) + 1)]
    )
    exact = batch * exact / exact.sum(axis=1, keepdims=True)
    ahead = np.vstack([np.zeros(3), np.cumsum(counts - exact, axis=0)])
    assert np.ptp(ahead, axis=0).max() < 2 + len(shares) / 2
    times = np.bincount(np.array(list(chain.from_iterable(drawn["code"])), np.int64), minlength=300)
    assert np.ptp(times) <= 1


def test_all_ranks_and_world_sizes_see_the_same_batches_and_resume() -> None:
    arguments: dict[str, Any] = {"indexes": INDEXES, "weights": {"web": 2, "code": 1, "books": 1}}
    alone = list(MixtureSampler(**arguments, micro_batch_size=8))
    ranks = [MixtureSampler(**arguments, micro_batch_size=2, rank=rank, world_size=4) for rank in range(4)]
    assert [list(chain.from_iterable(parts)) for parts in zip(*ranks, strict=True)] == alone
    sampler = MixtureSampler(**arguments, micro_batch_size=4, gradient_accumulation_steps=2)
    for _, _ in zip(range(11), sampler, strict=False):
        pass
    state = json.loads(json.dumps(sampler.state_dict()))
    resumed = MixtureSampler(**arguments, micro_batch_size=8)
    resumed.load_state_dict(state)
    rest = list(resumed)
    assert rest[0] == alone[5][4:]
    assert rest[1:] == alone[6:]


def test_draws_stay_what_they_are_from_release_to_release() -> None:
    """A state that an older release has saved continues with the batches that it would have had there."""
    twins = {name: MemoryIndex(seqlen=np.arange(50)) for name in ("one", "other")}
    sampler = MixtureSampler(twins, {"one": 1, "other": 1}, micro_batch_size=8)
    pinned = [[16, 31, 38, 49, 59, 76, 80, 97], [27, 41, 42, 46, 50, 91, 92, 94]]
    assert [sorted(sampler.global_batch_at(step).tolist()) for step in (1, 2)] == pinned


def test_weights_may_change_from_a_later_step_on_but_not_before() -> None:
    first = {"web": 2, "code": 1, "books": 1}
    sampler = MixtureSampler(INDEXES, first, micro_batch_size=8)
    plain = list(sampler)
    sampler.reset()
    for _, _ in zip(range(20), sampler, strict=False):
        pass
    later = MixtureSampler(INDEXES, [(1, first), (31, {"code": 1})], micro_batch_size=8)
    later.load_state_dict(sampler.state_dict())
    rest = list(later)
    assert rest[:10] == plain[20:30]
    assert set(later.locate(rest[10])[0].tolist()) == {"code"}
    earlier = MixtureSampler(INDEXES, [(1, first), (11, {"code": 1})], micro_batch_size=8)
    with pytest.raises(StateMismatchError, match="weights"):
        earlier.load_state_dict(sampler.state_dict())
    assert earlier.position == 0
    swapped = MixtureSampler({"web": CODE, "code": WEB, "books": BOOKS}, first, micro_batch_size=8)
    with pytest.raises(StateMismatchError, match="indexes"):
        swapped.load_state_dict(sampler.state_dict())


def test_offsets_are_those_of_concatenated_datasets() -> None:
    sampler = MixtureSampler(INDEXES, {"web": 1}, micro_batch_size=8)
    assert sampler.offsets == {"web": 0, "code": 500, "books": 800}
    assert all(low < high for low, high in pairwise(sampler.offsets.values()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": {"wbe": 1}}, "one per group"),
        ({"weights": {"web": -1, "code": 2}}, "numbers >= 0"),
        ({"weights": {"web": 0}}, "numbers >= 0"),
        ({"weights": [(2, {"web": 1})]}, "start at step 1"),
        ({"curricula": {"wbe": SEQLEN}}, "wbe"),
        ({"indexes": {}}, "sources are"),
        ({"micro_batch_size": 10_000}, "do not fill"),
    ],
)
def test_impossible_mixtures_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MixtureSampler(**({"indexes": INDEXES, "weights": {"web": 1}, "micro_batch_size": 8} | arguments))


def test_ids_and_datasets_of_no_source_are_refused() -> None:
    index = MemoryIndex(x=np.arange(10))
    sampler = MixtureSampler({"a": index, "b": index}, {"a": 1, "b": 1}, micro_batch_size=2)
    with pytest.raises(ConfigError, match="ids must lie within 0 to 19; got -1 to 20"):
        sampler.locate([-1, 20])
    with pytest.raises(ConfigError, match="the dataset has 10 samples but the index 20"):
        CurriculumDataLoader(list(range(10)), sampler)


def test_weights_may_change_after_the_step_saved_and_not_for_it() -> None:
    """The step of the state itself was drawn with the old weights: the first step that is free is the one after it."""
    first = {"web": 3, "code": 1}
    sampler = MixtureSampler(INDEXES, first, micro_batch_size=4, gradient_accumulation_steps=2)
    stream = iter(sampler)
    for _ in range(20):
        next(stream)  # steps 1 to 10 are whole
    whole = sampler.state_dict()
    next(stream)  # step 11 is half done
    half = sampler.state_dict()

    def changed(step: int) -> MixtureSampler:
        weights = [(1, first), (step, {"code": 1})]
        return MixtureSampler(INDEXES, weights, micro_batch_size=4, gradient_accumulation_steps=2)

    for state, refused, accepted in ((whole, 10, 11), (half, 11, 12)):
        with pytest.raises(StateMismatchError, match="weights"):
            changed(refused).load_state_dict(state)
        resumed = changed(accepted)
        resumed.load_state_dict(state)
        rest = [sample for batch in resumed for sample in batch]
        if state is half:
            assert rest[:4] == next(stream)
            rest = rest[4:]
        assert set(resumed.locate(rest[:8])[0].tolist()) == {"code"}
