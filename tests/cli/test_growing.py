"""Appending, adding metrics, interrupting: what a second command finds of the first, as real processes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import arrowds

UP_TO_DATE = "is up to date, opened: version"


@pytest.fixture
def grown(shell):
    """An index of the first two files, beside which there is a third."""
    shutil.move(shell.folder / "data/2.parquet", shell.folder / "2.parquet")
    shell.run("analyze", "data/*.parquet", "-o", "index", "--metric", "seqlen", "--metric", "vocab_rarity")
    shutil.move(shell.folder / "2.parquet", shell.folder / "data/2.parquet")
    return shell


def test_a_grown_glob_adds_its_new_files_only(grown):
    assert "6,000 samples" in grown.run("append", "data/*.parquet", "-o", "index")
    again = grown.run("append", "data/*.parquet", "-o", "index")
    assert f"{UP_TO_DATE} 2 has all of these files already" in again
    index = arrowds.open_index(grown.folder / "index", verify=True)
    whole = arrowds.analyze(str(grown.folder / "data/*.parquet"), arrowds.metrics.seqlen(), grown.folder / "whole")
    assert np.array_equal(index["seqlen"].values, whole["seqlen"].values)
    info = grown.run("info", "index")
    assert "version 2, made by append; 2 segments" in info
    assert "vocab_rarity: defined with the vocab_rarity.token_counts of version 1" in info
    grown.run("add-metric", "data/*.parquet", "-o", "index", "--metric", "vocab_rarity", "--refresh")
    assert "token_counts of version 3" in grown.run("info", "index")


def test_a_changed_and_a_missing_file_are_named(grown):
    grown.write_tokens("data/0.parquet", 1500, seed=8)
    message = grown.run("append", "data/*.parquet", "-o", "index", status=1)
    assert "data/0.parquet changed since it was indexed" in message
    assert "with arrowds analyze --overwrite" in message and "overwrite=" not in message
    (grown.folder / "data/0.parquet").unlink()
    message = grown.run("append", "data/*.parquet", "-o", "index", status=1)
    assert "files that are in the index are missing" in message and "data/0.parquet" in message
    assert arrowds.open_index(grown.folder / "index").version == 1


def test_files_that_were_moved_are_known_by_their_content(grown):
    (grown.folder / "data").rename(grown.folder / "moved")
    out = grown.run("append", "moved/*.parquet", "-o", "index", "--compare-content")
    assert "6,000 samples" in out


def test_two_appends_at_once_both_land(grown):
    grown.write_tokens("more.parquet", 700, seed=5)
    both = [grown.start("append", data, "-o", "index") for data in ("data/2.parquet", "more.parquet")]
    for process in both:
        grown.end(process)
    index = arrowds.open_index(grown.folder / "index", verify=True)
    assert (index.version, index.num_samples, len(index.manifest.segments)) == (3, 6700, 3)
    listed = grown.run("versions", "index")
    assert [line.split("│")[1].strip() for line in listed.splitlines() if line.startswith("│")] == ["3", "2", "1"]
    assert "3 segments became 1, in version 4" in grown.run("compact", "index")
    assert "versions removed: 1, 2, 3" in grown.run("vacuum", "index")
    assert "was vacuumed; arrowds versions" in grown.run("info", "index", "--version", "1", status=1)


def test_an_analysis_that_is_there_already_is_opened(grown):
    before = {path: path.stat().st_mtime_ns for path in (grown.folder / "index").rglob("*") if path.is_file()}
    command = ("analyze", "data/[01].parquet", "-o", "index", "--metric", "seqlen")
    assert f"{UP_TO_DATE} 1" in grown.run(*command, "--metric", "vocab_rarity")
    message = grown.run(*command, status=1)
    assert "with the metrics" in message and "pass --overwrite" in message
    same = {path: path.stat().st_mtime_ns for path in (grown.folder / "index").rglob("*") if path.is_file()}
    assert {path: time for path, time in same.items() if path in before} == before
    assert "version 2, made by analyze" in grown.run(*command, "--overwrite")
    assert "4,000 samples" in grown.run("info", "index", "--version", "1")


def test_more_metrics_are_added_without_touching_what_there_is(grown):
    grown.run("add-metric", "data/[01].parquet", "-o", "index", "--expr", "n=array_length(input_ids)")
    index = arrowds.open_index(grown.folder / "index", verify=True)
    assert index.metrics == ["seqlen", "vocab_rarity", "n"]
    assert np.array_equal(index["n"].values, index["seqlen"].values)
    other = ("add-metric", "data/[01].parquet", "-o", "index", "--expr", "n=array_length(input_ids) + 1")
    assert "choose other names, or pass --refresh" in grown.run(*other, status=1)
    message = grown.run("add-metric", "data/*.parquet", "-o", "index", "--expr", "m=array_length(input_ids)", status=1)
    assert "4000 samples of other data" in message


def test_ctrl_c_says_that_the_same_command_resumes_and_it_does(shell, interrupt):
    for number in range(3, 12):
        shell.write_tokens(f"data/{number}.parquet", 2000, seed=number)
    command = ("analyze", "data/*.parquet", "-o", "index", "--metric", "seqlen", "--metric", "vocab_rarity")
    builds = shell.folder / "index" / "builds"
    process = shell.start(*command, "--workers", "1")
    interrupt(process, lambda: any(builds.rglob("runs/*/*.arrow")))
    message = shell.end(process, status=130)
    assert message.splitlines()[-1] == "arrowds: interrupted; run the same command again to resume"
    kept = {path: path.stat().st_mtime_ns for path in builds.rglob("runs/*/[0-9]*")}
    assert kept and not arrowds.index.manifest.numbers(arrowds.store.open_store(shell.folder / "index"))
    assert "run the same arrowds analyze again" in shell.run("info", "index", status=1)
    assert "24,000 samples" in shell.run(*command)
    assert not builds.exists()


def test_percentiles_that_look_like_shares_of_1_are_one_line_of_warning(grown):
    process = grown.start("plot", "index", "seqlen", "--between", 0, 0.9)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "above" in out
    assert err.startswith("arrowds: warning: percentiles are 0 to 100, so 0.0 to 0.9 ") and err.count("\n") == 1


def test_ctrl_c_of_a_query_says_only_that(grown, interrupt):
    process = grown.start("sql", "index", "select count(*) from range(100000000000) as a(x) where hash(x) = 1")
    interrupt(process, lambda: processor_seconds(process.pid) > 8)  # it is past its imports, and runs
    assert grown.end(process, status=130).splitlines()[-1] == "arrowds: interrupted"


def processor_seconds(process: int) -> float:
    """The processor time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_vacuum_says_what_unfinished_builds_it_removed(grown):
    grown.run("plan", "data/*.parquet", "-o", "index", "--append")
    assert "files removed: 0" in grown.run("vacuum", "index")
    [build] = [path.name for path in (grown.folder / "index/builds").iterdir()]
    assert f"unfinished build removed: {build}" in grown.run("vacuum", "index", "--unfinished")
    assert not (grown.folder / "index/builds").exists()
