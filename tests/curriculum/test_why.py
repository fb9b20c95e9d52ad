"""why: the samples of recorded steps, against the trace of the sampler and Polars over the data."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch
from typer.testing import CliRunner

import arrowds
from arrowds.cli import app
from arrowds.curriculum.trace import read_records, why
from arrowds.errors import ConfigError, UnreadableFileError
from arrowds.metrics import column

ROWS = 96


@pytest.fixture
def data() -> pl.DataFrame:
    rng = np.random.default_rng(1)
    return pl.DataFrame(
        {
            "text": [f"row {row}" for row in range(ROWS)],
            "length": rng.integers(1, 20, ROWS),
            "language": rng.choice(["de", "en"], ROWS),
        }
    )


@pytest.fixture
def index(data, tmp_path) -> arrowds.Index:
    data.write_parquet(tmp_path / "data.parquet")
    metrics = [column("length"), column("language")]
    return arrowds.analyze(tmp_path / "data.parquet", metrics, tmp_path / "index", progress=False)


def trained(index, folder, *, losses: bool, rank: int, stop: int | None = None, state=None):
    """Consume batches as a training loop does; the loss of a sample is its id, a hundredth of it."""
    sampler = arrowds.CurriculumSampler(
        index, {}, micro_batch_size=4, rank=rank, world_size=2, gradient_accumulation_steps=2, record=folder
    )
    loader = arrowds.CurriculumDataLoader(list(range(ROWS)), sampler, num_workers=2)
    loader.load_state_dict(state)
    for number, batch in enumerate(loader):
        if losses:
            loader.record_losses((batch / 100).requires_grad_())
        if number + 1 == stop:
            return sampler, loader.state_dict()
    return sampler, None


@pytest.mark.parametrize("losses", [False, True])
def test_the_samples_of_some_steps_with_all_that_is_known(index, data, tmp_path, losses):
    for rank in range(2):
        sampler, _ = trained(index, tmp_path / "record", losses=losses, rank=rank)
    found = why(tmp_path / "record", [2, 5])
    drawn = pl.DataFrame(sampler.trace([2, 5])).sort("step", "micro_batch", "rank", maintain_order=True)
    assert found.select("step", "micro_batch", "rank", "sample_id").equals(
        drawn.select("step", "micro_batch", "rank", "sample_id")
    )
    rows = data[found["sample_id"].to_numpy()]
    assert found["text"].equals(rows["text"])
    assert found["length"].to_list() == rows["length"].to_list() == found["data_length"].to_list()
    assert found["language"].to_list() == rows["language"].to_list()
    shares = [100 * (data["length"] <= value).sum() / ROWS for value in rows["length"]]
    assert found["percentile_length"].to_list() == pytest.approx(shares)
    assert ("loss" in found.columns) == losses
    if losses:
        assert found["loss"].to_list() == pytest.approx([sample / 100 for sample in found["sample_id"]])


def test_losses_survive_a_resume_and_stay_with_their_step(index, tmp_path):
    _, state = trained(index, tmp_path / "record", losses=True, rank=0, stop=5)  # in the middle of step 3
    trained(index, tmp_path / "record", losses=True, rank=0, state=json.loads(json.dumps(state)))
    records = pl.DataFrame(read_records(tmp_path / "record"))
    assert records["loss"].to_list() == pytest.approx([sample / 100 for sample in records["sample_id"]])
    assert records.height == ROWS // 2


def test_losses_that_fit_no_microbatch(index, tmp_path):
    sampler = arrowds.CurriculumSampler(index, {}, micro_batch_size=4, record=tmp_path / "record")
    loader = arrowds.CurriculumDataLoader(list(range(ROWS)), sampler)
    with pytest.raises(ConfigError, match="no microbatch"):
        loader.record_losses([1.0])
    batches = iter(loader)
    next(batches)
    with pytest.raises(ConfigError, match="has 4 samples, but losses have the shape"):
        loader.record_losses(torch.zeros(3))
    loader.record_losses(torch.zeros(4))
    loader.state_dict()
    with pytest.raises(ConfigError, match="before the state is saved"):
        loader.record_losses(torch.zeros(4))
    plain = arrowds.CurriculumDataLoader(list(range(ROWS)), arrowds.CurriculumSampler(index, {}, micro_batch_size=4))
    next(iter(plain))
    with pytest.raises(ConfigError, match="record=FOLDER"):
        plain.record_losses(torch.zeros(4))


def test_steps_that_are_not_recorded(index, tmp_path):
    trained(index, tmp_path / "record", losses=False, rank=0)
    with pytest.raises(ConfigError, match="no record of step 99; it has the steps 1 to 6"):
        why(tmp_path / "record", [99])
    with pytest.raises(UnreadableFileError):
        why(tmp_path / "nothing", [1])
    (tmp_path / "record" / "index.json").unlink()
    with pytest.raises(ConfigError, match="pass index="):
        why(tmp_path / "record", [1])
    assert why(tmp_path / "record", [1], index=index, columns=[]).height == 8


def test_the_command_prints_them_and_what_to_paste(index, tmp_path):
    for rank in range(2):
        trained(index, tmp_path / "record", losses=True, rank=rank)
    run = CliRunner().invoke(app, ["why", str(tmp_path / "record"), "--step", "3", "--show", "text", "--json"])
    found = why(tmp_path / "record", [3], columns=["text"])
    printed = [json.loads(line) for line in run.output.splitlines()]
    assert [row["sample_id"] for row in printed] == found["sample_id"].to_list()
    assert [row["text"] for row in printed] == found["text"].to_list()
    text = CliRunner().invoke(app, ["why", str(tmp_path / "record"), "--steps", "3:4", "--csv"]).output
    assert len(text.splitlines()) == 33
    other = arrowds.open_index(index.path)
    (tmp_path / "record" / "index.json").unlink()
    named = ["why", str(tmp_path / "record"), "--index", str(other.path), "--step", "3", "--show", "text", "--json"]
    assert CliRunner().invoke(app, named).output == run.output
    table = CliRunner().invoke(app, ["why", str(tmp_path / "record"), "--step", "3", *named[2:4]]).output
    assert f"exclude_ids={found['sample_id'].sort().to_list()}" in table.replace("\n", "")
    for wrong in (["--steps", "4:3"], [], ["--step", "1", "--steps", "1:2"]):
        assert CliRunner().invoke(app, ["why", str(tmp_path / "record"), *wrong]).exit_code == 2


def test_names_that_occur_twice_and_samples_of_another_index(tmp_path):
    """A loss is recorded, is a metric and is a column of the data; and so are names that would take its place."""
    data = pl.DataFrame({"loss": [1.0, 2.0, 3.0, 4.0], "data_loss": [1, 2, 3, 4], "percentile": [5, 6, 7, 8]})
    data.write_parquet(tmp_path / "data.parquet")
    metrics = [column("loss"), column("percentile")]
    made = arrowds.analyze(tmp_path / "data.parquet", metrics, tmp_path / "index", progress=False)
    sampler = arrowds.CurriculumSampler(made, {}, micro_batch_size=4, record=tmp_path / "record")
    loader = arrowds.CurriculumDataLoader(range(4), sampler)
    for batch in loader:
        loader.record_losses(batch / 10)
    found = why(tmp_path / "record", [1])
    rows = data[found["sample_id"].to_numpy()]
    assert found["loss"].to_list() == pytest.approx([sample / 10 for sample in found["sample_id"]])
    assert found["index_loss"].to_list() == found["data_data_loss"].to_list() == rows["loss"].to_list()
    assert found["data_loss"].to_list() == rows["data_loss"].to_list()
    head = made.head(2, metric="percentile")
    assert head.columns == ["sample_id", "percentile", "metric_percentile", "loss", "data_loss", "data_percentile"]
    assert head["data_percentile"].to_list() == [5, 6]
    mixture = arrowds.MixtureSampler(
        {"a": made, "b": made}, {"a": 1, "b": 1}, micro_batch_size=4, record=tmp_path / "m"
    )
    list(mixture)
    with pytest.raises(ConfigError, match=r"there is no sample [4-7]; the index has 4 samples"):
        why(tmp_path / "m", [1, 2], index=made)
