"""Folders of DeepSpeed's analyzer, whole, partial, old and damaged, read into an index."""

import logging
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from analyzer_oracle import FILES, Run, pair_bytes, run_oracle, save_case
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arrowds.errors import ConfigError, SourceError, UnreadableFileError
from arrowds.indexed_dataset import write_indexed_dataset
from arrowds.integrations import deepspeed as ads
from arrowds.integrations.deepspeed.stored_values import index_stored_values

TOTALS = ("sum", "remainders")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, Run, Path]:
    """A folder as the installed DeepSpeed wrote it."""
    folder = tmp_path_factory.mktemp("deepspeed")
    values, run = np.random.default_rng(0).integers(-5, 400, 900), Run(num_workers=3, num_threads_reduce=2)
    save_case(folder / "case", values, run)
    run_oracle(folder)
    return values, run, folder / "case" / "deepspeed"


def test_values_and_totals_are_read_and_written_again_without_a_difference(written, tmp_path: Path) -> None:
    values, run, folder = written
    index = ads.import_index(folder, tmp_path / "index")
    assert index["value"].values.tolist() == values.tolist()
    assert index["value"].values.dtype == np.int16
    assert index.totals["sum"].tolist() == [values.sum()]
    assert index.metrics == ["value"]
    splits = {name: count for name, count in asdict(run).items() if name != "batch_size"}
    ads.export_index(index, tmp_path / "exported", like=ads.AnalyzerRun(**splits))
    for metric, kinds in {"value": FILES, "sum": ("metric_value",), "remainders": ("metric_value",)}.items():
        assert pair_bytes(folder, metric, kinds) == pair_bytes(tmp_path / "exported", metric, kinds)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    columns=st.integers(1, 30).flatmap(
        lambda n: st.lists(st.lists(st.integers(-(2**62), 2**63 - 1), min_size=n, max_size=n), min_size=1, max_size=3)
    ),
    total=st.lists(st.integers(-(2**62), 2**63 - 1), min_size=1, max_size=5),
)
def test_what_was_exported_is_imported(tmp_path_factory: pytest.TempPathFactory, columns, total) -> None:
    folder = tmp_path_factory.mktemp("round_trip")
    values = {f"m{number}": pa.array(column, pa.int64()) for number, column in enumerate(columns)}
    first = index_stored_values(values, {"t": np.array(total)}, folder / "first", num_samples=len(columns[0]))
    ads.export_index(first, folder / "exported")
    again = ads.import_index(folder / "exported", folder / "again")
    assert {name: again[name].values.tolist() for name in again.metrics} == {
        name: column.to_pylist() for name, column in values.items()
    }
    assert again.totals["t"].tolist() == total
    ads.export_index(again, folder / "exported_again")
    for path in (folder / "exported").rglob("*.*"):
        assert path.read_bytes() == (folder / "exported_again" / path.relative_to(folder / "exported")).read_bytes()


@pytest.mark.parametrize("kept", [("index_to_metric", "index_to_sample"), ("sample_to_metric",)])
def test_either_kind_of_file_is_enough(written, tmp_path: Path, kept: tuple[str, ...]) -> None:
    values, _, folder = written
    for kind in kept:
        for suffix in (".bin", ".idx"):
            copy(folder / f"value/value_{kind}{suffix}", tmp_path / f"in/value/value_{kind}{suffix}")
    assert ads.import_index(tmp_path / "in", tmp_path / "index")["value"].values.tolist() == values.tolist()


def test_one_metrics_own_folder_will_do(written, tmp_path: Path) -> None:
    values, _, folder = written
    assert ads.import_index(folder / "value", tmp_path / "index")["value"].values.tolist() == values.tolist()


def test_totals_alone_need_the_number_of_samples(written, tmp_path: Path) -> None:
    values, _, folder = written
    with pytest.raises(ConfigError, match="pass num_samples"):
        ads.import_index(folder, tmp_path / "index", metrics=TOTALS)
    index = ads.import_index(folder, tmp_path / "index", metrics=TOTALS, num_samples=900)
    assert index.num_samples == 900
    assert index.totals["sum"].tolist() == [values.sum()]
    with pytest.raises(ConfigError, match="num_samples is 5, but"):
        ads.import_index(folder, tmp_path / "other", num_samples=5)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64"])
def test_files_of_the_older_numbering_of_types(tmp_path: Path, dtype: str) -> None:
    folder = tmp_path / "in" / "m"
    folder.mkdir(parents=True)
    distinct = np.array([3, np.iinfo(dtype).max], dtype)
    one = np.ones(2, np.int64)
    write_indexed_dataset(folder / "m_index_to_metric", distinct, one, dtype=dtype, dialect="deepspeed-legacy")
    write_indexed_dataset(
        folder / "m_index_to_sample", np.array([0, 2, 1]), np.array([2, 1]), dtype=dtype, dialect="deepspeed-legacy"
    )
    index = ads.import_index(tmp_path / "in", tmp_path / "index")
    assert index["m"].values.tolist() == [3, int(distinct[1]), 3]


def test_remapped_ids_win_over_the_order_of_iteration(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_metric(tmp_path / "in", distinct=[5, 9], ids=[2, 0, 1], sizes=[1, 2])
    write_indexed_dataset(tmp_path / "in/m/m_sample_to_metric", np.array([5, 9, 9]), np.ones(3, int), dtype="uint8")
    with caplog.at_level(logging.WARNING):
        index = ads.import_index(tmp_path / "in", tmp_path / "index")
    assert index["m"].values.tolist() == [9, 9, 5]
    assert "another order than the sample ids" in caplog.text


@pytest.mark.parametrize("victim", ["value/value_index_to_sample.bin", "value/value_index_to_metric.idx"])
@pytest.mark.parametrize("damage", ["truncated", "missing", "foreign"])
def test_damaged_files_are_named(written, tmp_path: Path, victim: str, damage: str) -> None:
    shutil.copytree(written[2], tmp_path / "in")
    path = tmp_path / "in" / victim
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-3])
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"something else altogether")
    with pytest.raises(UnreadableFileError, match=path.stem):
        ads.import_index(tmp_path / "in", tmp_path / "index")
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("ids", "complaint"),
    [([0, 1, 5], "should end at 2; found 5"), ([0, 1, 1], "sample 2 is missing"), ([0, -1, 1], "found -1")],
)
def test_sample_ids_must_be_the_numbers_from_zero_on(tmp_path: Path, ids: list[int], complaint: str) -> None:
    save_metric(tmp_path / "in", distinct=[5, 9], ids=ids, sizes=[1, 2])
    with pytest.raises(UnreadableFileError, match=complaint):
        ads.import_index(tmp_path / "in", tmp_path / "index")


def test_pairs_that_do_not_belong_together(tmp_path: Path) -> None:
    save_metric(tmp_path / "in", distinct=[5, 9, 10], ids=[0, 1, 2], sizes=[1, 2])
    with pytest.raises(UnreadableFileError, match="2 rows and index_to_metric 3"):
        ads.import_index(tmp_path / "in", tmp_path / "index")


def test_metrics_of_different_length(tmp_path: Path) -> None:
    save_metric(tmp_path / "in", distinct=[5, 9], ids=[0, 1, 2], sizes=[1, 2])
    save_metric(tmp_path / "in", distinct=[5, 9], ids=[0, 1], sizes=[1, 1], name="k")
    with pytest.raises(SourceError, match="k: 2, m: 3"):
        ads.import_index(tmp_path / "in", tmp_path / "index")
    assert ads.import_index(tmp_path / "in", tmp_path / "index", metrics=["k"]).num_samples == 2


def test_a_folder_without_metrics(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="contains no metric"):
        ads.import_index(tmp_path, tmp_path / "index")
    with pytest.raises(UnreadableFileError, match="is not a folder"):
        ads.import_index(tmp_path / "nowhere", tmp_path / "index")
    with pytest.raises(ConfigError, match="has no metric 'm'"):
        ads.import_index(tmp_path, tmp_path / "index", metrics=["m"])


def save_metric(folder: Path, *, distinct: list[int], ids: list[int], sizes: list[int], name: str = "m") -> None:
    prefix = folder / name / name
    prefix.parent.mkdir(parents=True)
    write_indexed_dataset(f"{prefix}_index_to_metric", np.array(distinct), np.ones(len(distinct), int), dtype="int32")
    write_indexed_dataset(f"{prefix}_index_to_sample", np.array(ids), np.array(sizes), dtype="int32")


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)
