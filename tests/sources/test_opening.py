"""Which source a user's object, path or pattern leads to, and the words where it leads nowhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import torch.utils.data
from source_contract import check_columnar, rows

import arrowds
from arrowds.errors import MetricFailedError, SourceError, UnreadableFileError, UnsupportedError
from arrowds.indexed_dataset import write_indexed_dataset
from arrowds.sources import DatasetSource, MegatronSource, TableSource, TorchSource, open_source

TABLE = pa.table({"x": [3, 1, 2], "text": ["a", None, "c"]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two parquet files, in a subfolder and beside Spark's and the file system's own files."""
    (tmp_path / "deep").mkdir()
    pq.write_table(TABLE[2:], tmp_path / "deep" / "b.parquet")
    pq.write_table(TABLE[:2], tmp_path / "a.parquet")
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / "_temporary").mkdir()
    (tmp_path / "_temporary" / "c.parquet").touch()
    (tmp_path / ".hidden.parquet").touch()
    (tmp_path / "README.md").touch()
    return tmp_path


def test_paths_patterns_folders_and_lists(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = TABLE.to_pylist()
    a, b = folder / "a.parquet", folder / "deep" / "b.parquet"
    for data in (folder, str(folder), f"{folder}/**/[ab].parquet", [a, str(b)], (str(a), f"{folder}/deep/*"), [folder]):
        assert rows(open_source(data), 0, 3) == expected
    monkeypatch.chdir(folder)
    assert rows(open_source("a.parquet"), 0, 2) == expected[:2]
    assert rows(open_source("*.parquet"), 0, 2) == expected[:2]
    assert rows(open_source([b, a]), 0, 3) == expected[2:] + expected[:2], "a list keeps its order"
    assert open_source([a, b]).description == "parquet, 2 files, columns x, text"
    assert open_source(folder).fingerprint() == open_source([a, b]).fingerprint()


def test_home_folder_is_expanded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    for data in ("~", "~/**/[ab].parquet", ["~/a.parquet", "~/deep/b.parquet"]):
        assert rows(open_source(data), 0, 3) == TABLE.to_pylist()


def check_index_is_no_data(folder: Path, index: Path) -> None:
    assert rows(open_source(folder), 0, 3) == TABLE.to_pylist()
    assert rows(open_source(f"{folder}/**/*.parquet"), 0, 3) == TABLE.to_pylist()
    with pytest.raises(UnreadableFileError, match="no data file"):
        open_source(index)


def test_index_beside_its_data_is_no_data(folder: Path) -> None:
    index = folder / "idx"
    (folder / "_temporary" / "c.parquet").unlink()
    metric = arrowds.metrics.expr("x", pl.col("x"))
    for _ in range(2):
        assert arrowds.analyze(folder, metric, index).num_samples == 3
    assert arrowds.analyze(f"{folder}/**/*.parquet", metric, index, overwrite=True).num_samples == 3
    check_index_is_no_data(folder, index)
    values = next(index.glob("metrics/x/values"))
    assert len(open_source(sorted(values.rglob("*.parquet"))[:1])) == 3, "asked for by name, they are data"


def test_unfinished_index_beside_its_data_is_no_data(folder: Path) -> None:
    def fail(batch: pa.RecordBatch) -> None:
        raise RuntimeError

    (folder / "_temporary" / "c.parquet").unlink()
    metrics = [arrowds.metrics.expr("x", pl.col("x")), arrowds.metrics.function("m", fail, columns=["x"])]
    with pytest.raises(MetricFailedError):
        arrowds.analyze(folder, metrics, folder / "idx", workers=1)
    assert any((folder / "idx").rglob("*"))
    check_index_is_no_data(folder, folder / "idx")


def test_name_with_glob_characters_that_exists_is_a_name(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "part[1].parquet")
    assert len(open_source(tmp_path / "part[1].parquet")) == 3


def test_paths_that_lead_nowhere_say_so(folder: Path) -> None:
    with pytest.raises(UnreadableFileError, match=r"no such file or folder: .*gone\.parquet"):
        open_source(folder / "gone.parquet")
    with pytest.raises(UnreadableFileError, match=r"no file matches .*/\*\.csv"):
        open_source(f"{folder}/*.csv")
    with pytest.raises(SourceError, match=r"README\.md by its name; known endings are \.parquet"):
        open_source(folder / "README.md")
    (folder / "empty").mkdir()
    with pytest.raises(UnreadableFileError, match=r"no data file in .*empty; looked for \.parquet"):
        open_source(folder / "empty")
    (folder / "c.csv").write_text("x\n1\n")
    with pytest.raises(SourceError, match=r"several formats \(\.csv, \.parquet\)"):
        open_source(folder)
    (folder / "c.jsonl.xz").touch()
    for name in ("c.jsonl.xz", "c.parquet.gz", "c.gz"):
        (folder / name).touch()
        with pytest.raises(
            UnsupportedError, match=rf"{name}: of compressed files, only .* \(\.gz, \.zst, \.bz2 behind"
        ):
            open_source(folder / name)


@pytest.mark.parametrize("url", ["hf://datasets/x", "https://example.org/*.csv"])
def test_addresses_of_other_services_are_refused(url: str) -> None:
    with pytest.raises(UnsupportedError, match=r"expected a path, or s3://, gs:// or az://; copy the data first"):
        open_source(url)


def test_source_is_returned_as_it_is() -> None:
    source = TableSource(TABLE)
    assert open_source(source) is source


@pytest.mark.parametrize(
    "data",
    [
        TABLE,
        pa.concat_tables([TABLE[:1], TABLE[1:]]),
        TABLE.to_batches()[0],
        pl.from_arrow(TABLE),
        pl.from_arrow(TABLE).lazy(),
        pa.dataset.dataset(TABLE),
        TABLE.replace_schema_metadata({"a": "b"}),
        TABLE.cast(pa.schema([pa.field("x", pa.int64(), nullable=False), pa.field("text", pa.string())])),
        pa.concat_tables([TABLE, TABLE])[3:],
    ],
    ids=["table", "chunks", "batch", "polars", "lazy", "dataset", "metadata", "no nulls", "slice"],
)
def test_tables_of_every_kind_read_the_same(data: object) -> None:
    source = open_source(data)
    assert source.concurrent
    check_columnar(source, TABLE)
    assert source.fingerprint() == TableSource(TABLE).fingerprint()


def test_slice_of_a_table_is_pickled_alone() -> None:
    import cloudpickle

    table = pa.table({"x": np.arange(1_000_000)})
    assert len(cloudpickle.dumps(open_source(table[10:20]))) < 10_000


def test_pyarrow_dataset_with_hive_folders_schema_evolution_and_filter(tmp_path: Path) -> None:
    table = pa.table({"x": range(10), "new": [f"n{i}" for i in range(10)]})
    for year, (a, b) in {2023: (0, 4), 2024: (4, 10)}.items():
        (tmp_path / f"year={year}").mkdir()
        part = table[a:b] if year == 2024 else table[a:b].select(["x"])
        pq.write_table(part, tmp_path / f"year={year}" / "a.parquet", row_group_size=3)
    schema = pa.schema([("x", pa.int64()), ("new", pa.string()), ("year", pa.int32())])
    dataset = pa.dataset.dataset(tmp_path, schema=schema, partitioning="hive")
    expected = dataset.to_table()
    assert expected["new"].null_count == 4
    source = open_source(dataset)
    assert isinstance(source, DatasetSource)
    assert source.part_boundaries(4) == [0, 4, 7, 10]
    check_columnar(source, expected)
    assert source.fingerprint() == TableSource(expected).fingerprint(), "whatever the row groups"
    filtered = open_source(dataset.filter(pa.dataset.field("x") > 6))
    assert [row["x"] for row in rows(filtered, 0, 3)] == [7, 8, 9]


def test_pyarrow_dataset_of_csv_is_cut_at_files(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text("x\n" + "".join(f"{i}\n" for i in range(5)))
    source = open_source(pa.dataset.dataset(tmp_path, format="csv"))
    assert source.part_boundaries(3) == [0, 5, 10]
    check_columnar(source, pa.table({"x": [*range(5), *range(5)]}))


def test_pairs_by_prefix_file_folder_and_pattern(tmp_path: Path) -> None:
    write_indexed_dataset(tmp_path / "my.tokens", np.arange(6), np.array([2, 4]), dtype="int32")
    for data in (
        tmp_path / "my.tokens",
        tmp_path / "my.tokens.bin",
        tmp_path / "my.tokens.idx",
        tmp_path,
        f"{tmp_path}/*",
    ):
        source = open_source(data)
        assert isinstance(source, MegatronSource)
        assert rows(source, 1, 2, ["input_ids"]) == [{"input_ids": [2, 3, 4, 5]}]
    write_indexed_dataset(tmp_path / "other", np.arange(6), np.array([2, 4]), dtype="int32")
    with pytest.raises(SourceError, match=r"expected one \.bin/\.idx pair"):
        open_source(tmp_path)
    (tmp_path / "other.idx").unlink()
    with pytest.raises(UnreadableFileError, match=r"other\.idx: No such file"):
        open_source(tmp_path / "other.bin")


@pytest.mark.parametrize("data", [[1, 2], (1.0, 2.0), range(3), np.arange(3)])
def test_whatever_has_length_and_items_is_map_style(data: object) -> None:
    assert isinstance(open_source(data), TorchSource)


@pytest.mark.parametrize("data", [None, 7, iter([1]), b"bytes", {1, 2}, pa.array([1])])
def test_anything_else_is_refused_with_what_is_accepted(data: object) -> None:
    with pytest.raises(SourceError, match=r"can't read a .* as a dataset; accepted are: a path, glob pattern"):
        open_source(data)


class Stream(torch.utils.data.IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(3))

    def __len__(self) -> int:
        return 3


@pytest.mark.parametrize("data", [Stream(), (i for i in range(3)), iter([1]), map(str, [1])])
def test_what_yields_one_sample_after_the_other_is_refused_with_what_to_do(data: object) -> None:
    with pytest.raises(SourceError, match=r"as a dataset; .*by their number\. Pass list\(data\) .*from_generator"):
        open_source(data)


def test_mapping_is_refused_with_a_hint() -> None:
    with pytest.raises(SourceError, match=r"keys 'x' is not a dataset; make columns a table with pyarrow\.table"):
        open_source({"x": [1]})


def test_column_named_twice_is_refused() -> None:
    with pytest.raises(SourceError, match="column 'x' appears more than once"):
        open_source(pa.table([[1], [2]], names=["x", "x"]))
