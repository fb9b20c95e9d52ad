"""A run with plain PyTorch: what it writes, that it learns, and that any interruption leaves no trace in the result."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import torch

import arrowds
from arrowds.curriculum.trace import read_records
from arrowds.errors import ConfigError, MissingExtraError, StateMismatchError, TokenBudgetError
from arrowds.pipeline import create_data_loader, execute_data_pipeline, load_config, run_pipeline
from arrowds.pipeline.byte_model import make_byte_model
from arrowds.pipeline.chart import plot_run
from arrowds.pipeline.models import make_model
from arrowds.stats.profiler.summary import read_difficulties

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def factories(monkeypatch):
    monkeypatch.syspath_prepend(HERE)


def test_tables_have_a_row_per_step_and_the_loss_falls(configuration, tmp_path):
    run = run_pipeline(configuration(training={"steps": 12, "warmup_steps": 4}))
    losses = pl.read_parquet(tmp_path / "run" / "losses.parquet")
    assert losses.schema == {"step": pl.Int64, "loss": pl.Float64, "lr": pl.Float64, "tokens": pl.Int64}
    assert losses["step"].to_list() == list(range(1, 13)) and losses.equals(pl.DataFrame(run.losses))
    assert losses["lr"].to_list() == pytest.approx([0.0025, 0.005, 0.0075] + [0.01] * 9)
    assert losses["loss"][-1] < losses["loss"][0] - 1
    difficulties = read_difficulties(tmp_path / "run" / "difficulties.parquet")
    sampler = create_data_loader(None, configuration()).sampler
    expected = [sampler.difficulties_at(step)["seqlen"] for step in range(1, 13)]
    assert difficulties["seqlen"].to_list() == expected
    lengths = sampler.index["seqlen"].values
    assert losses["tokens"].to_list() == [int(lengths[sampler.global_batch_at(step)].sum()) for step in range(1, 13)]


@pytest.mark.parametrize("stops", [[1], [3], [7], [2, 5, 6]])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_stopped_and_resumed_equals_one_go(configuration, tmp_path, stops, num_workers):
    batches = {"num_workers": num_workers}
    model = {"factory": "models_for_tests:dropping", "arguments": {}}
    whole = run_pipeline(configuration(batches=batches, model=model))
    for steps in [*stops, 8]:
        values = configuration(batches=batches, model=model, output=str(tmp_path / "other"), training={"steps": steps})
        run = run_pipeline(values)
    assert run.resumed_from == stops[-1] and run.steps == 8
    assert run.losses.equals(whole.losses) and run.difficulties.equals(whole.difficulties)


@pytest.mark.parametrize("more", [{}, {"cost": [1, 0.01]}, {"padded": False, "lengths": "seqlen"}])
def test_token_budgets_bound_the_microbatches_and_resume(configuration, tmp_path, more):
    batches = {"micro_batch_size": None, "max_tokens": 120, "record": True, "num_epochs": 4, **more}
    whole = run_pipeline(configuration(batches=batches))
    for steps in (3, 8):
        values = configuration(batches=batches, training={"steps": steps}, output=str(tmp_path / "other"))
        resumed = run_pipeline(values)
    assert resumed.resumed_from == 3
    assert resumed.losses.equals(whole.losses)
    record = pl.DataFrame(read_records(tmp_path / "run" / "consumed"))
    index = arrowds.open_index(tmp_path / "index")
    lengths = pl.Series("length", index["seqlen"].values[record["sample_id"].to_numpy()])
    held = (
        record.with_columns(lengths)
        .group_by("step", "micro_batch")
        .agg(pl.col("length").sum().alias("sum"), (pl.len() * pl.col("length").max()).alias("padded"))
    )
    bound = "sum" if more else "padded"
    assert held.height == 16
    assert 60 < held[bound].max() <= 120


@pytest.mark.parametrize("budget", [{}, {"micro_batch_size": None, "max_tokens": 120}])
def test_a_mixture_holds_its_shares_and_resumes(configuration, tmp_path, budget):
    mixture = {
        "groups": {"short": "seqlen < 20", "long": "seqlen >= 20"},
        "weights": [[1, {"short": 1, "long": 3}], [6, {"short": 1, "long": 1}]],
        "unit": "tokens",
    }
    rising = configuration()["curriculum"]["seqlen"] | {"min_difficulty": 16, "max_difficulty": 18}
    mixture["curricula"] = {"short": {"seqlen": rising}}
    batches = {"record": True, "num_epochs": 4, **budget}
    whole = run_pipeline(configuration(curriculum=None, mixture=mixture, batches=batches))
    for steps in (3, 8):
        training, output = {"steps": steps}, str(tmp_path / "other")
        values = configuration(curriculum=None, mixture=mixture, batches=batches, training=training, output=output)
        resumed = run_pipeline(values)
    assert resumed.resumed_from == 3
    assert resumed.losses.equals(whole.losses)
    record = pl.DataFrame(read_records(tmp_path / "run" / "consumed"))
    lengths = arrowds.open_index(tmp_path / "index")["seqlen"].values[record["sample_id"].to_numpy()].astype(int)
    for first, last, share in ((1, 5, 0.25), (6, 8, 0.5)):
        steps = record["step"].is_between(first, last).to_numpy()
        short = steps & (lengths < 20)
        assert abs(lengths[short].sum() - share * lengths[steps].sum()) <= 2 * 58


def test_a_mixture_beside_a_curriculum_is_refused(configuration):
    mixture = {"groups": {"all": "seqlen > 0"}, "weights": {"all": 1}}
    with pytest.raises(ConfigError, match=r"one of 'curriculum' and 'mixture'"):
        run_pipeline(configuration(mixture=mixture))


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        (
            {"max_tokens": 50, "max_length": 60},
            TokenBudgetError,
            "longer than max_tokens, 50; .* max_length",
        ),
        ({"max_tokens": 120, "padded": True, "cost": [1, 1]}, ConfigError, "cost does not go with padded"),
        ({"max_tokens": 120, "micro_batch_size": 2}, ConfigError, "not both"),
        ({}, ConfigError, "pass micro_batch_size"),
    ],
)
def test_budgets_that_would_not_hold_are_refused(configuration, batches, error, message):
    with pytest.raises(error, match=message):
        run_pipeline(configuration(batches={"micro_batch_size": None, **batches}))


def test_a_resumed_run_takes_the_learning_rate_of_its_file(configuration, tmp_path):
    training = {"learning_rate": 0.01, "warmup_steps": 6, "weight_decay": 0.0}
    run_pipeline(configuration(training=training | {"steps": 3}))
    changed = training | {"learning_rate": 0.002, "steps": 8}
    rates = run_pipeline(configuration(training=changed)).losses["lr"].to_pylist()
    assert rates == pytest.approx([0.01 * n / 6 for n in (1, 2, 3)] + [0.002 * min(1, n / 6) for n in range(4, 9)])
    other = configuration(training=changed | {"learning_rate": 0.01}, output=str(tmp_path / "other"))
    run_pipeline(configuration(training=training | {"steps": 3}, output=str(tmp_path / "other")))
    here, there = (
        run_pipeline(values).losses["loss"].to_pylist() for values in (configuration(training=changed), other)
    )
    assert here[:4] == there[:4] and here[5:] != there[5:]  # the fourth step is the first with another rate


def test_error_between_checkpoints_keeps_the_tables_and_resumes_exactly(configuration, tmp_path):
    whole = run_pipeline(configuration(output=str(tmp_path / "whole")))
    values = configuration(training={"checkpoint_every": 3})

    def fail_at_5(row):
        if row.step == 5:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_pipeline(values, progress=fail_at_5)
    assert pl.read_parquet(tmp_path / "run" / "losses.parquet")["step"].to_list() == [1, 2, 3, 4, 5]
    resumed = run_pipeline(values)
    assert resumed.resumed_from == 3
    assert resumed.losses.equals(whole.losses) and resumed.difficulties.equals(whole.difficulties)


def test_finished_run_does_nothing_and_no_resume_begins_anew(configuration):
    values = configuration()
    first = run_pipeline(values)
    again = run_pipeline(values, progress=lambda row: pytest.fail("no step is left"))
    assert (again.steps, again.resumed_from) == (8, 8) and again.losses.equals(first.losses)
    anew = run_pipeline(values, resume=False)
    assert anew.resumed_from == 0 and anew.losses.equals(first.losses)


def test_without_a_number_of_steps_the_data_ends_the_run(configuration):
    run = run_pipeline(configuration(training={"steps": None}, batches={"num_epochs": 2, "micro_batch_size": 20}))
    assert run.steps == 2 * 120 // 40


def test_accumulation_equals_one_large_microbatch(configuration, tmp_path, monkeypatch):
    def plain_descent(model, config):  # unlike Adam's, its steps grow with the gradients
        return torch.optim.SGD(model.parameters(), lr=config.learning_rate)

    monkeypatch.setattr("arrowds.pipeline.torch_engine.make_optimizer", plain_descent)
    values = configuration(
        model={"factory": "models_for_tests:dropping", "arguments": {"dropout": 0.0}},
        training={"steps": 1, "max_grad_norm": None},
    )
    losses, weights = [], []
    for micro, accumulation in ((4, 1), (2, 2), (1, 4)):
        batches = {"micro_batch_size": micro, "gradient_accumulation_steps": accumulation}
        one = values | {"output": str(tmp_path / f"run{micro}"), "batches": batches}
        model = make_model(load_config(one).model)
        run = execute_data_pipeline(model, create_data_loader(None, one), one)
        losses.append(run.losses["loss"][0].as_py())
        weights.append(model.scale.weight.item())
    assert losses == pytest.approx([losses[0]] * 3)
    assert weights == pytest.approx([weights[0]] * 3)


@pytest.mark.parametrize("kind", ["attribute", "mapping"])
def test_loss_is_found_as_models_return_it(configuration, tmp_path, kind):
    values = configuration(model={"factory": "models_for_tests:dropping", "arguments": {"kind": kind}})
    plain = configuration(
        model={"factory": "models_for_tests:dropping", "arguments": {}}, output=str(tmp_path / "other")
    )
    assert run_pipeline(values).losses.equals(run_pipeline(plain).losses)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"factory": "models_for_tests:dropping", "arguments": {"kind": "wrong"}},
            "a tensor of shape .*expected the loss",
        ),
        ({"factory": "models_for_tests"}, "'bytes' or 'module:function'"),
        ({"factory": "models_for_tests:nothing"}, "can't be imported: .*nothing"),
        ({"factory": "no_such_module:make"}, "can't be imported: .*no_such_module"),
        ({"factory": "models_for_tests:not_callable"}, "is a Tensor"),
        ({"arguments": {"max_length": 8}}, "the model supports 8: set batches.max_length"),
        ({"arguments": {"width": 6, "heads": 4}}, "heads=4 does not divide width=6"),
    ],
)
def test_wrong_models_are_refused(configuration, model, message):
    with pytest.raises(ConfigError, match=message):
        run_pipeline(configuration(model=model, curriculum={}))


def test_checkpoint_of_another_model_or_seed_is_refused(configuration):
    run_pipeline(configuration(training={"steps": 2}))
    with pytest.raises(StateMismatchError, match="another model"):
        run_pipeline(configuration(model={"arguments": {"width": 32, "max_length": 64}}))
    with pytest.raises(StateMismatchError, match="seed"):
        run_pipeline(configuration(batches={"seed": 5}))


def test_loader_of_other_ranks_is_refused(configuration):
    values = configuration()
    loader = create_data_loader(None, values, rank=1, world_size=2)
    with pytest.raises(ConfigError, match="the loader is for rank 1 of 2, but this process is rank 0 of 1"):
        execute_data_pipeline(make_byte_model(), loader, values)


def test_launcher_variables_that_make_no_sense_are_named(configuration, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    with pytest.raises(ConfigError, match="rank 3 of 1"):
        run_pipeline(configuration())


def test_chart_shows_loss_and_difficulty_and_is_reproducible(configuration, tmp_path):
    run = run_pipeline(configuration())
    for name in ("a.svg", "b.svg"):
        plot_run(run.losses, run.difficulties, tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert text == (tmp_path / "b.svg").read_text()
    assert set(re.findall(r"<!-- (loss|seqlen up to|8 steps) -->", text)) == {"loss", "seqlen up to", "8 steps"}


def test_chart_without_matplotlib_names_the_extra(configuration, tmp_path, monkeypatch):
    run = run_pipeline(configuration(training={"steps": 1}))
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtraError, match=r"arrowds\[report\]"):
        plot_run(run.losses, run.difficulties, tmp_path / "a.svg")


def test_record_tells_what_was_drawn(configuration, tmp_path):
    from arrowds.curriculum.trace import read_records

    run_pipeline(configuration(batches={"record": True}))
    records = pl.DataFrame(read_records(tmp_path / "run" / "consumed"))
    sampler = create_data_loader(None, configuration()).sampler
    for step in range(1, 9):
        assert records.filter(pl.col("step") == step)["sample_id"].to_list() == sampler.global_batch_at(step).tolist()


def test_two_ranks_train_as_one(configuration, tmp_path):
    """DistributedDataParallel over two processes gives the losses of one process with the same global batch."""
    import yaml

    one = run_pipeline(
        configuration(batches={"gradient_accumulation_steps": 2, "micro_batch_size": 2}, output=str(tmp_path / "one"))
    )
    values = configuration(batches={"gradient_accumulation_steps": 1, "micro_batch_size": 2})
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    process = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python",
         sys.executable, "-c", "from arrowds.cli import main; main()", "run", str(tmp_path / "c.yaml"), "--no-plot"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, cwd=tmp_path, check=False,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout + process.stderr
    losses = pl.read_parquet(tmp_path / "run" / "losses.parquet")
    assert losses["tokens"].to_list() == one.losses["tokens"].to_pylist()
    assert losses["loss"].to_list() == pytest.approx(one.losses["loss"].to_pylist(), rel=1e-4)


RUN_TWICE = """
import sys, time
from pathlib import Path
from arrowds.errors import ConfigError
from arrowds.pipeline import load_config, run_pipeline

path, name = sys.argv[1:]
signal = Path(path).parent

def progress(row):
    (signal / f"{name}-at-{row.step}").touch()
    while row.step == 3 and not (signal / "go").exists():
        time.sleep(0.02)

try:
    print(run_pipeline(load_config(path), progress=progress).steps)
except ConfigError as error:
    sys.exit(str(error))
"""


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.parametrize("ended_by", ["its end", "a kill"])
def test_a_second_run_into_the_same_folder_is_refused_while_the_first_one_lasts(configuration, tmp_path, ended_by):
    """The one that is refused changes nothing; a killed run leaves the folder free, though its workers live on."""
    whole = run_pipeline(configuration(output=str(tmp_path / "alone")))
    values = configuration(batches={"num_workers": 2}, training={"checkpoint_every": 2})
    (tmp_path / "c.json").write_text(json.dumps(values))
    command = [sys.executable, "-W", "ignore", "-c", RUN_TWICE, str(tmp_path / "c.json")]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first = subprocess.Popen([*command, "first"], **pipes)
    wait_for(tmp_path / "first-at-3", first)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    second = subprocess.run([*command, "second"], capture_output=True, text=True, timeout=100, check=False)
    assert second.returncode == 1
    assert f"another run is writing to {tmp_path / 'run'}: wait until it has ended" in second.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    if ended_by == "a kill":
        first.kill()
    (tmp_path / "go").touch()
    first.communicate(timeout=100)
    third = subprocess.run([*command, "third"], capture_output=True, text=True, timeout=100, check=False)
    assert (third.returncode, third.stdout) == (0, "8\n"), third.stderr
    assert (tmp_path / "third-at-3").exists() == (ended_by == "a kill")
    losses = pl.read_parquet(tmp_path / "run" / "losses.parquet")
    assert losses["loss"].to_list() == whole.losses["loss"].to_pylist()


def test_without_resume_a_run_starts_over_whatever_checkpoints_there_are(configuration):
    first = run_pipeline(configuration(training={"steps": 3}))
    again = run_pipeline(configuration(training={"steps": 5}), resume=False)
    assert (again.resumed_from, again.steps) == (0, 5)
    assert again.losses["step"].to_pylist() == [1, 2, 3, 4, 5]
    assert again.losses["loss"].to_pylist()[:3] == first.losses["loss"].to_pylist()
    assert run_pipeline(configuration(training={"steps": 5})).resumed_from == 5


def test_a_finished_run_over_all_the_data_trains_no_further(configuration):
    """The loader would go on with another pass, which no run has asked for."""
    values = configuration(training={"steps": None})
    whole = run_pipeline(values)
    again = run_pipeline(values)
    assert whole.steps == 120 // 4 == again.steps == again.resumed_from
    assert again.losses.equals(whole.losses)


DROPOUT_OF_RANKS = """
import json, os, sys
import torch
from arrowds.pipeline import create_data_loader, load_config
from arrowds.pipeline.group import process_group
from arrowds.pipeline.run import execute_data_pipeline

class Noise(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(1)), []

    def forward(self, input_ids, attention_mask, labels):
        self.seen.append(torch.nn.functional.dropout(torch.ones(64), 0.5).tolist())
        return (self.weight - 1).square().mean()

config = load_config(sys.argv[1])
with process_group() as ranks:
    model = Noise()
    loader = create_data_loader(None, config, rank=ranks.rank, world_size=ranks.world_size)
    execute_data_pipeline(model, loader, config)
    with open(f"{sys.argv[2]}-{ranks.rank}", "w") as file:
        json.dump(model.seen, file)
"""


def test_dropout_differs_between_ranks_steps_and_microbatches(configuration, tmp_path):
    run_pipeline(configuration(training={"steps": 1}, output=str(tmp_path / "first")))  # makes the index
    values = configuration(training={"steps": 3})
    values["index"]["metrics"] = []
    (tmp_path / "c.json").write_text(json.dumps(values))
    (tmp_path / "script.py").write_text(DROPOUT_OF_RANKS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [*command, str(tmp_path / "script.py"), str(tmp_path / "c.json"), str(tmp_path / "masks")],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    masks = [tuple(mask) for rank in range(2) for mask in json.loads((tmp_path / f"masks-{rank}").read_text())]
    assert len(set(masks)) == len(masks) == 2 * 3 * 2
