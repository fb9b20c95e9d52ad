"""DeepSpeed's dynamic batching against the drop-ins: same microbatches, same learning rates, but for its losses."""

import io
import logging
import pickle
import random
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowds.errors import ConfigError, StateMismatchError
from arrowds.indexed_dataset import write_indexed_dataset
from arrowds.integrations.deepspeed import dynamic_batching as ads
from arrowds.integrations.deepspeed import dynamic_batching_engine

# torch on what DeepSpeed's scheduler does: get_lr() outside of step(), a step before the optimizer's, and step(epoch)
pytestmark = [
    pytest.mark.filterwarnings("ignore:To get the last learning rate:UserWarning"),
    pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler.step:UserWarning"),
    pytest.mark.filterwarnings("ignore:The epoch parameter in .scheduler.step:UserWarning"),
]


@pytest.fixture(scope="module")
def ds():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # DeepSpeed's import warns of many things that are not ours
        from deepspeed.runtime.data_pipeline.data_sampling import variable_batch_size_and_lr
    return variable_batch_size_and_lr


configs = st.fixed_dictionaries(
    {
        "min_batch_size": st.integers(1, 3),
        "max_batch_size": st.none() | st.integers(3, 6),
        "effective_batch_size": st.integers(1, 4),
        "required_microbatches_of_same_size": st.booleans(),
    }
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 24), min_size=1, max_size=60),
    configs,
    st.sampled_from(["dataloader", "seqlen"]),
    st.integers(16, 40),
)
def test_microbatches_are_deepspeeds_when_it_is_given_one_more_sample_to_lose(ds, lengths, config, order, budget):
    lengths = [min(length, budget) for length in lengths]
    with_one_to_lose = [*lengths, budget]  # the last in both orders
    try:
        theirs = ds.batch_by_seqlens(with_one_to_lose, budget, sequence_picking_order=order, **config)
    except AssertionError:
        with pytest.raises(ConfigError):
            ads.batch_by_seqlens(lengths, budget, sequence_picking_order=order, **config)
        return
    ours = ads.batch_by_seqlens(lengths, budget, sequence_picking_order=order, **config)
    assert ours == (list(theirs[0]), list(theirs[1]), list(theirs[2]))


def test_random_order_is_deepspeeds_for_the_same_seed(ds):
    lengths = np.random.default_rng(5).integers(1, 30, 400)
    ours = ads.batch_by_seqlens(lengths, 100, sequence_picking_order="random", seed=7)[0]
    theirs = ds.batch_by_seqlens(lengths.tolist(), 100, sequence_picking_order="random", seed=7)[0]
    assert ours[: len(theirs) - 1] == theirs[:-1]
    flat = [sample for _, ids in ours for sample in ids]
    order = list(range(400))
    random.Random(7).shuffle(order)
    assert flat == order


def test_filtered_ids_and_overlong_samples_are_deepspeeds(ds):
    lengths = [9, 50, 3, 4, 8, 2, 7, 5, 50]
    ids = [6, 1, 2, 5, 0, 4]
    theirs = ds.batch_by_seqlens(lengths, 12, sequence_ids_per_mb=[*ids, 3])
    ours = ads.batch_by_seqlens(lengths, 12, sequence_ids_per_mb=ids)
    assert [(batch, list(map(int, found))) for batch, found in theirs[0]] == ours[0]
    assert theirs[1:] == ours[1:]


def test_the_last_sample_is_batched_and_losses_are_told(caplog):
    batches, sizes, longest = ads.batch_by_seqlens([1, 2, 3, 4, 5], 100)
    assert (batches, sizes, longest) == ([(0, [0, 1, 2, 3, 4])], [5], [5])
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        ads.batch_by_seqlens([1, 200, 3], 100)
    assert "1 of 3 samples are in no microbatch" in caplog.text


@pytest.mark.parametrize("bad", [{"sequence_picking_order": "sorted"}, {"effective_batch_size": 9}, {"max_tokens": 0}])
def test_what_makes_no_sense_is_refused(bad):
    with pytest.raises(ConfigError):
        ads.batch_by_seqlens(**{"seqlens": [1, 2, 3], "max_tokens": 4} | bad)


@pytest.mark.parametrize("method", ["linear", "sqrt", "none", None])
def test_scale_lr_is_deepspeeds(ds, method):
    for size in (1, 7, 64):
        assert ads.scale_lr(16, size, 0.1, method) == pytest.approx(ds.scale_lr(16, size, 0.1, method))
    with pytest.raises(ConfigError, match="cubic"):
        ads.scale_lr(16, 8, 0.1, "cubic")


def _optimizer():
    weights = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    return torch.optim.SGD([{"params": [weights[0]], "lr": 0.1}, {"params": [weights[1]], "lr": 0.4}], lr=0.1)


LOWER = {
    "optimizer": lambda optimizer: optimizer,
    "step": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5),
    "lambda": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "exponential": lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
}


def _rates(scheduler, optimizer, steps):
    rates = []
    for _ in range(steps):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return np.array(rates)


@pytest.mark.parametrize("lower", LOWER)
@pytest.mark.parametrize("method", ["linear", "sqrt", None])
def test_learning_rates_are_deepspeeds(ds, lower, method):
    sizes = [4, 9, 2, 30, 1]
    found = []
    for library in (ads, ds):
        optimizer = _optimizer()
        scheduler = library.lr_scheduler_for_variable_batch_size(8, sizes, None, LOWER[lower](optimizer), method)
        found.append(_rates(scheduler, optimizer, 13))
    np.testing.assert_allclose(found[0], found[1])


def _moved(scheduler, optimizer, moves):
    """The rates after each move: to a step, or (None) to the next one."""
    rates = []
    for move in moves:
        optimizer.step()
        scheduler.step(*[] if move is None else [move])
        rates.append([group["lr"] for group in optimizer.param_groups])
    return np.array(rates)


@pytest.mark.parametrize("lower", LOWER)
@pytest.mark.parametrize(
    "moves",
    [
        [0, None, None, 0, None],  # the example: step(0) before each epoch, one of them left early
        [None] * 5 + [0] + [None] * 5 + [0],  # step(0) after a whole epoch
        [3, None, 0, 4, 9, 0, None],
    ],
)
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")  # DeepSpeed's call of torch
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning")
def test_a_named_step_is_gone_to_as_in_deepspeed(ds, lower, moves):
    sizes = [4, 9, 2, 30, 1]
    found = []
    for library in (ads, ds):
        optimizer = _optimizer()
        scheduler = library.lr_scheduler_for_variable_batch_size(8, sizes, None, LOWER[lower](optimizer))
        found.append(_moved(scheduler, optimizer, moves))
    np.testing.assert_allclose(found[0], found[1])


def test_a_named_step_warns_of_nothing_and_saves_where_it_is():
    scheduler = ads.lr_scheduler_for_variable_batch_size(
        4, [4, 8, 16], None, LOWER["exponential"](optimizer := _optimizer())
    )
    rates = _moved(scheduler, optimizer, [2, 0, None])  # warnings are errors here
    np.testing.assert_allclose(rates[:, 0], [0.1 * 0.9**2 * 4, 0.1, 0.1 * 0.9 * 2])
    again = ads.lr_scheduler_for_variable_batch_size(4, [4, 8, 16], None, LOWER["exponential"](_optimizer()))
    again.load_state_dict(scheduler.state_dict())
    assert again.last_epoch == 1
    assert again.get_last_lr() == pytest.approx(rates[-1].tolist())
    for wrong in (-1, 1.5, True):
        with pytest.raises(ConfigError, match=f"step\\({wrong}\\): expected the number of a step"):
            scheduler.step(wrong)


def test_a_plateau_scheduler_below_gets_its_metric():
    optimizer = _optimizer()
    lower = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    scheduler = ads.lr_scheduler_for_variable_batch_size(4, [4, 8], None, lower)
    rates = []
    for loss in (1, 0, 2, 3):  # a metric of 0 is no step to go to
        optimizer.step()
        scheduler.step(loss)
        rates.append(scheduler.get_last_lr()[0])
    assert rates == pytest.approx([0.2, 0.1, 0.1, 0.025])


def test_a_scheduler_of_a_plan_goes_to_any_step():
    from arrowds.loading import scale_lr_by_batch_size
    from arrowds.token_batches.plan import batch_by_tokens

    lengths = np.random.default_rng(3).integers(1, 40, 200)
    plan = batch_by_tokens(lengths, max_tokens=128)
    sizes = np.concatenate([batch_by_tokens(lengths, max_tokens=128, epoch=epoch).batch_sizes for epoch in range(3)])
    scheduler = scale_lr_by_batch_size(optimizer := _optimizer(), plan, base_batch_size=1)
    for step in (len(sizes) - 1, 0, len(plan), len(plan) - 1, 5, len(sizes) // 2):
        assert _moved(scheduler, optimizer, [step])[0, 0] == pytest.approx(0.1 * sizes[step])


@pytest.mark.parametrize("lower", LOWER)
def test_learning_rates_resume_at_every_step(lower):
    sizes = [4, 9, 2, 30, 1]

    def start():
        optimizer = _optimizer()
        return ads.lr_scheduler_for_variable_batch_size(8, sizes, None, LOWER[lower](optimizer)), optimizer

    scheduler, optimizer = start()
    whole = _rates(scheduler, optimizer, 12)
    for stop in range(12):
        scheduler, optimizer = start()
        _rates(scheduler, optimizer, stop)
        state = torch.load(_saved(scheduler.state_dict(), optimizer.state_dict()), weights_only=True)
        scheduler, optimizer = start()
        optimizer.load_state_dict(state[1])
        scheduler.load_state_dict(state[0])
        np.testing.assert_array_equal(_rates(scheduler, optimizer, 12 - stop), whole[stop:])


def _saved(*states):
    file = io.BytesIO()
    torch.save(states, file)
    file.seek(0)
    return file


def test_learning_rate_state_of_other_batch_sizes_is_refused():
    state = ads.lr_scheduler_for_variable_batch_size(8, [4, 5], None, _optimizer()).state_dict()
    with pytest.raises(StateMismatchError, match="batch sizes"):
        ads.lr_scheduler_for_variable_batch_size(8, [4, 6], None, _optimizer()).load_state_dict(state)
    with pytest.raises(StateMismatchError, match="method"):
        ads.lr_scheduler_for_variable_batch_size(8, [4, 5], None, _optimizer(), "sqrt").load_state_dict(state)


def _pad(sample, length):
    return torch.nn.functional.pad(sample, (0, length - len(sample)))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("same", [False, True])
def test_loader_gives_deepspeeds_batches(ds, rank, same):
    lengths = np.random.default_rng(1).integers(1, 9, 50).tolist()
    samples = [torch.full((length,), number) for number, length in enumerate(lengths)]
    arguments = {
        "max_tokens": 24,
        "effective_batch_size": 4,
        "dataloader_rank": rank,
        "dataloader_num_replicas": 2,
        "dataloader_batch_size": 2,
        "required_microbatches_of_same_size": same,
        "required_microbatches_of_same_seqlen": same,
        "sample_padding_fn": _pad,
    }
    one_to_lose = ([*samples, torch.zeros(1)], [*lengths, 1])
    theirs = ds.get_dataloader_and_lr_scheduler_for_variable_batch_size(
        *one_to_lose, lr_scheduler_or_optimizer=_optimizer(), **arguments
    )
    ours = ads.get_dataloader_and_lr_scheduler_for_variable_batch_size(
        samples, lengths, lr_scheduler_or_optimizer=_optimizer(), **arguments
    )
    pairs = list(zip(theirs[0], ours[0], strict=True))
    assert pairs
    for expected, found in pairs:
        assert [sample.tolist() for sample in expected] == [sample.tolist() for sample in found]
    assert ours[2].keys() == theirs[2].keys()
    pickle.dumps(ours[2]["collate_fn"])  # loader workers started by spawn need it


def _engine(metrics_path, rank=0):
    batching = {
        "enabled": True,
        "metrics_path": str(metrics_path),
        "lr_scaling_method": "sqrt",
        "min_batch_size": 1,
        "max_batch_size": None,
        "sequence_picking_order": "dataloader",
        "max_tokens": 24,
        "verbose": False,
    }
    sampling = {"dynamic_batching": batching, "num_workers": 0, "pin_memory": False}
    return SimpleNamespace(
        _config=SimpleNamespace(data_efficiency_config={"seed": 3, "data_sampling": sampling}),
        train_batch_size=lambda: 4,
        train_micro_batch_size_per_gpu=lambda: 2,
        data_parallel_group=SimpleNamespace(rank=lambda: rank, size=lambda: 2),
        world_size=1,
        global_rank=0,
        device="cpu",
        lr_scheduler=None,
        optimizer=_optimizer(),
    )


def test_an_engines_configuration_gives_deepspeeds_batches(ds, tmp_path):
    """From lengths that are given, from DeepSpeed's files, and from an index that is made for the purpose."""
    lengths = np.random.default_rng(1).integers(1, 9, 50)
    samples = [torch.full((length,), number) for number, length in enumerate(lengths.tolist())]
    theirs = ds.get_dataloader_and_lr_scheduler_for_variable_batch_size_deepspeed(
        [*samples, torch.zeros(1)], _engine(tmp_path, rank=1), dataset_seqlens=[*lengths.tolist(), 1]
    )
    (tmp_path / "legacy" / "seqlen").mkdir(parents=True)
    legacy = tmp_path / "legacy" / "seqlen" / "seqlen_sample_to_metric"
    write_indexed_dataset(legacy, lengths, np.ones(50, np.int64), dtype="uint8")
    made = tmp_path / "made"
    for path, more in (
        (made, {"dataset_seqlens": lengths}),
        (legacy.parents[1], {}),
        (made, {"batch_seqlens_fn": _count}),
        (made, {}),
    ):
        loader, scheduler, _ = (
            dynamic_batching_engine.get_dataloader_and_lr_scheduler_for_variable_batch_size_deepspeed(
                samples, _engine(path, rank=1), dataloader_collate_fn=list, **more
            )
        )
        for expected, found in zip(theirs[0], loader, strict=True):
            assert [sample.tolist() for sample in expected] == [sample.tolist() for sample in found]
        assert scheduler.get_last_lr() == pytest.approx(theirs[1].get_lr())


def _count(batch):
    return torch.tensor([len(sample) for sample in batch])


def test_an_engine_without_lengths_or_dynamic_batching_is_refused(tmp_path):
    refuse = dynamic_batching_engine.get_dataloader_and_lr_scheduler_for_variable_batch_size_deepspeed
    with pytest.raises(ConfigError, match="batch_seqlens_fn"):
        refuse([1, 2], _engine(tmp_path))
    with pytest.raises(ConfigError, match="3 lengths for 2 samples"):
        refuse([1, 2], _engine(tmp_path), dataset_seqlens=[1, 2, 3])
    engine = _engine(tmp_path)
    engine._config.data_efficiency_config["data_sampling"]["dynamic_batching"]["enabled"] = False
    with pytest.raises(ConfigError, match="dynamic_batching is not enabled"):
        refuse([1, 2], engine)
