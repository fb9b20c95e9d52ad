"""The batch sampler: ranks share a plan, epochs follow one another, and a state resumes anywhere."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowds.errors import ConfigError, StateMismatchError
from arrowds.loading import CurriculumDataLoader, scale_lr_by_batch_size
from arrowds.token_batches.plan import batch_by_tokens
from arrowds.token_batches.sampler import TokenBudgetBatchSampler

LENGTHS = np.random.default_rng(0).integers(1, 40, 500)


def plan(**changes):
    return batch_by_tokens(LENGTHS, **{"max_tokens": 256, "effective_batch_size": 8} | changes)


def take(sampler, batches):
    iterator = iter(sampler)
    return [next(iterator) for _ in range(batches)]


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_ranks_share_each_step(world_size):
    whole = plan()
    samplers = [TokenBudgetBatchSampler(whole, rank=rank, world_size=world_size) for rank in range(world_size)]
    given_out = [list(sampler) for sampler in samplers]
    assert {len(batches) for batches in given_out} == {len(whole) // world_size}
    by_turns = [batch for turn in zip(*given_out, strict=True) for batch in turn]
    assert by_turns == [batch.tolist() for batch in whole.batches]
    assert all(type(sample) is int for sample in by_turns[0])


def test_each_iteration_is_the_next_epoch():
    sampler = TokenBudgetBatchSampler(plan())
    epochs = [list(sampler) for _ in range(3)]
    assert sampler.epoch == 3
    for epoch, batches in enumerate(epochs):
        assert batches == [batch.tolist() for batch in plan(epoch=epoch).batches]
    sampler.set_epoch(1)
    assert list(sampler) == epochs[1]


def test_an_iteration_given_up_starts_over():
    sampler = TokenBudgetBatchSampler(plan())
    take(sampler, 3)
    assert list(sampler) == [batch.tolist() for batch in plan().batches]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_resumed_run_goes_on_where_it_stopped(data):
    """At any step, in any epoch, with another number of ranks."""
    before, after = (data.draw(st.sampled_from([1, 2, 4, 8])) for _ in range(2))
    epoch = data.draw(st.integers(0, 2))
    steps = data.draw(st.integers(0, len(plan(epoch=epoch)) // 8))
    saver = TokenBudgetBatchSampler(plan(), rank=before - 1, world_size=before)
    saver.set_epoch(epoch)
    take(saver, steps * 8 // before)
    state = json.loads(json.dumps(saver.state_dict()))
    rest = []
    for rank in range(after):
        sampler = TokenBudgetBatchSampler(plan(), rank=rank, world_size=after)
        sampler.load_state_dict(state)
        sampler.set_epoch(sampler.epoch)
        rest.append(list(sampler))
    expected = [batch.tolist() for batch in plan(epoch=epoch).batches][steps * 8 :]
    if not expected:  # the epoch was at its end
        expected = [batch.tolist() for batch in plan(epoch=epoch + 1).batches]
    assert [batch for turn in zip(*rest, strict=True) for batch in turn] == expected


def test_a_resumed_run_resumes_again():
    sampler = TokenBudgetBatchSampler(plan())
    sampler.load_state_dict({**sampler.state_dict(), "batches": 5})
    take(sampler, 2)
    assert sampler.state_dict()["batches"] == 7
    list(sampler)
    assert (sampler.state_dict()["epoch"], sampler.state_dict()["batches"]) == (1, 0)


def test_state_counts_what_was_trained_on_when_told():
    sampler = TokenBudgetBatchSampler(plan(), world_size=2)
    take(sampler, 6)  # workers ask ahead
    assert sampler.state_dict(batches=4)["batches"] == 8
    with pytest.raises(ConfigError, match="batches=9999"):
        sampler.state_dict(batches=9999)
    assert len(json.dumps(sampler.state_dict())) < 1024


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 9}, "seed 9, now 0"),
        ({"max_tokens": 128}, "max_tokens 128, now 256"),
        ({"ids": np.arange(499)}, "other samples"),
    ],
)
def test_a_state_of_something_else_is_refused(change, said):
    state = TokenBudgetBatchSampler(plan(**change)).state_dict()
    with pytest.raises(StateMismatchError, match=said):
        TokenBudgetBatchSampler(plan()).load_state_dict(state)


def test_a_state_within_a_step_or_of_another_version_is_refused():
    sampler = TokenBudgetBatchSampler(plan(), world_size=4)
    state = TokenBudgetBatchSampler(plan()).state_dict()
    with pytest.raises(StateMismatchError, match="within a step"):
        sampler.load_state_dict(state | {"batches": 6})
    with pytest.raises(StateMismatchError, match="version 2"):
        sampler.load_state_dict(state | {"version": 2})


@pytest.mark.parametrize("arguments", [{"rank": 2, "world_size": 2}, {"world_size": 3}, {"rank": -1}])
def test_ranks_that_do_not_fit_are_refused(arguments):
    with pytest.raises(ConfigError):
        TokenBudgetBatchSampler(plan(), **arguments)


def test_lengths_of_any_type_have_one_digest():
    assert plan().digest == batch_by_tokens(LENGTHS.astype(np.uint8), 256, effective_batch_size=8).digest
    assert plan().digest != batch_by_tokens(LENGTHS[::-1], 256, effective_batch_size=8).digest


@pytest.mark.parametrize("workers", [0, 2])
def test_torch_loads_the_batches(workers):
    loader = torch.utils.data.DataLoader(
        LENGTHS, batch_sampler=TokenBudgetBatchSampler(plan()), num_workers=workers, collate_fn=np.array
    )
    tokens = [int(batch.sum()) for batch in loader]
    assert len(tokens) == len(plan())
    assert sum(tokens) == LENGTHS.sum()
    assert max(tokens) <= 256


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_resumes_where_the_loop_was(workers):
    """Not where its workers were, also at the end of an epoch."""

    def start():
        return CurriculumDataLoader(LENGTHS, TokenBudgetBatchSampler(plan()), num_workers=workers, collate_fn=list)

    loader = start()
    whole = [list(loader), list(loader)]
    assert len(whole[0]) == len(plan())
    for stop in {1, 7, len(whole[0])} if workers else range(1, len(whole[0]) + 1, 3):
        loader = start()
        for _, _batch in zip(range(stop), loader, strict=False):
            state = json.dumps(loader.state_dict())
        loader = start()
        loader.load_state_dict(json.loads(state))
        assert list(loader) == (whole[0][stop:] or whole[1])


def test_learning_rates_follow_the_epochs_of_a_plan():
    def start():
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        lower = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
        return optimizer, scale_lr_by_batch_size(lower, plan(), base_batch_size=40)

    def rates(optimizer, scheduler, steps):
        found = []
        for _ in range(steps):
            found.append(scheduler.get_last_lr()[0])
            optimizer.step()
            scheduler.step()
        return found

    sizes = np.concatenate([plan(epoch=epoch).batch_sizes for epoch in range(3)])
    expected = sizes / 40 * 0.99 ** np.arange(len(sizes))
    whole = rates(*start(), len(sizes) - 1)
    np.testing.assert_allclose(whole, expected[:-1])
    for stop in range(0, len(sizes), 2):
        optimizer, scheduler = start()
        rates(optimizer, scheduler, stop)
        state = json.loads(json.dumps(scheduler.state_dict()))
        optimizer, scheduler = start()
        scheduler.load_state_dict(state)
        np.testing.assert_allclose(rates(optimizer, scheduler, len(sizes) - 1 - stop), expected[stop:-1])
    with pytest.raises(StateMismatchError, match="another plan"):
        other = scale_lr_by_batch_size(optimizer, plan(ids=np.arange(99)), base_batch_size=40)
        other.load_state_dict(state)
