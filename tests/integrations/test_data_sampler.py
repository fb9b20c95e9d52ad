"""The drop-in sampler and loader beside the installed DeepSpeed's: equal batches, and none of its defects."""

import copy
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import arrowds
from arrowds.curriculum.sampler import CurriculumSampler
from arrowds.errors import ConfigError, EmptyPoolError, StateMismatchError, UnreadableFileError
from arrowds.integrations import deepspeed as ads
from arrowds.integrations.deepspeed.epoch_batches import EpochBatches
from arrowds.loading import RepeatingLoader

pytest.importorskip("deepspeed", reason="deepspeed is an extra")
import torch
from torch.utils.data.distributed import DistributedSampler

# DeepSpeed imports deprecated parts of torch and of the standard library when it is loaded.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

SAMPLES = 240
VALUES = np.random.default_rng(2).integers(1, 33, SAMPLES)
LINEAR = {
    "difficulty_type": "value",
    "clustering_type": "schedule_based",
    "min_difficulty": 8,
    "max_difficulty": 32,
    "schedule_type": "fixed_linear",
    "schedule_config": {"total_curriculum_step": 6, "difficulty_step": 8},
}
PERCENTILE = LINEAR | {
    "difficulty_type": "percentile",
    "min_difficulty": 10,
    "max_difficulty": 100,
    "schedule_config": {"total_curriculum_step": 6, "difficulty_step": 5},
}
SINGLE = LINEAR | {"clustering_type": "single_cluster"}
CUSTOM = LINEAR | {"schedule_type": "custom", "schedule_config": {}}


@pytest.fixture(scope="module")
def index(make_index: Callable[..., arrowds.Index]) -> arrowds.Index:
    return make_index({"seqlen": pa.array(VALUES), "rarity": pa.array(VALUES[::-1] * 3)})


@pytest.fixture(scope="module")
def legacy(index: arrowds.Index, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("legacy")
    ads.export_index(index, folder)
    return folder


def files_of(folder: Path, name: str) -> dict[str, str]:
    prefix = folder / name / name
    return {kind: f"{prefix}_{kind.removesuffix('_path')}" for kind in ("index_to_sample_path", "index_to_metric_path")}


def efficiency(metrics: dict[str, Any], **sampling: Any) -> dict[str, Any]:
    learning = {"enabled": True, "data_cluster_path": "nowhere", "curriculum_metrics": metrics}
    return {"seed": 7, "data_sampling": {"num_epochs": 2, "curriculum_learning": learning} | sampling}


def ours(config: dict[str, Any], rank: int = 0, world: int = 1, micro: int = 4) -> ads.DeepSpeedDataSampler:
    return ads.DeepSpeedDataSampler(config, SAMPLES, micro, rank, world, None, 2, rank)


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A group of one process, which DeepSpeed's sampler broadcasts to."""
    from deepspeed import comm

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    rendezvous = tmp_path_factory.mktemp("group") / "store"
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=0, world_size=1)
    comm.init_distributed("gloo", auto_mpi_discovery=False)
    yield comm.get_world_group()
    comm.destroy_process_group()


@pytest.fixture
def oracle(group: Any, legacy: Path, tmp_path: Path) -> Callable[[dict[str, Any]], Any]:
    """DeepSpeed's own sampler over the files of its analyzer."""
    from deepspeed.runtime.data_pipeline.data_sampling.data_sampler import DeepSpeedDataSampler

    def make(config: dict[str, Any]) -> Any:
        learning = config["data_sampling"]["curriculum_learning"]
        metrics = {
            name: {key: value for key, value in metric.items() if key != "index_path"} | files_of(legacy, name)
            for name, metric in learning["curriculum_metrics"].items()
        }
        learning = learning | {"data_cluster_path": str(tmp_path), "curriculum_metrics": metrics}
        config = config | {"data_sampling": config["data_sampling"] | {"curriculum_learning": learning}}
        return DeepSpeedDataSampler(config, SAMPLES, 4, 0, 1, group, 2, 0)

    return make


@pytest.mark.parametrize("metrics", [{"seqlen": LINEAR}, {"seqlen": PERCENTILE}, {"seqlen": LINEAR, "rarity": SINGLE}])
@pytest.mark.parametrize("source", ["index", "files"])
def test_batches_are_deepspeeds(
    metrics: dict[str, Any], source: str, oracle: Callable[[dict[str, Any]], Any], index: arrowds.Index, legacy: Path
) -> None:
    paths = {name: {"index_path": str(index.path)} if source == "index" else files_of(legacy, name) for name in metrics}
    config = efficiency({name: settings | paths[name] for name, settings in metrics.items()})
    expected = list(oracle(config))
    found = list(ours(config))
    # DeepSpeed gives one microbatch more than its epochs have samples.
    assert found == expected[:-1]
    assert len(found) == len(ours(config)) == SAMPLES * 2 // 4
    assert [type(sample) for sample in found[0]] == [int] * 4


def test_the_percentile_merged_files_are_enough_for_percentiles(index: arrowds.Index, legacy: Path) -> None:
    path = str(legacy / "seqlen" / "seqlen_index_to_sample_percentile_merged")
    merged = efficiency({"seqlen": PERCENTILE | {"index_to_sample_path": path}})
    plain = efficiency({"seqlen": PERCENTILE | {"index_path": index.path}})
    for order in ("deepspeed", "stateless"):
        for config in (merged, plain):
            config["data_sampling"]["order"] = order
        assert list(ours(merged)) == list(ours(plain))


@pytest.mark.parametrize("metrics", [("seqlen",), ("seqlen", "rarity")])
def test_files_and_index_give_the_same_stateless_batches(
    metrics: tuple[str, ...], index: arrowds.Index, legacy: Path
) -> None:
    of_files = {name: LINEAR | {"max_difficulty": 96} | files_of(legacy, name) for name in metrics}
    of_index = {name: LINEAR | {"max_difficulty": 96, "index_path": index.path} for name in metrics}
    found = [list(ours(efficiency(chosen, order="stateless"))) for chosen in (of_files, of_index)]
    assert found[0] == found[1]


def test_a_state_fits_the_plain_sampler_over_the_same_index(index: arrowds.Index) -> None:
    settings = {"seqlen": LINEAR | {"index_path": index.path}}
    drop_in = ours(efficiency(settings, order="stateless"))
    iterator = iter(drop_in)
    for _ in range(7):
        next(iterator)
    plain = CurriculumSampler(index, settings, micro_batch_size=8, num_epochs=2, seed=7)
    plain.load_state_dict(json.loads(json.dumps(drop_in.state_dict())))
    assert drop_in.curriculum_step == 4
    rest = [sample for batch in iterator for sample in batch]
    assert [sample for batch in plain for sample in batch] == rest


@pytest.mark.parametrize("done", [1, 2, 3, 30, 31])
def test_a_checkpoint_of_deepspeeds_own_sampler_is_gone_on_with(
    done: int, oracle: Callable[[dict[str, Any]], Any], index: arrowds.Index, caplog: pytest.LogCaptureFixture
) -> None:
    config = efficiency({"seqlen": LINEAR | {"index_path": index.path}})
    original = oracle(config)
    iterator = iter(original)
    for _ in range(done):
        next(iterator)
    state = copy.deepcopy(original.state_dict())
    rest = list(iterator)
    sampler = ours(config)
    sampler.load_state_dict(state)
    assert "DeepSpeed's own sampler" in caplog.text
    assert sampler.current_difficulties == state["current_difficulties"]
    assert list(sampler) == rest[:-1]
    with pytest.raises(StateMismatchError, match="a global batch"):
        sampler.load_state_dict(state | {"batch": [0] * 9})


def test_a_checkpoint_without_a_sampler_changes_nothing(index: arrowds.Index) -> None:
    sampler = ours(efficiency({"seqlen": LINEAR | {"index_path": index.path}}))
    sampler.load_state_dict(None)
    assert sampler.curriculum_step == 0


@pytest.mark.parametrize("order", ["deepspeed", "stateless"])
def test_a_cluster_smaller_than_a_batch_fills_it(order: str, make_index: Callable[..., arrowds.Index]) -> None:
    """DeepSpeed's wraps a cluster once, and gives short batches."""
    few = make_index({"seqlen": pa.array([1, 1, *[30] * (SAMPLES - 2)])})
    sampler = ours(efficiency({"seqlen": LINEAR | {"index_path": few.path}}, order=order))
    for _ in range(3):
        stream = iter(sampler)
        first, second = next(stream), next(stream)
        assert len(first) == len(second) == 4
        assert sorted(first + second) == [0, 0, 0, 0, 1, 1, 1, 1]


@pytest.mark.parametrize("names", [("rarity", "seqlen"), ("seqlen", "rarity")])
def test_a_metric_that_admits_nothing_is_named(names: tuple[str, ...], index: arrowds.Index) -> None:
    """DeepSpeed's drops it silently when it is the first, and raises a TypeError otherwise."""
    discrete = {"schedule_type": "fixed_discrete", "schedule_config": {"difficulty": [1, 32], "max_step": [3]}}
    low = LINEAR | {"min_difficulty": 1} | discrete
    metrics = {name: (low if name == "rarity" else LINEAR) | {"index_path": index.path} for name in names}
    with pytest.raises(EmptyPoolError, match="'rarity' has the difficulty 1, and its smallest value is 3"):
        list(ours(efficiency(metrics, order="stateless")))


@pytest.mark.parametrize("order", ["deepspeed", "stateless"])
def test_ranks_partition_each_microbatch(order: str, index: arrowds.Index) -> None:
    config = efficiency({"seqlen": LINEAR | {"index_path": index.path}}, order=order)
    whole = list(ours(config, micro=8))
    ranks = [list(ours(config, rank, 2)) for rank in range(2)]
    assert [left + right for left, right in zip(*ranks, strict=True)] == whole


def test_exclusions_stand_in_the_json(index: arrowds.Index) -> None:
    config = efficiency({"seqlen": LINEAR | {"index_path": index.path}}, order="stateless", exclude_steps=[2])
    assert (
        list(ours(config))[:2]
        == list(ours(efficiency({"seqlen": LINEAR | {"index_path": index.path}}, order="stateless")))[:2]
    )
    assert len(ours(config)) == SAMPLES * 2 // 4 - 2
    config = efficiency({"seqlen": LINEAR | {"index_path": index.path}}, exclude_ids=[3, 4])
    assert not {3, 4} & {sample for batch in ours(config) for sample in batch}


def test_metrics_may_come_from_several_places(
    index: arrowds.Index, legacy: Path, make_index: Callable[..., arrowds.Index]
) -> None:
    other = make_index({"rarity": pa.array(VALUES[::-1] * 3)})
    wide = LINEAR | {"max_difficulty": 96}
    one = efficiency({name: wide | {"index_path": index.path} for name in ("seqlen", "rarity")})
    for rarity in ({"index_path": other.path}, files_of(legacy, "rarity")):
        two = efficiency({"seqlen": wide | {"index_path": index.path}, "rarity": wide | rarity})
        assert list(ours(two)) == list(ours(one))
        assert ours(two).state_dict()["index"] != ours(one).state_dict()["index"]


def test_what_can_not_be_read_is_named(index: arrowds.Index, legacy: Path, tmp_path: Path) -> None:
    def refusal(settings: dict[str, Any], kind: type[Exception] = ConfigError) -> str:
        with pytest.raises(kind) as caught:
            ours(efficiency({"seqlen": LINEAR | settings}))
        return str(caught.value)

    files = files_of(legacy, "seqlen")
    assert "neither 'index_path', the folder of an index, nor index_to_sample_path and index_to" in refusal({})
    assert "nor index_to_metric_path" in refusal({"index_to_sample_path": files["index_to_sample_path"]})
    assert "do not match" in refusal(
        files | {"index_to_metric_path": files_of(legacy, "seqlen")["index_to_sample_path"][:-15] + "sample_to_metric"},
        UnreadableFileError,
    )
    assert "each sample from 0 to" in refusal(
        files | {"index_to_sample_path": files["index_to_metric_path"]}, UnreadableFileError
    )
    assert "No such file" in refusal(files | {"index_to_sample_path": str(tmp_path / "no")}, UnreadableFileError)
    with pytest.raises(ConfigError, match="has no metric 'length'; it has seqlen, rarity"):
        ours(efficiency({"length": LINEAR | {"index_path": index.path}}))
    for paths in ({"index_path": index.path}, files):
        with pytest.raises(ConfigError, match="has 240 samples but the dataset 100"):
            ads.DeepSpeedDataSampler(efficiency({"seqlen": LINEAR | paths}), 100, 4, 0, 1, None, 2, 0)


def loader_of(
    config: dict[str, Any] | None, workers: int = 0, timer: Any = None, rows: Any = range(SAMPLES), **options: Any
) -> ads.DeepSpeedDataLoader:
    settings = {}
    if config is not None:
        settings = {"curriculum_learning": True, "data_efficiency": config, "num_workers": workers}
        settings |= {"gradient_accumulation_steps": 2}
    return ads.DeepSpeedDataLoader(
        rows, 4, False, 0, timer, list, workers, None, 1, 0, deepspeed_dataloader_config=settings, **options
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("order", ["deepspeed", "stateless"])
def test_the_loader_resumes_by_the_state_of_its_sampler(order: str, workers: int, index: arrowds.Index) -> None:
    """As the engine saves it: of the batches handed out, not of those that workers have drawn."""
    config = efficiency({"seqlen": LINEAR | {"index_path": index.path}}, order=order)
    whole = list(ours(config))
    longer = list(ours(efficiency({"seqlen": LINEAR | {"index_path": index.path}}, order=order, num_epochs=4)))
    for stop in (0, 1, 5, len(whole)):
        loader = loader_of(config, workers)
        seen = [batch for batch, _ in zip(loader, range(stop), strict=False)][:stop] if stop else []
        iterator = iter(loader)
        state = json.loads(json.dumps(loader.data_sampler.state_dict()))
        assert loader.data_sampler.consumed_samples == state["consumed_samples"]
        resumed = loader_of(config, workers)
        resumed.data_sampler.load_state_dict(state)
        done = state["consumed_samples"] // 4
        assert [*whole[:done], *resumed] == whole
        assert seen == whole[:stop]
        assert list(iterator) == (whole[done:] or longer[done:])  # after a complete pass the next one follows


@pytest.mark.parametrize("workers", [0, 2])
def test_post_processing_gets_the_difficulty_of_its_batch(workers: int, index: arrowds.Index) -> None:
    timer = SimpleNamespace(started=0)
    timer.start = lambda: setattr(timer, "started", timer.started + 1)
    loader = loader_of(efficiency({"seqlen": LINEAR | {"index_path": index.path}}), workers, timer)
    loader.post_process_func = lambda batch, state: (batch, state["current_difficulties"], state["curriculum_step"])
    expected = ours(efficiency({"seqlen": LINEAR | {"index_path": index.path}}))
    found = list(loader)
    assert found == [(batch, expected.current_difficulties, expected.curriculum_step) for batch in expected]
    assert timer.started == len(found) + 1


@pytest.mark.parametrize("order", ["deepspeed", "stateless"])
def test_a_custom_schedule_is_set_after_the_loader_is_made(order: str, index: arrowds.Index) -> None:
    config = efficiency({"seqlen": CUSTOM | {"index_path": index.path}}, order=order)
    loader = loader_of(config, 2)
    loader.data_sampler.set_custom_curriculum_learning_schedule({"seqlen": lambda step: 10 + 2 * step})
    found = [loader.data_sampler.current_difficulties["seqlen"] for _ in loader]
    assert found[:6] == [12, 12, 14, 14, 16, 16]
    other = loader_of(config)
    with pytest.raises(ConfigError, match="needs a function of the step"):
        next(iter(other))


def test_a_sampler_of_ones_own_stays(index: arrowds.Index) -> None:
    """An evaluation is not given the curriculum."""
    config = {
        "curriculum_learning": True,
        "data_efficiency": efficiency({"seqlen": LINEAR | {"index_path": index.path}}),
    }
    loader = ads.DeepSpeedDataLoader(
        range(SAMPLES), 4, False, 0, None, list, 0, range(10), 1, 0, deepspeed_dataloader_config=config
    )
    assert list(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert not loader.curriculum_learning_enabled


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_without_a_curriculum_the_first_epoch_is_deepspeeds(rank: int, drop_last: bool) -> None:
    from deepspeed.runtime.dataloader import DeepSpeedDataLoader

    arguments = (range(SAMPLES), 7, False, 0, None, list, 0, None, 2, rank, drop_last)
    loader, original = ads.DeepSpeedDataLoader(*arguments), DeepSpeedDataLoader(*arguments)
    epochs = [list(loader) for _ in range(3)]
    assert epochs[0] == list(original)
    assert len(loader) == len(original) == len(epochs[0])
    assert epochs[1] != epochs[0] != epochs[2]
    samples = [{sample for batch in epoch for sample in batch} for epoch in epochs]
    assert samples[1] != samples[0]
    loader.data_sampler.set_epoch(1)
    assert list(loader) == epochs[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_without_a_curriculum_the_place_is_saved_as_well(workers: int) -> None:
    loader, whole = loader_of(None, workers), []
    for _ in range(2):
        whole += loader
    for stop in (0, 3, 59, 60, 70):
        loader = loader_of(None, workers)
        repeating = RepeatingLoader(loader)
        seen = [next(repeating) for _ in range(stop)]
        resumed = loader_of(None, workers)
        resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        rest = [*resumed, *resumed]
        assert [*seen, *rest][: len(whole)] == whole


def test_a_state_of_other_batches_is_refused() -> None:
    state = EpochBatches(DistributedSampler(range(10), 2, 0), 2, drop_last=False).state_dict()
    other = EpochBatches(DistributedSampler(range(10), 5, 0), 2, drop_last=False)
    with pytest.raises(StateMismatchError, match="samples_of_rank 5, now 2"):
        other.load_state_dict(state)


def test_options_of_torch_are_taken_and_data_without_a_length_refused() -> None:
    loader = loader_of(None, 2, prefetch_factor=5, persistent_workers=True)
    assert len(list(loader)) == 60
    with pytest.raises(ConfigError, match="map-style"):
        loader_of(None, rows=iter([1]))


def test_no_cluster_file_is_written(index: arrowds.Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    list(loader_of(efficiency({"seqlen": LINEAR | {"index_path": index.path}})))
    assert list(tmp_path.iterdir()) == []


# What DeepSpeed's own code, its tests and its users read and set


@pytest.mark.parametrize("workers", [0, 2])
def test_attributes_set_after_the_loader_is_made_count(workers: int, index: arrowds.Index) -> None:
    """As in DeepSpeed, whose loader makes torch's when an iteration starts."""
    from deepspeed.runtime.dataloader import DeepSpeedDataLoader

    def batches(kind: Any) -> list[Any]:
        loader = kind(range(SAMPLES), 7, False, 0, None, None, 2, None, 2, 1)
        loader.num_local_io_workers = workers
        loader.collate_fn = lambda rows: [row + 1 for row in rows]
        loader.batch_size = 5
        loader.dataloader_drop_last = True
        loader.dataset = range(1000, 1000 + SAMPLES)
        found = list(loader)
        assert loader.dataloader.num_workers == workers
        return found

    assert batches(ads.DeepSpeedDataLoader) == batches(DeepSpeedDataLoader)


def test_another_sampler_may_be_set_later(index: arrowds.Index) -> None:
    loader = loader_of(None)
    loader.data_sampler = range(10, 20)
    assert (list(loader), len(loader)) == ([[10, 11, 12, 13], [14, 15, 16, 17], [18, 19]], 3)
    config = efficiency({"seqlen": LINEAR | {"index_path": index.path}})
    loader = loader_of(config)
    next(iter(loader))
    loader.data_sampler = ours(config, rank=1, world=2)
    assert list(loader) == list(ours(config, rank=1, world=2))


@pytest.mark.parametrize("curriculum", [False, True])
def test_what_is_set_between_batches_keeps_the_place(curriculum: bool, index: arrowds.Index) -> None:
    config = efficiency({"seqlen": LINEAR | {"index_path": index.path}}) if curriculum else None
    whole = list(loader_of(config))
    loader = loader_of(config)
    for _ in zip(range(3), loader, strict=False):
        pass
    state = loader.state_dict()
    for loader.num_local_io_workers in (2, 0):
        loader.collate_fn = tuple
        resumed = loader_of(config)
        resumed.collate_fn = tuple
        resumed.load_state_dict(loader.state_dict())
        assert loader.state_dict() == state
        assert next(iter(resumed)) == tuple(whole[3])
    assert list(loader) == [tuple(batch) for batch in whole[3:]]


def test_the_attributes_of_deepspeeds_loader_are_there(index: arrowds.Index) -> None:
    from deepspeed.runtime.dataloader import DeepSpeedDataLoader

    arguments = (range(SAMPLES), 7, True, 0, None, list, 0, None, 2, 1)
    loader, original = ads.DeepSpeedDataLoader(*arguments), DeepSpeedDataLoader(*arguments)
    for moment in (list, next):
        for name, expected in vars(original).items():
            found = getattr(loader, name)
            if isinstance(expected, int | float | str | None):
                assert found == expected, name
        assert (loader.data is None) == (original.data is None)
        moment(iter(loader)), moment(iter(original))
    assert loader.len == len(loader) == original.len
    loader, original = ads.DeepSpeedDataLoader(*arguments), DeepSpeedDataLoader(*arguments)
    assert next(iter(loader).data) == next(iter(original).data)
    curriculum = loader_of(efficiency({"seqlen": LINEAR | {"index_path": index.path}}))
    iter(curriculum)
    assert next(curriculum.data_iterator) == next(
        iter(ours(efficiency({"seqlen": LINEAR | {"index_path": index.path}})))
    )


@pytest.mark.parametrize("metrics", [{"seqlen": LINEAR}, {"seqlen": PERCENTILE}])
def test_the_methods_of_deepspeeds_sampler_give_what_its_give(
    metrics: dict[str, Any], oracle: Callable[[dict[str, Any]], Any], index: arrowds.Index
) -> None:
    config = efficiency({name: settings | {"index_path": index.path} for name, settings in metrics.items()})
    theirs, sampler = oracle(config), ours(config)
    for name in (
        "one_epoch_total_samples", "total_samples", "micro_batch_size", "data_parallel_rank", "global_batch_size",
        "micro_batch_times_data_parallel_size", "gradient_accumulation_steps", "global_rank", "drop_last",
        "index_dtype", "difficulty_type", "clustering_type", "batch", "curriculum_step", "current_difficulties",
    ):  # fmt: skip
        assert getattr(sampler, name) == getattr(theirs, name), name
    assert sampler.data_efficiency_config is config
    for length in (None, 4, 3, 1):
        assert sampler.get_start_end_idx(length) == theirs.get_start_end_idx(length)
    if metrics["seqlen"] is LINEAR:
        for between in ((-np.inf, 8), (8, 9), (0, 100), (32, 40)):
            found = sampler.get_sample_based_on_metric_value("seqlen", *between)
            expected = theirs.get_sample_based_on_metric_value("seqlen", *between)
            assert (found is None) == (expected is None)
            assert found is None or found.tolist() == expected.tolist()
    else:
        for between in ((0, 10), (10, 11), (99, 100), (0, 100), (5, 5)):
            found = sampler.get_sample_based_on_metric_percentile("seqlen", *between)
            expected = theirs.get_sample_based_on_metric_percentile("seqlen", *between)
            assert (found is None) == (expected is None)
            assert found is None or found.tolist() == expected.tolist()
    for _ in range(4):
        theirs.get_next_global_batch()
        sampler.get_next_global_batch()
        assert sampler.batch == theirs.batch
        assert sampler.curriculum_step == theirs.curriculum_step
        assert sampler.current_difficulties == theirs.current_difficulties
        for name, scheduler in theirs.curriculum_schedulers.items():
            here = sampler.curriculum_schedulers[name]
            assert here.state["current_difficulty"] == scheduler.state["current_difficulty"]
            assert here.get_difficulty(6) == scheduler.get_difficulty(6)
    mine, expected = iter(sampler), iter(theirs)
    for _ in range(5):
        assert next(mine) == next(expected)
        assert (sampler.batch, sampler.curriculum_step) == (theirs.batch, theirs.curriculum_step)
