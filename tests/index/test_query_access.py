"""What a SQL statement may do: read the index and the files of its data, and nothing else unless it is allowed."""

from __future__ import annotations

import polars as pl
import pytest

import arrowds
from arrowds.errors import ConfigError


@pytest.fixture
def index(tmp_path):
    """Two segments with a null and a total, indexed from two files beside another one."""
    for name, values in (("first", [5, 7, 5]), ("second", [700, None]), ("other", [1])):
        pl.DataFrame({"x": values, "ids": [[1]] * len(values)}).write_parquet(tmp_path / f"{name}.parquet")
    metrics = [arrowds.metrics.expr("n", pl.col("x"), nulls="keep"), arrowds.metrics.token_counts("ids")]
    arrowds.analyze(tmp_path / "first.parquet", metrics, tmp_path / "index", progress=False)
    return arrowds.append(tmp_path / "second.parquet", tmp_path / "index", progress=False)


def test_a_query_sees_the_views_of_the_index_and_no_internal_table(index):
    names = [name for (name,) in index.sql("show tables").rows()]
    assert names == ["data", "distribution_n", "samples", "total_token_counts"]
    assert index.sql("select n from samples").rows() == [(5,), (7,), (5,), (700,), (None,)]
    assert index.sql("from distribution_n").rows() == [(5, 2, 2), (7, 1, 3), (700, 1, 4)]
    assert index.sql("from total_token_counts").rows() == [(0,), (5,)]


def test_a_query_reads_the_files_of_the_data_and_no_other(index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (tmp_path / "second.parquet", "first.parquet"):
        assert index.sql(f"select count(x) from '{name}'").item() in (1, 3)
    for text in (
        f"select * from '{tmp_path}/other.parquet'",
        "select * from 'first.parquet' union all select * from 'other.parquet'",
        "select * from read_text('/etc/passwd')",
        "select * from glob('*')",
        "explain analyze select * from 'other.parquet'",
    ):
        with pytest.raises(ConfigError, match="allow_files=True"):
            index.sql(text)
    assert index.sql("select x from 'other.parquet'", allow_files=True).item() == 1


@pytest.mark.parametrize(
    "statement",
    [
        "copy samples to '{}' (use_tmp_file false)",
        "with q as (copy samples to '{}' (use_tmp_file false)) select 1",
        "explain analyze copy samples to '{}' (use_tmp_file false)",
        "explain (analyze) copy samples to '{}' (use_tmp_file false)",
        "explain analyze with q as (copy samples to '{}' (use_tmp_file false)) select 1",
        "select 1; copy samples to '{}' (use_tmp_file false)",
        "select 1); copy samples to '{}' (use_tmp_file false); from (select 1",
        "select * from query('with q as (copy samples to ''{}'' (use_tmp_file false)) select 1')",
        "prepare p as copy samples to '{}' (use_tmp_file false); execute p",
        "attach '{}' as more",
        "set enable_external_access = true",
        "install httpfs",
        "",
    ],
)
def test_a_query_writes_nothing_not_even_files_that_it_may_read(index, tmp_path, statement):
    data = tmp_path / "first.parquet"
    before = data.read_bytes()
    with pytest.raises(ConfigError):
        index.sql(statement.format(data))
    assert data.read_bytes() == before
    assert index.sql("select count(*) from samples").item() == 5


def test_every_form_of_a_query_is_answered(index):
    for text in (
        "select 1 as x;",
        "-- a note\nselect 1 as x -- and another",
        "with q as (select 1 as x) from q",
        "values (1)",
    ):
        assert index.sql(text).item() == 1
    for text in ("explain select 1", "explain analyze select 1", "describe samples", "summarize samples"):
        assert index.sql(text).height > 0
    assert index.sql("pivot samples on n using count(*)").height == 5
    assert index.sql("select sample_id from samples order by n desc nulls last limit 2").rows() == [(3,), (1,)]


def test_everything_is_done_where_it_is_allowed(index, tmp_path):
    index.sql(f"copy samples to '{tmp_path}/out.csv'", allow_files=True)
    assert (tmp_path / "out.csv").read_text().splitlines()[:2] == ["sample_id,n", "0,5"]
    assert index.sql("create table t as select 3 as x; select x from t", allow_files=True).item() == 3
    with pytest.raises(ConfigError, match="returns no table"):
        index.sql("", allow_files=True)


def test_a_query_sees_no_variable_of_python(index):
    for allowed in (False, True):
        with pytest.raises(ConfigError, match="does not exist"):
            index.sql("select * from statement", allow_files=allowed)
