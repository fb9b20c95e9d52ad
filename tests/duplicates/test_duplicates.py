"""Duplicates against Polars (equal), datasketch and sets (near), on real and generated text; their life in an index."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import sysconfig
from itertools import combinations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from datasketch import MinHash
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import arrowds
from arrowds.cli import app
from arrowds.duplicates import largest_clusters
from arrowds.duplicates.clusters import joined
from arrowds.duplicates.near import NUM_PERM, _join_similar, rows_of_a_band
from arrowds.errors import ArrowdsWarning, ConfigError, MetricError, MetricValueError, MissingColumnError


def indexed(folder: Path, data: pl.DataFrame, pieces: int = 1):
    """Index some data as files that were added one after the other."""
    size = -(-len(data) // pieces)
    for number in range(pieces):
        data[number * size : (number + 1) * size].write_parquet(folder / f"data-{number}.parquet")
        if number:
            arrowds.append(f"{folder}/data-*.parquet", folder / "index", progress=False)
        else:
            arrowds.analyze(
                folder / "data-0.parquet", arrowds.metrics.column("number"), folder / "index", progress=False
            )
    return folder / "index"


def frame(texts: list) -> pl.DataFrame:
    return pl.DataFrame({"text": texts, "number": range(len(texts))})


def duplicate_of(index) -> list[int | None]:
    return index["duplicate_of"].values.tolist()


def lines_of_the_library() -> list[str]:
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("[a-d]*.py"))
    return [line for path in sources for line in path.read_text(encoding="utf-8").split("\n")]


@pytest.mark.parametrize("pieces", [1, 3])
def test_equal_lines_of_real_code_are_those_of_polars(pieces, tmp_path):
    data = frame([*lines_of_the_library(), None, None, ""])
    index = arrowds.find_duplicates(indexed(tmp_path, data, pieces))
    rows = data.with_row_index("id").with_columns(
        first=pl.col("id").min().over("text"), size=pl.len().over("text"), null=pl.col("text").is_null()
    )
    expected = rows.select(
        pl.when(~pl.col("null") & (pl.col("first") != pl.col("id"))).then("first").alias("of"),
        pl.when("null").then(1).otherwise("size").alias("size"),
    )
    assert duplicate_of(index) == expected["of"].to_list()
    assert index["cluster_size"].values.tolist() == expected["size"].to_list()
    assert index.scan().filter(pl.col("duplicate_of").is_null()).collect().height == expected["of"].null_count()
    assert index.sql("select count(*) n from samples where duplicate_of is null")["n"][0] == expected["of"].null_count()


def test_equal_lists_of_tokens(tmp_path):
    tokens = [[1, 2], [1], [1, 2], [], None, [], [2, 1]]
    data = pl.DataFrame({"ids": tokens, "number": range(7)}, schema_overrides={"ids": pl.List(pl.Int32)})
    index = arrowds.find_duplicates(indexed(tmp_path, data, 2), "ids")
    assert duplicate_of(index) == [None, None, 0, None, None, 3, None]
    near = arrowds.find_duplicates(tmp_path / "index", "ids", near=0.9, ngram=2)
    fixed = data.select(
        ids=pl.Series([[1, 2], [3, 4], [1, 2]] + [[5, 6]] * 4, dtype=pl.Array(pl.Int32, 2)), number="number"
    )
    (tmp_path / "fixed").mkdir()
    assert duplicate_of(arrowds.find_duplicates(indexed(tmp_path / "fixed", fixed), "ids"))[:4] == [None, None, 0, None]
    assert duplicate_of(near)[2] == 0


def shingles(text: str, n: int = 5) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[at : at + n]) for at in range(max(len(words) - n + 1, 1))}


def similarity(left: set, right: set) -> float:
    return len(left & right) / len(left | right)


@pytest.fixture(scope="module")
def copies() -> list[str]:
    """Paragraphs of licences, and copies of them in which more and more words are others."""
    draw = random.Random(7)
    text = Path("/usr/share/common-licenses/GPL-3").read_text(encoding="utf-8")
    paragraphs = [each for each in text.split("\n\n") if len(each.split()) > 60][:30]
    found = []
    for paragraph in paragraphs:
        words = paragraph.split()
        for changes in (0, 1, 2, 4, 12):
            copy = list(words)
            for place in draw.sample(range(len(words)), changes):
                copy[place] = f"other{draw.randrange(1000)}"
            found.append(" ".join(copy))
    draw.shuffle(found)
    return [*found, "too short", "Too short!", "...", "...", "?", ""]


def test_near_duplicates_are_those_of_their_shingles_and_of_datasketch(copies, tmp_path):
    index = arrowds.find_duplicates(indexed(tmp_path, frame(copies), 2), near=0.7)
    roots = [number if of is None else of for number, of in enumerate(duplicate_of(index))]
    sets = [shingles(text) for text in copies]
    sketches = []
    for each in sets:
        sketch = MinHash(num_perm=NUM_PERM)
        sketch.update_batch([" ".join(shingle).encode() for shingle in each])
        sketches.append(sketch)
    similar, found = 0, 0
    for left, right in combinations(range(len(copies) - 6), 2):
        exact = similarity(sets[left], sets[right])
        if exact > 0.82:  # three standard errors of 128 values above the threshold
            assert roots[left] == roots[right], (left, right, exact)
            assert sketches[left].jaccard(sketches[right]) > 0.7
        similar += exact >= 0.7
        found += roots[left] == roots[right]
    assert similar > 50
    assert 0.8 < found / similar < 1.4  # clusters also hold what a third sample connects
    assert roots[-6:] == [len(copies) - 6] * 2 + [len(copies) - 4] * 2 + [len(copies) - 2, len(copies) - 1]


@pytest.mark.parametrize("near", [0.3, 0.5])
def test_low_similarities_in_bands_that_strangers_share(near, tmp_path):
    draw = random.Random(5)
    texts = []
    for _ in range(300):
        words = [f"w{draw.randrange(40)}" for _ in range(60)]  # few words, so that strangers have bands in common
        copy = [word if draw.random() < 0.9 else f"w{draw.randrange(40)}" for word in words]
        texts += [" ".join(words), " ".join(copy)]
    draw.shuffle(texts)
    found = arrowds.find_duplicates(indexed(tmp_path, frame(texts)), near=near, ngram=1)
    roots = [number if of is None else of for number, of in enumerate(duplicate_of(found))]
    sets = [shingles(text, 1) for text in texts]
    alike = [
        (left, right)
        for left, right in combinations(range(len(texts)), 2)
        if similarity(sets[left], sets[right]) > near + 0.15
    ]
    assert len(alike) > 200
    assert [pair for pair in alike if roots[pair[0]] != roots[pair[1]]] == []


def test_samples_meet_although_strangers_come_first():
    signatures = np.random.default_rng(0).integers(0, 1 << 30, (7, NUM_PERM)).astype(np.uint32)
    signatures[[3, 6]] = signatures[1]
    signatures[5] = signatures[2]
    roots = np.arange(7)
    _join_similar(roots, np.zeros(7, np.uint64), signatures, 0.5)
    assert roots.tolist() == [0, 1, 2, 1, 4, 2, 1]


def test_unrelated_texts_are_no_duplicates(tmp_path):
    draw = random.Random(3)
    texts = [" ".join(f"w{draw.randrange(3000)}" for _ in range(80)) for _ in range(2000)]
    index = arrowds.find_duplicates(indexed(tmp_path, frame(texts)), near=0.5)
    assert index["duplicate_of"].num_valid == 0
    assert index["cluster_size"].max() == 1


@given(pairs=st.lists(st.tuples(st.integers(0, 29), st.integers(0, 29)), max_size=40))
def test_union_find(pairs):
    roots = list(range(30))

    def root(of: int) -> int:
        while roots[of] != of:
            of = roots[of]
        return of

    for left, right in pairs:
        low, high = sorted((root(left), root(right)))
        roots[high] = low
    left, right = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    assert joined(np.arange(30), left, right).tolist() == [root(of) for of in range(30)]


def test_bands_find_nearly_all_pairs_at_the_threshold():
    for threshold in (0.3, 0.5, 0.7, 0.8, 0.9, 1.0):
        rows = rows_of_a_band(threshold)
        assert 1 - (1 - threshold**rows) ** (NUM_PERM // rows) >= 0.97
    assert rows_of_a_band(0.3) < rows_of_a_band(0.8) < rows_of_a_band(0.95)


def test_samplers_leave_duplicates_out(tmp_path):
    index = arrowds.find_duplicates(indexed(tmp_path, frame(["a", "b", "a", "c", "b", "d"] * 4)))
    schedule = {"schedule_type": "fixed_linear", "schedule_config": {"total_curriculum_step": 1, "difficulty_step": 1}}
    difficulty = {"difficulty_type": "value", "clustering_type": "schedule_based", "min_difficulty": 10}
    curriculum = {"number": {**difficulty, "max_difficulty": 30, **schedule}}
    condition = pl.col("duplicate_of").is_null()
    sampler = arrowds.CurriculumSampler(index, curriculum, micro_batch_size=2, where=condition)
    assert sorted(int(each) for batch in sampler for each in batch) == [0, 1, 3, 5]
    groups = {"one": pl.col("cluster_size") == 4, "two": pl.col("cluster_size") > 4}
    mixture = arrowds.MixtureSampler(index, {"one": 1, "two": 1}, groups=groups, micro_batch_size=4)
    sizes = index["cluster_size"].values[mixture.global_batch_at(1)]
    assert sorted((sizes == 4).tolist()) == [False, False, True, True]


def test_an_append_leaves_given_values_out_and_says_so(tmp_path):
    path = indexed(tmp_path, frame(["a", "b", "a"]))
    found = arrowds.find_duplicates(path)
    arrowds.add_values({"score": [0.5, None, 2.0]}, path)
    frame(["b", "z"]).with_columns(pl.col("number") + 10).write_parquet(tmp_path / "data-9.parquet")
    with pytest.warns(ArrowdsWarning, match="duplicate_of, cluster_size, score can't be measured of more samples"):
        grown = arrowds.append(f"{tmp_path}/data-*.parquet", path, progress=False)
    assert grown.metrics == ["number"] and grown.num_samples == 5
    assert arrowds.open_index(path, version=found.version)["cluster_size"].values.tolist() == [2, 1, 2]
    grown.verify()
    again = arrowds.find_duplicates(path)
    assert duplicate_of(again) == [None, None, 0, 1, None]
    merged = arrowds.compact(path)
    assert duplicate_of(merged) == duplicate_of(again)
    assert len(merged.manifest.segments) == 1
    arrowds.vacuum(path)
    arrowds.open_index(path).verify()


def test_finding_again_replaces_and_changes_nothing_when_nothing_changed(tmp_path):
    path = indexed(tmp_path, frame(["a b c d e f g", "a b c d e f h", "a b c d e f g"]))
    exact = arrowds.find_duplicates(path)
    assert arrowds.find_duplicates(path).version == exact.version
    near = arrowds.find_duplicates(path, near=0.4)
    assert duplicate_of(near) == [None, 0, 0] and near.version == exact.version + 1


@pytest.mark.parametrize("near", [None, 0.8])
def test_progress_is_told_up_to_the_last_row(near, tmp_path):
    seen = []
    path = indexed(tmp_path, frame(["a b c", "b"] * 5), 2)
    arrowds.find_duplicates(path, near=near, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(5, 10), (10, 10)]


def test_the_largest_clusters(tmp_path):
    index = arrowds.find_duplicates(indexed(tmp_path, frame(["x", "b", "x", "b", "x", "c", *["b"] * 7])))
    assert largest_clusters(index, 5, ["text"]).rows() == [
        (1, 9, [3, 6, 7, 8, 9], "b"),
        (0, 3, [2, 4], "x"),
    ]
    assert largest_clusters(index, 1, []).columns == ["sample_id", "cluster_size", "duplicates"]
    with pytest.raises(ConfigError, match="does not know its duplicates"):
        largest_clusters(arrowds.open_index(tmp_path / "index", version=1))


def test_the_command_finds_and_lists(tmp_path):
    path = indexed(tmp_path, frame(["x", "b", "x", "b", "b"]))
    arguments = ["duplicates", str(path), "--show", "text"]
    assert "arrowds.find_duplicates(path) first" in str(CliRunner().invoke(app, arguments).exception)
    shown = CliRunner().invoke(app, [*arguments, "--find"])
    assert "3 of 5 samples are duplicates of earlier ones" in shown.output and "[3, 4]" in shown.output
    answer = CliRunner().invoke(app, [*arguments, "-n", "1", "--json"]).output
    assert json.loads(answer) == {"sample_id": 1, "cluster_size": 3, "duplicates": [3, 4], "text": "b"}
    assert CliRunner().invoke(app, [*arguments, "--csv"]).output.splitlines()[1] == '1,3,"[3,4]",b'
    assert CliRunner().invoke(app, [*arguments, "--near", "0.8"]).exit_code == 2
    frame(["new"]).write_parquet(tmp_path / "data-7.parquet")
    program = Path(sys.executable).with_name("arrowds")
    append = [program, "append", tmp_path / "data-7.parquet", "-o", path]
    said = subprocess.run(append, capture_output=True, text=True, check=True).stderr
    assert "find duplicates again (arrowds duplicates INDEX --find)" in said


def test_wrong_columns_and_options(tmp_path):
    path = indexed(tmp_path, frame(["a", "b"]))
    with pytest.raises(MissingColumnError, match="no column 'body'"):
        arrowds.find_duplicates(path, "body")
    with pytest.raises(MetricValueError, match="has type int64; expected text or lists of token ids"):
        arrowds.find_duplicates(path, "number")
    with pytest.raises(ConfigError, match="near must be"):
        arrowds.find_duplicates(path, near=80)
    with pytest.raises(ConfigError, match="ngram must be"):
        arrowds.find_duplicates(path, ngram=0)
    with pytest.raises(MetricError, match="got 3 values of 'x'"):
        arrowds.add_values({"x": [1, 2, 3]}, path)
    with pytest.raises(MetricError, match="no values"):
        arrowds.add_values({}, path)
