"""The whole build on paths, data and metrics that are out of the ordinary."""

from __future__ import annotations

import os
from collections import Counter

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_files import assert_same, contents

import arrowds

TABLE = pa.table({"x": [[1, 2], [3], []]})


def analyze(source, metrics, path, **options) -> arrowds.Index:
    return arrowds.analyze(source, metrics, path, progress=False, **options)


def test_paths_may_be_relative_begin_with_a_tilde_or_be_links(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    analyze(TABLE, arrowds.metrics.seqlen("x"), "relative")
    analyze(TABLE, arrowds.metrics.seqlen("x"), "~/index")
    analyze(TABLE, arrowds.metrics.seqlen("x"), tmp_path / "link")
    analyze(TABLE, arrowds.metrics.seqlen("x"), "link", overwrite=True)
    assert arrowds.open_index("~/index").num_samples == 3
    assert arrowds.open_index("link", verify=True).version == 2
    assert_same(tmp_path / "home" / "index", tmp_path / "relative")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["disk", "home", "link", "relative"]


def test_a_working_directory_that_changes_during_the_run_does_not_matter(tmp_path, monkeypatch):
    (tmp_path / "start").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "start")

    def moving(batch):
        os.chdir(tmp_path / "elsewhere")
        return batch["x"]

    table = pa.table({"x": np.arange(3000)})
    index = analyze(table, arrowds.metrics.function("m", moving), "index", workers=1)
    assert index.path == tmp_path / "start" / "index"
    assert contents(tmp_path / "elsewhere") == {}


def test_an_empty_folder_and_one_row_will_do(tmp_path):
    index = analyze(pa.table({"x": [[7]]}), arrowds.metrics.vocab_rarity("x"), tmp_path)
    assert index["vocab_rarity"].values.tolist() == [0.0]
    assert index.num_samples == 1


def test_totals_alone_are_an_index(tmp_path):
    index = analyze(TABLE, arrowds.metrics.token_counts("x"), tmp_path, workers=2)
    assert index.metrics == []
    assert index.totals["token_counts"].tolist() == [0, 1, 1, 1]
    manifest, source, total = sorted(contents(tmp_path))
    assert source.startswith("sources/")
    assert manifest == "manifests/00000001.json" and total.startswith("totals/token_counts/segment=")


def test_hundreds_of_metrics(tmp_path):
    chosen = [arrowds.metrics.expr(f"m{number}", pl.col("y") + number) for number in range(150)]
    index = analyze(pa.table({"y": np.arange(1500)}), chosen, tmp_path)
    assert len(index.metrics) == 150
    assert [int(index[f"m{number}"][3]) for number in (0, 77, 149)] == [3, 80, 152]


def test_pandas_frames_are_tables(tmp_path):
    pandas = pytest.importorskip("pandas", reason="an optional kind of source")
    frame = pandas.DataFrame({"y": [3, 1, 2]}, index=["a", "b", "c"])
    assert analyze(frame, arrowds.metrics.expr("m", pl.col("y")), tmp_path)["m"].order.tolist() == [1, 2, 0]


def test_the_manifest_lists_every_file_and_only_those(tmp_path):
    chosen = [arrowds.metrics.seqlen("x"), arrowds.metrics.vocab_rarity("x")]
    index = analyze(TABLE, chosen, tmp_path)
    assert sorted(contents(tmp_path)) == sorted(["manifests/00000001.json", *index.manifest.files])


def test_the_values_lie_in_sample_order_and_the_buckets_in_that_of_the_values(tmp_path):
    """What people query without arrowds, and rebuild the maps from."""
    values = np.random.default_rng(0).permutation(5000)
    index = analyze(pa.table({"y": values}), arrowds.metrics.expr("m", pl.col("y")), tmp_path)
    assert pl.read_parquet(tmp_path / "metrics/m/values/*/*.parquet")["value"].to_list() == values.tolist()
    bucketed = pl.read_parquet(tmp_path / "metrics/m/buckets/*/*/*.parquet")
    assert bucketed["sample_id"].to_list() == np.argsort(values, kind="stable").tolist()
    assert index["m"].values.tolist() == values.tolist()


@given(
    rows=st.lists(st.lists(st.integers(0, 300), max_size=5), min_size=1, max_size=40),
    group=st.integers(1, 17),
)
@settings(max_examples=12, deadline=None)
def test_an_index_of_a_file_is_that_of_its_rows(tmp_path_factory, rows, group):
    folder = tmp_path_factory.mktemp("data")
    pq.write_table(pa.table({"x": pa.array(rows, pa.list_(pa.uint16()))}), folder / "a.parquet", row_group_size=group)
    chosen = [arrowds.metrics.seqlen("x"), arrowds.metrics.token_counts("x")]
    index = analyze(folder / "a.parquet", chosen, folder / "index")
    lengths = [len(row) for row in rows]
    assert index["seqlen"].order.tolist() == sorted(range(len(rows)), key=lambda i: (lengths[i], i))
    counts = Counter(token for row in rows for token in row)
    assert index.totals["token_counts"].tolist() == [counts[n] for n in range(max(counts, default=-1) + 1)]
    index.verify()


def test_a_build_of_a_torch_dataset_follows_its_collate_function(tmp_path):
    """Parts that another collate function made are not kept."""

    def source(by):
        return arrowds.sources.TorchSource(list(range(3000)), collate_fn=lambda items: np.array(items) * by)

    def failing(batch):
        if batch[-1] > 4000:
            raise ValueError
        return batch

    fn = arrowds.metrics.function("m", failing, version="same")
    with pytest.raises(arrowds.errors.MetricFailedError):
        analyze(source(2), fn, tmp_path / "index", workers=1)
    assert list((tmp_path / "index").glob("builds/*/runs/m/00000.arrow"))
    index = analyze(source(1), fn, tmp_path / "index", workers=1)
    assert index["m"].values.tolist() == list(range(3000))
