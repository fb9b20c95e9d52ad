"""The part of a report that is on a run: its charts against Polars over the record, and what a run did not record."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from pages import Page

import arrowds
from arrowds.curriculum.trace import read_records
from arrowds.errors import ConfigError, UnreadableFileError
from arrowds.metrics import column
from arrowds.pipeline import run_pipeline

ROWS, RANKS, MICRO = 960, 3, 4

CURRICULUM = {
    "seqlen": {
        "difficulty_type": "value", "clustering_type": "schedule_based", "min_difficulty": 20, "max_difficulty": 64,
        "schedule_type": "fixed_linear", "schedule_config": {"total_curriculum_step": 8, "difficulty_step": 4},
    }
}  # fmt: skip
GROUPS = {"short": "seqlen <= 16", "kept": "kept"}  # several are true for some samples


@pytest.fixture
def index(tmp_path):
    rng = np.random.default_rng(1)
    data = pl.DataFrame(
        {
            "text": [f"row {row}" for row in range(ROWS)],
            "seqlen": rng.integers(1, 65, ROWS),
            "kept": rng.random(ROWS) < 0.5,
            "language": rng.choice([f"l{number}" for number in range(12)], ROWS),
        }
    )
    data.write_parquet(tmp_path / "data.parquet")
    metrics = [column(name) for name in ("seqlen", "kept", "language")]
    return arrowds.analyze(tmp_path / "data.parquet", metrics, tmp_path / "index", progress=False)


def recorded(index, folder, *, losses=True, stop=None, state=None, **options):
    """Let all ranks draw; the loss of a sample is its id divided by the number of the microbatch."""
    states = []
    for rank in range(RANKS):
        sampler = arrowds.CurriculumSampler(
            index, CURRICULUM, micro_batch_size=MICRO, gradient_accumulation_steps=2, rank=rank, world_size=RANKS,
            record=folder, **options,
        )  # fmt: skip
        if state is not None:
            sampler.load_state_dict(state)
        for drawn, ids in enumerate(sampler, 1):
            if losses:
                sampler.recorder.add_losses(np.asarray(ids) / drawn)
            if drawn == stop:
                break
        states.append(json.loads(json.dumps(sampler.state_dict())))
        sampler.close()
    return states[0]


def report(index, tmp_path, **options) -> Page:
    arrowds.write_report(index, tmp_path / "page.html", **options)
    return Page(tmp_path / "page.html")


@pytest.fixture
def record(index, tmp_path):
    """A record, with the values of its samples."""
    recorded(index, tmp_path / "record")
    found = pl.DataFrame(read_records(tmp_path / "record"))
    rows = pl.read_parquet(tmp_path / "data.parquet")[found["sample_id"].to_numpy()]
    return found.hstack(rows.drop("text"))


def test_losses_and_the_samples_of_steps(index, record, tmp_path):
    page = report(index, tmp_path, run=tmp_path / "record")
    by_step = record.group_by("step").agg(pl.col("loss").cast(pl.Float64).mean(), pl.len()).sort("step")
    shown = page.data("run-loss")
    assert shown["step"].to_list() == by_step["step"].to_list()
    assert shown["loss"].to_list() == pytest.approx(by_step["loss"].to_list(), rel=1e-5)
    assert page.data("run-samples")["samples"].to_list() == by_step["len"].to_list()
    text = page.text.replace("\n", "")
    assert f"samples handed out{record.height:,}" in text and f"ranks{RANKS}" in text
    assert f"different samples{record['sample_id'].n_unique():,}" in text
    hardest = record.sort("loss", descending=True)[:5]
    rows = page.table("run", "largest losses")
    assert [int(row["sample"]) for row in rows] == hardest["sample_id"].to_list()
    assert [int(row["step"]) for row in rows] == hardest["step"].to_list()
    assert [row["text"] for row in rows] == [f"row {sample}" for sample in hardest["sample_id"]]


def test_fill_padding_and_balance(index, record, tmp_path):
    page = report(index, tmp_path, run=tmp_path / "record")
    micro = {key: group["seqlen"].to_numpy() for key, group in record.group_by("step", "micro_batch", "rank")}
    largest = max(lengths.sum() for lengths in micro.values())
    shown = page.data("run-batches").sort("step")
    for step in record["step"].unique().sort().to_list():
        here = {key: lengths for key, lengths in micro.items() if key[0] == step}
        work = [sum(lengths.sum() for key, lengths in here.items() if key[2] == rank) for rank in range(RANKS)]
        padded = sum(len(lengths) * lengths.max() for lengths in here.values())
        expected = {
            "fill": np.mean([lengths.sum() for lengths in here.values()]) / largest,
            "not padding": sum(work) / padded,
            "balance of the ranks": np.mean(work) / max(work),
        }
        found = dict(shown.filter(pl.col("step") == step).select("name", "share").iter_rows())
        assert found == pytest.approx(expected, rel=1e-5), step
    assert "divided by those of the largest one" in page.text


def test_what_was_drawn_of_each_metric_and_category(index, record, tmp_path):
    page = report(index, tmp_path, run=tmp_path / "record")
    lengths = page.data("run-drawn-0")
    steps = record["step"].unique().sort().to_list()
    for share in (10, 50, 90):
        expected = [record.filter(pl.col("step") == step)["seqlen"].quantile(share / 100, "nearest") for step in steps]
        assert lengths[f"p{share}"].to_list() == expected
    kept = record.group_by("step").agg(pl.col("kept").mean()).sort("step")
    assert page.data("run-drawn-1").sort("step")["share"].to_list() == pytest.approx(kept["kept"].to_list(), rel=1e-5)
    shares = page.data("run-group-0")
    assert shares.group_by("step").agg(pl.col("share").sum())["share"].to_list() == pytest.approx(
        [1] * len(steps), rel=1e-5
    )
    common = record["language"].value_counts(sort=True)["language"].to_list()
    named = [name for name in shares["group"].unique() if name != "all others"]
    assert len(named) == 8 and set(named) <= set(common)
    for name in named:
        expected = record.group_by("step").agg((pl.col("language") == name).mean()).sort("step")["language"]
        found = shares.filter(pl.col("group") == name).sort("step")["share"]
        assert found.to_list() == pytest.approx(expected.to_list(), rel=1e-5)


def test_groups_and_budget_of_a_configuration(index, record, tmp_path):
    config = {
        "index": {"path": str(tmp_path / "index")},
        "mixture": {"groups": GROUPS, "weights": {"short": 1, "kept": 1}, "rest": "leave"},
        "batches": {"max_tokens": 500},
        "output": "out",
    }
    page = report(index, tmp_path, run=tmp_path / "record", config=config)
    group = (
        pl.when(pl.col("seqlen") <= 16).then(pl.lit("short"))
        .when(pl.col("kept")).then(pl.lit("kept")).otherwise(pl.lit("in no group"))
    )  # fmt: skip
    shares = page.data("run-group-0")
    for step in (1, 5):
        here = record.filter(pl.col("step") == step).select(group=group)["group"].value_counts(normalize=True)
        found = dict(shares.filter(pl.col("step") == step).select("group", "share").iter_rows())
        assert {name: share for name, share in found.items() if share} == pytest.approx(
            dict(here.iter_rows()), rel=1e-5
        )
    per_micro = record.group_by("step", "micro_batch", "rank").agg(pl.col("seqlen").sum())
    fill = page.data("run-batches").filter(pl.col("name") == "fill", pl.col("step") == 3)["share"].item()
    assert fill == pytest.approx(per_micro.filter(pl.col("step") == 3)["seqlen"].mean() / 500, rel=1e-5)
    assert "divided by the budget" in page.text
    assert "Drawn of each group: groups of the mixture" in page.text


def test_steps_that_a_resumed_run_repeats_count_once(index, tmp_path):
    recorded(index, tmp_path / "whole", losses=False)
    state = recorded(index, tmp_path / "record", losses=False, stop=6)
    recorded(index, tmp_path / "record", losses=False, stop=9, state=state)
    recorded(index, tmp_path / "record", losses=False, state=state)
    rows = [read_records(tmp_path / name).num_rows for name in ("whole", "record")]
    assert rows[1] == rows[0] + 9 * MICRO * RANKS
    whole, page = (report(index, tmp_path, run=tmp_path / name) for name in ("whole", "record"))
    for chart in ("run-samples", "run-batches", "run-drawn-0", "run-group-0"):
        assert page.charts[chart] == whole.charts[chart]
    assert any("repeated count once" in note for note in page.notes) and not whole.notes
    assert "run-loss" not in page.charts


def test_many_steps_are_drawn_together(index, tmp_path, monkeypatch):
    recorded(index, tmp_path / "record")
    monkeypatch.setattr("arrowds.report.record._MOST_POINTS", 7)
    page = report(index, tmp_path, run=tmp_path / "record")
    found = pl.DataFrame(read_records(tmp_path / "record")).group_by("step").agg(pl.col("loss").cast(pl.Float64).mean())
    steps = found["step"].max()
    width = -(-steps // 7)
    shown = page.data("run-loss")
    assert shown["step"].to_list() == list(range(1, steps + 1, width)) and shown.height <= 7
    first = found.filter(pl.col("step") <= width)["loss"]
    expected = pytest.approx([first.mean(), first.min(), first.max()], rel=1e-5)
    assert list(shown.select("loss", "low", "high").row(0)) == expected
    monkeypatch.setattr("arrowds.report.record._MOST_SAMPLES", ROWS // 3)
    page = report(index, tmp_path, run=tmp_path / "record")
    assert any("one step in 3" in note for note in page.notes)
    assert page.data("run-loss")["loss"].to_list() == shown["loss"].to_list()


@pytest.mark.parametrize("record", [False, True])
def test_the_output_of_a_pipeline(tmp_path, record):
    data = pl.DataFrame({"text": ["ab" * (1 + row * 7 % 29) for row in range(120)]})
    data.write_parquet(tmp_path / "data.parquet")
    config = {
        "data": {"source": str(tmp_path / "data.parquet"), "tokenizer": "bytes"},
        "index": {"path": str(tmp_path / "index"), "metrics": [{"kind": "seqlen"}]},
        "curriculum": CURRICULUM,
        "batches": {"micro_batch_size": 4, "record": record},
        "model": {"factory": "bytes", "arguments": {"width": 16, "layers": 1, "heads": 2, "max_length": 64}},
        "training": {"steps": 12, "device": "cpu"},
        "output": str(tmp_path / "run"),
    }
    run = run_pipeline(config)
    page = report(arrowds.open_index(tmp_path / "index"), tmp_path, run=tmp_path / "run", config=config)
    for name, chart in (("loss", "run-loss"), ("lr", "run-lr"), ("tokens", "run-tokens")):
        assert page.data(chart)[name].to_list() == pytest.approx(run.losses[name].to_pylist(), rel=1e-5)
    difficulties = dict(
        zip(run.difficulties["step"].to_pylist(), run.difficulties["difficulty"].to_pylist(), strict=True)
    )
    shown = page.data("run-difficulty-0")
    changes = [step for step in difficulties if step in (1, 12) or difficulties[step] != difficulties[step - 1]]
    assert shown["step"].to_list() == changes
    assert shown["difficulty"].to_list() == [difficulties[step] for step in changes]
    assert any("were not recorded" in note for note in page.notes) != record
    assert ("run-samples" in page.charts) == record


def test_difficulties_of_several_metrics_and_losses_that_are_no_numbers(index, tmp_path):
    steps = list(range(1, 7))
    (tmp_path / "run").mkdir()
    nothing = float("nan")
    losses = pl.DataFrame(
        {"step": steps, "loss": [3.0, nothing, 2.0, 2.0, 1.0, 1.0], "lr": [0.1] * 6, "tokens": [9] * 6}
    )
    losses.write_parquet(tmp_path / "run" / "losses.parquet")
    difficulties = {"a": [1.0, 1.0, 2.0, 2.0, 2.0, 2.0], "b": [2.0, 2.0, 2.0, 2.0, 2.0, 1.0]}
    rows = [(step, name, values[step - 1]) for step in steps for name, values in difficulties.items()]
    table = pl.DataFrame(rows, schema=["step", "metric", "difficulty"], orient="row")
    table.write_parquet(tmp_path / "run" / "difficulties.parquet")
    page = report(index, tmp_path, run=tmp_path / "run")
    assert page.data("run-difficulty-0").rows() == [(1, 1.0), (3, 2.0), (6, 2.0)]
    assert page.data("run-difficulty-1").rows() == [(1, 2.0), (6, 1.0)]
    assert page.data("run-loss")["loss"].to_list() == [3.0, None, 2.0, 2.0, 1.0, 1.0]


def test_the_largest_losses_are_numbers(index, tmp_path):
    sampler = arrowds.CurriculumSampler(index, {}, micro_batch_size=8, record=tmp_path / "record")
    ids = next(iter(sampler))
    sampler.recorder.add_losses([np.nan, np.inf, 1.0, 5.0, -1.0, np.nan, 3.0, 2.0])
    sampler.close()
    rows = report(index, tmp_path, run=tmp_path / "record").table("run", "largest losses")
    assert [(row["loss"], int(row["sample"])) for row in rows] == [
        ("5", ids[3]), ("3", ids[6]), ("2", ids[7]), ("1", ids[2]), ("-1", ids[4])
    ]  # fmt: skip


def test_a_record_of_another_index_or_version_says_so(index, record, tmp_path):
    pl.read_parquet(tmp_path / "data.parquet").write_parquet(tmp_path / "more.parquet")
    grown = arrowds.append(tmp_path / "more.parquet", tmp_path / "index", progress=False)
    [note] = report(grown, tmp_path, run=tmp_path / "record").notes
    assert note.startswith("The run drew from version 1 of ") and note.endswith("this report is on version 2.")
    copied = arrowds.analyze(tmp_path / "more.parquet", column("seqlen"), tmp_path / "copy", progress=False)
    [note] = report(copied, tmp_path, run=tmp_path / "record").notes
    assert note.endswith("from the index of this report.")
    pl.read_parquet(tmp_path / "data.parquet")[:50].write_parquet(tmp_path / "small.parquet")
    other = arrowds.analyze(tmp_path / "small.parquet", column("seqlen"), tmp_path / "small", progress=False)
    page = report(other, tmp_path, run=tmp_path / "record")
    assert [note for note in page.notes if "ids that this index does not have" in note] == page.notes[1:]
    assert page.table("section-0", "Lowest")[0]["text"].startswith("row ")
    assert "run-samples" in page.charts and "run-drawn-0" not in page.charts and "run-loss" in page.charts


def test_a_folder_without_a_run(index, tmp_path):
    with pytest.raises(UnreadableFileError, match="no record of a run"):
        report(index, tmp_path, run=tmp_path)
    with pytest.raises(ConfigError, match="pass run=FOLDER"):
        report(index, tmp_path, config={"output": "out"})
    assert not (tmp_path / "page.html").exists()
