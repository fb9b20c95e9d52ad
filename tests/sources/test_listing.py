"""Folders are read by their own manifest, or whole, or not at all: never other rows than those that they hold."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from source_contract import rows

from arrowds.errors import SourceError, UnreadableFileError
from arrowds.sources import open_source

datasets = pytest.importorskip("datasets")
TABLE = pa.table({"x": [3, 1, 2]})


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A folder of `datasets` with the cache of a `.map` beside the data."""
    folder = tmp_path / "saved"
    datasets.Dataset(TABLE).save_to_disk(folder, num_shards=2)
    reloaded = datasets.load_from_disk(folder)
    reloaded.map(lambda row: {"x": row["x"] + 100}, cache_file_name=str(folder / "cache-0123456789abcdef.arrow"))
    assert sorted(path.suffix for path in folder.iterdir()) == [".arrow"] * 3 + [".json"] * 2
    return folder


def test_saved_dataset_is_read_without_its_cache(saved: Path) -> None:
    expected = datasets.load_from_disk(saved).to_list()
    assert rows(open_source(saved), 0, 3) == expected == TABLE.to_pylist()
    for data in (f"{saved}/*.arrow", f"{saved.parent}/**/*.arrow", saved.parent):
        assert rows(open_source(data), 0, len(open_source(data))) == expected
    cache = open_source(saved / "cache-0123456789abcdef.arrow")
    assert rows(cache, 0, 1) == [{"x": 103}], "asked for by name, it is data"


def test_saved_dataset_that_lacks_a_file_is_refused(saved: Path) -> None:
    (saved / "data-00001-of-00002.arrow").unlink()
    with pytest.raises(
        UnreadableFileError, match=r"data-00001-of-00002\.arrow is missing, though .*state\.json names it"
    ):
        open_source(saved)


def test_splits_are_named(tmp_path: Path) -> None:
    both = datasets.DatasetDict({"train": datasets.Dataset(TABLE), "test": datasets.Dataset(TABLE[:1])})
    both.save_to_disk(tmp_path / "both")
    for data in (tmp_path / "both", tmp_path):
        with pytest.raises(SourceError, match=r"both holds the splits 'train', 'test'; pass .* such as '.*both/train'"):
            open_source(data)
    assert rows(open_source(tmp_path / "both" / "test"), 0, 1) == [{"x": 3}]


def test_builder_cache_of_several_splits_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"x": 3}\n')
    files = {"train": str(tmp_path / "in.jsonl"), "test": str(tmp_path / "in.jsonl")}
    loaded = datasets.load_dataset("json", data_files=files, cache_dir=str(tmp_path / "cache"))
    folder = Path(loaded["train"].cache_files[0]["filename"]).parent
    with pytest.raises(SourceError, match=r"holds the splits 'test', 'train'; pass the files of one"):
        open_source(folder)
    assert rows(open_source(f"{folder}/*-train*.arrow"), 0, 1) == [{"x": 3}]
    (next(folder.glob("*-test*.arrow"))).unlink()
    (folder / "cache-0123456789abcdef.arrow").touch()
    assert rows(open_source(folder), 0, 1) == [{"x": 3}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("_delta_log/00000000000000000000.json", "{}", "is a Delta table, whose files include deleted rows"),
        ("metadata/v1.metadata.json", "{}", "is an Iceberg table"),
        (".hoodie/hoodie.properties", "", "is a Hudi table"),
        ("index.json", '{"version": 2, "shards": []}', "is a streaming dataset of shards"),
    ],
)
def test_tables_whose_rows_only_their_manifest_tells_are_refused(
    tmp_path: Path, name: str, content: str, message: str
) -> None:
    pq.write_table(TABLE, tmp_path / "part-0.parquet")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    for data in (tmp_path, f"{tmp_path}/*.parquet"):
        with pytest.raises(SourceError, match=message):
            open_source(data)
    assert len(open_source([tmp_path / "part-0.parquet"])) == 3, "asked for by name, it is data"


@pytest.mark.parametrize("other", ["b.jsonl.xz", "b.mds", "b.warc.gz", "b.npy"])
def test_data_that_can_not_be_read_is_not_passed_over(tmp_path: Path, other: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n')
    (tmp_path / other).touch()
    with pytest.raises(
        SourceError, match=rf"also holds {other}, which can't be read; pass a pattern such as '.*jsonl'"
    ):
        open_source(tmp_path)
    assert len(open_source(f"{tmp_path}/**/*.jsonl")) == 1


def test_description_in_json_is_not_taken_for_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n')
    (tmp_path / "config.json").write_text(json.dumps({"x": 2}))
    with pytest.raises(SourceError, match=r"a\.jsonl and config\.json: are both data"):
        open_source(tmp_path)
    assert len(open_source([tmp_path / "a.jsonl", tmp_path / "config.json"])) == 2


def test_description_of_a_hub_dataset_is_no_data(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "train-00000-of-00001.parquet")
    (tmp_path / "dataset_infos.json").write_text(json.dumps({"default": {"splits": {"train": {}, "test": {}}}}))
    assert rows(open_source(tmp_path), 0, 3) == TABLE.to_pylist()


def test_other_files_are_named_in_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n')
    (tmp_path / "README.md").touch()
    with caplog.at_level(logging.WARNING):
        open_source(tmp_path)
        assert not caplog.records
        (tmp_path / "download.sh").touch()
        open_source(tmp_path)
    assert caplog.messages == [f"not read as data in {tmp_path}: download.sh"]


def test_endings_are_read_in_either_case(tmp_path: Path) -> None:
    (tmp_path / "a.JSONL").write_text('{"x": 1}\n')
    (tmp_path / "b.jsonl").write_text('{"x": 2}\n')
    assert len(open_source(tmp_path)) == 2
