"""The loader: its state is where the training loop is, whatever its workers have drawn ahead."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import arrowds
from arrowds.curriculum.sampler import CurriculumSampler
from arrowds.curriculum.trace import read_records
from arrowds.errors import ConfigError, StateMismatchError
from arrowds.loading import CurriculumDataLoader, RepeatingLoader
from arrowds.token_batches.plan import batch_by_tokens
from arrowds.token_batches.sampler import TokenBudgetBatchSampler

# These machines may have fewer cores than the tests start workers.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

SAMPLES = 96
LENGTHS = np.random.default_rng(5).integers(1, 33, SAMPLES)
CURRICULUM = {
    "seqlen": {
        "difficulty_type": "value",
        "clustering_type": "schedule_based",
        "min_difficulty": 8,
        "max_difficulty": 32,
        "schedule_type": "fixed_linear",
        "schedule_config": {"total_curriculum_step": 6, "difficulty_step": 8},
    }
}


class Rows(torch.utils.data.Dataset):
    """Row i is i; one row may fail once in each process."""

    def __init__(self, length: int = SAMPLES, broken: int | None = None) -> None:
        self.length = length
        self.broken = broken

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> int:
        if row == self.broken:
            self.broken = None
            raise OSError("disk")
        return row


class Blocks:
    """A sampler of four consecutive ids that knows nothing but the four methods a loader needs."""

    def __init__(self, length: int = SAMPLES) -> None:
        self.length, self.at = length, 0

    def __len__(self) -> int:
        return self.length // 4

    def __iter__(self) -> Iterator[list[int]]:
        while self.at < len(self):
            self.at += 1
            yield list(range(self.at * 4 - 4, self.at * 4))
        self.at = 0

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]


@pytest.fixture(scope="module")
def index(make_index: Callable[..., arrowds.Index]) -> arrowds.Index:
    return make_index({"seqlen": pa.array(LENGTHS)})


@pytest.fixture(params=["stateless", "deepspeed", "tokens", "other"])
def new_sampler(request: pytest.FixtureRequest, index: arrowds.Index) -> Callable[[], object]:
    if request.param == "tokens":
        plan = batch_by_tokens(LENGTHS, max_tokens=128)
        return lambda: TokenBudgetBatchSampler(plan)
    if request.param == "other":
        return Blocks
    sizes = {"micro_batch_size": 4, "gradient_accumulation_steps": 2, "seed": 3}
    return lambda: CurriculumSampler(index, CURRICULUM, order=request.param, **sizes)


def loader_of(sampler: object, workers: int = 0, **options: object) -> CurriculumDataLoader:
    return CurriculumDataLoader(Rows(), sampler, collate_fn=list, num_workers=workers, **options)


def check_every_resume(new_loader: Callable[[], CurriculumDataLoader], stops: slice = slice(None)) -> None:
    """Save at every batch of two passes and after each; a loader that goes on there gives what comes after it."""
    loader, seen, saved = new_loader(), [], [(0, json.dumps(new_loader().state_dict()))]
    for _ in range(2):
        for batch in loader:
            seen.append(batch)
            saved.append((len(seen), json.dumps(loader.state_dict())))
        saved.append((len(seen), json.dumps(loader.state_dict())))
    seen += loader
    for done, state in saved[stops]:
        resumed, rest = new_loader(), seen[done:]
        resumed.load_state_dict(json.loads(state))
        found = [*resumed, *resumed, *resumed]
        assert found[: len(rest) or None] == rest, f"after {done}"


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_resumes_at_every_batch(new_sampler: Callable[[], object], workers: int) -> None:
    check_every_resume(lambda: loader_of(new_sampler(), workers), slice(None) if workers == 0 else slice(0, None, 5))


def test_eight_workers_resume(new_sampler: Callable[[], object]) -> None:
    check_every_resume(lambda: loader_of(new_sampler(), 8, prefetch_factor=4), slice(3, None, 19))


def test_spawned_workers_resume(index: arrowds.Index) -> None:
    """One set of processes for all stops, and a dataset that makes them import nothing: to start them takes seconds."""
    sampler = CurriculumSampler(index, CURRICULUM, micro_batch_size=4, seed=3)
    options = {"multiprocessing_context": "spawn", "persistent_workers": True}
    loader = CurriculumDataLoader(range(SAMPLES), sampler, collate_fn=list, num_workers=2, **options)
    whole, states = [], []
    for batch in loader:
        whole.append(batch)
        states.append(json.dumps(loader.state_dict()))
    assert whole == list(CurriculumSampler(index, CURRICULUM, micro_batch_size=4, seed=3))
    for stop in (1, 10, len(whole)):
        loader.load_state_dict(json.loads(states[stop - 1]))
        assert list(loader) == whole[stop:]


@pytest.mark.parametrize("workers", [0, 2])
def test_difficulties_are_those_of_the_batch_handed_out(
    new_sampler: Callable[[], object], workers: int, request: pytest.FixtureRequest
) -> None:
    plain, expected = new_sampler(), []
    for _ in plain:
        expected.append(dict(getattr(plain, "current_difficulties", {})))
    loader = loader_of(new_sampler(), workers, **({"prefetch_factor": 8} if workers else {}))
    assert loader.current_difficulties == {}
    assert [loader.current_difficulties for _ in loader] == expected
    if isinstance(plain, CurriculumSampler):
        assert [found["seqlen"] for found in expected[::2]] == [8, 16, 16, 24, 24, 32, 32, 32, 32, 32, 32, 32]


@pytest.mark.parametrize(
    "options",
    [{"workers": 0}, {"workers": 2}, {"workers": 2, "persistent_workers": True}],
    ids=["no workers", "new workers", "persistent workers"],
)
@settings(max_examples=6, deadline=None)
@given(breaks=st.lists(st.integers(1, 9), max_size=4))
def test_loops_left_early_lose_nothing(options: dict, breaks: list[int]) -> None:
    loader, seen = loader_of(Blocks(), **options), []
    for count in [*breaks, len(loader)]:
        for batch in itertools.islice(loader, min(count, len(loader) - len(seen))):
            seen.append(batch)
    assert seen == list(Blocks())


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_loaded_in_the_middle_takes_effect_with_the_next_batch(
    new_sampler: Callable[[], object], workers: int
) -> None:
    whole = list(loader_of(new_sampler()))
    loader = loader_of(new_sampler(), workers)
    iterator, states = iter(loader), []
    for _ in range(5):
        next(iterator)
        states.append(loader.state_dict())
    loader.load_state_dict(states[1])
    assert loader.state_dict() == states[1]
    assert [next(iterator) for _ in range(3)] == whole[2:5]
    loader.load_state_dict(None)
    assert list(iterator) == whole[5:]


def test_the_length_is_the_number_of_batches_of_a_rank(new_sampler: Callable[[], object], index: arrowds.Index) -> None:
    loader = loader_of(new_sampler())
    assert len(loader) == len(list(loader))
    ranks = [CurriculumSampler(index, CURRICULUM, micro_batch_size=4, rank=rank, world_size=3) for rank in range(3)]
    assert [len(loader_of(sampler)) for sampler in ranks] == [SAMPLES // 12] * 3


def test_set_epoch_chooses_a_new_order_and_keeps_the_place_in_the_present_one() -> None:
    plan = batch_by_tokens(LENGTHS, max_tokens=128)
    loader = loader_of(TokenBudgetBatchSampler(plan), 2)
    epochs = [list(loader) for _ in range(3)]
    assert epochs[0] != epochs[1]
    loader.set_epoch(1)
    iterator = iter(loader)
    assert [next(iterator) for _ in range(3)] == epochs[1][:3]
    loader.set_epoch(1)
    assert list(loader) == epochs[1][3:]
    loader.set_epoch(0)
    assert list(loader) == epochs[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_is_set_in_the_middle_takes_effect_with_the_next_batch(workers: int) -> None:
    plan = batch_by_tokens(LENGTHS, max_tokens=128)
    whole = loader_of(TokenBudgetBatchSampler(plan))
    epochs = [list(whole) for _ in range(3)]
    loader = loader_of(TokenBudgetBatchSampler(plan), workers)
    iterator = iter(loader)
    assert [next(iterator) for _ in range(3)] == epochs[0][:3]
    loader.set_epoch(2)
    assert list(iterator) == epochs[2]


def test_set_epoch_leaves_a_stream_where_it_is(index: arrowds.Index) -> None:
    loader = loader_of(CurriculumSampler(index, CURRICULUM, micro_batch_size=4))
    first = next(iter(loader))
    loader.set_epoch(0)
    assert [first, *loader] == list(CurriculumSampler(index, CURRICULUM, micro_batch_size=4))


def test_one_iteration_at_a_time() -> None:
    loader = loader_of(Blocks())
    first, second = iter(loader), iter(loader)
    next(first)
    next(second)
    with pytest.raises(ConfigError, match="another iteration"):
        next(first)


def test_a_sample_that_failed_is_loaded_again() -> None:
    loader = CurriculumDataLoader(Rows(broken=9), Blocks(), collate_fn=list)
    seen = []
    with pytest.raises(OSError, match="disk"):
        seen += [batch for batch in loader if seen.append(batch)]
    assert [*seen, *loader] == list(Blocks())


@pytest.mark.parametrize("workers", [0, 2])
def test_torch_global_generator_is_not_drawn_from(workers: int) -> None:
    before = torch.get_rng_state()
    list(loader_of(Blocks(), workers))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("option", ["batch_size", "shuffle", "batch_sampler", "drop_last"])
def test_options_that_choose_batches_are_refused(option: str) -> None:
    with pytest.raises(ConfigError, match=f"{option}: the sampler chooses the batches"):
        CurriculumDataLoader(Rows(), Blocks(), **{option: 1})


def test_batches_out_of_order_are_refused() -> None:
    with pytest.raises(ConfigError, match="in_order=False"):
        CurriculumDataLoader(Rows(), Blocks(), num_workers=2, in_order=False)


def test_a_dataset_of_another_length_is_refused(index: arrowds.Index) -> None:
    for sampler in (
        CurriculumSampler(index, CURRICULUM, micro_batch_size=4),
        TokenBudgetBatchSampler(batch_by_tokens(LENGTHS, max_tokens=128)),
    ):
        with pytest.raises(ConfigError, match="the dataset has 95 samples but the index 96"):
            CurriculumDataLoader(Rows(95), sampler)


def test_a_state_that_is_refused_changes_nothing(index: arrowds.Index) -> None:
    loader = loader_of(CurriculumSampler(index, CURRICULUM, micro_batch_size=4, seed=1), 2)
    next(iter(loader))
    before = loader.state_dict()
    other = loader_of(CurriculumSampler(index, CURRICULUM, micro_batch_size=4, seed=2))
    with pytest.raises(StateMismatchError, match="seed"):
        loader.load_state_dict(other.state_dict())
    assert loader.state_dict() == before


def recorded(index: arrowds.Index, folder: Path, order: str = "stateless") -> CurriculumSampler:
    sizes = {"micro_batch_size": 4, "gradient_accumulation_steps": 2, "seed": 3}
    return CurriculumSampler(index, CURRICULUM, order=order, record=folder, **sizes)


def check_record(folder: Path, handed_out: list[list[int]]) -> None:
    """The record is what was handed out, each batch at its step and microbatch."""
    table = read_records(folder)
    assert table["sample_id"].to_pylist() == list(itertools.chain.from_iterable(handed_out))
    places = list(zip(table["step"].to_pylist(), table["micro_batch"].to_pylist(), strict=True))
    assert places == [(at // 2 + 1, at % 2) for at in range(len(handed_out)) for _ in range(4)]


@pytest.mark.parametrize("order", ["stateless", "deepspeed"])
@pytest.mark.parametrize("workers", [0, 2])
def test_the_record_holds_what_was_handed_out_and_not_what_was_drawn(
    index: arrowds.Index, tmp_path: Path, workers: int, order: str
) -> None:
    sampler = recorded(index, tmp_path, order)
    loader = loader_of(sampler, workers, **({"prefetch_factor": 4} if workers else {}))
    seen = list(itertools.islice(loader, 3))
    check_record(tmp_path, seen)  # the loop was left
    iterator = iter(loader)
    seen += [next(iterator), next(iterator)]
    state = loader.state_dict()
    check_record(tmp_path, seen)  # a checkpoint was made, and the loop runs on
    seen += iterator
    check_record(tmp_path, seen)
    assert seen == list(
        CurriculumSampler(index, CURRICULUM, micro_batch_size=4, gradient_accumulation_steps=2, seed=3, order=order)
    )
    loader.load_state_dict(state)
    again = list(loader)
    assert again == seen[5:]
    assert read_records(tmp_path).num_rows == 4 * len(seen + again)
    assert len(list(tmp_path.glob("rank-*"))) == 1


RUN = """
import itertools, json, sys
import arrowds
from arrowds.curriculum.sampler import CurriculumSampler
from arrowds.loading import CurriculumDataLoader

path, folder, curriculum, state, count = json.loads(sys.argv[1])
index = arrowds.open_index(path)
sizes = {"micro_batch_size": 4, "gradient_accumulation_steps": 2, "seed": 3}
sampler = CurriculumSampler(index, curriculum, record=folder, **sizes)
loader = CurriculumDataLoader(range(index.num_samples), sampler, collate_fn=list, num_workers=2, prefetch_factor=4)
loader.load_state_dict(state)
batches = iter(loader)  # which lives until the process ends
seen = list(itertools.islice(batches, count))
print(json.dumps([seen, loader.state_dict()]))
seen.append(next(batches, None))
print(json.dumps(seen[-1]))
"""


def test_runs_that_go_on_in_the_same_folder_record_everything_once(index: arrowds.Index, tmp_path: Path) -> None:
    """Another process leaves early, this one goes on from where it was."""
    arguments = json.dumps([str(index.path), str(tmp_path), CURRICULUM, None, 5])
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN, arguments], check=True, timeout=120, capture_output=True, text=True
    )
    (seen, state), last = map(json.loads, found.stdout.splitlines())
    check_record(tmp_path, [*seen, last])  # the one after the state is there as well: the process ended, not killed
    loader = loader_of(recorded(index, tmp_path), 2)
    loader.load_state_dict(state | {"consumed_samples": state["consumed_samples"] + 4})
    seen.append(last)
    seen += itertools.islice(loader, 4)
    third = loader_of(recorded(index, tmp_path), 2)
    third.load_state_dict(loader.state_dict())
    seen += third
    check_record(tmp_path, seen)
    assert sorted(itertools.chain.from_iterable(seen)) == sorted(
        itertools.chain.from_iterable(loader_of(recorded(index, tmp_path / "other")))
    )
    assert len(list(tmp_path.glob("*.arrows"))) == 3


def test_repeating_goes_on_with_the_next_epoch() -> None:
    plan = batch_by_tokens(LENGTHS, max_tokens=128)
    straight = loader_of(TokenBudgetBatchSampler(plan))
    expected = [*straight, *straight, *straight]
    for workers in (0, 2):
        repeating = RepeatingLoader(loader_of(TokenBudgetBatchSampler(plan), workers))
        assert len(repeating) == len(plan)
        found = [next(repeating) for _ in range(len(plan) + 2)]
        state = repeating.state_dict()
        found += [next(repeating) for _ in range(3)]
        repeating.load_state_dict(state)
        found[-3:] = [next(repeating) for _ in range(len(expected) - len(plan) - 2)]
        assert found == expected


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("order", ["stateless", "deepspeed"])
def test_repeating_draws_on_beyond_the_epochs_of_a_curriculum(index: arrowds.Index, order: str, workers: int) -> None:
    def new_sampler(num_epochs: int) -> CurriculumSampler:
        return CurriculumSampler(index, CURRICULUM, micro_batch_size=8, order=order, num_epochs=num_epochs)

    whole = list(new_sampler(3))
    repeating = RepeatingLoader(loader_of(new_sampler(1), workers))
    assert [next(repeating) for _ in range(30)] == whole[:30]
    resumed = RepeatingLoader(loader_of(new_sampler(1), workers))
    resumed.load_state_dict(repeating.state_dict())
    assert [next(resumed) for _ in range(6)] == whole[30:]


def test_repeating_nothing_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no batches"):
        next(RepeatingLoader([]))


def test_a_missing_torch_is_named() -> None:
    code = """
import sys
sys.modules["torch"] = None
from arrowds.errors import MissingExtraError
from arrowds.loading import CurriculumDataLoader
try:
    CurriculumDataLoader([], [])
except MissingExtraError as error:
    sys.exit(0 if "pip install 'arrowds[torch]'" in str(error) else str(error))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
