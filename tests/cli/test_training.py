"""``arrowds run`` and ``arrowds batch`` as a user types them."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import yaml
from typer.testing import CliRunner

import arrowds
from arrowds import cli
from arrowds.curriculum.sampler import CurriculumSampler
from arrowds.pipeline.results import StepRow
from arrowds.stats.profiler.summary import read_difficulties

CURRICULUM = {
    "seqlen": {
        "difficulty_type": "value", "clustering_type": "schedule_based", "min_difficulty": 4, "max_difficulty": 16,
        "schedule_type": "fixed_linear", "schedule_config": {"total_curriculum_step": 4, "difficulty_step": 4},
    }
}  # fmt: skip


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Run a command line in the temporary folder; give its exit status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run_main(*arguments):
        monkeypatch.setattr(sys, "argv", ["arrowds", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return caught.value.code or 0, *capsys.readouterr()

    return run_main


@pytest.fixture
def index(tmp_path):
    tokens = [list(range(length)) for length in np.random.default_rng(1).integers(2, 17, 90)]
    pa.parquet.write_table(pa.table({"input_ids": pa.array(tokens, pa.list_(pa.uint8()))}), tmp_path / "data.parquet")
    metrics = [arrowds.metrics.seqlen(), arrowds.metrics.expr("first", pl.col("input_ids").list.get(1))]
    return arrowds.analyze(tmp_path / "data.parquet", metrics, tmp_path / "index", progress=False)


@pytest.fixture
def run_yaml(tmp_path, index):
    values = {
        "data": {"source": "data.parquet"},
        "index": {"path": "index"},
        "curriculum": CURRICULUM,
        "batches": {"micro_batch_size": 3, "gradient_accumulation_steps": 2},
        "model": {"factory": "my_model:make", "arguments": {"width": 8}},
        "training": {"steps": 5, "device": "cpu"},
        "output": "out",
    }
    (tmp_path / "my_model.py").write_text(
        "from arrowds.pipeline.byte_model import make_byte_model\n"
        "def make(width):\n    return make_byte_model(width=width, layers=1, heads=2, max_length=16)\n"
    )
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "run.yaml"


def test_run_trains_from_one_file_and_goes_on(run, run_yaml, tmp_path):
    status, out, _ = run("run", "run.yaml", "--steps", "2")
    assert status == 0 and "step      1  loss" in out and "seqlen 4" in out and "2 steps" in out
    assert not (tmp_path / "out" / "nothing").exists() and (tmp_path / "out" / "run.svg").stat().st_size
    status, out, _ = run("run", "run.yaml", "--no-plot")
    assert status == 0 and "resumed from the checkpoint of step 2" in out and "wrote" not in out
    assert pl.read_parquet("out/losses.parquet")["step"].to_list() == [1, 2, 3, 4, 5]
    assert read_difficulties("out/difficulties.parquet")["seqlen"].to_list() == [4, 8, 12, 16, 16]
    status, out, _ = run("run", "run.yaml", "--no-resume", "-o", "other", "--steps", "1", "--json")
    assert status == 0 and json.loads(out) == {"output": "other", "steps": 1, "resumed_from": 0}
    assert pl.read_parquet("other/losses.parquet")["loss"][0] == pl.read_parquet("out/losses.parquet")["loss"][0]


def test_run_without_matplotlib_says_how_to_get_the_chart(run, run_yaml, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, out, _ = run("run", "run.yaml", "--steps", "1")
    assert status == 0 and "no chart: this needs matplotlib" in out and "arrowds[report]" in out


def test_mistakes_are_one_line(run, run_yaml):
    values = yaml.safe_load(run_yaml.read_text().replace("micro_batch_size", "micro_batch_sise"))
    del values["output"]
    run_yaml.write_text(yaml.safe_dump(values))
    status, out, err = run("run", "run.yaml")
    assert (status, out) == (1, "")
    assert err == (
        "arrowds: error: unknown key 'micro_batch_sise' in 'batches'; did you mean 'micro_batch_size'?; "
        "output is missing\n"
    )
    assert run("run")[0] == 2


def test_an_error_of_the_model_is_one_line_and_its_traceback_a_file(run, run_yaml, tmp_path, monkeypatch):
    (tmp_path / "my_model.py").write_text("def make(width):\n    raise ZeroDivisionError('width\\nis odd')\n")
    monkeypatch.delitem(sys.modules, "my_model", raising=False)
    status, out, err = run("run", "run.yaml")
    assert (status, out) == (1, "") and err.count("\n") == 1
    assert (
        "the run failed in my_model.py, line 2: ZeroDivisionError: width; is odd; the traceback is in out/error.txt"
        in err
    )
    assert "Run the same command again to resume" in err
    text = (tmp_path / "out" / "error.txt").read_text()
    assert text.startswith("Traceback") and text.endswith("ZeroDivisionError: width\nis odd\n")

    def lose_a_rank(*_, **__):
        raise RuntimeError("[gloo] connection closed by peer")

    monkeypatch.setattr("arrowds.pipeline.run_pipeline", lose_a_rank)
    monkeypatch.setenv("RANK", "3")
    assert "rank 3 failed" in run("run", "run.yaml")[2] and (tmp_path / "out" / "error-rank3.txt").exists()


def test_lines_come_at_most_every_other_second(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("arrowds.cli.training.time.monotonic", lambda: now[0])
    lines = cli.training.StepLines()
    for step in range(1, 6):
        lines(StepRow(step=step, loss=1.0, lr=0.1, tokens=5, difficulties={"seqlen": 8}))
        now[0] += 0.9
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["1", "4"]


@pytest.fixture
def ds_json(tmp_path):
    learning = {"enabled": True, "curriculum_metrics": CURRICULUM}
    sampling = {"enabled": True, "num_epochs": 10_000, "order": "stateless", "curriculum_learning": learning}
    values = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2}
    values["data_efficiency"] = {"enabled": True, "seed": 5, "data_sampling": sampling}
    (tmp_path / "ds.json").write_text(json.dumps(values))
    return tmp_path / "ds.json"


def test_batch_lists_the_samples_of_a_step_with_their_values(run, index, ds_json):
    sampler = CurriculumSampler(
        index, CURRICULUM, micro_batch_size=2, gradient_accumulation_steps=2, world_size=2, seed=5, num_epochs=10_000
    )
    expected = pl.DataFrame(sampler.trace(12345))
    arguments = ("batch", "index", "--config", "ds.json", "--step", "12345", "--world-size", "2")
    status, out, _ = run(*arguments, "--csv")
    assert status == 0
    listed = pl.read_csv(io.StringIO(out))
    assert listed.columns == ["step", "micro_batch", "rank", "sample_id", "difficulty_seqlen", "seqlen", "first"]
    assert listed["sample_id"].to_list() == sampler.global_batch_at(12345).tolist()
    assert listed.equals(expected.cast(dict(zip(listed.columns, listed.dtypes, strict=True))))
    assert listed["seqlen"].to_list() == index["seqlen"][listed["sample_id"].to_numpy()].tolist()
    status, out, _ = run(*arguments, "--rank", "1", "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert rows == expected.filter(pl.col("rank") == 1).to_dicts() and len(rows) == 4
    status, out, _ = run(*arguments)
    assert status == 0 and out.count("12345") == 8


def test_batch_follows_the_configuration_of_a_run(run, index, run_yaml):
    status, out, _ = run("batch", "index", "--config", "run.yaml", "--step", "2", "--csv")
    sampler = CurriculumSampler(index, CURRICULUM, micro_batch_size=3, gradient_accumulation_steps=2)
    assert status == 0
    assert pl.read_csv(io.StringIO(out))["sample_id"].to_list() == sampler.global_batch_at(2).tolist()


def test_batch_refuses_what_there_is_not(run, index, run_yaml, ds_json):
    status, _, err = run("batch", "index", "--config", "run.yaml", "--step", "16")
    assert status == 1 and "step 16 does not exist: the run has 15 steps" in err
    for step in (1, 15):  # the first and the last one
        status, out, _ = run("batch", "index", "--config", "run.yaml", "--step", step, "--csv")
        assert status == 0 and len(pl.read_csv(io.StringIO(out))) == 6
    status, _, err = run("batch", "index", "--config", "ds.json", "--step", "1", "--rank", "2", "--world-size", "2")
    assert status == 1 and "--rank must lie in [0, --world-size 2)" in err
    assert run("batch", "index", "--config", "ds.json", "--step", "0")[0] == 2
    assert run("batch", "index", "--config", "ds.json", "--step", "1", "--csv", "--json")[0] == 2


def test_demo_trains_and_shows_that_the_resumed_run_is_the_same(run, monkeypatch, tmp_path):
    from arrowds import demo, training_demo

    (tmp_path / "library").mkdir()
    functions = [f"def f{number}(x):\n    return x{' + 1' * number}\n" for number in range(1, 33)]
    (tmp_path / "library" / "short.py").write_text("".join(functions * 4))
    monkeypatch.setattr(demo, "run_demo", partial(demo.run_demo, library=tmp_path / "library"))
    quick = partial(training_demo.run_training_demo, engine="torch", steps=4)
    monkeypatch.setattr(training_demo, "run_training_demo", quick)
    status, out, _ = run("demo", "--train")
    assert status == 0
    assert "resumed after step 2:\n  64 samples drawn, the same as in the uninterrupted run" in out
    assert "largest difference of a step's loss: 0\n" in out
    assert (tmp_path / "arrowds-demo" / "training" / "resumed" / "run.svg").exists()

    def other_samples(*_, **__):
        result = quick(demo.run_demo(tmp_path / "again"))
        return replace(result, resumed_samples=result.resumed_samples.slice(1))

    monkeypatch.setattr(training_demo, "run_training_demo", other_samples)
    status, out, err = run("demo", "--train")
    assert status == 1 and "NOT the same" in out and "drew other samples" in err


def test_demo_without_deepspeed_says_so_before_it_begins(run, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    status, out, err = run("demo", "--train")
    assert (status, out) == (1, "") and "pip install 'arrowds[deepspeed]'" in err
    assert not (tmp_path / "arrowds-demo").exists()


@pytest.mark.parametrize("command", ["run", "batch"])
def test_help_shows_an_example(command):
    result = CliRunner().invoke(cli.app, [command, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0 and f"Example: arrowds {command} " in result.output


def test_pipeline_is_imported_without_optional_packages():
    code = "import sys, arrowds.pipeline; print({'torch', 'deepspeed', 'yaml', 'matplotlib'} & sys.modules.keys())"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert process.stdout == "set()\n"
