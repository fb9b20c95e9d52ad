"""index.head and ``arrowds head``: the rows behind a number, against Polars over the same data."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal
from typer.testing import CliRunner

import arrowds
from arrowds.cli import app
from arrowds.errors import ConfigError, SourceError
from arrowds.metrics import column

ROWS = 500


@pytest.fixture(scope="module")
def data() -> pl.DataFrame:
    rng = np.random.default_rng(3)
    loss = rng.gamma(2, 1, ROWS).round(2)
    return pl.DataFrame(
        {
            "text": [f"text number {row} " * (1 + row % 40) for row in range(ROWS)],
            "loss": pl.Series(loss, nan_to_null=True).scatter([5, 9], None),
            "language": rng.choice(["de", "en", "fr"], ROWS),
            "length": rng.integers(0, 9, ROWS),
        }
    )


@pytest.fixture(scope="module")
def index(data, tmp_path_factory) -> arrowds.Index:
    folder = tmp_path_factory.mktemp("looking")
    for number, part in enumerate((data[:300], data[300:])):
        part.write_parquet(folder / f"{number}.parquet")
    metrics = [column("loss", nulls="keep"), column("language"), column("length")]
    arrowds.analyze(folder / "0.parquet", metrics, folder / "index", progress=False)
    return arrowds.append(folder / "1.parquet", folder / "index", progress=False)


def expected(data, ids, metrics=("loss",)):
    """The rows of some ids as head has them."""
    rows = data.with_row_index("sample_id").with_columns(pl.col("sample_id").cast(pl.UInt64))
    valid = data["loss"].drop_nulls()
    chosen = rows[np.asarray(ids)]
    shares = [None if value is None else 100 * (valid <= value).sum() / len(valid) for value in chosen["loss"]]
    found = chosen.select("sample_id", *metrics)
    if metrics == ("loss",):
        found = found.with_columns(pl.Series("percentile", shares, dtype=pl.Float64))
    renamed = {name: f"data_{name}" for name in metrics}
    return pl.concat([found, chosen.select(pl.col(data.columns)).rename(renamed)], how="horizontal")


@pytest.mark.parametrize("largest", [False, True])
def test_the_largest_and_the_smallest_come_first(index, data, largest):
    ids = data.with_row_index("id").drop_nulls("loss").sort("loss", "id")["id"].to_numpy()
    ids = ids[::-1][:7] if largest else ids[:7]
    assert_frame_equal(index.head(7, metric="loss", largest=largest), expected(data, ids))


def test_samples_between_percentiles(index, data):
    ids = data.with_row_index("id").drop_nulls("loss").sort("loss", "id")["id"].to_numpy()
    n = len(ids)
    found = index.head(10_000, metric="loss", between=(90, 95.5))
    assert_frame_equal(found, expected(data, ids[int(n * 0.9) : int(n * 0.955)]))


def test_without_a_metric_the_first_samples_with_all_values(index, data):
    assert_frame_equal(index.head(12), expected(data, range(12), ("loss", "language", "length")))
    assert index.head(3, columns=[]).columns == ["sample_id", "loss", "language", "length"]
    assert index.head(3, columns=["text"])["text"].to_list() == data["text"][:3].to_list()


def test_a_condition_in_sql(index, data):
    ids = data.with_row_index("id").filter(pl.col("loss") > 2, pl.col("language") == "de").sort("loss", "id")["id"]
    found = index.head(5, metric="loss", where="loss > 2 and language = 'de' -- hard ones")
    assert found["sample_id"].to_list() == ids[:5].to_list()
    assert index.head(5, where="length = 3")["sample_id"].to_list() == np.flatnonzero(data["length"] == 3)[:5].tolist()


def test_options_that_make_no_sense(index):
    with pytest.raises(ConfigError, match="need a metric"):
        index.head(largest=True)
    with pytest.raises(ConfigError, match="one of where and between"):
        index.head(metric="loss", between=(0, 1), where="true")
    with pytest.raises(ConfigError, match="at least 1"):
        index.head(0)
    with pytest.raises(ConfigError, match="DuckDB refused"):
        index.head(where="nothing > 3")


def test_data_that_came_from_no_file(tmp_path):
    made = arrowds.analyze(pl.DataFrame({"n": [1, 2]}), column("n"), tmp_path, progress=False)
    with pytest.raises(SourceError):
        made.head()
    assert made.head(columns=[]).rows() == [(0, 1), (1, 2)]


def test_the_command_prints_what_the_method_returns(index):
    arguments = ["head", str(index.path), "--metric", "loss", "--largest", "-n", "4", "--show", "text"]
    run = CliRunner().invoke(app, [*arguments, "--json"])
    found = index.head(4, metric="loss", largest=True, columns=["text"])
    assert [json.loads(line) for line in run.output.splitlines()] == found.to_dicts()
    table = CliRunner().invoke(app, arguments).output
    assert all(str(row) in table for row in found["sample_id"])
    assert max(map(len, table.splitlines())) <= 250
    assert CliRunner().invoke(app, [*arguments, "--json", "--csv"]).exit_code == 2


def test_a_quoted_metric_and_a_column_of_its_name(tmp_path):
    pl.DataFrame({"x": [3, 1, 2]}).write_parquet(tmp_path / "data.parquet")
    metric = arrowds.metrics.expr("a-b.c", pl.col("x") * 2)
    made = arrowds.analyze(tmp_path / "data.parquet", metric, tmp_path / "index", progress=False)
    assert made.head(2, metric="a-b.c", where='"a-b.c" > 2').rows() == [(2, 4, 200 / 3, 2), (0, 6, 100.0, 3)]
