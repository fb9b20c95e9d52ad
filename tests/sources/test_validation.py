"""Damaged Arrow data: an error that names the file, never a wrong length and never a crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_contract import rows

from arrowds.errors import SourceError, UnreadableFileError
from arrowds.sources import open_source, validation
from arrowds.sources.validation import check_array

datasets = pytest.importorskip("datasets")
N = 3000
COLUMNS: dict[str, pa.Array] = {
    "ids": pa.array([[*range(i % 7)] for i in range(N)], pa.list_(pa.int32())),
    "large": pa.array([[*range(i % 7)] for i in range(N)], pa.large_list(pa.uint16())),
    "text": pa.array([f"text {i}" for i in range(N)]),
    "words": pa.array([[f"w{i}"] * (i % 3) for i in range(N)]),
    "struct": pa.array([{"a": [i], "b": f"t{i}"} for i in range(N)]),
    "map": pa.array([[("k", i)] * (i % 3) for i in range(N)], pa.map_(pa.string(), pa.int64())),
    "pairs": pa.array([[[i], [i, i]] for i in range(N)], pa.list_(pa.list_(pa.int32()), 2)),
    "category": pa.array([f"c{i % 5}" for i in range(N)]).dictionary_encode(),
}


def offsets_of(array: pa.Array) -> pa.Buffer:
    """The offsets (or indices) of the array, or of its deepest child that has some."""
    kind = array.type
    if pa.types.is_struct(kind):
        return offsets_of(array.field(0))
    if pa.types.is_fixed_size_list(kind):
        return offsets_of(array.values)
    return (array.indices if pa.types.is_dictionary(kind) else array).buffers()[1]


def write(column: str, path: Path) -> bytes:
    """Write one column, uncompressed, and return the bytes of its offsets as they stand in the file."""
    table = pa.table({"n": range(N), column: COLUMNS[column]})
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    return offsets_of(COLUMNS[column]).to_pybytes()[: 4 * N]


def flip(path: Path, where: int, bit: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[where] ^= 1 << bit
    path.write_bytes(raw)


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_flipped_bit_in_offsets_is_named(tmp_path: Path, column: str, share: float) -> None:
    path = tmp_path / "a.arrow"
    offsets = write(column, path)
    start = path.read_bytes().find(offsets)
    assert start > 0
    source = open_source(path)
    assert rows(source, 0, N, [column]) == [{column: value} for value in COLUMNS[column].to_pylist()]
    width = 8 if column == "large" else 4
    flip(path, start + int(share * N) // width * width + 3, 6)
    damaged = open_source(path)
    with pytest.raises(UnreadableFileError, match=r"can't read .*a\.arrow: .*"):
        list(damaged.read(0, N, [column]))
    assert len(rows(damaged, 0, N, ["n"])) == N, "what is not asked for does not matter"
    with pytest.raises(UnreadableFileError, match=r"a\.arrow"):
        rows(open_source(pa.dataset.dataset(path, format="ipc")), 0, N, [column])
    with pa.memory_map(str(path)) as mapped, pytest.raises(SourceError, match="can't read arrow table"):
        list(open_source(pa.ipc.open_file(mapped).read_all()).read(0, N, [column]))


@settings(max_examples=60, deadline=None)
@given(column=st.sampled_from([name for name in COLUMNS if name != "category"]), data=st.data())
def test_offsets_that_pass_are_those_that_give_every_row_a_length(
    tmp_path_factory: pytest.TempPathFactory, column: str, data: st.DataObject
) -> None:
    """Whichever bit is flipped: an error, or rows that can all be read and whose lengths are not negative."""
    path = tmp_path_factory.mktemp("flip") / "a.arrow"
    offsets = write(column, path)
    start = path.read_bytes().find(offsets)
    flip(path, start + data.draw(st.integers(0, len(offsets) - 1)), data.draw(st.integers(0, 7)))
    low = data.draw(st.integers(0, N))
    high = data.draw(st.integers(low, N))
    try:
        found = rows(open_source(path), low, high, [column])
    except UnreadableFileError:
        return
    assert len(found) == high - low


def test_hugging_face_data_that_are_damaged_are_refused(tmp_path: Path) -> None:
    datasets.Dataset(pa.table({"ids": COLUMNS["ids"]})).save_to_disk(tmp_path / "saved")
    path = tmp_path / "saved" / "data-00000-of-00001.arrow"
    offsets = offsets_of(COLUMNS["ids"]).to_pybytes()[: 4 * 900]
    flip(path, path.read_bytes().find(offsets) + 4 * 500 + 3, 6)
    with pytest.raises(UnreadableFileError, match="can't read hugging face dataset, column ids: list offsets"):
        rows(open_source(datasets.load_from_disk(tmp_path / "saved")), 0, N)
    shuffled = datasets.load_from_disk(tmp_path / "saved").select(range(N - 1, -1, -1))
    with pytest.raises(UnreadableFileError, match="can't read hugging face dataset"):
        rows(open_source(shuffled), 0, N)
    with pytest.raises(UnreadableFileError, match=r"data-00000-of-00001\.arrow: list offsets"):
        rows(open_source(tmp_path / "saved"), 0, N)


def test_text_in_parquet_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"text": ["some text " * 20]})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
    flip(path, path.read_bytes().find(b"some text ") + 30, 7)
    with pytest.raises(UnreadableFileError, match=r"a\.parquet: .*UTF8"):
        rows(open_source(path), 0, 1)


def test_parquet_page_that_does_not_match_its_checksum_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.table({"x": np.random.default_rng(0).integers(0, 2**60, 1000)})
    pq.write_table(table, path, compression="none", use_dictionary=False, write_page_checksum=True)
    flip(path, 2000, 3)
    with pytest.raises(UnreadableFileError, match=r"a\.parquet: .*CRC"):
        rows(open_source(path), 0, 1000)


def test_file_that_has_fewer_rows_than_it_says_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"x": range(N)}), tmp_path / "a.parquet")
    source = open_source(tmp_path / "a.parquet")
    batches = pa.table({"x": range(N - 1)}).to_batches()
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *args, **kwargs: iter(batches))
    with pytest.raises(UnreadableFileError, match=rf"a\.parquet: it has {N - 1} rows where it says that there are {N}"):
        list(source.read(0, N))


def test_check_costs_no_more_than_the_rows_that_are_read() -> None:
    """A part of a file of one huge record batch must not check all of it."""
    checked = []
    values = pa.array([f"w{i}" for i in range(N)])
    lists = pa.ListArray.from_arrays(pa.array(range(N + 1), pa.int32()), values)

    real = validation.check_array

    def counting(array: pa.Array, *, text: bool = True) -> None:
        checked.append(len(array))
        real(array, text=text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validation, "check_array", counting)
        validation.check_array(lists.slice(1000, 10))
    assert checked == [10, 10]


SOUND: list[Callable[[], pa.Array]] = [
    lambda: pa.array([], pa.list_(pa.int8())),
    lambda: pa.array([None, [1]], pa.list_(pa.int8())),
    lambda: pa.array([[1], None, [2, 3]], pa.list_(pa.int8()))[1:],
    lambda: pa.array([[("a", [1])], None], pa.map_(pa.string(), pa.list_(pa.int8())))[1:],
    lambda: pa.array([[1, 2], None], pa.list_(pa.int8(), 2))[1:],
    lambda: pa.array([{"a": [1]}, None])[1:],
    lambda: pa.array([[1]], pa.list_view(pa.int8())),
    lambda: pa.array(["a"], pa.string_view()),
    lambda: pa.array([None, None]),
    lambda: pa.array([1, 2]).cast(pa.int8()).dictionary_encode(),
    lambda: pa.RunEndEncodedArray.from_arrays([2], [1]),
    lambda: pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"x" * 16], pa.binary(16))),
]


@pytest.mark.parametrize("make", SOUND)
@pytest.mark.parametrize("text", [False, True])
def test_sound_arrays_pass(make: Callable[[], pa.Array], text: bool) -> None:
    check_array(make(), text=text)
