"""Parquet, Arrow IPC, JSON Lines and CSV files against the tables that were written to them."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_contract import check_columnar, rows

from arrowds.errors import MissingColumnError, SourceError, UnreadableFileError
from arrowds.sources import open_source, text_rows

Write = Callable[[pa.Table, Path, int], None]


def write_parquet(table: pa.Table, path: Path, chunk: int) -> None:
    pq.write_table(table, path, row_group_size=chunk)


def write_arrow(new: Callable[..., pa.RecordBatchWriter], compression: str | None) -> Write:
    def write(table: pa.Table, path: Path, chunk: int) -> None:
        with new(path, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
            writer.write_table(table, max_chunksize=chunk)

    return write


def write_json_lines(table: pa.Table, path: Path, chunk: int) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))


def write_csv(table: pa.Table, path: Path, chunk: int) -> None:
    pa.csv.write_csv(table, path)


NESTED: dict[str, tuple[str, Write]] = {
    "parquet": (".parquet", write_parquet),
    "arrow file": (".arrow", write_arrow(pa.ipc.new_file, None)),
    "arrow file, zstd": (".feather", write_arrow(pa.ipc.new_file, "zstd")),
    "arrow stream": (".ipc", write_arrow(pa.ipc.new_stream, None)),
    "arrow stream, zstd": (".arrow", write_arrow(pa.ipc.new_stream, "zstd")),
    "json lines": (".jsonl", write_json_lines),
}
FORMATS = {**NESTED, "csv": (".csv", write_csv)}


def make_table(n: int, *, nested: bool = True) -> pa.Table:
    columns: dict[str, object] = {
        "id": range(n),
        "score": [i / 4 + 0.125 for i in range(n)],
        "text": [f'row, "{i}"\nend' for i in range(n)],
    }
    if nested:
        columns["ids"] = pa.array([[*range(i % 4)] if i % 5 else None for i in range(n)], pa.list_(pa.int64()))
    return pa.table(columns)


@pytest.mark.parametrize("name", FORMATS)
def test_every_range_of_two_files_equals_the_slice(tmp_path: Path, name: str) -> None:
    suffix, write = FORMATS[name]
    table = make_table(13, nested=name in NESTED)
    write(table[:9], tmp_path / f"a{suffix}", 4)
    write(table[9:], tmp_path / f"b{suffix}", 4)
    source = open_source(tmp_path / f"*{suffix}")
    assert source.concurrent
    assert source.schema is not None
    assert source.schema.types == table.schema.types
    check_columnar(source, table)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_division_into_files_and_groups_reads_the_same(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    suffix, write = FORMATS[name]
    n = data.draw(st.integers(1, 40))
    table = make_table(n, nested=name in NESTED)
    if name == "json lines":  # with types found in the rows, a file must show them
        table = table.drop_columns("ids")
    folder = tmp_path_factory.mktemp("files")
    cuts = sorted(data.draw(st.lists(st.integers(0, n), max_size=3)))
    for number, (a, b) in enumerate(zip([0, *cuts], [*cuts, n], strict=True)):
        if b > a or name not in ("json lines",):
            write(table[a:b], folder / f"{number}{suffix}", data.draw(st.integers(1, n)))
    source = open_source(folder)
    check_columnar(source, table, every_range=False)
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    assert rows(source, start, stop) == table[start:stop].to_pylist()
    boundaries = source.part_boundaries(data.draw(st.integers(1, n)))
    parts = [row for a, b in pairwise(boundaries) for row in rows(source, a, b)]
    assert parts == table.to_pylist()


@pytest.mark.parametrize("name", FORMATS)
def test_fingerprint_changes_with_one_value_and_with_the_order(tmp_path: Path, name: str) -> None:
    suffix, write = FORMATS[name]
    path = tmp_path / f"a{suffix}"
    table = make_table(20, nested=False)

    def digest(changed: pa.Table) -> str:
        write(changed, path, 8)
        return open_source(path).fingerprint()

    ids = table["id"].to_numpy().copy()
    ids[17] = 99
    first = digest(table)
    assert digest(table) == first
    assert digest(table.set_column(0, "id", pa.array(ids))) != first
    assert digest(table.take([*range(18), 19, 18])) != first
    write(table, tmp_path / f"b{suffix}", 8)
    a, b = path, tmp_path / f"b{suffix}"
    write(table[:5], a, 8)
    assert open_source([a, b]).fingerprint() != open_source([b, a]).fingerprint()


@pytest.mark.parametrize("name", FORMATS)
def test_files_without_rows_have_length_zero(tmp_path: Path, name: str) -> None:
    suffix, write = FORMATS[name]
    write(make_table(0, nested=name in NESTED), tmp_path / f"a{suffix}", 4)
    source = open_source(tmp_path / f"a{suffix}")
    assert len(source) == 0
    assert list(source.read(0, 0)) == []
    assert source.part_boundaries(10) == [0]
    assert len(source.fingerprint()) == 32


def test_parquet_parts_are_cut_at_row_groups_and_small_ones_merged(tmp_path: Path) -> None:
    write_parquet(make_table(10), tmp_path / "a.parquet", 4)  # groups end at 4, 8, 10
    write_parquet(make_table(25), tmp_path / "b.parquet", 20)  # and at 30, 35
    source = open_source(tmp_path)
    assert source.part_boundaries(1) == [0, 4, 8, 10, 30, 35]
    assert source.part_boundaries(10) == [0, 10, 30, 35]
    assert source.part_boundaries(26) == [0, 10, 35]
    assert source.part_boundaries(100) == [0, 35]


def test_compressed_arrow_is_cut_at_batches_and_mapped_arrow_anywhere(tmp_path: Path) -> None:
    FORMATS["arrow file, zstd"][1](make_table(10), tmp_path / "a.arrow", 4)
    FORMATS["arrow file"][1](make_table(10), tmp_path / "b.arrow", 10)
    assert open_source(tmp_path / "a.arrow").part_boundaries(5) == [0, 4, 8, 10]
    assert open_source(tmp_path / "b.arrow").part_boundaries(5) == [0, 5, 10]


def test_mapped_arrow_batches_are_views_of_the_file(tmp_path: Path) -> None:
    FORMATS["arrow file"][1](pa.table({"x": np.arange(1_000_000)}), tmp_path / "a.arrow", 1_000_000)
    source = open_source(tmp_path / "a.arrow")
    before = pa.total_allocated_bytes()
    batches = list(source.read(10, 999_990, ["x"]))
    assert pa.total_allocated_bytes() - before < 100_000
    assert max(batch.num_rows for batch in batches) <= 65_536
    assert batches[0]["x"][0].as_py() == 10


def test_wide_parquet_rows_come_in_small_batches(tmp_path: Path) -> None:
    wide = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(40 * 500_000, dtype=np.int32)), 500_000)
    pq.write_table(
        pa.table({"wide": wide, "id": range(40)}), tmp_path / "a.parquet", compression="none", use_dictionary=False
    )
    source = open_source(tmp_path / "a.parquet")
    assert max(batch.nbytes for batch in source.read(0, 40)) < 70 << 20
    assert [batch.num_rows for batch in source.read(0, 40, ["id"])] == [40]


def test_pickle_of_many_files_is_small(tmp_path: Path) -> None:
    import cloudpickle

    table = pa.table({f"column_{i}": [1] for i in range(100)})
    for i in range(20):
        write_parquet(table, tmp_path / f"{i:02}.parquet", 1)
    assert len(cloudpickle.dumps(open_source(tmp_path))) < 40_000


@pytest.mark.parametrize("name", FORMATS)
def test_threads_read_parts_of_one_source_at_once(tmp_path: Path, name: str) -> None:
    suffix, write = FORMATS[name]
    table = make_table(2000, nested=name in NESTED)
    write(table, tmp_path / f"a{suffix}", 100)
    source = open_source(tmp_path)
    parts = list(pairwise(source.part_boundaries(150)))
    with ThreadPoolExecutor(4) as pool:
        read = pool.map(lambda part: rows(source, *part), parts)
        assert [row for part in read for row in part] == table.to_pylist()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 warns of what is tested here
def test_sources_read_on_after_a_fork(tmp_path: Path) -> None:
    """Loader workers are forked from a process that has already read, and whose threads they don't inherit."""
    sources = []
    for number, (name, (suffix, write)) in enumerate(FORMATS.items()):
        path = tmp_path / f"{number}{suffix}"
        write(make_table(3000, nested=name in NESTED), path, 1000)
        sources.append(open_source(path))
    expected = [rows(source, 500, 2500) for source in sources]
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.starmap_async(rows, [(source, 500, 2500) for source in sources]).get(timeout=60) == expected


# --- text ---------------------------------------------------------------------------------------------------------


@contextmanager
def tiny_blocks() -> Iterator[None]:
    """Blocks and marks of a few bytes, so that a small file has many of them."""
    from arrowds.sources import text

    with pytest.MonkeyPatch.context() as patch:
        for module in (text, text_rows):
            patch.setattr(module, "BLOCK_BYTES", 48)
        patch.setattr(text_rows, "MARK_BYTES", 16)
        yield


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)


@settings(max_examples=80, deadline=None)
@given(values=st.lists(TEXT, min_size=1, max_size=25), data=st.data())
def test_json_lines_with_blank_lines_and_any_line_break(
    tmp_path_factory: pytest.TempPathFactory, values: list[str], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("json") / "a.jsonl"
    table = pa.table({"id": range(len(values)), "text": ["x" + value for value in values]})
    gap = st.sampled_from(["\n", "\r\n", "\n\n", "\n  \n", "\n\r\n\t\n"])
    lead = st.sampled_from(["", " ", "\t"])
    ascii_only = data.draw(st.booleans())
    lines = [data.draw(lead) + json.dumps(row, ensure_ascii=ascii_only) + data.draw(gap) for row in table.to_pylist()]
    text = "".join(lines)
    path.write_bytes((text if data.draw(st.booleans()) else text.rstrip()).encode())
    with tiny_blocks():
        source = open_source(path)
        check_columnar(source, table, every_range=len(values) < 8)


@settings(max_examples=80, deadline=None)
@given(values=st.lists(TEXT, min_size=1, max_size=25), data=st.data())
def test_csv_with_quotes_line_breaks_and_blank_lines(
    tmp_path_factory: pytest.TempPathFactory, values: list[str], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("csv") / data.draw(st.sampled_from(["a.csv", "a.tsv"]))
    comma = "\t" if path.suffix == ".tsv" else ","
    table = pa.table({"id": range(len(values)), "te,\nxt": ["x" + value for value in values]})
    gap = st.sampled_from(["\n", "\r\n", "\n\n", "\r\n\r\n"])
    quoted = ['"' + value.replace('"', '""') + '"' for value in table[1].to_pylist()]
    text = f'id{comma}"te,\nxt"\n' + "".join(f"{i}{comma}{value}{data.draw(gap)}" for i, value in enumerate(quoted))
    path.write_bytes((text if data.draw(st.booleans()) else text.rstrip("\r\n")).encode())
    with tiny_blocks():
        source = open_source(path)
        check_columnar(source, table, every_range=len(values) < 8)


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_byte_order_mark_is_no_part_of_the_data(tmp_path: Path, suffix: str) -> None:
    body = "a,b\n1,x\n" if suffix == ".csv" else '{"a": 1, "b": "x"}\n'
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"\xef\xbb\xbf" + body.encode())
    assert rows(open_source(path), 0, 1) == [{"a": 1, "b": "x"}]


def test_json_types_that_change_late_are_promoted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [{"a": 1, "b": None, "c": [], "d": {"x": None}, "when": "2020-01-01"} for _ in range(20)]
    lines += [{"a": 1.5, "b": "text", "c": [1], "d": {"x": 1, "y": "z"}, "when": "never", "late": True}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with tiny_blocks():
        source = open_source(path)
        kinds = {field.name: str(field.type) for field in source.schema or []}
        assert kinds == {
            "a": "double",
            "b": "string",
            "c": "list<item: int64>",
            "d": "struct<x: int64, y: string>",
            "when": "string",
            "late": "bool",
        }
        got = rows(source, 0, 21)
    assert got[0] == {**lines[0], "d": {"x": None, "y": None}, "late": None}
    assert got[20] == lines[20]


def test_json_types_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = ['{"column": 1}'] * 4 + ['{"column": "text"}'] * 4
    path.write_text("".join(f"{line:47}\n" for line in lines))  # a block each
    with tiny_blocks(), pytest.raises(SourceError, match=r"a\.jsonl: column 'column' is int64 in some rows and string"):
        open_source(path)


def test_csv_types_that_change_late_are_promoted(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    early = "007,1,,2020-01-01,2020-01-01,true\n"
    path.write_text("code,number,empty,when,day,flag\n" + early * 20 + "x7,1.5,4,2020-01-01 10:00:00,soon,false\n")
    with tiny_blocks():
        source = open_source(path)
        got = rows(source, 0, 21)
    assert [str(kind) for kind in (source.schema or pa.schema([])).types] == [
        "string",
        "double",
        "int64",
        "timestamp[s]",
        "string",
        "bool",
    ]
    assert got[0]["code"] == "007"
    assert got[0]["number"] == 1.0
    assert got[0]["empty"] is None
    assert str(got[0]["when"]) == "2020-01-01 00:00:00"
    assert (got[0]["day"], got[20]["day"]) == ("2020-01-01", "soon")


def test_types_are_merged_over_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n')
    (tmp_path / "b.jsonl").write_text('{"x": 2.5, "y": "new"}\n')
    assert rows(open_source(tmp_path), 0, 2) == [{"x": 1.0, "y": None}, {"x": 2.5, "y": "new"}]
    (tmp_path / "c.csv").write_text("x,y\n1,2\n")
    (tmp_path / "d.csv").write_text("y,x\na,3\n")
    assert rows(open_source(tmp_path / "*.csv"), 0, 2) == [{"x": 1, "y": "2"}, {"x": 3, "y": "a"}]


# --- bad files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["parquet", "arrow file", "arrow file, zstd", "arrow stream", "arrow stream, zstd"])
def test_truncated_file_is_named_wherever_it_ends(tmp_path: Path, name: str) -> None:
    suffix, write = FORMATS[name]
    path = tmp_path / f"broken{suffix}"
    write(make_table(50), path, 20)
    whole = path.read_bytes()
    for cut in [0, 1, 3, 7, len(whole) // 2, *range(len(whole) - 12, len(whole))]:
        path.write_bytes(whole[:cut])
        with pytest.raises(UnreadableFileError, match=rf"broken\{suffix}"):
            open_source(path)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow", ".jsonl"])
def test_text_under_a_wrong_name_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"wrong{suffix}"
    path.write_text("just some text, long enough to be more than a magic number\n")
    with pytest.raises(UnreadableFileError, match=rf"wrong\{suffix}"):
        open_source(path)


def test_damaged_page_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "damaged.parquet"
    pq.write_table(pa.table({"x": np.random.default_rng(0).random(10_000)}), path, compression="zstd")
    raw = bytearray(path.read_bytes())
    raw[4:2000] = bytes(1996)
    path.write_bytes(raw)
    source = open_source(path)
    with pytest.raises(UnreadableFileError, match=r"damaged\.parquet"):
        list(source.read(0, 10_000))


@pytest.mark.parametrize("name", ["parquet", "arrow file", "json lines"])
def test_file_that_changes_after_opening_is_named(tmp_path: Path, name: str) -> None:
    suffix, write = FORMATS[name]
    path = tmp_path / f"a{suffix}"
    write(make_table(50), path, 20)
    source = open_source(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UnreadableFileError, match="changed since it was opened"):
        list(source.read(0, 50))
    path.unlink()
    with pytest.raises(UnreadableFileError, match=rf"a\{suffix}: No such file"):
        list(source.read(0, 50))


@pytest.mark.parametrize("blocks", ["one", "many"])
def test_bad_json_line_is_named_with_its_number(tmp_path: Path, blocks: str) -> None:
    path = tmp_path / "a.jsonl"
    good = ['{"value": 1}'] * 10
    path.write_text("\n".join([*good, "", "", '{"value": oops}', *good]))
    context = tiny_blocks() if blocks == "many" else nullcontext()
    with context, pytest.raises(UnreadableFileError, match=r"a\.jsonl, line 13: .*Invalid value"):
        open_source(path)


@pytest.mark.parametrize("blocks", ["one", "many"])
def test_csv_line_with_too_few_values_is_named_with_its_number(tmp_path: Path, blocks: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,b\n" + "1,2\n" * 20 + "\n3\n" + "1,2\n" * 20)
    context = tiny_blocks() if blocks == "many" else nullcontext()
    with context, pytest.raises(UnreadableFileError, match=r"a\.csv, line 23: .*Expected 2 columns, got 1"):
        open_source(path)


@pytest.mark.parametrize("name", ["bad.jsonl", "bad.csv"])
@pytest.mark.parametrize("blocks", ["one", "many"])
@pytest.mark.parametrize("line", [2, 40])
def test_text_that_is_not_utf_8_is_named_with_its_line(tmp_path: Path, name: str, blocks: str, line: int) -> None:
    row = '{"text": "café"}' if name == "bad.jsonl" else "café"
    lines = [b"text" if name == "bad.csv" else row.encode(), *([row.encode()] * 50)]
    lines[line - 1] = row.encode("latin-1")
    (tmp_path / name).write_bytes(b"\n".join(lines))
    context = tiny_blocks() if blocks == "many" else nullcontext()
    with (
        context,
        pytest.raises(UnreadableFileError, match=rf"{name}, line {line}: .* convert it to UTF-8"),
    ):
        open_source(tmp_path / name)


def test_csv_header_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_bytes(b"caf\xe9\n1\n")
    with pytest.raises(UnreadableFileError, match=r"line 1: .* convert it to UTF-8"):
        open_source(tmp_path / "bad.csv")


def test_json_that_is_not_one_object_per_line_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"a": 1} {"a": 2}\n')
    with pytest.raises(UnreadableFileError, match="one row per line"):
        open_source(path)
    path.write_text(json.dumps([{"a": 1}], indent=2))
    with pytest.raises(UnreadableFileError, match=r"a\.json"):
        open_source(path)


def test_quote_that_is_never_closed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('a,b\n1,2\n3,"x\n4,y\n')
    with pytest.raises(UnreadableFileError, match=r"a\.csv ends within quotes; the last quote is on line 3"):
        open_source(path)


@pytest.mark.parametrize("name", FORMATS)
def test_file_without_permission_is_named(tmp_path: Path, name: str) -> None:
    suffix, write = FORMATS[name]
    path = tmp_path / f"secret{suffix}"
    write(make_table(3, nested=False), path, 3)
    path.chmod(0)
    let_others_in(tmp_path)
    with without_root(), pytest.raises(UnreadableFileError, match=rf"secret\{suffix}: Permission denied"):
        open_source(path)


def test_folder_without_permission_is_named_and_not_left_out(tmp_path: Path) -> None:
    for folder in (tmp_path / "data", tmp_path / "data" / "secret"):
        folder.mkdir()
        write_csv(make_table(3, nested=False), folder / "a.csv", 3)
    folder.chmod(0)
    let_others_in(tmp_path)
    for data in (tmp_path / "data", folder, folder / "a.csv"):
        with without_root(), pytest.raises(UnreadableFileError, match=r"can't read .*secret.*: Permission denied"):
            open_source(data)
    folder.chmod(0o755)
    assert len(open_source(tmp_path / "data")) == 6


def let_others_in(folder: Path) -> None:
    """Open the folder, and all above it that only their owner may enter."""
    for parent in (folder, *folder.parents[:-2]):
        parent.chmod(0o755)


@contextmanager
def without_root() -> Iterator[None]:
    """Root may read everything, so become nobody for a moment."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (pa.table({"x": [1]}), "column 'y' is missing"),
        (pa.table({"x": [1], "y": ["a"], "z": [1]}), "column 'z' is additional"),
        (pa.table({"x": [1.5], "y": ["a"]}), "column 'x' is double instead of int64"),
    ],
)
def test_files_that_do_not_fit_are_named_with_the_difference(tmp_path: Path, other: pa.Table, difference: str) -> None:
    pq.write_table(pa.table({"x": [1], "y": ["a"]}), tmp_path / "a.parquet")
    pq.write_table(other, tmp_path / "b.parquet")
    source = open_source(tmp_path)
    column = difference.split("'")[1]
    with pytest.raises(MissingColumnError, match=rf"b\.parquet does not fit .*a\.parquet: {difference}"):
        source.read(0, 2, [column])
    common = [name for name in ("x", "y") if name != column]
    assert [list(row) for row in rows(source, 0, 2)] == [common] * 2, "the columns that all files have are read"


def test_files_that_share_no_column_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1], "y": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(SourceError, match=r"column 'x' is string instead of int64; .* column 'y' is missing"):
        open_source(tmp_path)


def test_order_of_columns_and_metadata_may_differ(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1], "y": ["a"]}), tmp_path / "a.parquet")
    other = pa.table({"y": ["b"], "x": [2]}).replace_schema_metadata({"by": "another"})
    pq.write_table(other, tmp_path / "b.parquet")
    assert rows(open_source(tmp_path), 0, 2) == [{"x": 1, "y": "a"}, {"x": 2, "y": "b"}]


def test_column_that_appears_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y,x\n1,2,3\n")
    with pytest.raises(SourceError, match="column 'x' appears more than once"):
        open_source(tmp_path / "a.csv")
