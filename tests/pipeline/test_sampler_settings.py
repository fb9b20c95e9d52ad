"""The sampler that a file stands for draws what training under that file draws."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from deepspeed.runtime.config import DeepSpeedConfig
from hypothesis import given
from hypothesis import strategies as st

from arrowds.curriculum.ranks import RankLayout
from arrowds.curriculum.sampler import CurriculumSampler
from arrowds.errors import ConfigError
from arrowds.integrations import deepspeed as ads
from arrowds.pipeline import create_data_loader
from arrowds.pipeline.sampler_settings import deepspeed_layout, sampler_from_settings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # DeepSpeed's, while it is imported
SIZES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


@pytest.fixture
def index(configuration):
    return create_data_loader(None, configuration()).sampler.index


def deepspeed_json(metrics, enabled=(True, True, True), **others):
    learning = {"enabled": enabled[2], "curriculum_metrics": metrics}
    sampling = {"enabled": enabled[1], "num_epochs": 3, "num_workers": 0, "curriculum_learning": learning}
    return {"data_efficiency": {"enabled": enabled[0], "seed": 7, "data_sampling": sampling}, **others}


def test_deepspeeds_json_gives_its_seed_sizes_and_curriculum(index, configuration, tmp_path):
    metrics = configuration()["curriculum"]
    metrics["seqlen"]["index_to_sample_path"] = "somewhere/else"
    sizes = {"train_batch_size": 12, "train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 3}
    (tmp_path / "ds.json").write_text(json.dumps(deepspeed_json(metrics, **sizes)))
    sampler = sampler_from_settings(index, tmp_path / "ds.json", rank=1)
    assert sampler.layout == RankLayout(micro_batch_size=2, rank=1, world_size=2, gradient_accumulation_steps=3)
    for name, settings in metrics.items():
        metrics[name] = {"index_path": str(index.path), **settings}
    theirs = ads.DeepSpeedDataSampler(deepspeed_json(metrics)["data_efficiency"], 120, 2, 1, 2, None, 3, 1)
    assert list(sampler) == list(theirs) and len(sampler) == 90


@pytest.mark.parametrize("order", ["stateless", "deepspeed"])
def test_configuration_of_a_run_gives_the_samples_of_that_run(configuration, order):
    values = configuration(batches={"order": order, "seed": 3})
    trained = create_data_loader(None, values).sampler
    listed = sampler_from_settings(trained.index, values)
    assert all(np.array_equal(listed.global_batch_at(step), trained.global_batch_at(step)) for step in (1, 5, 9))


@pytest.mark.parametrize("order", ["stateless", "deepspeed"])
def test_where_of_a_run_leaves_out_what_it_leaves_out_in_python(configuration, order):
    values = configuration(batches={"order": order, "where": "seqlen % 2 = 0 and seqlen > 4"})
    trained = create_data_loader(None, values).sampler
    index, even = trained.index, (pl.col("seqlen") % 2 == 0) & (pl.col("seqlen") > 4)
    python = CurriculumSampler(
        index, values["curriculum"], micro_batch_size=values["batches"]["micro_batch_size"], order=order, where=even,
        gradient_accumulation_steps=values["batches"]["gradient_accumulation_steps"],
        num_epochs=values["batches"].get("num_epochs", 1), seed=values["batches"].get("seed", 1234),
    )  # fmt: skip
    assert trained.samples_per_epoch == index.scan().filter(even).collect().height < index.num_samples
    for sampler in (trained, sampler_from_settings(index, values)):
        assert [list(ids) for ids in sampler] == [list(ids) for ids in python]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("seqlen >", r"^batches\.where: 'seqlen >' is not a valid SQL expression"),
        ("lenght > 3", "no metric 'lenght'"),
        ("seqlen + 1", "true or false for each sample"),
    ],
)
def test_a_where_that_is_no_filter_is_refused(configuration, where, message):
    with pytest.raises(ConfigError, match=message):
        create_data_loader(None, configuration(batches={"where": where}))


@pytest.mark.parametrize(
    ("enabled", "place"),
    [
        ((False, True, True), "data_efficiency is not"),
        ((True, False, True), "data_efficiency.data_sampling is not"),
        ((True, True, False), "data_efficiency.data_sampling.curriculum_learning is not"),
    ],
)
def test_disabled_curriculum_is_refused(index, configuration, enabled, place):
    values = deepspeed_json(configuration()["curriculum"], enabled, train_batch_size=4)
    with pytest.raises(ConfigError, match=place):
        sampler_from_settings(index, values)


@given(
    st.fixed_dictionaries({}, optional={key: st.integers(1, 12) for key in SIZES}),
    st.integers(1, 4),
)
def test_batch_sizes_are_worked_out_as_deepspeed_does(given_sizes, world_size):
    if not {*SIZES[:2]} & given_sizes.keys():
        with pytest.raises(ConfigError, match="must be given"):
            deepspeed_layout(given_sizes, world_size=world_size)
        return
    oracle = DeepSpeedConfig.__new__(DeepSpeedConfig)
    oracle.world_size = world_size
    for key in SIZES:
        setattr(oracle, key, given_sizes.get(key))
    try:
        oracle._set_batch_related_parameters()
        oracle._batch_assertion()
    except AssertionError:
        with pytest.raises(ConfigError, match="are inconsistent"):
            deepspeed_layout(given_sizes, world_size=world_size)
        return
    layout = deepspeed_layout(given_sizes, world_size=world_size)
    assert (layout.global_batch_size, layout.micro_batch_size, layout.gradient_accumulation_steps) == tuple(
        getattr(oracle, key) for key in SIZES
    )


@pytest.mark.parametrize("size", [0, -1, 2.0, True, "8"])
def test_impossible_batch_sizes_are_refused(size):
    with pytest.raises(ConfigError, match="positive integers"):
        deepspeed_layout({"train_batch_size": size})
