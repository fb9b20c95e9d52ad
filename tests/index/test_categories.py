"""Categorical metrics against Polars and DuckDB: codes and names, whatever was appended and compacted."""

from __future__ import annotations

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_files import assert_same, digests, memory_folder

import arrowds
from arrowds.errors import ConfigError, MetricValueError, UnsupportedError
from arrowds.integrations import deepspeed as ads
from arrowds.metrics import column

WORDS = ["", "a", "b", "de", "en", "En", "zz", "é", "日本", "\U0001f600", "￿"]
PIECES = st.lists(st.lists(st.sampled_from(WORDS) | st.none(), min_size=1, max_size=30), min_size=1, max_size=4)


def built(path, pieces, **options):
    """The index of the first piece, with the others appended."""
    metric = column("language", nulls="keep")
    first, *more = [pa.table({"language": pa.array(piece, pa.string())}) for piece in pieces]
    index = arrowds.analyze(first, metric, path, progress=False, **options)
    for table in more:
        index = arrowds.append(table, path, progress=False, **options)
    return index


def assert_answers(index, names):
    """Everything that an index says of some names, against Polars."""
    frame = pl.DataFrame({"language": pl.Series(names, dtype=pl.String)}).with_row_index("sample_id")
    metric = index["language"]
    present = frame.drop_nulls()
    assert list(metric.names) == sorted(set(present["language"]), key=lambda name: name.encode())
    masked = np.ma.getmaskarray(metric.values)
    codes = np.ma.getdata(metric.values)
    assert [None if hole else metric.names[code] for code, hole in zip(codes, masked, strict=True)] == names
    by_name = present.group_by("language").agg("sample_id").sort("language")
    assert metric.order.tolist() == by_name.explode("sample_id", empty_as_null=False)["sample_id"].to_list()
    counted = by_name.select(value="language", count=pl.col("sample_id").list.len().cast(pl.Int64))
    assert metric.distribution().drop("cumulative_count").equals(counted)
    for name, ids in by_name.rows():
        assert metric.sample_ids_of(name).tolist() == ids
    assert index.scan().collect().select("sample_id", pl.col("language").cast(pl.String)).equals(frame)


@settings(max_examples=40, deadline=None)
@given(PIECES)
def test_an_index_of_any_history_answers_as_polars_does(pieces):
    names = [name for piece in pieces for name in piece]
    with memory_folder() as folder:
        assert_answers(built(folder / "grown", pieces), names)
        whole = built(folder / "whole", [names])
        assert_answers(whole, names)
        compacted = arrowds.compact(folder / "grown")
        compacted.verify()
        assert_answers(compacted, names)
        assert digests(compacted) == digests(whole)


def test_a_view_is_brought_up_to_date_where_new_names_come_between_the_old(tmp_path):
    pieces = [["b", "d", "b"], ["a", "d"], ["c", "b", "e"]]
    index = built(tmp_path, pieces[:1])
    for number in range(1, len(pieces) + 1):
        assert_answers(index, [name for piece in pieces[:number] for name in piece])  # which makes the view
        if number < len(pieces):
            index = arrowds.append(pa.table({"language": pieces[number]}), tmp_path, progress=False)


def test_the_bytes_are_the_same_for_any_workers_engine_and_shards(tmp_path):
    rng = np.random.default_rng(0)
    table = pa.table({"language": rng.choice(WORDS, 5000)})
    metric = column("language")
    arrowds.analyze(table, metric, tmp_path / "one", workers=1, progress=False)
    arrowds.analyze(table, metric, tmp_path / "three", workers=3, progress=False)
    assert_same(tmp_path / "three", tmp_path / "one")
    function = arrowds.metrics.function("language", lambda batch: batch["language"], dtype="string")
    of_function = arrowds.analyze(table, function, tmp_path / "processes", workers=2, progress=False)
    assert digests(of_function) == digests(arrowds.open_index(tmp_path / "one"))


@pytest.mark.parametrize("kind", ["large_string", "string_view", "dictionary"])
def test_every_kind_of_text_column_is_one_category(tmp_path, kind):
    names = pa.array(["x", "y", None, "x"])
    kinds = {"large_string": pa.large_string(), "string_view": pa.string_view()}
    values = names.dictionary_encode() if kind == "dictionary" else names.cast(kinds[kind])
    index = arrowds.analyze(pa.table({"c": values}), column("c", nulls="keep"), tmp_path, progress=False)
    assert index["c"].names == ("x", "y")
    assert index["c"].values.tolist() == [0, 1, None, 0]


def test_a_column_of_numbers_is_a_metric_of_them(tmp_path):
    table = pa.table({"n": [3, 1], "x": [0.5, 2.5], "b": [True, False]})
    index = arrowds.analyze(table, [column("n"), column("x"), column("b", name="flag")], tmp_path, progress=False)
    assert (index["n"].values.tolist(), index["x"].quantile(1.0), index["flag"].dtype) == ([3, 1], 2.5, np.bool_)
    assert index["n"].names == ()


def test_sql_sees_the_names(tmp_path):
    pieces = [["en", "de", "en", None], ["fr", "de"]]
    index = built(tmp_path, pieces)
    data = pa.table({"language": [name for piece in pieces for name in piece]})
    query = "select language, count(*) as n from {} where language is null or language != 'fr' group by 1 order by 1"
    with duckdb.connect() as connection:
        connection.register("plain", data)
        expected = connection.sql(query.format("plain")).fetchall()
    assert index.sql(query.format("samples")).rows() == expected
    assert index.sql("select value, count from distribution_language").rows() == [("de", 2), ("en", 2), ("fr", 1)]


def test_samples_are_chosen_by_name(tmp_path):
    table = pa.table({"language": ["en", "de"] * 50, "n": list(range(100))})
    index = arrowds.analyze(table, [column("language"), column("n")], tmp_path, progress=False)
    sampler = arrowds.CurriculumSampler(index, {}, micro_batch_size=10, where=pl.col("language").is_in(["de", "xx"]))
    assert sorted(np.concatenate(list(sampler)).tolist()) == list(range(1, 100, 2))
    assert set(sampler.trace(1)["language"].to_pylist()) == {"de"}
    curriculum = {
        "language": {
            "difficulty_type": "value",
            "clustering_type": "schedule_based",
            "min_difficulty": 0,
            "max_difficulty": 1,
            "schedule_type": "fixed_discrete",
            "schedule_config": {"difficulty": [0, 1], "max_step": [5]},
        }
    }
    with pytest.raises(ConfigError, match="'language' is categorical"):
        arrowds.CurriculumSampler(index, curriculum, micro_batch_size=10)


def test_what_makes_no_sense_of_names_is_refused(tmp_path):
    index = built(tmp_path / "index", [["en", "de"]])
    metric = index["language"]
    for ask in (
        lambda: metric.quantile(0.5),
        lambda: metric.histogram(),
        lambda: metric.min(),
        lambda: metric.sample_ids(above=0),
        lambda: metric.sample_ids_between_percentiles(0, 50),
    ):
        with pytest.raises(ConfigError, match="metric 'language' is categorical"):
            ask()
    with pytest.raises(ConfigError, match="has no 'fr'; it has de, en"):
        metric.sample_ids_of("fr")
    with pytest.raises(UnsupportedError, match="'language' is categorical"):
        ads.export_index(index, tmp_path / "exported")


def test_bad_names_are_refused(tmp_path):
    broken = pa.StringArray.from_buffers(2, pa.array([0, 1, 2], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff"))
    with pytest.raises(MetricValueError, match="UTF-8"):
        arrowds.analyze(pa.table({"c": broken}), column("c"), tmp_path / "a", progress=False)
    with pytest.raises(MetricValueError, match=r"no value \(null or NaN\) for sample 1"):
        arrowds.analyze(pa.table({"c": ["a", None]}), column("c"), tmp_path / "b", progress=False)
    many = pa.table({"c": [str(number) for number in range((1 << 16) + 1)]})
    with pytest.raises(MetricValueError, match="65537 different names"):
        arrowds.analyze(many, column("c"), tmp_path / "c", progress=False)
    text = arrowds.metrics.expr("t", pl.col("c"))
    with pytest.raises(MetricValueError, match="declare a dtype"):
        arrowds.analyze(many, text, tmp_path / "d", progress=False)


def test_an_append_of_numbers_to_names_is_refused(tmp_path):
    built(tmp_path, [["en"]])
    with pytest.raises(arrowds.errors.ArrowdsError, match="language"):
        arrowds.append(pa.table({"language": [1]}), tmp_path, progress=False)
    assert_answers(arrowds.open_index(tmp_path), ["en"])


def test_other_names_with_the_same_codes_are_another_index(tmp_path):
    one = built(tmp_path / "one", [["a", "b"]])
    other = built(tmp_path / "other", [["c", "d"]])
    assert one["language"].values.tolist() == other["language"].values.tolist()
    assert one.fingerprint_of(["language"]) != other.fingerprint_of(["language"])
    _ = built(tmp_path / "again", [["a", "b"]])["language"].values
    again = arrowds.analyze(
        pa.table({"language": ["c", "d"]}),
        column("language", nulls="keep"),
        tmp_path / "again",
        overwrite=True,
        progress=False,
    )
    assert again["language"].names == ("c", "d")
