"""Polars and DuckDB see the index as a table, without a copy."""

from __future__ import annotations

import math
import subprocess
import sys

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import arrowds
from arrowds.errors import ConfigError, MissingExtraError

VALUES = {
    "n": st.integers(-(2**40), 2**40) | st.none(),
    "x": st.floats(width=32, allow_nan=False) | st.none() | st.just(math.nan),
    "b": st.booleans() | st.none(),
}
TYPES = {"n": pa.int64(), "x": pa.float32(), "b": pa.bool_()}


@given(rows=st.lists(st.tuples(*VALUES.values()), min_size=1, max_size=30))
@settings(max_examples=25, deadline=None)
def test_scan_and_sql_give_back_every_value(make_index, rows):
    columns = {name: pa.array(column, TYPES[name]) for name, column in zip(TYPES, zip(*rows, strict=True), strict=True)}
    index = make_index(columns)
    wanted = pl.DataFrame(
        {"sample_id": range(len(rows)), **{name: pl.Series(column) for name, column in columns.items()}}
    ).with_columns(pl.col("x").fill_nan(None))
    for found in (index.scan().collect(), index.sql("select * from samples order by sample_id")):
        assert found.columns == wanted.columns
        assert found["sample_id"].dtype == pl.UInt32 and found["b"].dtype == pl.Boolean
        for name in wanted.columns:
            assert found[name].to_list() == wanted[name].to_list()


def test_scan_reads_the_maps_in_place(make_index):
    index = make_index({"n": pa.array([300, 70_000, 5], pa.uint32()), "x": pa.array([0.5, 1.5, 2.5])})
    frame = index.scan().collect()
    for name in index:
        first = frame[name].get_chunks()[0]
        assert first.to_numpy(allow_copy=False).ctypes.data == index[name].values.ctypes.data


def test_queries_see_the_declared_types_so_that_differences_do_not_wrap_around(make_index):
    index = make_index({"n": pa.array([255, 300, 1], pa.int64())})
    assert index["n"].values.dtype == np.uint16
    assert index.scan().select(pl.col("n") - 300).collect()["n"].to_list() == [-45, 0, -299]
    assert index.sql("select n - 300 as d from samples order by sample_id")["d"].to_list() == [-45, 0, -299]


def test_duckdb_does_not_copy_the_metric_columns(make_index):
    code = """
import sys, resource, arrowds
index = arrowds.open_index(sys.argv[1])
import duckdb, pyarrow.dataset
index.sql("select 1")
def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
connection = index.connect()
before = anonymous()
answer = connection.sql("select max(a) + max(b) + max(c) from samples").fetchall()[0][0]
print(answer, anonymous() - before)
connection.close()
"""
    rows = 2_000_000
    index = make_index({name: pa.array(np.arange(rows, dtype=np.float64)) for name in "abc"})
    run = subprocess.run(
        [sys.executable, "-c", code, index.path], capture_output=True, text=True, timeout=60, check=True
    )
    answer, kib = run.stdout.split()
    assert float(answer) == 3 * (rows - 1)
    assert int(kib) * 1024 < 3 * 8 * rows / 2


def test_sql_answers_with_duckdb(make_index):
    index = make_index(
        {"n": pa.array([3, 1, 2, 1]), "x": pa.array([0.1, 0.2, 0.3, 0.4])}, {"t": np.array([[1, 2], [3, 4]])}
    )
    assert index.sql("select count(*) as c, sum(x) as s from samples where n <= 2").rows() == [(3, pytest.approx(0.9))]
    assert index.sql("from distribution_n").rows() == [(1, 2, 2), (2, 1, 3), (3, 1, 4)]
    assert index.sql("select value from total_t")["value"].to_list() == [1, 2, 3, 4]
    assert index.sql("select quantile_disc(x, 0.3) from samples").item() == index["x"].quantile(0.3)
    assert index.sql("select sample_id from samples where n = 7").is_empty()


def test_connection_is_the_users(make_index):
    index = make_index({"n": pa.array([3, 1, 2])})
    with index.connect() as connection:
        connection.execute("create table easy as select * from samples where n < 3")
        assert connection.sql("select sum(n) from easy").fetchall() == [(3,)]


@pytest.mark.parametrize("statement", ["selec 1", "select nothing from samples", "select n::date from samples"])
def test_bad_sql_is_a_clear_error(make_index, statement):
    with pytest.raises(ConfigError, match="DuckDB refused"):
        make_index({"n": pa.array([3, 1, 2])}).sql(statement)


def test_metrics_that_sql_cannot_tell_apart_are_refused(make_index):
    index = make_index({"len": pa.array([1]), "LEN": pa.array([2])})
    with pytest.raises(ConfigError, match="'LEN' from 'len'"):
        index.sql("select len from samples")
    assert index.scan().collect().row(0) == (0, 1, 2)


def test_names_and_paths_are_quoted(make_index, tmp_path):
    path = tmp_path / "it's [a] day=3 *"
    index = make_index({"a-b.c": pa.array([1, 2]), "select": pa.array([3, 4])}, {"t+": np.array([5])}, path=path)
    assert index.sql('select "a-b.c" + "select" as s from samples').to_series().to_list() == [4, 6]
    assert index.sql('from "distribution_a-b.c"').columns == ["value", "count", "cumulative_count"]
    assert index.sql('from "total_t+"').rows() == [(5,)]


def test_without_duckdb_the_error_names_the_extra(make_index, monkeypatch):
    index = make_index({"n": pa.array([1])})
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(MissingExtraError, match=r"arrowds\[sql\]"):
        index.sql("select 1")


def test_condition_on_bucket_opens_no_other_file(tmp_path, monkeypatch):
    """All files but those of bucket 0 are spoilt: who opened one would fail."""
    monkeypatch.setattr("arrowds.index.ranges._FEWEST_ROWS", 500)
    monkeypatch.setattr("arrowds.index.ranges._MOST_ROWS", 500)
    table = pa.table({"n": np.random.default_rng(0).integers(0, 2048, 3000)})
    metric = arrowds.metrics.expr("m", pl.col("n"))
    arrowds.analyze(table, metric, tmp_path / "index", workers=1, progress=False)
    (folder,) = (tmp_path / "index/metrics/m/buckets").iterdir()
    spoilt = [path for path in folder.glob("*/*.parquet") if path.parent.name != "bucket=00000"]
    assert len(spoilt) >= 4
    for path in spoilt:
        path.write_bytes(b"no Parquet")
    files = f"{folder}/*/*.parquet"
    expected = pl.read_parquet(folder / "bucket=00000/*.parquet").height
    found = pl.scan_parquet(files, hive_partitioning=True).filter(pl.col("bucket") == 0).select(pl.len()).collect()
    assert found.item() == expected
    query = f"select count(*) from read_parquet('{files}', hive_partitioning = true)"
    with duckdb.connect() as connection:
        assert connection.sql(f"{query} where bucket = 0").fetchall() == [(expected,)]
        with pytest.raises(duckdb.Error):
            connection.sql(query).fetchall()
