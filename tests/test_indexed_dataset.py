"""Indexed datasets against the installed DeepSpeed (bytes) and NumPy (rows)."""

from __future__ import annotations

import multiprocessing
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowds.errors import ConfigError, SourceError, StorageError, UnreadableFileError, UnsupportedError
from arrowds.indexed_dataset import IndexedDataset, is_indexed_dataset, write_indexed_dataset

INTEGERS = ["uint8", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64"]


def write_with_deepspeed(prefix: Path, rows: list[np.ndarray], dtype: str, how: str, document_ends: list[int]) -> None:
    torch = pytest.importorskip("torch")
    from deepspeed.runtime.data_pipeline.data_sampling.indexed_dataset import MMapIndexedDatasetBuilder

    builder = MMapIndexedDatasetBuilder(f"{prefix}.bin", dtype=getattr(np, dtype))
    for number in range(len(rows) + 1):
        for _ in range(document_ends.count(number)):
            builder.end_document()
        if number < len(rows):
            row = rows[number]
            if how == "add_item":
                builder.add_item(torch.from_numpy(row))
            elif how == "add_items":
                builder.add_items([row])
            else:
                builder.add_item_numpy(row)
    builder.finalize(f"{prefix}.idx")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # DeepSpeed's imports use deprecated torch and pydantic names
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@settings(max_examples=60, deadline=None)
@given(
    dtype=st.sampled_from(INTEGERS),
    sizes=st.lists(st.integers(0, 9), max_size=12),
    how=st.sampled_from(["add_item", "add_items", "add_item_numpy"]),
    data=st.data(),
)
def test_written_bytes_equal_deepspeeds(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, sizes: list[int], how: str, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("pair")
    ends = sorted(data.draw(st.lists(st.integers(0, len(sizes)), max_size=3)))
    info = np.iinfo(dtype)
    rows = [
        np.array(data.draw(st.lists(st.integers(info.min, info.max), min_size=n, max_size=n)), dtype=dtype)
        for n in sizes
    ]
    write_with_deepspeed(folder / "theirs", rows, dtype, how, ends)
    flat = np.concatenate(rows) if rows else np.empty(0, dtype)
    cut = data.draw(st.integers(0, len(flat)))
    write_indexed_dataset(
        folder / "ours", [flat[:cut], flat[cut:]], np.array(sizes, np.int64), dtype=dtype, document_index=[0, *ends]
    )
    for suffix in ("bin", "idx"):
        assert (folder / f"ours.{suffix}").read_bytes() == (folder / f"theirs.{suffix}").read_bytes()
    opened = IndexedDataset.open(folder / "theirs", "deepspeed")
    assert opened.dtype == np.dtype(dtype)
    assert [row.tolist() for row in opened] == [row.tolist() for row in rows]
    np.testing.assert_array_equal(opened.tokens, flat)
    np.testing.assert_array_equal(opened.document_index, [0, *ends])
    np.testing.assert_array_equal(opened.pointers, np.cumsum([0, *sizes])[:-1] * flat.itemsize)


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    prefix = tmp_path / "tokens.v1"  # the dot belongs to the name
    write_indexed_dataset(prefix, np.arange(6), np.array([2, 0, 4]), dtype="int32")
    return prefix


def test_rows_by_any_integer_and_no_slices(pair: Path) -> None:
    rows = IndexedDataset.open(pair)
    assert len(rows) == 3
    assert rows[np.int64(2)].tolist() == rows[-1].tolist() == rows[np.uint8(2)].tolist() == [2, 3, 4, 5]
    assert rows[1].tolist() == []
    assert rows[1].dtype == np.int32
    assert rows.document_index.tolist() == [0, 3]
    with pytest.raises(IndexError, match="has 3 rows"):
        rows.row(3)
    with pytest.raises(IndexError, match="out of range"):
        rows.row(-4)
    with pytest.raises(TypeError, match="not slice"):
        rows[0:2]  # type: ignore[index]


def test_rows_are_read_only_views_of_the_file(pair: Path) -> None:
    rows = IndexedDataset.open(pair)
    assert np.shares_memory(rows.row(2), rows.tokens)
    with pytest.raises(ValueError, match="read-only"):
        rows.row(2)[0] = 9


@pytest.mark.parametrize("name", ["tokens.v1", "tokens.v1.idx", "tokens.v1.bin"])
def test_prefix_or_either_file_opens_the_pair(pair: Path, name: str) -> None:
    assert is_indexed_dataset(pair.with_name(name))
    assert IndexedDataset.open(str(pair.with_name(name))).prefix == pair


def test_pickle_maps_the_files_again_also_in_a_spawned_process(pair: Path) -> None:
    rows = IndexedDataset.open(pair)
    data = pickle.dumps(rows)
    assert len(data) < 500
    assert pickle.loads(data).row(2).tolist() == [2, 3, 4, 5]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(IndexedDataset.row, (rows, 2)).tolist() == [2, 3, 4, 5]


# The table of dtype codes, by writer, spelled out once more so that a slip in the library's own table is seen.
TABLE = [
    ("deepspeed", 6, "uint16"),
    ("deepspeed", 7, "uint32"),
    ("deepspeed", 8, "uint64"),
    ("deepspeed-legacy", 6, "float64"),
    ("deepspeed-legacy", 7, "float64"),
    ("deepspeed-legacy", 8, "uint16"),
    ("deepspeed-legacy", 9, "uint32"),
    ("deepspeed-legacy", 10, "uint64"),
    ("megatron", 6, "float64"),
    ("megatron", 7, "float32"),
    ("megatron", 8, "uint16"),
]


def write_by_hand(prefix: Path, code: int, dtype: str, tail: bytes = b"") -> None:
    values, sizes = np.arange(5, dtype=dtype), np.array([3, 2], np.int32)
    pointers = np.array([0, 3], np.int64) * values.itemsize
    header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, code, 2, 2)
    index = header + sizes.tobytes() + pointers.tobytes() + np.array([0, 2], np.int64).tobytes()
    prefix.with_suffix(".idx").write_bytes(index + tail)
    prefix.with_suffix(".bin").write_bytes(values.tobytes())


@pytest.mark.parametrize(("dialect", "code", "dtype"), TABLE)
def test_every_dialect_reads_its_dtype_codes(tmp_path: Path, dialect: str, code: int, dtype: str) -> None:
    write_by_hand(tmp_path / "x", code, dtype)
    rows = IndexedDataset.open(tmp_path / "x", dialect)  # type: ignore[arg-type]
    assert rows.dtype == np.dtype(dtype)
    assert [row.tolist() for row in rows] == [[0, 1, 2], [3, 4]]
    if (dialect, code) in {("deepspeed", 7), ("megatron", 7)}:
        with pytest.raises(SourceError, match=r"dialect='deepspeed' \(uint32\) or dialect='megatron' \(float32\)"):
            IndexedDataset.open(tmp_path / "x")
    else:
        assert IndexedDataset.open(tmp_path / "x").dtype == np.dtype(dtype)


def test_wrong_dialect_is_found_by_the_size(tmp_path: Path) -> None:
    write_by_hand(tmp_path / "x", 6, "uint16")
    with pytest.raises(UnreadableFileError, match=r"10 bytes, but its .idx calls for 5 items of megatron: float64"):
        IndexedDataset.open(tmp_path / "x", "megatron")
    with pytest.raises(UnreadableFileError, match="dtype code 99 means nothing in any dialect"):
        write_by_hand(tmp_path / "y", 99, "uint16")
        IndexedDataset.open(tmp_path / "y")
    with pytest.raises(ConfigError, match="unknown dialect 'fairseq'"):
        IndexedDataset.open(tmp_path / "x", "fairseq")  # type: ignore[arg-type]


def test_sequence_modes_of_megatron_core_are_accepted(tmp_path: Path) -> None:
    write_by_hand(tmp_path / "x", 8, "uint16", tail=b"\1\2")
    assert IndexedDataset.open(tmp_path / "x").row(1).tolist() == [3, 4]


def test_truncated_and_foreign_files_are_named(pair: Path, tmp_path: Path) -> None:
    index, data = Path(f"{pair}.idx"), Path(f"{pair}.bin")
    good = index.read_bytes()
    for cut in range(len(good)):
        index.write_bytes(good[:cut])
        with pytest.raises(UnreadableFileError, match=r"tokens\.v1\.idx"):
            IndexedDataset.open(pair)
    index.write_bytes(good)
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(UnreadableFileError, match=r"tokens\.v1\.bin has 23 bytes.*truncated"):
        IndexedDataset.open(pair)
    index.write_bytes(b"TNTIDX\0\0" + bytes(100))
    with pytest.raises(UnreadableFileError, match="'lazy'/'cached'"):
        IndexedDataset.open(pair)
    index.write_bytes(good[:9] + struct.pack("<Q", 2) + good[17:])
    with pytest.raises(UnreadableFileError, match="version 2"):
        IndexedDataset.open(pair)
    with pytest.raises(UnreadableFileError, match=r"missing\.idx: No such file"):
        IndexedDataset.open(tmp_path / "missing")


def test_pointer_outside_the_file_is_refused(tmp_path: Path) -> None:
    write_by_hand(tmp_path / "x", 4, "int32")
    index = tmp_path / "x.idx"
    raw = bytearray(index.read_bytes())
    raw[34 + 8 + 8 : 34 + 8 + 16] = struct.pack("<q", 1 << 40)
    index.write_bytes(raw)
    with pytest.raises(UnreadableFileError, match=r"row 1 .*points outside"):
        IndexedDataset.open(tmp_path / "x").row(1)


def test_writer_refuses_what_the_format_can_not_hold(tmp_path: Path) -> None:
    flat = np.arange(3)
    with pytest.raises(UnsupportedError, match=r"row 1 has 2147483648 items.*int32"):
        write_indexed_dataset(tmp_path / "x", flat, np.array([1, 2**31]), dtype="int8")
    with pytest.raises(UnsupportedError, match="can't hold float64"):
        write_indexed_dataset(tmp_path / "x", flat, np.array([3]), dtype="float64")
    with pytest.raises(ConfigError, match="add up to 2 items, but 3 values"):
        write_indexed_dataset(tmp_path / "x", flat, np.array([2]), dtype="int8")
    with pytest.raises(ConfigError, match="can't hold the value 300"):
        write_indexed_dataset(tmp_path / "x", np.array([1, 300]), np.array([2]), dtype="uint8")
    with pytest.raises(ConfigError, match=r"can't hold the value 1\.5"):
        write_indexed_dataset(tmp_path / "x", np.array([1, 1.5]), np.array([2]), dtype="uint8")
    with pytest.raises(ConfigError, match="negative size -1"):
        write_indexed_dataset(tmp_path / "x", flat, np.array([4, -1]), dtype="uint8")
    with pytest.raises(StorageError, match="could not write"):
        write_indexed_dataset(tmp_path / "no" / "x", flat, np.array([3]), dtype="uint8")
    assert list(tmp_path.iterdir()) == []


def test_failed_rewrite_keeps_the_old_pair(pair: Path) -> None:
    with pytest.raises(ConfigError):
        write_indexed_dataset(pair, np.arange(3), np.array([2]), dtype="int8")
    assert IndexedDataset.open(pair).row(0).tolist() == [0, 1]
    assert sorted(path.suffix for path in pair.parent.iterdir()) == [".bin", ".idx"]
