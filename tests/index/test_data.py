"""The rows of the samples: from the files that an index has recorded, whatever their format, number and history."""

from __future__ import annotations

import gzip
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import arrowds
from arrowds.errors import ConfigError, IndexCorruptError, MissingColumnError, SourceError, UnreadableFileError
from arrowds.indexed_dataset import write_indexed_dataset
from arrowds.sources import FileSource, open_source
from arrowds.sources.tokenized import TokenizedSource

ROWS = pl.DataFrame(
    {
        "n": np.random.default_rng(3).integers(0, 9, 50),
        "text": [f"row {number} 'quoted', \"twice\"" for number in range(50)],
    }
)
CUTS = [0, 7, 7, 20, 21, 50]  # five files, one of which is empty
N = arrowds.metrics.expr("doubled", pl.col("n") * 2)


def write_jsonl(rows: pl.DataFrame, path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows.to_dicts()))


def write_csv(rows: pl.DataFrame, path: Path) -> None:
    with gzip.open(path.with_name(f"{path.name}.gz"), "wb") as file:
        rows.write_csv(file)


WRITERS: dict[str, Callable[[pl.DataFrame, Path], object]] = {
    "parquet": lambda rows, path: rows.write_parquet(path, row_group_size=4),
    "arrow": lambda rows, path: rows.write_ipc(path, compat_level=pl.CompatLevel.oldest()),
    "jsonl": write_jsonl,
    "csv": write_csv,
}


def write_files(folder: Path, kind: str, first: int, last: int) -> list[Path]:
    """Some of the files, in a folder whose name SQL and hive partitions would stumble over."""
    folder = folder / "it's=data"
    folder.mkdir(exist_ok=True)
    for number in range(first, last):
        WRITERS[kind](ROWS[CUTS[number] : CUTS[number + 1]], folder / f"{number}.{kind}")
    return sorted(folder.iterdir())


@pytest.fixture(params=WRITERS)
def grown(request, tmp_path) -> arrowds.Index:
    """Three files, two more appended, under one of the names that also stands in the data."""
    if request.param in ("parquet", "arrow"):
        files = write_files(tmp_path, request.param, 0, 3)
    else:  # an empty text file has no columns
        files = [path for path in write_files(tmp_path, request.param, 0, 3) if path.name[0] != "1"]
    arrowds.analyze(files, N, tmp_path / "index", workers=1, progress=False)
    files = write_files(tmp_path, request.param, 3, 5)
    return arrowds.append(files[-2:], tmp_path / "index", workers=1, progress=False)


def check_rows(index: arrowds.Index) -> None:
    wanted = ROWS.with_row_index("sample_id")
    for found in (index.sql("select * from data order by sample_id"), index.scan_data().collect()):
        assert found.columns == wanted.columns
        assert found.rows() == wanted.rows()
        assert found["sample_id"].dtype == pl.UInt32
    joined = index.sql("select sample_id, doubled, n, text from samples join data using (sample_id) order by sample_id")
    assert joined.rows() == [(i, 2 * n, n, text) for i, (n, text) in enumerate(ROWS.rows())]
    ids = [49, 0, 7, 7, 20, 19, 6]
    assert index.samples(ids).rows() == ROWS[ids].rows()
    assert index.samples(np.array(ids, np.uint8), columns=["text"]).rows() == ROWS[ids].select("text").rows()
    assert index.samples(index["doubled"].order, ["n"])["n"].to_list() == sorted(ROWS["n"])


def test_rows_of_all_formats_are_found_by_their_ids_before_and_after_a_compaction(grown):
    check_rows(grown)
    check_rows(pickle.loads(pickle.dumps(grown)))
    check_rows(arrowds.compact(grown.path, workers=1))
    arrowds.vacuum(grown.path)
    check_rows(arrowds.open_index(grown.path, verify=True))


def test_the_largest_group_of_sharded_data_is_that_of_the_whole(tmp_path):
    rows = pl.DataFrame({"key": np.random.default_rng(0).zipf(1.3, 4000) % 97, "size": np.arange(4000) ** 2 % 1009})
    for number in range(8):
        rows[number * 500 : number * 500 + 500].write_parquet(tmp_path / f"{number}.parquet")
    metric = arrowds.metrics.expr("size", pl.col("size"))
    index = arrowds.analyze(tmp_path, metric, tmp_path / "index", workers=1, progress=False)
    query = (
        "select key, sum(samples.size) as total from samples join data using (sample_id) group by all order by 2 desc"
    )
    wanted = rows.group_by("key").agg(pl.col("size").sum().alias("total")).sort("total", descending=True)
    assert index.sql(f"{query} limit 8")["total"].to_list() == wanted["total"].head(8).to_list()
    lazy = index.scan().join(index.scan_data().select("sample_id", "key"), on="sample_id")
    found = lazy.group_by("key").agg(pl.col("size").sum().alias("total")).sort("total", descending=True).collect()
    assert found["total"].head(8).to_list() == wanted["total"].head(8).to_list()


def test_tokens_of_indexed_datasets_and_the_text_of_tokenized_ones(tmp_path):
    tokens = [np.arange(length, dtype=np.int32) + length for length in (3, 1, 5)]
    write_indexed_dataset(tmp_path / "tokens", np.concatenate(tokens), np.array([3, 1, 5]), dtype=np.int32)
    seqlen = arrowds.metrics.seqlen("input_ids")
    index = arrowds.analyze(tmp_path / "tokens", seqlen, tmp_path / "a", workers=1, progress=False)
    assert index.samples([2, 0], ["input_ids"])["input_ids"].to_list() == [tokens[2].tolist(), tokens[0].tolist()]
    assert index.sql("select len(input_ids) as n, seqlen from samples join data using (sample_id)").rows() == [
        (3, 3),
        (1, 1),
        (5, 5),
    ]
    ROWS.write_parquet(tmp_path / "text.parquet")
    source = TokenizedSource(open_source(tmp_path / "text.parquet"), column="text", tokenizer="bytes")
    metric = arrowds.metrics.seqlen(source.schema.names[-1])
    index = arrowds.analyze(source, metric, tmp_path / "b", workers=1, progress=False)
    assert index.samples([3, 1]).rows() == ROWS[[3, 1]].rows()
    check = index.sql("select bool_and(strlen(text) = seqlen) from samples join data using (sample_id)")
    assert metric.name == "seqlen" and check.item() is True


def test_a_column_that_is_called_like_the_ids_is_renamed(tmp_path):
    pl.DataFrame({"Sample_ID": ["a", "b"], "x": [1, 2]}).write_parquet(tmp_path / "data.parquet")
    index = arrowds.analyze(
        tmp_path / "data.parquet", arrowds.metrics.expr("x", pl.col("x")), tmp_path / "index", progress=False
    )
    for found in (index.sql("select * from data"), index.scan_data().collect()):
        assert found.columns == ["sample_id", "data_Sample_ID", "x"]
        assert found.rows() == [(0, "a", 1), (1, "b", 2)]
    assert index.samples([1], ["Sample_ID"]).rows() == [("b",)]


def test_nothing_is_read_that_a_query_does_not_use(tmp_path, monkeypatch):
    index = arrowds.analyze(write_files(tmp_path, "jsonl", 3, 5), N, tmp_path / "index", workers=1, progress=False)
    asked = []
    read = FileSource._read

    def noted(self, start, stop, columns):
        asked.append((start, stop, columns))
        return read(self, start, stop, columns)

    monkeypatch.setattr(FileSource, "_read", noted)
    lazy = index.scan_data()
    assert not asked
    assert lazy.filter(pl.col("n") >= 0).select(pl.len()).collect().item() == 30
    assert lazy.select("text").head(2).collect().height == 2
    assert index.samples([4, 5]).height == 2
    assert [columns for _, _, columns in asked] == [["n"], ["text"], ["n", "text"]]
    assert asked[-1][:2] == (4, 6)
    assert index.samples([]).rows() == []
    assert len(asked) == 3


def test_rows_that_are_gone_or_changed_are_refused_where_they_are_asked_for(tmp_path):
    files = write_files(tmp_path, "parquet", 0, 5)
    index = arrowds.analyze(files, N, tmp_path / "index", workers=1, progress=False)
    open_before = arrowds.open_index(index.path)
    assert open_before.samples([0]).height == 1
    ROWS[7:20].reverse().write_parquet(files[2])
    for asked in (
        lambda: index.sql("select * from data"),
        lambda: index.samples([0]),
        lambda: index.scan_data(),
        lambda: open_before.samples([8]),
        lambda: open_before.scan_data().collect(),
    ):
        with pytest.raises(Exception, match=r"2\.parquet changed since") as caught:
            asked()
        assert isinstance(caught.value, UnreadableFileError) or "ComputeError" in str(caught.type)
    with pytest.raises(UnreadableFileError, match=r"2\.parquet changed since"):
        open_before.sql("select * from data")
    assert index.sql("select max(doubled) from samples").item() == 2 * ROWS["n"].max()
    files[2].unlink()
    with pytest.raises(UnreadableFileError, match=r"2\.parquet"):
        arrowds.open_index(index.path).sql("select * from data")


def test_rows_that_were_given_and_not_read_from_files_can_not_be_shown(tmp_path):
    index = arrowds.analyze(ROWS, N, tmp_path / "index", progress=False)
    for asked in (lambda: index.samples([0]), index.scan_data, lambda: index.sql("from data")):
        with pytest.raises(SourceError, match="given as arrow table, columns n, text, not as files"):
            asked()
    with pytest.raises(ConfigError, match="DuckDB refused"):
        index.sql("from database")
    assert "data" not in index.sql("show tables")["name"].to_list()


@pytest.mark.parametrize("ids", [[50], [-1], [0, 2**40], np.array([2**63], np.uint64)])
def test_ids_that_are_not_there_are_named(tmp_path, ids):
    index = arrowds.analyze(write_files(tmp_path, "parquet", 0, 5), N, tmp_path / "index", progress=False)
    with pytest.raises(ConfigError, match=rf"there is no sample {max(ids, key=abs)}; the index has 50 samples"):
        index.samples(ids)
    with pytest.raises(ConfigError, match="expected the ids of samples, got float64"):
        index.samples([1.0])
    with pytest.raises(MissingColumnError, match="no column 'z'; the data has 'n', 'text'"):
        index.samples([1], ["z"])


def test_columns_that_differ_between_additions_are_widened_or_left_out(tmp_path):
    pq.write_table(pa.table({"n": pa.array([1, 2], pa.int32()), "text": ["a", "b"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"m": [1.5], "n": pa.array([2**40], pa.int64())}), tmp_path / "b.parquet")
    metric = arrowds.metrics.expr("n", pl.col("n").cast(pl.Int64))
    arrowds.analyze(tmp_path / "a.parquet", metric, tmp_path / "index", progress=False)
    index = arrowds.append(tmp_path / "b.parquet", tmp_path / "index", progress=False)
    for found in (index.sql("from data"), index.scan_data().collect()):
        assert found.columns == ["sample_id", "n"]
        assert found["n"].to_list() == [1, 2, 2**40]
    assert index.samples([2, 0]).rows() == [(2**40,), (1,)]


def test_a_damaged_record_is_named(tmp_path):
    index = arrowds.analyze(write_files(tmp_path, "parquet", 0, 5), N, tmp_path / "index", progress=False)
    (record,) = (tmp_path / "index" / "sources").iterdir()
    record.write_bytes(record.read_bytes().replace(b"parquet", b"parque7"))
    with pytest.raises(IndexCorruptError, match=rf"sources/{record.name} has changed since it was written"):
        index.samples([0])
    with pytest.raises(IndexCorruptError, match=record.name):
        index.verify()
