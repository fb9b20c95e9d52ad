"""simulate against counting what the sampler yields when it is iterated."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from typer.testing import CliRunner

import arrowds
from arrowds.cli import app
from arrowds.curriculum.trace import simulate
from arrowds.errors import ConfigError
from arrowds.metrics import column

ROWS = 400
CURRICULUM = {
    "length": {
        "difficulty_type": "value",
        "clustering_type": "schedule_based",
        "min_difficulty": 8,
        "max_difficulty": 32,
        "schedule_type": "fixed_linear",
        "schedule_config": {"total_curriculum_step": 20, "difficulty_step": 4},
    }
}


@pytest.fixture
def index(tmp_path):
    rng = np.random.default_rng(4)
    data = pl.DataFrame({"length": rng.integers(1, 33, ROWS), "language": rng.choice(["de", "en"], ROWS)})
    return arrowds.analyze(data, [column("length"), column("language")], tmp_path / "index", progress=False)


@pytest.mark.parametrize("options", [{"micro_batch_size": 4}, {"max_tokens": 100, "lengths": "length"}])
@pytest.mark.parametrize("mixed", [False, True])
def test_each_step_is_what_iterating_yields(index, options, mixed):
    options = {**options, "gradient_accumulation_steps": 2}
    if mixed:
        sampler = arrowds.MixtureSampler(index, {"de": 1, "en": 3}, groups="language", **options)
    else:
        sampler = arrowds.CurriculumSampler(index, CURRICULUM, **options)
    batches = list(sampler)
    lengths = index["length"].values.astype(int)
    german = index["language"].values == index["language"].names.index("de")
    found = simulate(sampler, 7)
    assert found["step"].to_list() == np.unique(np.linspace(1, sampler.num_steps, 7).round()).tolist()
    for row in found.iter_rows(named=True):
        ids = np.concatenate(batches[2 * row["step"] - 2 : 2 * row["step"]])
        assert row["samples"] == len(ids)
        assert row["mean_length"] == pytest.approx(lengths[ids].mean()) and row["max_length"] == lengths[ids].max()
        if "max_tokens" in options:
            assert row["tokens"] == lengths[ids].sum() and row["fill"] == pytest.approx(lengths[ids].sum() / 200)
        if mixed:
            assert row["share_de"] == pytest.approx(german[ids].mean()) == 1 - row["share_en"]
        else:
            assert row["difficulty_length"] == sampler.difficulties_at(row["step"])["length"]
    with pytest.raises(ConfigError, match="at least 1"):
        simulate(sampler, 0)


def test_the_command_prints_it_and_draws_a_chart(index, tmp_path):
    values = {"index": {"path": str(index.path)}, "batches": {"micro_batch_size": 4}, "output": str(tmp_path / "run")}
    (tmp_path / "run.json").write_text(json.dumps({**values, "curriculum": CURRICULUM}))
    line = ["simulate", str(index.path), "--config", str(tmp_path / "run.json"), "--points", "5"]
    run = CliRunner().invoke(app, [*line, "--world-size", "2", "--json", "-o", str(tmp_path / "run.svg")])
    sampler = arrowds.CurriculumSampler(index, CURRICULUM, micro_batch_size=4, world_size=2)
    printed = pl.DataFrame([json.loads(line) for line in run.output.splitlines()])
    assert printed.equals(simulate(sampler, 5).cast({"samples": pl.Int64}))
    assert (tmp_path / "run.svg").read_text().count('<g id="axes_') == printed.width - 1  # one for each but the step
    assert "100 steps draw 400 samples, 1 time\n" in CliRunner().invoke(app, line).output
    assert CliRunner().invoke(app, [*line, "--csv"]).output.count("\n") == 6
    assert "must end in .png" in str(CliRunner().invoke(app, [*line, "-o", "x.txt"]).exception)
