"""Values of text files as `json`, `csv`, pandas and DuckDB read them: exact, or an error; text stays text."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_contract import check_columnar, rows

from arrowds.errors import ConfigError, MissingColumnError, SourceError, UnreadableFileError
from arrowds.sources import open_new_files, open_source, source_from_spec, text, text_rows


@contextmanager
def tiny_blocks() -> Iterator[None]:
    """Blocks and marks of a few bytes, so that a small file has many of them."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (text, text_rows):
            patch.setattr(module, "BLOCK_BYTES", 48)
        patch.setattr(text_rows, "MARK_BYTES", 16)
        yield


def write_lines(path: Path, values: list[object], key: str = "x") -> Path:
    path.write_text("".join(json.dumps({key: value}) + "\n" for value in values))
    return path


def read(path: Path, **options: object) -> list[dict[str, object]]:
    source = open_source(path, **options)  # type: ignore[arg-type]
    return rows(source, 0, len(source))


def kinds(path: Path, **options: object) -> dict[str, str]:
    schema = open_source(path, **options).schema  # type: ignore[arg-type]
    assert schema is not None
    return {field.name: str(field.type) for field in schema}


# --- numbers ------------------------------------------------------------------------------------------------------

IDS = [2**63, 2**64 - 1, 2**63 + 1, 7]
NESTINGS: dict[str, Callable[[object], object]] = {
    "plain": lambda value: value,
    "list": lambda value: [value],
    "struct": lambda value: {"a": "text", "b": [{"id": value}]},
}


@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("blocks", ["one", "many"])
def test_json_ids_above_63_bits_are_exact(tmp_path: Path, nesting: str, blocks: str) -> None:
    values = [NESTINGS[nesting](number) for number in IDS]
    path = write_lines(tmp_path / "a.jsonl", values)
    if blocks == "many":
        with tiny_blocks():
            assert read(path) == [{"x": value} for value in values]
    else:
        assert read(path) == [{"x": value} for value in values]


def test_json_ids_are_as_duckdb_reads_them(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", [2**63, 2**64 - 1])
    assert kinds(path) == {"x": "uint64"}
    found = duckdb.sql(f"select x from read_json('{path}')").fetchall()
    assert [(row["x"],) for row in read(path)] == found


@pytest.mark.parametrize(
    "values",
    [
        [2**64],
        [-1, 2**63],
        [-(2**63) - 1],
        [2**53 + 1, 0.5],
        [0.5, 2**63 + 1],
        [-(2**53) - 1, 0.5],
        [2**63, 2**64],
    ],
)
@pytest.mark.parametrize("nesting", NESTINGS)
@pytest.mark.parametrize("blocks", ["one", "many", "files"])
def test_json_integers_that_would_be_rounded_are_refused(
    tmp_path: Path, values: list[float], nesting: str, blocks: str
) -> None:
    nested = [NESTINGS[nesting](value) for value in values]
    for number, value in enumerate(nested):
        write_lines(tmp_path / f"{number}.jsonl", [value])
    write_lines(tmp_path / "all.jsonl", nested)
    data = (
        [tmp_path / f"{number}.jsonl" for number in range(len(nested))] if blocks == "files" else tmp_path / "all.jsonl"
    )
    if blocks == "many":
        with tiny_blocks(), pytest.raises(SourceError, match=r"all\.jsonl: column 'x' .* exactly; give .*schema="):
            open_source(data)
    else:
        with pytest.raises(SourceError, match=r"\d|all\.jsonl: column 'x' .* exactly; give .*schema="):
            open_source(data)
    if nesting == "plain":
        assert read(tmp_path / "all.jsonl", schema={"x": "float64"}) == [{"x": float(value)} for value in values]


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(
        st.none()
        | st.integers(-(2**70), 2**70)
        | st.sampled_from([2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63)])
        | st.floats(allow_nan=False, allow_infinity=False),
        min_size=1,
        max_size=12,
    )
)
def test_json_numbers_equal_those_of_the_json_module_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, values: list[float | None]
) -> None:
    path = write_lines(tmp_path_factory.mktemp("json") / "a.jsonl", values)
    expected = [json.loads(line)["x"] for line in path.read_text().splitlines()]
    with tiny_blocks():
        try:
            found = [row["x"] for row in read(path)]
        except SourceError as error:
            assert "give" in str(error)
            integers = [value for value in values if isinstance(value, int)]
            assert any(abs(value) > 2**53 for value in integers)
        else:
            assert found == expected


def test_large_floats_are_floats(tmp_path: Path) -> None:
    values = [1e300, -1e20, 0.5, 9007199254740993.0]
    assert read(write_lines(tmp_path / "a.jsonl", values)) == [{"x": value} for value in values]
    path = tmp_path / "b.jsonl"
    path.write_text('{"x": 1e300, "text": "id 12345678901234567890, and more"}\n{"x": 3}\n')
    assert [row["x"] for row in read(path)] == [1e300, 3.0]


def test_csv_integers_are_exact_or_text(tmp_path: Path) -> None:
    columns = {
        "unsigned": [2**63, 2**64 - 1, 7],
        "signed": [-(2**63), 5, 2**63 - 1],
        "huge": [2**64, 1, 2],
        "mixed": [2**53 + 1, 0.5, 1],
        "crossed": [-1, 2**63, 0],
        "floats": [1e300, 0.5, 3.0],
    }
    path = tmp_path / "a.csv"
    pd.DataFrame(columns, dtype=object).to_csv(path, index=False)
    expected = {"unsigned": "uint64", "signed": "int64", "huge": "string", "mixed": "string", "crossed": "string"}
    assert kinds(path) == {**expected, "floats": "double"}
    with path.open(newline="") as file:
        literal = list(csv.DictReader(file))
    for found, row in zip(read(path), literal, strict=True):
        for name, value in found.items():
            assert value == (row[name] if isinstance(value, str) else type(value)(row[name])), name
    with tiny_blocks():
        assert read(path) == read(path)


# --- text stays text ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nesting", NESTINGS)
def test_json_strings_stay_text(tmp_path: Path, nesting: str) -> None:
    values = [NESTINGS[nesting](text) for text in ("2020-01-01", "2020-01-01 10:00:00", "2020-01-01T00:00:00Z", "1")]
    path = write_lines(tmp_path / "a.jsonl", values)
    assert read(path) == [{"x": value} for value in values]


# --- types that are given -----------------------------------------------------------------------------------------


def test_given_types_take_the_place_of_inferred_ones(tmp_path: Path) -> None:
    lines = write_lines(tmp_path / "a.jsonl", [1, 2])
    for schema in ({"x": "int8"}, {"x": pa.int8()}, pa.schema({"x": pa.int8()})):
        assert kinds(lines, schema=schema) == {"x": "int8"}
    when = write_lines(tmp_path / "b.jsonl", ["2020-01-01"])
    assert kinds(when, schema={"x": "timestamp[s]"}) == {"x": "timestamp[s]"}
    assert read(write_lines(tmp_path / "c.jsonl", [[1]]), schema={"x": "list<uint16>", "y": "string"}) == [
        {"x": [1], "y": None}
    ]
    table = tmp_path / "a.csv"
    table.write_text("code,n\n007,1\n")
    assert read(table, schema={"code": "string", "n": "float32"}) == [{"code": "007", "n": 1.0}]
    assert kinds(table, schema={"n": "float32"}) == {"code": "int64", "n": "float"}


def test_given_types_survive_selection_and_description(tmp_path: Path) -> None:
    known = open_source(write_lines(tmp_path / "a.jsonl", [1]), schema={"x": "uint8"}).files
    write_lines(tmp_path / "b.jsonl", [2])
    source = open_source(tmp_path, schema={"x": "uint8"})
    new = source.without(known)
    assert new is not None
    assert new.schema == source.schema == source_from_spec(source.to_spec() or {}).schema
    listed = open_new_files(tmp_path, known, schema={"x": "uint8"})
    assert listed is not None
    assert listed.schema == source.schema


@pytest.mark.parametrize("blocks", ["one", "many"])
def test_value_that_does_not_fit_the_given_type_is_named_with_its_line(tmp_path: Path, blocks: str) -> None:
    lines = write_lines(tmp_path / "a.jsonl", [*range(100), 300, *range(100)])
    table = tmp_path / "a.csv"
    table.write_text("x\n" + "1\n" * 100 + "soon\n" + "1\n" * 9)
    for path, line in ((lines, 101), (table, 102)):
        message = rf"a\.\w+, line {line}: column 'x' is not int8 everywhere"
        if blocks == "many":
            with tiny_blocks(), pytest.raises(UnreadableFileError, match=message):
                open_source(path, schema={"x": "int8"})
        else:
            with pytest.raises(UnreadableFileError, match=message):
                open_source(path, schema={"x": "int8"})


def test_schema_that_can_not_be_had_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("x\n1\n")
    with pytest.raises(SourceError, match=r"a\.csv does not fit the expected columns: column 'y' is missing"):
        open_source(path, schema={"y": "int8"})
    with pytest.raises(ConfigError, match="unknown type 'integer' of column 'x'; expected a name such as int64"):
        open_source(path, schema={"x": "integer"})
    with pytest.raises(ConfigError, match=r"expected a pyarrow\.Schema or a mapping"):
        open_source(path, schema=["x"])  # type: ignore[arg-type]
    with pytest.raises(SourceError, match="column x does not fit the expected columns: column 'x' is int64 instead of"):
        open_source(pa.table({"x": [1]}), schema={"x": "int8"})
    with pytest.raises(MissingColumnError):
        open_source(path, schema={"x": "int8"}).read(0, 1, ["y"])


# --- quotes -------------------------------------------------------------------------------------------------------

FIELD = st.text(st.sampled_from("a\"'\t,\n\r é "), max_size=5)


@settings(max_examples=120, deadline=None)
@given(data=st.data(), suffix=st.sampled_from([".csv", ".tsv"]))
def test_quotes_mean_what_the_csv_module_says(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, suffix: str
) -> None:
    """Fields are written quoted, or bare with quotes anywhere but at their beginning."""
    delimiter = "\t" if suffix == ".tsv" else ","
    bare = st.text(st.sampled_from("ab\"' é"), min_size=1, max_size=5).map(lambda word: "x" + word)
    quoted = FIELD.map(lambda word: '"' + word.replace('"', '""').replace("\r", "") + '"')
    closed_early = st.tuples(quoted, bare).map("".join)
    lines = data.draw(
        st.lists(st.tuples(bare | quoted | closed_early, bare | quoted | closed_early), min_size=1, max_size=12)
    )
    body = "a" + delimiter + "b\n" + "".join(delimiter.join(line) + "\n" for line in lines)
    path = tmp_path_factory.mktemp("csv") / f"a{suffix}"
    path.write_text(body, newline="")
    expected = list(csv.reader(io.StringIO(body, newline=""), delimiter=delimiter))[1:]
    with tiny_blocks():
        found = read(path, schema={"a": "string", "b": "string"})
    assert [list(row.values()) for row in found] == expected


def test_lone_quote_in_a_field_is_read_as_other_programs_read_it(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('size\tname\n5" disk\tone\n7\tsay "hi" to\n8\t2" x 4"\n')
    expected = [['5" disk', "one"], ["7", 'say "hi" to'], ["8", '2" x 4"']]
    assert [list(row.values()) for row in read(path)] == expected
    with path.open(newline="") as file:
        assert list(csv.reader(file, delimiter="\t"))[1:] == expected
    assert pd.read_csv(path, sep="\t", dtype=str).to_numpy().tolist() == expected
    assert [
        list(row) for row in duckdb.sql(f"from read_csv('{path}', delim='\t', all_varchar=true)").fetchall()
    ] == expected


def test_quoting_none_reads_quotes_as_characters(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_text('a\tb\n"open\tx\n   \ty\n"both"\t""\n')
    broken = tmp_path / "b.tsv"
    broken.write_text('a\n"open\n')
    with pytest.raises(
        UnreadableFileError, match=r'b\.tsv ends within quotes; the last quote is .*pass quoting="none"'
    ):
        open_source(broken)
    with tiny_blocks():
        source = open_source(path, quoting="none")
        found = [list(row.values()) for row in rows(source, 0, 3)]
    assert found == pd.read_csv(path, sep="\t", quoting=csv.QUOTE_NONE, keep_default_na=False).to_numpy().tolist()
    assert rows(source_from_spec(source.to_spec() or {}), 0, 3) == rows(source, 0, 3)
    with pytest.raises(ConfigError, match="unknown quoting 'minimal'; expected one of standard, none"):
        open_source(path, quoting="minimal")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"option of CSV files, and .*a\.jsonl is json lines"):
        open_source(write_lines(tmp_path / "a.jsonl", [1]), quoting="none")
    with pytest.raises(ConfigError, match="option of CSV files, not of a Table"):
        open_source(pa.table({"x": [1]}), quoting="none")


def test_quoted_header_behind_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbf"a\nb",c\n1,2\n')
    assert read(path) == [{"a\nb": 1, "c": 2}]


# --- compressed text ----------------------------------------------------------------------------------------------

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


def write_compressed(folder: Path, ending: str, body: bytes, name: str = "a.jsonl") -> Path:
    path = folder / f"{name}{ending}"
    path.write_bytes(COMPRESS[ending](body))
    return path


@pytest.mark.parametrize("ending", COMPRESS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.json"])
def test_compressed_text_reads_as_the_plain_text(tmp_path: Path, ending: str, name: str) -> None:
    table = pa.table({"id": range(40), "text": [f"row {i}" for i in range(40)]})
    delimiter = "\t" if name.endswith("tsv") else ","
    body = "".join(json.dumps(row) + "\n" for row in table.to_pylist())
    if "json" not in name:
        body = table.to_pandas().to_csv(sep=delimiter, index=False)
    path = write_compressed(tmp_path, ending, body.encode(), name)
    with tiny_blocks():
        source = open_source(path)
        check_columnar(source, table, every_range=False)
        assert rows(source_from_spec(source.to_spec() or {}), 7, 31) == table[7:31].to_pylist()
    assert source.files[0].num_bytes == path.stat().st_size
    assert source.part_boundaries(10) == [0, 40], "read from its beginning only"


def test_folder_of_plain_and_compressed_text_is_read_whole(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", [1])
    write_compressed(tmp_path, ".gz", b'{"x": 2}\n', "b.jsonl")
    write_compressed(tmp_path, ".zst", b'{"x": 3}\n', "c.jsonl")
    assert [row["x"] for row in read(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize("ending", COMPRESS)
def test_truncated_or_damaged_compressed_text_is_named(tmp_path: Path, ending: str) -> None:
    random.seed(1)
    body = b"".join(b'{"x": %d}\n' % random.getrandbits(40) for _ in range(5000))
    path = write_compressed(tmp_path, ending, body)
    whole = path.read_bytes()
    for cut in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(UnreadableFileError, match=rf"a\.jsonl\{ending}"):
            open_source(path)
    path.write_bytes(whole[: len(whole) // 2] + b"\0\0\0\0" + whole[len(whole) // 2 + 4 :])
    with pytest.raises(UnreadableFileError, match=rf"a\.jsonl\{ending}"):
        open_source(path)


def test_members_of_a_gzip_file_follow_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"x": 1}\n') + gzip.compress(b'{"x": 2}\n'))
    assert [row["x"] for row in read(path)] == [1, 2]
    subprocess.run(["gzip", "-t", path], check=True)


def test_compressed_text_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for start in range(0, 600_000, 10_000):
            file.write(b"".join(b'{"x": %d, "pad": "%060d"}\n' % (i, 0) for i in range(start, start + 10_000)))
    source = open_source(path)
    assert len(source) == 600_000
    peak = 0
    for batch in source.read(400_000, 600_000):
        peak = max(peak, pa.total_allocated_bytes())
        assert batch.num_rows <= 65_536
    assert peak < 40 << 20, "of some 55 MB of text"
