"""``arrowds plan``, ``map`` and ``reduce`` as launchers run them: real processes, in any order, killed and rerun."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal

import polars as pl
import pytest
from index_files import assert_same
from waiting import wait_until

import arrowds
from arrowds.build import shards as library


@pytest.fixture
def expected(shell):
    """What one analysis writes."""
    shell.run("analyze", "data/*.parquet", "-o", "expected", "--metric", "seqlen", "--metric", "vocab_rarity")
    return shell.folder / "expected"


def plan(shell, *more, output="index"):
    return shell.run("plan", "data/*.parquet", "-o", output, "--metric", "seqlen", "--metric", "vocab_rarity", *more)


def same_answers(folder, expected):
    """The same values, order and totals; the files' names tell the build."""
    ours, theirs = (arrowds.open_index(path, verify=True) for path in (folder, expected))
    assert ours.metrics == theirs.metrics
    assert all((ours[name].values == theirs[name].values).all() for name in ours)
    assert all((ours[name].order == theirs[name].order).all() for name in ours)
    assert all((ours.totals[name] == theirs.totals[name]).all() for name in ours.totals)


def test_shards_in_any_order_twice_and_of_changing_number_give_the_index_of_one_analysis(shell, expected):
    out = plan(shell)
    assert "planned: 6,000 samples" in out and "arrowds map index --shard 1/N" in out and "vocab_rarity" in out
    order = random.Random(7)
    first = ["1/3", "2/3", "3/3", "2/3"]
    order.shuffle(first)
    for process in [shell.start("map", "index", "--shard", shard) for shard in first[:2]]:
        shell.end(process)
    for shard in first[2:]:
        assert shell.run("map", "index", "--shard", shard).startswith(f"shard {shard} is done\n")
    for process in [shell.start("map", "index", "--shard", shard) for shard in ("2/2", "1/2")]:
        assert "wait" not in shell.end(process)
    printed = [shell.end(process) for process in [shell.start("reduce", "index", "--shard", f"{n}/2") for n in (2, 1)]]
    assert any("6,000 samples" in out for out in printed)
    assert "6,000 samples" in shell.run("reduce", "index")
    assert shell.run("map", "index", "--shard", "2/3").startswith("index is finished")
    assert_same(shell.folder / "index", expected)


def test_the_first_round_says_what_waits_for_totals(shell):
    plan(shell)
    waits = "vocab_rarity waits for totals of all samples: when every shard has ended, run each once more"
    assert waits in shell.run("map", "index", "--shard", "1/2")
    assert "wait" not in shell.run("map", "index", "--shard", "2/2")  # the last one knows all totals
    assert "is not measured for" in shell.run("reduce", "index", status=1)
    shell.run("map", "index", "--shard", "1/2")
    assert "6,000 samples" in shell.run("reduce", "index")


def test_plan_tells_scripts_how_many_rounds_there_are(shell):
    facts = json.loads(plan(shell, "--json"))
    assert facts["samples"] == 6000 and facts["rounds"] == 2 and facts["parts"] >= 3
    assert facts["metrics"] == [["seqlen", "vocab_rarity.token_counts"], ["vocab_rarity"]]
    shell.run("map", "index", "--shard", "1/1")
    shell.run("reduce", "index")
    assert json.loads(plan(shell, "--json"))["rounds"] == 0
    assert "is up to date: version 1 has all of this; nothing is planned" in plan(shell)


def test_a_killed_shard_is_run_again_and_measures_only_what_is_left(shell, expected):
    plan(shell)
    runs = shell.folder / "index" / "builds"
    process = shell.start("map", "index", "--shard", "1/1", "--workers", "1")
    finished = lambda: {path: path.stat().st_mtime_ns for path in runs.rglob("*/[0-9]*") if path.is_file()}  # noqa: E731
    wait_until(lambda: len(finished()) >= 3, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    kept = finished()
    shell.run("map", "index", "--shard", "1/1")
    after = finished()
    measured_again = {path.stem for path, written in kept.items() if after[path] != written}
    assert len(measured_again) <= 1  # the part at which it was killed
    shell.run("reduce", "index")
    same_answers(shell.folder / "index", expected)


def test_the_last_of_many_reduce_shards_commits_also_where_whole_columns_were_finished_before(shell, tmp_path):
    """Each of four shards has one task: the values and the bucket of one metric, then those of the other."""
    metrics = [arrowds.metrics.seqlen("input_ids"), arrowds.metrics.expr("first", pl.col("input_ids").list.first())]
    path = tmp_path / "index"
    library.plan_build(str(shell.folder / "data/0.parquet"), metrics, path)
    library.map_shard(path, 1, 1)
    for shard in (1, 2, 3):
        assert library.reduce_build(path, shard, 4) is None
    index = library.reduce_build(path, 4, 4)
    assert index is not None and index.num_samples == 2000


def test_a_file_that_changed_since_the_plan_is_named(shell):
    plan(shell)
    shell.run("map", "index", "--shard", "1/2")
    shell.write_tokens("data/1.parquet", 1999, seed=9)
    for command in (("map", "index", "--shard", "2/2"), ("reduce", "index")):
        message = shell.run(*command, status=1)
        assert "data/1.parquet changed since it was recorded" in message and message.count("\n") == 1
    (shell.folder / "data/1.parquet").unlink()
    assert "data/1.parquet" in shell.run("map", "index", "--shard", "2/2", status=1)


def test_a_file_that_was_copied_to_another_time_is_the_same(shell):
    plan(shell)
    for path in (shell.folder / "data").iterdir():
        os.utime(path, (1, 1))
    shell.run("map", "index", "--shard", "1/1")
    assert "6,000 samples" in shell.run("reduce", "index")


def test_without_a_plan_each_step_says_what_is_missing(shell):
    for command in (("map", "index", "--shard", "1/2"), ("reduce", "index")):
        assert "make one with arrowds plan" in shell.run(*command, status=1)


def test_append_in_shards_adds_what_is_new(shell, tmp_path):
    shutil.move(shell.folder / "data/2.parquet", tmp_path / "2.parquet")
    shell.run("analyze", "data/*.parquet", "-o", "index", "--metric", "seqlen", "--metric", "vocab_rarity")
    shutil.move(tmp_path / "2.parquet", shell.folder / "data/2.parquet")
    facts = json.loads(shell.run("plan", "data/*.parquet", "-o", "index", "--append", "--json"))
    assert (facts["samples"], facts["rounds"]) == (2000, 1)  # the counts that the metric was defined with are known
    for shard in ("2/2", "1/2"):
        shell.run("map", "index", "--shard", shard)
    assert "version 2, made by append; 2 segments" in shell.run("reduce", "index")
    assert "nothing is planned" in shell.run("plan", "data/*.parquet", "-o", "index", "--append")


def test_overwrite_in_shards_replaces_the_index(shell):
    shell.run("analyze", "data/0.parquet", "-o", "index", "--metric", "seqlen")
    assert "pass --overwrite" in shell.run("plan", "data/*.parquet", "-o", "index", "--metric", "seqlen", status=1)
    shell.run("plan", "data/*.parquet", "-o", "index", "--metric", "seqlen", "--overwrite")
    shell.run("map", "index", "--shard", "1/1")
    assert "version 2, made by analyze; 1 segment" in shell.run("reduce", "index")


def test_shards_of_tokenized_text_open_the_data_from_the_plan(shell):
    (shell.folder / "docs.jsonl").write_text('{"text": "to be"}\n{"text": "or not"}\n')
    shell.run("plan", "docs.jsonl", "-o", "index", "--tokenizer", "bytes", "--metric", "seqlen")
    shell.run("map", "index", "--shard", "1/1")
    shell.run("reduce", "index")
    assert arrowds.open_index(shell.folder / "index")["seqlen"].values.tolist() == [5, 6]


def test_a_plan_of_python_functions_says_who_can_run_it(shell, tmp_path):
    metric = arrowds.metrics.function("one", lambda batch: [1] * len(batch), columns=["input_ids"], dtype="int32")
    library.plan_build(str(shell.folder / "data/0.parquet"), metric, tmp_path / "index")
    message = shell.run("map", "index", "--shard", "1/1", status=1)
    assert "has a Python function, which only its code can run, through arrowds in Python" in message
