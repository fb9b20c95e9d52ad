"""Token files: lists against the rows that were written, lengths without touching the tokens."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from deepspeed.runtime.data_pipeline.data_sampling.indexed_dataset import MMapIndexedDataset
from hypothesis import given, settings
from hypothesis import strategies as st
from source_contract import check_columnar, rows

from arrowds.errors import ConfigError, SourceError, UnreadableFileError
from arrowds.indexed_dataset import IndexedDataset, write_indexed_dataset
from arrowds.sources import MegatronSource


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 5), max_size=20),
    dtype=st.sampled_from(["uint8", "int8", "int16", "int32", "int64", "uint16", "uint64"]),
)
def test_rows_equal_what_was_written(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], dtype: str) -> None:
    prefix = tmp_path_factory.mktemp("pair") / "tokens"
    flat = np.arange(sum(sizes)).astype(dtype)
    write_indexed_dataset(prefix, flat, np.array(sizes, np.int64), dtype=dtype)
    lists = [row.tolist() for row in np.split(flat, np.cumsum(sizes)[:-1])] if sizes else []
    kind = pa.large_list(pa.from_numpy_dtype(dtype))
    expected = pa.table({"input_ids": pa.array(lists, kind), "num_tokens": pa.array(sizes, pa.int32())})
    source = MegatronSource(prefix, dialect="deepspeed")
    assert source.schema == expected.schema
    check_columnar(source, expected, every_range=len(sizes) < 8)


def test_tokens_are_views_of_the_file_and_lengths_do_not_touch_it(tmp_path: Path) -> None:
    """Lengths are right even where the tokens are not there: the file is a hole whose pages are never made."""
    sizes = np.full(1000, 1 << 20)
    write_indexed_dataset(tmp_path / "x", np.zeros(0, np.uint8), np.zeros(0, np.int64), dtype="uint8")
    header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 1, 1000, 1)
    pointers = np.arange(1000) << 20
    (tmp_path / "x.idx").write_bytes(header + sizes.astype("<i4").tobytes() + pointers.tobytes() + bytes(8))
    with (tmp_path / "x.bin").open("r+b") as file:
        file.truncate(1000 << 20)
    source = MegatronSource(tmp_path / "x")
    resident = resident_file_bytes()
    (batch,) = source.read(0, 1000, ["input_ids"])
    assert pc.list_value_length(batch["input_ids"]).unique().to_pylist() == [1 << 20]
    assert batch["input_ids"].flatten().nbytes == 1000 << 20
    assert resident_file_bytes() - resident < 64 << 20


def resident_file_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssFile:")[1].split()[0]) * 1024


def write_permuted(prefix: Path, pointers: list[int]) -> None:
    """Rows [0, 1], [2], [3, 4, 5] of int16, with pointers that need not be in order."""
    header = b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 3, 3, 1)
    sizes = np.array([2, 1, 3], "<i4")
    prefix.with_suffix(".idx").write_bytes(header + sizes.tobytes() + np.array(pointers, "<i8").tobytes() + bytes(8))
    prefix.with_suffix(".bin").write_bytes(np.arange(6, dtype="<i2").tobytes())


def test_rows_in_another_order_than_in_the_file_are_gathered(tmp_path: Path) -> None:
    write_permuted(tmp_path / "x", [8, 6, 0])
    expected = pa.table(
        {
            "input_ids": pa.array([[4, 5], [3], [0, 1, 2]], pa.large_list(pa.int16())),
            "num_tokens": pa.array([2, 1, 3], pa.int32()),
        }
    )
    check_columnar(MegatronSource(tmp_path / "x"), expected)


ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 30)), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(rows_=ROWS, dtype=st.sampled_from(["uint8", "int16", "int32", "int64"]), aligned=st.booleans())
def test_rows_at_any_offset_are_those_of_deepspeed(
    tmp_path_factory: pytest.TempPathFactory, rows_: list[tuple[int, int]], dtype: str, aligned: bool
) -> None:
    """Rows may begin within an item, overlap and be out of order, as long as they lie in the file."""
    prefix = tmp_path_factory.mktemp("pair") / "x"
    item = np.dtype(dtype)
    sizes = np.array([size for size, _ in rows_])
    total = int(sizes.sum()) * item.itemsize
    starts = [min(start * (item.itemsize if aligned else 1), total - size * item.itemsize) for size, start in rows_]
    write_indexed_dataset(prefix, np.zeros(sizes.sum(), item), sizes, dtype=dtype, dialect="deepspeed")
    prefix.with_suffix(".bin").write_bytes(np.random.default_rng(0).bytes(total))
    index = bytearray(prefix.with_suffix(".idx").read_bytes())
    index[34 + 4 * len(sizes) : 34 + 12 * len(sizes)] = np.array(starts, "<i8").tobytes()
    prefix.with_suffix(".idx").write_bytes(index)
    found = rows(MegatronSource(prefix, dialect="deepspeed"), 0, len(sizes), ["input_ids"])
    ours = IndexedDataset.open(prefix, "deepspeed")
    assert [row["input_ids"] for row in found] == [row.tolist() for row in ours]
    if total:  # which DeepSpeed can't map
        theirs = MMapIndexedDataset(str(prefix), skip_warmup=True)
        assert [row["input_ids"] for row in found] == [theirs[i].tolist() for i in range(len(sizes))]


@pytest.mark.parametrize(
    "pointers", [[0, 4, 8], [100, 104, 106], [-2, 2, 4], [0, 100, 6], [0, 4, 7], [2**63 - 1, 0, 4]]
)
def test_pointers_outside_the_file_are_refused(tmp_path: Path, pointers: list[int]) -> None:
    write_permuted(tmp_path / "x", pointers)
    with pytest.raises(UnreadableFileError, match=r"x\.idx points outside"):
        list(MegatronSource(tmp_path / "x").read(0, 3))


def test_fingerprint_sees_tokens_lengths_and_dtype(tmp_path: Path) -> None:
    def digest(values: list[int], sizes: list[int], dtype: str) -> str:
        write_indexed_dataset(tmp_path / "x", np.array(values), np.array(sizes), dtype=dtype)
        return MegatronSource(tmp_path / "x", dialect="deepspeed").fingerprint()

    seen = [
        digest([1, 2, 3], [1, 2], "int16"),
        digest([1, 2, 4], [1, 2], "int16"),
        digest([1, 2, 3], [2, 1], "int16"),
        digest([1, 2, 3], [1, 2], "uint16"),
    ]
    assert len(set(seen)) == 4
    assert digest([1, 2, 3], [1, 2], "int16") == seen[0]


def test_ambiguous_dtype_code_needs_a_dialect(tmp_path: Path) -> None:
    write_indexed_dataset(tmp_path / "x", np.arange(3), np.array([3]), dtype="uint32")
    with pytest.raises(SourceError, match="say dialect='deepspeed'"):
        MegatronSource(tmp_path / "x")
    source = MegatronSource(tmp_path / "x", dialect="deepspeed", column="tokens")
    assert rows(source, 0, 1) == [{"tokens": [0, 1, 2], "num_tokens": 3}]
    assert source.description == "indexed dataset of uint32, columns tokens, num_tokens"
    with pytest.raises(ConfigError, match="can't be named 'num_tokens'"):
        MegatronSource(tmp_path / "x", column="num_tokens")
