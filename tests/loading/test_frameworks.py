"""The samplers and the loader inside the loaders and trainers of others: epochs, resumes, and shares of shares."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler

import arrowds
from arrowds.curriculum.sampler import CurriculumSampler
from arrowds.errors import ConfigError
from arrowds.integrations.deepspeed.dynamic_batching import dataloader_for_variable_batch_size
from arrowds.token_batches.plan import batch_by_tokens
from arrowds.token_batches.sampler import TokenBudgetBatchSampler

# These machines may have fewer cores than the tests start workers; the frameworks call each other's older names.
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),
]

SAMPLES = 96
LENGTHS = np.random.default_rng(5).integers(1, 33, SAMPLES)
CURRICULUM = {
    "seqlen": {
        "difficulty_type": "value",
        "clustering_type": "schedule_based",
        "min_difficulty": 8,
        "max_difficulty": 32,
        "schedule_type": "fixed_linear",
        "schedule_config": {"total_curriculum_step": 30, "difficulty_step": 4},
    }
}
NewSampler = Callable[..., Any]


class Rows(torch.utils.data.Dataset):
    """Row i is i."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, row: int) -> int:
        return row


class Wrapped:
    """A batch sampler around another that has no state, as Accelerate's shard of one process."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[list[int]]:
        for ids in self.inner:
            yield list(ids)


@pytest.fixture(scope="module")
def index(make_index: Callable[..., arrowds.Index]) -> arrowds.Index:
    return make_index({"seqlen": pa.array(LENGTHS)})


STREAMS = ["stateless", "deepspeed", "mixture"]


@pytest.fixture(params=STREAMS)
def new_stream(request: pytest.FixtureRequest, index: arrowds.Index) -> NewSampler:
    """Samplers of a stream of passes, by rank and world size, with batches of 4 samples."""
    return samplers_of(request.param, index)


@pytest.fixture(params=[*STREAMS, "tokens"])
def new_sampler(request: pytest.FixtureRequest, index: arrowds.Index) -> NewSampler:
    """Streams, and a plan with batches of 128 tokens, whose epochs tests/token_batches sees to."""
    return samplers_of(request.param, index)


def samplers_of(kind: str, index: arrowds.Index) -> NewSampler:
    def make(rank: int = 0, world_size: int = 1, num_epochs: int = 1) -> Any:
        place = {"rank": rank, "world_size": world_size}
        if kind == "tokens":
            return TokenBudgetBatchSampler(batch_by_tokens(LENGTHS, max_tokens=128, world_size=world_size), **place)
        sizes = {"micro_batch_size": 4, "seed": 3, "num_epochs": num_epochs} | place
        if kind == "mixture":
            indexes = {"a": index, "b": index}
            return arrowds.MixtureSampler(indexes, {"a": 2, "b": 1}, curricula={"a": CURRICULUM}, **sizes)
        return CurriculumSampler(index, CURRICULUM, order=kind, **sizes)

    return make


# iter(): what torch's samplers do


def test_every_iteration_starts_at_the_same_place_whatever_was_drawn_before(new_sampler: NewSampler) -> None:
    whole, sampler = list(new_sampler()), new_sampler()
    first = iter(sampler)
    assert list(itertools.islice(first, 5)) == whole[:5]
    second = iter(sampler)
    assert list(itertools.islice(second, 3)) == whole[:3]
    assert list(itertools.islice(first, 2)) == whole[5:7]  # the older one goes its own way
    assert list(second) == whole[3:]


def test_a_loaded_position_holds_for_every_iteration_until_one_is_complete(
    new_stream: NewSampler, caplog: pytest.LogCaptureFixture
) -> None:
    whole, sampler = list(new_stream()), new_stream()
    stream = iter(sampler)
    for _ in range(7):
        next(stream)
    state = json.loads(json.dumps(sampler.state_dict()))
    resumed = new_stream()
    for _ in range(2):
        resumed.load_state_dict(state)
        assert next(iter(resumed)) == whole[7]
    assert list(resumed) == whole[7:]
    assert not caplog.records
    assert list(resumed) == whole
    assert "once more: call set_epoch(1)" in caplog.text


def test_a_running_iteration_follows_a_loaded_state(new_stream: NewSampler) -> None:
    whole, sampler = list(new_stream()), new_stream()
    stream = iter(sampler)
    next(stream)
    state = sampler.state_dict()
    for _ in range(4):
        next(stream)
    sampler.load_state_dict(state)
    assert list(stream) == whole[1:]


# passes


def test_passes_continue_one_another_and_set_epoch_chooses_any(new_stream: NewSampler) -> None:
    sampler = new_stream()
    whole = list(new_stream(num_epochs=3))
    found = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        found.append(list(sampler))
        assert len(found[-1]) == len(sampler)
    assert [*found[0], *found[1], *found[2]] == whole
    assert found[0] != found[1] != found[2] != found[0]
    for epoch in (1, 0, 2):
        sampler.set_epoch(epoch)
        assert list(sampler) == found[epoch]
    with pytest.raises(ConfigError, match="epochs count from 0, got -1"):
        sampler.set_epoch(-1)


@pytest.mark.parametrize("done", [0, 1, 11, 23, 24, 25, 47, 48])
def test_a_state_names_its_pass_and_set_epoch_of_that_pass_keeps_the_place(new_stream: NewSampler, done: int) -> None:
    whole, sampler = list(new_stream(num_epochs=4)), new_stream()
    length, given = len(sampler), 0
    for epoch in range(4):
        sampler.set_epoch(epoch)
        for _ in itertools.islice(sampler, done - given):
            given += 1
        if given == done:
            break
    resumed = new_stream()
    resumed.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    assert resumed.epoch == sampler.epoch == max(0, done - 1) // length
    resumed.set_epoch(resumed.epoch)
    rest = [*resumed]
    resumed.set_epoch(resumed.epoch + 1)
    assert [*rest, *resumed] == whole[done : length * (resumed.epoch + 1)]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_moves_on_to_the_next_pass_by_itself(new_stream: NewSampler, workers: int) -> None:
    whole = list(new_stream(num_epochs=3))
    rows = range(getattr(new_stream(), "num_samples", SAMPLES))
    loader = arrowds.CurriculumDataLoader(rows, new_stream(), num_workers=workers, collate_fn=list)
    found = [batch for _ in range(3) for batch in loader]
    assert found == whole
    state = json.loads(json.dumps(loader.state_dict()))
    again = arrowds.CurriculumDataLoader(loader.dataset, new_stream(), collate_fn=list)
    again.load_state_dict(state)
    assert list(again) == []  # a finished run stays finished, until the loop begins another pass
    longer = list(new_stream(num_epochs=4))
    assert list(again) == longer[len(whole) :]


# torchdata


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("wrap", [Wrapped, lambda sampler: sampler], ids=["no state", "with its state"])
@pytest.mark.parametrize("done", [0, 1, 5, 9])
def test_a_stateful_loader_resumes(new_sampler: NewSampler, wrap: Any, workers: int, done: int) -> None:
    """Also after its state was asked for before anything was drawn, which draws ahead."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    def start() -> Any:
        sampler = wrap(new_sampler())
        return StatefulDataLoader(range(2 * SAMPLES), batch_sampler=sampler, num_workers=workers, collate_fn=list)

    whole, loader = list(new_sampler()), start()
    iterator = iter(loader)
    assert [next(iterator) for _ in range(done)] == whole[:done]
    state = loader.state_dict()
    resumed = start()
    resumed.state_dict()
    resumed.load_state_dict(state)
    assert list(resumed) == whole[done:]


# accelerate


def prepared(loader: Any, rank: int, **options: Any) -> Any:
    """What ``accelerator.prepare`` makes of a torch DataLoader in one of two processes."""
    from accelerate.data_loader import prepare_data_loader

    return prepare_data_loader(loader, num_processes=2, process_index=rank, put_on_device=False, **options)


@pytest.mark.parametrize("even_batches", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_share_of_a_rank_is_not_shared_out_again(new_sampler: NewSampler, workers: int, even_batches: bool) -> None:
    loader = DataLoader(range(2 * SAMPLES), batch_sampler=new_sampler(1, 2), num_workers=workers, collate_fn=list)
    whole = list(loader)
    with pytest.raises(
        ConfigError, match=r"the share of rank 1 of 2, and accelerator\.prepare would divide it among 2"
    ):
        list(prepared(loader, 1, even_batches=even_batches))
    assert list(new_sampler(1, 2)) == whole  # without accelerate it is as before


def test_a_share_of_a_rank_is_not_dispatched(new_sampler: NewSampler, monkeypatch: pytest.MonkeyPatch) -> None:
    from accelerate.data_loader import DataLoaderDispatcher
    from accelerate.state import PartialState

    loader = DataLoaderDispatcher(range(2 * SAMPLES), batch_sampler=new_sampler(0, 2), collate_fn=torch.tensor)
    state = PartialState(cpu=True)
    monkeypatch.setattr(state, "num_processes", 2)
    monkeypatch.setattr(loader, "state", state)
    with pytest.raises(ConfigError, match="rank 0 of 2"):
        list(loader)


def test_a_share_of_variable_batches_is_not_shared_out_again() -> None:
    batches = [(number, [number]) for number in range(8)]
    loaders = [
        dataloader_for_variable_batch_size(
            range(8), batches, [1] * 8, dataloader_rank=rank, dataloader_num_replicas=2, dataloader_num_workers=0
        )[0]
        for rank in range(2)
    ]
    assert sorted(sample for loader in loaders for batch in loader for sample in batch) == list(range(8))
    with pytest.raises(ConfigError, match="rank 1 of 2"):
        list(prepared(loaders[1], 1))


@pytest.mark.parametrize("stateful", [False, True])
def test_a_sampler_of_all_is_shared_out_and_follows_the_epochs(new_sampler: NewSampler, stateful: bool) -> None:
    """Two processes have all batches of each pass between them, and the next pass in the next epoch."""

    def start(rank: int) -> Any:
        loader = DataLoader(range(2 * SAMPLES), batch_sampler=new_sampler(), collate_fn=torch.tensor)
        return prepared(loader, rank, even_batches=False, use_stateful_dataloader=stateful)

    sampler, ranks = new_sampler(), [start(rank) for rank in range(2)]
    for epoch in range(2):
        sampler.set_epoch(epoch)
        whole = list(sampler)
        shares = [[batch.tolist() for batch in loader] for loader in ranks]
        assert shares[0] == whole[::2] and shares[1] == whole[1::2]


def test_the_loader_itself_passes_through_prepare_unchanged(index: arrowds.Index) -> None:
    from accelerate import Accelerator

    loader = arrowds.CurriculumDataLoader(Rows(), CurriculumSampler(index, CURRICULUM, micro_batch_size=4))
    assert Accelerator(cpu=True).prepare(loader) is loader


# RepeatingLoader


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("first", [0, 3])
def test_repeating_shuffles_a_distributed_sampler_again(workers: int, first: int) -> None:
    sampler = DistributedSampler(Rows(), num_replicas=2, rank=1, seed=4)
    sampler.set_epoch(first)
    loader = DataLoader(Rows(), batch_size=6, sampler=sampler, num_workers=workers, collate_fn=list)
    repeating = arrowds.RepeatingLoader(loader)
    found = [[next(repeating) for _ in range(8)] for _ in range(3)]
    other = DistributedSampler(Rows(), num_replicas=2, rank=1, seed=4)
    for epoch, batches in enumerate(found, first):
        other.set_epoch(epoch)
        assert list(itertools.chain.from_iterable(batches)) == list(other)
    assert found[0] != found[1] != found[2]


def test_repeating_moves_a_batch_sampler_on_once(new_sampler: NewSampler) -> None:
    """Whether the sampler moves on by itself or has to be told."""
    repeating = arrowds.RepeatingLoader(DataLoader(range(2 * SAMPLES), batch_sampler=new_sampler(), collate_fn=list))
    sampler, expected = new_sampler(), []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        expected += list(sampler)
    assert [next(repeating) for _ in expected] == expected


def test_repeating_tells_a_loader_or_a_dataset_the_epoch() -> None:
    class Epochs:
        def __init__(self) -> None:
            self.told: list[int] = []

        def set_epoch(self, epoch: int) -> None:
            self.told.append(epoch)

        def __iter__(self) -> Iterator[int]:
            return iter([len(self.told)])

    class Over:
        def __init__(self, dataset: Epochs) -> None:
            self.dataset = dataset

        def __iter__(self) -> Iterator[int]:
            return iter(self.dataset)

    for make in (lambda epochs: epochs, Over):
        epochs = Epochs()
        repeating = arrowds.RepeatingLoader(make(epochs))
        assert [next(repeating) for _ in range(3)] == [0, 1, 2]
        assert epochs.told == [1, 2]


# Lightning


def lightning_run(
    make_loader: Callable[[], Any], max_epochs: int, checkpoint: str | None = None, save: Any = None
) -> list:
    import lightning

    class Seen(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.epochs: list[list[list[int]]] = []

        def on_train_epoch_start(self) -> None:
            self.epochs.append([])

        def training_step(self, batch: list[int], number: int) -> torch.Tensor:
            self.epochs[-1].append(list(batch))
            return self.weight.square().sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

        def train_dataloader(self) -> Any:
            return make_loader()

        def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
            return batch

    module = Seen()
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(max_epochs=max_epochs, accelerator="cpu", devices=1, num_sanity_val_steps=0, **quiet)
    trainer.fit(module, ckpt_path=checkpoint)
    if save is not None:
        trainer.save_checkpoint(save)
    return module.epochs


LOADERS = {
    "ours": lambda sampler: arrowds.CurriculumDataLoader(Rows(), sampler, collate_fn=list),
    "torch's": lambda sampler: DataLoader(Rows(), batch_sampler=sampler, collate_fn=list),
}


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")
@pytest.mark.parametrize("kind", LOADERS)
def test_every_epoch_of_lightning_has_the_batches_of_its_pass(index: arrowds.Index, kind: str) -> None:
    sizes = {"micro_batch_size": 4, "seed": 3}
    whole = list(CurriculumSampler(index, CURRICULUM, num_epochs=3, **sizes))
    epochs = lightning_run(lambda: LOADERS[kind](CurriculumSampler(index, CURRICULUM, **sizes)), 3)
    assert epochs == [whole[:24], whole[24:48], whole[48:]]


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.*")
def test_lightning_resumed_after_an_epoch_has_the_next_one(index: arrowds.Index, tmp_path: Any) -> None:
    sizes = {"micro_batch_size": 4, "seed": 3}
    whole = list(CurriculumSampler(index, CURRICULUM, num_epochs=3, **sizes))

    def loader() -> Any:
        return LOADERS["ours"](CurriculumSampler(index, CURRICULUM, **sizes))

    assert lightning_run(loader, 1, save=tmp_path / "one.ckpt") == [whole[:24]]
    assert lightning_run(loader, 3, checkpoint=str(tmp_path / "one.ckpt")) == [whole[24:48], whole[48:]]
