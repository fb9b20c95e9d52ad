"""What is recorded of a source's files: recognised again, told apart when new, and checked while they are read."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import cloudpickle
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
import xxhash
from source_contract import rows

from arrowds.errors import SourceError, UnreadableFileError
from arrowds.indexed_dataset import write_indexed_dataset
from arrowds.sources import (
    MegatronSource,
    Source,
    SourceFile,
    TokenizedSource,
    fingerprint,
    open_new_files,
    open_source,
    source_from_spec,
)


def write_arrow(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)


def write_json(table: pa.Table, path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))


FORMATS: dict[str, Callable[[pa.Table, Path], None]] = {
    ".parquet": pq.write_table,
    ".arrow": write_arrow,
    ".jsonl": write_json,
    ".csv": pa.csv.write_csv,
}


def table(first: int, count: int = 3) -> pa.Table:
    return pa.table({"x": range(first, first + count), "text": [f"t{i}" for i in range(first, first + count)]})


def touch(path: Path) -> None:
    """Another modification time, the same content."""
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))


@pytest.fixture(params=FORMATS)
def suffix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def write(tmp_path: Path, suffix: str) -> Callable[..., Path]:
    def write(name: str, first: int, count: int = 3) -> Path:
        path = tmp_path / f"{name}{suffix}"
        FORMATS[suffix](table(first, count), path)
        return path

    return write


# --- records ------------------------------------------------------------------------------------------------------


def test_files_are_recorded_in_row_order(
    tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    b, a = write("b", 0, 2), write("a", 2, 5)
    monkeypatch.chdir(tmp_path)
    source = open_source([b.name, f"../{tmp_path.name}/{a.name}"])
    expected = [
        SourceFile(str(path), count, path.stat().st_size, str(path.stat().st_mtime_ns), hex_digest(path))
        for path, count in ((b, 2), (a, 5))
    ]
    assert source.files == tuple(expected)
    assert [SourceFile(**json.loads(json.dumps(asdict(file)))) for file in source.files] == expected
    assert source.fingerprint() == fingerprint.combine(
        source.description.split(",")[0], [file.digest for file in expected]
    )
    assert TokenizedSource(source).files == source.files


def hex_digest(path: Path) -> str:
    return xxhash.xxh3_128_hexdigest(path.read_bytes())


def test_pair_is_recorded_with_its_rows_counted_once(tmp_path: Path) -> None:
    write_indexed_dataset(tmp_path / "tokens", np.arange(6), np.array([2, 4]), dtype="int32")
    files = open_source(tmp_path / "tokens").files
    assert [(Path(file.path).name, file.num_rows) for file in files] == [("tokens.bin", 2), ("tokens.idx", 0)]
    assert [file.digest for file in files] == [hex_digest(Path(file.path)) for file in files]


def test_files_of_a_pyarrow_dataset_are_recorded_with_their_rows(tmp_path: Path) -> None:
    for year, count in ((2023, 4), (2024, 6)):
        (tmp_path / f"year={year}").mkdir()
        pq.write_table(table(0, count), tmp_path / f"year={year}" / "a.parquet", row_group_size=3)
    source = open_source(pa.dataset.dataset(tmp_path, partitioning="hive"))
    assert [(file.path[-19:], file.num_rows) for file in source.files] == [
        ("year=2023/a.parquet", 4),
        ("year=2024/a.parquet", 6),
    ]
    new = source.without(source.files[:1])
    assert new is not None
    assert rows(new, 0, 6) == rows(source, 4, 10), "with the columns that folders name"
    assert source.without(source.files) is None


def test_what_is_not_in_local_files_has_no_records(tmp_path: Path) -> None:
    pq.write_table(table(0), tmp_path / "a.parquet")
    store = pa.fs.SubTreeFileSystem(str(tmp_path), pa.fs.LocalFileSystem())
    for data in (table(0), [1, 2, 3], pa.dataset.dataset("a.parquet", filesystem=store)):
        source = open_source(data)
        assert source.files == ()
        assert source.without([SourceFile("/gone", 1, 1, "1", "")]) is source
        assert source.to_spec() is None


# --- what is new --------------------------------------------------------------------------------------------------


def test_grown_pattern_gives_its_new_files_and_does_not_read_the_known(
    tmp_path: Path, suffix: str, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a", 0)
    write("c", 3)
    known = open_source(tmp_path).files
    assert open_new_files(tmp_path, known) is None
    write("b", 6)
    write("d", 9)
    opened = []
    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *args, **kwargs: opened.append(path.name) or real(path, *args, **kwargs)
    )
    for data in (tmp_path, f"{tmp_path}/*", sorted(tmp_path.iterdir())):
        new = open_new_files(data, known)
        assert new is not None
        assert [row["x"] for row in rows(new, 0, len(new))] == [6, 7, 8, 9, 10, 11]
        assert [Path(file.path).stem for file in new.files] == ["b", "d"]
    assert not {f"a{suffix}", f"c{suffix}"} & set(opened)
    opened_first = open_source(tmp_path).without(known)
    assert opened_first is not None
    assert rows(opened_first, 0, 6) == rows(new, 0, 6)


def test_wrapped_source_gives_its_new_files(tmp_path: Path, write: Callable[..., Path]) -> None:
    write("a", 0)
    known = TokenizedSource(open_source(tmp_path)).files
    write("b", 3)
    source = TokenizedSource(open_source(tmp_path), output="bytes")
    new = open_new_files(source, known)
    assert new is not None
    assert rows(new, 0, 1, ["bytes"]) == [{"bytes": list(b"t3")}]
    assert len(source) == 6
    assert open_new_files(source, source.files) is None
    assert open_new_files(source, []) is source


def test_known_file_may_have_another_time_but_not_other_content(tmp_path: Path, write: Callable[..., Path]) -> None:
    a = write("a", 0)
    known = open_source(tmp_path).files
    touch(a)
    assert open_new_files(tmp_path, known) is None
    write("a", 1)  # as long as before
    if a.stat().st_size == known[0].num_bytes:
        os.utime(a, ns=(0, int(known[0].modified)))
        assert open_new_files(tmp_path, known) is None, "size and time say that it is the same"
        with pytest.raises(SourceError, match=r"a\.\w+ changed since it was indexed"):
            open_new_files(tmp_path, known, compare_content=True)
        touch(a)
    with pytest.raises(SourceError, match=r"a\.\w+ changed since it was indexed .3 rows, \d+ bytes.; put the old"):
        open_new_files(tmp_path, known)
    write("a", 0, 4)
    with pytest.raises(SourceError, match=r"a\.\w+ changed since it was indexed"):
        open_new_files(tmp_path, known)


def test_missing_known_files_are_named_unless_none_is_among_the_data(
    tmp_path: Path, write: Callable[..., Path]
) -> None:
    paths = [write(name, 3 * i) for i, name in enumerate("abcd")]
    known = open_source(paths).files
    paths[1].unlink()
    paths[2].unlink()
    new = write("e", 20)
    with pytest.raises(SourceError, match=r"are missing: .*b\.\w+, .*c\.\w+; put them back"):
        open_new_files(tmp_path, known)
    alone = open_new_files(new, known)
    assert alone is not None
    assert rows(alone, 0, 1)[0]["x"] == 20
    write("b", 3)
    write("c", 6)
    listed = open_new_files([paths[0], new], known)
    assert listed is not None
    assert len(listed) == 3, "known files that are not listed need not be read"


def test_links_to_known_files_are_known_and_moved_files_by_content(tmp_path: Path, write: Callable[..., Path]) -> None:
    a = write("a", 0)
    known = open_source(a).files
    (tmp_path / "alias").symlink_to(tmp_path)
    assert open_new_files(tmp_path / "alias" / a.name, known) is None
    moved = a.rename(a.with_stem("moved"))
    assert open_new_files(moved, known) is not None
    assert open_new_files(moved, known, compare_content=True) is None


def test_new_files_must_fit_the_known_columns(tmp_path: Path, suffix: str, write: Callable[..., Path]) -> None:
    write("a", 0)
    source = open_source(tmp_path)
    known, schema = source.files, source.schema
    bad = tmp_path / f"b{suffix}"
    FORMATS[suffix](pa.table({"x": [1.5], "text": ["a"]}), bad)
    message = (
        "line .: column 'x' is not int64 everywhere"
        if suffix in (".jsonl", ".csv")
        else ("does not fit the expected columns: column 'x' is double instead of int64")
    )
    with pytest.raises(SourceError, match=rf"b\.\w+,? {message}"):
        open_new_files(tmp_path, known, schema=schema)
    FORMATS[suffix](pa.table({"x": [1]}), bad)
    if suffix == ".jsonl":  # where a key that a line lacks is null
        new = open_new_files(tmp_path, known, schema=schema)
        assert new is not None
        assert rows(new, 0, 1) == [{"x": 1, "text": None}]
    else:
        with pytest.raises(SourceError, match=r"b\.\w+ does not fit .*: column 'text' is missing"):
            open_new_files(tmp_path, known, schema=schema)


def test_new_files_must_be_of_the_known_format(tmp_path: Path) -> None:
    write_json(table(0), tmp_path / "a.jsonl")
    known = open_source(tmp_path).files
    pq.write_table(table(3), tmp_path / "b.parquet")
    with pytest.raises(SourceError, match=r"b\.parquet is not of the format of .*a\.jsonl"):
        open_new_files(tmp_path, known)
    write_indexed_dataset(tmp_path / "tokens", np.arange(3), np.array([3]), dtype="int32")
    with pytest.raises(SourceError, match=r"tokens\.bin is not of the format of .*a\.jsonl"):
        open_new_files(tmp_path / "tokens", known)


def test_second_pair_of_a_folder_is_new(tmp_path: Path) -> None:
    write_indexed_dataset(tmp_path / "a", np.arange(6), np.array([2, 4]), dtype="int32")
    known = open_source(tmp_path).files
    assert open_new_files(tmp_path, known) is None
    assert open_new_files(tmp_path / "a", known) is None
    write_indexed_dataset(tmp_path / "b", np.arange(3), np.array([3]), dtype="int32")
    new = open_new_files(tmp_path, known, schema=open_source(tmp_path / "a").schema)
    assert new is not None
    assert rows(new, 0, 1, ["input_ids"]) == [{"input_ids": [0, 1, 2]}]
    write_indexed_dataset(tmp_path / "b", np.arange(3), np.array([3]), dtype="int16")
    with pytest.raises(SourceError, match="'input_ids' is large_list<item: int16> instead of large_list<item: int32>"):
        open_new_files(tmp_path, known, schema=open_source(tmp_path / "a").schema)
    write_indexed_dataset(tmp_path / "a", np.arange(1, 7), np.array([2, 4]), dtype="int32")
    with pytest.raises(SourceError, match=r"a\.bin changed since it was indexed"):
        open_new_files(tmp_path, known)


def test_data_in_memory_are_new_and_must_fit(tmp_path: Path) -> None:
    known = [SourceFile("/gone.parquet", 3, 10, "0", "")]
    new = open_new_files(table(0), known, schema=table(0).schema)
    assert new is not None
    assert len(new) == 3
    with pytest.raises(SourceError, match="arrow table, column x does not fit the expected columns: column 'text' is"):
        open_new_files(table(0).select(["x"]), known, schema=table(0).schema)


# --- checked while reading ----------------------------------------------------------------------------------------


def replaced(path: Path, other: bytes, *, how: str) -> None:
    """Replace a file by one of equal size and modification time: a new file under the old name, or its bytes."""
    before = path.stat()
    assert len(other) == before.st_size
    if how == "renamed":
        path.with_suffix(".new").write_bytes(other)
        path.with_suffix(".new").rename(path)
    else:
        path.write_bytes(other)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("how", ["renamed", "rewritten"])
@pytest.mark.parametrize("digested", [False, True])
def test_file_replaced_by_one_of_equal_size_and_time_is_named(
    write: Callable[..., Path], how: str, digested: bool
) -> None:
    a = write("a", 10)
    other = write("other", 20).read_bytes()
    source = open_source(a)
    if digested:
        source.fingerprint()
    copy = cloudpickle.loads(cloudpickle.dumps(source))
    replaced(a, other, how=how)
    for opened in (source, copy):
        with pytest.raises(UnreadableFileError, match=r"a\.\w+ changed since it was opened; open the source again"):
            list(opened.read(0, 3))


def test_file_replaced_while_a_range_is_read_is_named(write: Callable[..., Path]) -> None:
    a = write("a", 10)
    other = write("other", 20).read_bytes()
    source = open_source(a)
    batches = source.read(0, 3)
    next(batches)
    replaced(a, other, how="renamed")
    with pytest.raises(UnreadableFileError, match="changed since it was opened"):
        list(batches)


def test_file_that_was_only_touched_by_chmod_reads_on(write: Callable[..., Path]) -> None:
    """As does a copy on another host, or a network mount that numbers its files anew."""
    a = write("a", 10)
    source = open_source(a)
    source.fingerprint()
    a.chmod(0o600)
    assert len(rows(source, 0, 3)) == 3


def test_pair_and_dataset_replaced_after_opening_are_named(tmp_path: Path) -> None:
    write_indexed_dataset(tmp_path / "a", np.arange(6), np.array([2, 4]), dtype="int32")
    write_indexed_dataset(tmp_path / "b", np.arange(6), np.array([4, 2]), dtype="int32")
    pair = open_source(tmp_path / "a")
    (tmp_path / "b.idx").rename(tmp_path / "a.idx")
    with pytest.raises(UnreadableFileError, match=r"a\.idx changed since it was opened"):
        list(pair.read(0, 2))
    with pytest.raises(UnreadableFileError, match=r"a\.idx changed since it was opened"):
        pair.fingerprint()
    pq.write_table(table(0), tmp_path / "a.parquet")
    dataset = open_source(pa.dataset.dataset(tmp_path / "a.parquet"))
    pq.write_table(table(5), tmp_path / "a.parquet")
    with pytest.raises(UnreadableFileError, match=r"a\.parquet changed since it was opened"):
        list(dataset.read(0, 3))


# --- descriptions -------------------------------------------------------------------------------------------------


def reopened(source: Source) -> Source:
    return source_from_spec(json.loads(json.dumps(source.to_spec())))


def test_described_source_reads_the_same_without_reading_all_bytes(
    tmp_path: Path, write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    write("a", 0)
    write("b", 3, 7)
    for source in (open_source(tmp_path), TokenizedSource(open_source(tmp_path), output="bytes")):
        spec = json.dumps(source.to_spec())
        with monkeypatch.context() as patch:
            patch.setattr(fingerprint, "of_files", None)
            copy = source_from_spec(json.loads(spec))
            assert copy.fingerprint() == source.fingerprint()
            assert copy.files == source.files
        assert copy.schema == source.schema
        assert copy.part_boundaries(2) == source.part_boundaries(2)
        assert rows(copy, 1, 9) == rows(source, 1, 9)
        assert json.dumps(copy.to_spec()) == spec


def test_described_tokenizer_gives_the_same_ids(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    write_json(table(0), tmp_path / "a.jsonl")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"t0": 3, "t1": 5, "[UNK]": 0}, unk_token="[UNK]"))
    source = TokenizedSource(open_source(tmp_path), tokenizer=tokenizer, special_tokens=True)
    copy = reopened(source)
    assert rows(copy, 0, 3, ["input_ids"]) == [{"input_ids": [3]}, {"input_ids": [5]}, {"input_ids": [0]}]
    assert copy.fingerprint() == source.fingerprint()


def test_described_pair_reads_the_same(tmp_path: Path) -> None:
    write_indexed_dataset(tmp_path / "a", np.arange(6), np.array([2, 4]), dtype="uint32")
    source = MegatronSource(tmp_path / "a", dialect="deepspeed", column="tokens")
    copy = reopened(source)
    assert rows(copy, 0, 2) == rows(source, 0, 2)
    assert copy.fingerprint() == source.fingerprint()


def test_described_file_that_changed_is_named(tmp_path: Path, write: Callable[..., Path]) -> None:
    a = write("a", 0)
    source = open_source(tmp_path)
    spec = source.to_spec()
    assert spec is not None
    touch(a)
    assert rows(source_from_spec(spec), 0, 3) == table(0).to_pylist()
    write("a", 1, 9)
    with pytest.raises(UnreadableFileError, match=r"a\.\w+ changed since it was recorded"):
        source_from_spec(spec)
    a.unlink()
    with pytest.raises(UnreadableFileError, match=r"a\.\w+: No such file"):
        source_from_spec(spec)


@pytest.mark.parametrize("spec", [{}, {"kind": "pickle"}, {"kind": "files"}, {"kind": "files", "format": "x"}, [], "x"])
def test_what_is_no_description_is_refused(spec: object) -> None:
    with pytest.raises(SourceError, match=r"description of a source|source of the kind"):
        source_from_spec(spec)  # type: ignore[arg-type]


def test_files_that_were_moved_are_not_taken_for_new_ones_unless_their_content_is_compared(tmp_path):
    (tmp_path / "old").mkdir()
    pq.write_table(pa.table({"x": [1, 2]}), tmp_path / "old/a.parquet")
    known = open_source(tmp_path / "old").files
    (tmp_path / "old").rename(tmp_path / "moved")
    with pytest.raises(SourceError, match=r"moved/a\.parquet has the name and the size of .*old/a\.parquet, .* gone"):
        open_new_files(tmp_path / "moved", known)
    assert open_new_files(tmp_path / "moved", known, compare_content=True) is None
    (tmp_path / "moved/a.parquet").rename(tmp_path / "moved/b.parquet")
    assert len(open_new_files(tmp_path / "moved", known)) == 2
