"""Hugging Face datasets: indices mapping, formats and a fingerprint that is that of the rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_contract import check_columnar, rows

from arrowds.errors import SourceError
from arrowds.sources import HuggingFaceSource, TableSource, open_source

datasets = pytest.importorskip("datasets")
TABLE = pa.table({"x": range(9), "text": [f"t{i}" for i in range(9)], "ids": [list(range(i % 3)) for i in range(9)]})


def make() -> object:
    return datasets.Dataset(TABLE)


def test_rows_equal_the_table_whatever_the_format() -> None:
    check_columnar(open_source(make()), TABLE)
    assert rows(open_source(make().with_format("numpy")), 0, 9) == TABLE.to_pylist()
    assert rows(open_source(make().with_transform(lambda batch: {"z": [0] * 9})), 0, 9) == TABLE.to_pylist()


@settings(max_examples=15, deadline=None)
@given(ids=st.lists(st.integers(0, 8), min_size=1, max_size=12))
def test_indices_mapping_is_respected(ids: list[int]) -> None:
    source = open_source(make().select(ids))
    assert isinstance(source, HuggingFaceSource)
    check_columnar(source, TABLE.take(ids), every_range=len(ids) < 5)
    assert source.fingerprint() == TableSource(TABLE.take(ids)).fingerprint()
    assert [batch.num_rows for batch in source.read(0, len(ids))] == [len(ids)], "not a batch for each row"


def test_saved_and_sharded_dataset_opens_by_its_folder(tmp_path: Path) -> None:
    make().shuffle(seed=1).save_to_disk(tmp_path / "saved", num_shards=3)
    expected = datasets.load_from_disk(tmp_path / "saved")
    assert rows(open_source(tmp_path / "saved"), 0, 9) == expected.to_list()
    assert rows(open_source(expected), 0, 9) == expected.to_list()


def test_fingerprint_is_the_same_in_another_process() -> None:
    """The dataset's own fingerprint is random where a mapped function can't be hashed."""
    code = (
        "import datasets, threading; from arrowds.sources import open_source\n"
        "lock = threading.Lock()\n"
        "data = datasets.Dataset.from_dict({'x': [1, 2, 3]}).map(lambda row: {'y': row['x'] + int(lock.locked())})\n"
        "print(open_source(data.select([2, 0])).fingerprint())"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    expected = pa.table({"x": [3, 1], "y": [3, 1]})
    assert run.stdout.strip() == TableSource(expected).fingerprint()


def test_dictionary_of_splits_and_stream_are_refused() -> None:
    with pytest.raises(SourceError, match="keys 'train', 'test' is not a dataset; choose one split"):
        open_source(datasets.DatasetDict({"train": make(), "test": make()}))
    with pytest.raises(SourceError, match="IterableDataset"):
        open_source(make().to_iterable_dataset())
