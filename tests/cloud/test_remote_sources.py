"""Data at URLs: the same rows, the same index, and no more of a file than is needed."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from proxy import reads

import arrowds
from arrowds.errors import ConfigError, SourceError, StorageError, UnreadableFileError, UnsupportedError
from arrowds.index.data import source_files
from arrowds.metrics import expr, seqlen
from arrowds.sources import open_new_files, open_source, source_from_spec
from arrowds.sources.objects import ObjectPath

ROWS = 3000


def rows(seed: int, count: int = ROWS) -> pa.Table:
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "tokens": [rng.integers(0, 100, size).tolist() for size in rng.integers(1, 20, count)],
            "x": rng.integers(0, 1000, count),
            "text": [f"row {i} of {seed}" for i in range(count)],
        }
    )


def as_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=500)
    return sink.getvalue()


def as_ipc(table: pa.Table, compression: str | None = None) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_table(table, max_chunksize=500)
    return sink.getvalue()


def as_stream(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=500)
    return sink.getvalue()


def as_json_lines(table: pa.Table) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in table.to_pylist()).encode()


def as_csv(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pa.csv.write_csv(table.drop_columns("tokens"), sink)
    return sink.getvalue()


FORMATS = {
    "parquet": ("parquet", as_parquet),
    "ipc": ("arrow", as_ipc),
    "compressed ipc": ("arrow", lambda table: as_ipc(table, "zstd")),
    "ipc stream": ("arrow", as_stream),
    "json lines": ("jsonl", as_json_lines),
    "compressed json lines": ("jsonl.gz", lambda table: gzip.compress(as_json_lines(table))),
    "csv": ("csv", as_csv),
}


def put(place, folder: Path, name: str, content: bytes) -> None:
    """Write a file to both a store and a disk."""
    place.store.write(name, content)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def read(source, start=0, stop=None, columns=None):
    batches = list(source.read(start, len(source) if stop is None else stop, columns))
    return pa.Table.from_batches(batches).to_pydict() if batches else {}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_rows_and_the_index_that_local_files_give(seaweed, tmp_path, kind):
    ending, encode = FORMATS[kind]
    for number in (1, 2):
        put(seaweed, tmp_path, f"data/{number}.{ending}", encode(rows(number)))
    remote = open_source(seaweed.at("data"), storage_options=seaweed.options)
    local = open_source(tmp_path / "data")
    assert remote.schema == local.schema
    assert len(remote) == len(local) == 2 * ROWS
    assert remote.description == local.description
    if kind not in ("ipc", "ipc stream"):  # of a memory map, batches may be cut anywhere
        assert remote.part_boundaries(700) == local.part_boundaries(700)
    for start, stop in ((0, 2 * ROWS), (ROWS - 3, ROWS + 3), (499, 501), (7, 7)):
        assert read(remote, start, stop) == read(local, start, stop)
    assert read(remote, 10, 4000, ["x"]) == read(local, 10, 4000, ["x"])
    metrics = [expr("x", pl.col("x") * 2)] + ([] if ending == "csv" else [seqlen("tokens")])
    pattern = seaweed.at(f"data/*.{ending}")
    index = arrowds.analyze(pattern, metrics, seaweed.at("index"), storage_options=seaweed.options, progress=False)
    expected = arrowds.analyze(local, metrics, tmp_path / "index", progress=False)
    ids = [2 * ROWS - 1, 0, ROWS, ROWS - 1, 0]
    assert index.samples(ids).equals(expected.samples(ids))
    for found in (index.sql("from data"), index.scan_data().collect()):
        assert found.equals(expected.scan_data().collect())
    for name in index:
        assert [file.xxh3 for file in index.manifest.segments[0].columns[name].files(name).values()] == [
            file.xxh3 for file in expected.manifest.segments[0].columns[name].files(name).values()
        ]


def test_urls_folders_patterns_and_lists_stand_for_the_same_objects_as_on_a_disk(place, tmp_path):
    table = rows(1, 10)
    for name in ("a.parquet", "sub/b.parquet", "sub/deep/c.parquet", "_SUCCESS", ".hidden/d.parquet", "notes.txt"):
        put(place, tmp_path, f"data/{name}", as_parquet(table))
    put(place, tmp_path, "data/sub/x y=ü.parquet", as_parquet(table))
    for pattern in (
        "data",
        "data/*.parquet",
        "data/**/*.parquet",
        "data/sub/[bc].parquet",
        "data/su?/*.parquet",
        "data/sub/x y=ü.parquet",
        "data/a.parquet",
    ):
        remote = open_source(place.at(pattern), storage_options=place.options)
        local = open_source(tmp_path / pattern)
        expected = [Path(file.path).relative_to(tmp_path).as_posix() for file in local.files]
        assert [file.path.removeprefix(f"{place.url}/") for file in remote.files] == expected, pattern
    both = [place.at("data/sub"), Path(place.at("data/a.parquet"))]
    assert len(open_source(both, storage_options=place.options).files) == 4


def test_an_index_among_the_data_is_passed_over(seaweed):
    seaweed.store.write("data/a.parquet", as_parquet(rows(1, 10)))
    everything = seaweed.at("data/**/*.parquet")
    metric = expr("x", pl.col("x"))
    for _ in range(2):
        index = arrowds.analyze(everything, metric, seaweed.at("data/index"), storage_options=seaweed.options)
        assert len(index) == 10
    assert len(open_source(seaweed.at("data"), storage_options=seaweed.options)) == 10


def test_a_parquet_source_reads_only_the_columns_and_row_groups_that_are_needed(proxy, proxied):
    table = rows(1).append_column("large", pa.array(np.random.default_rng(0).bytes(100) for _ in range(ROWS)))
    table = pa.concat_tables([table] * 20)
    content = as_parquet(table)
    proxied.store.write("a.parquet", content)
    source = open_source(proxied.at("a.parquet"), storage_options=proxied.options)
    with proxy.counting() as requests:
        assert read(source, 0, 500, ["x"]) == table.select(["x"]).slice(0, 500).to_pydict()
    assert len(requests) <= 2
    assert bytes_asked(requests) < len(content) / 20
    with proxy.counting() as requests:
        assert read(source, 30_000, 31_000, ["x", "tokens"]) == table.select(["x", "tokens"])[30_000:31_000].to_pydict()
    assert bytes_asked(requests) < len(content) / 20


def bytes_asked(requests) -> int:
    ranges = [request.range.removeprefix("bytes=").split("-") for request in requests if reads(request)]
    return sum(int(stop) - int(start) + 1 for start, stop in ranges)


def test_opening_many_objects_reads_their_footers_alone(proxy, proxied):
    content = as_parquet(pa.concat_tables([rows(1)] * 5))
    for number in range(20):
        proxied.store.write(f"data/{number:02}.parquet", content)
    with proxy.counting() as requests:
        source = open_source(proxied.at("data/*.parquet"), storage_options=proxied.options)
        assert source.fingerprint() == source.fingerprint()
        assert len(source.files) == 20
    assert len(requests) <= 1 + 20
    assert bytes_asked(requests) <= 20 * (1 << 16)


@pytest.mark.parametrize("kind", FORMATS)
def test_an_object_that_is_replaced_is_noticed(place, kind):
    ending, encode = FORMATS[kind]
    place.store.write(f"a.{ending}", encode(rows(1)))
    source = open_source(place.at(f"a.{ending}"), storage_options=place.options)
    place.store.write(f"a.{ending}", encode(rows(2)))
    with pytest.raises(UnreadableFileError, match=rf"a\.{ending} changed since it was opened"):
        read(source)


def test_a_run_whose_data_are_replaced_fails_and_says_so(seaweed):
    seaweed.store.write("a.jsonl", as_json_lines(rows(1)))

    def replacing(batch):
        seaweed.store.write("a.jsonl", as_json_lines(rows(2)))
        return batch["x"]

    source = open_source(seaweed.at("a.jsonl"), storage_options=seaweed.options)
    metric = arrowds.metrics.function("x", replacing, dtype=np.int64)
    with pytest.raises(UnreadableFileError, match="changed since it was opened"):
        for start in (0, 1000):
            for batch in source.read(start, start + 1000):
                metric.compute(batch, {})


def test_an_append_takes_the_new_objects_alone_and_refuses_changed_ones(proxy, proxied):
    def analyze(function, *arguments):
        return function(*arguments, proxied.at("index"), storage_options=proxied.options, progress=False)

    pattern = proxied.at("data/*.parquet")
    proxied.store.write("data/1.parquet", as_parquet(rows(1)))
    index = analyze(arrowds.analyze, pattern, expr("x", pl.col("x")))
    [file] = source_files(index.store, index.manifest)
    entry = proxied.store.entry("data/1.parquet")
    assert (file.path, file.num_rows, file.num_bytes) == (proxied.at("data/1.parquet"), ROWS, entry.size)
    assert (file.modified, file.digest) == (entry.etag, f"etag:{entry.etag}")
    assert analyze(arrowds.append, pattern).version == 1
    proxied.store.write("data/2.parquet", as_parquet(rows(2)))
    with proxy.counting() as requests:
        index = analyze(arrowds.append, pattern)
    assert not [request for request in requests if "data/1.parquet" in request.path]
    assert index["x"].values.tolist() == rows(1)["x"].to_pylist() + rows(2)["x"].to_pylist()
    more = analyze(arrowds.add_metrics, pattern, seqlen("tokens"))
    assert more["seqlen"][ROWS].item() == len(rows(2)["tokens"][0])
    proxied.store.write("data/1.parquet", as_parquet(rows(3)))
    with pytest.raises(SourceError, match=r"1\.parquet changed since it was indexed"):
        analyze(arrowds.append, pattern)
    proxied.store.delete(["data/1.parquet"])
    with pytest.raises(SourceError, match=r"missing: s3://.*1\.parquet"):
        analyze(arrowds.append, pattern)


def test_a_moved_object_is_known_by_its_content_where_that_is_asked_for(seaweed):
    content = as_parquet(rows(1))
    seaweed.store.write("old/1.parquet", content)
    known = open_source(seaweed.at("old"), storage_options=seaweed.options).files
    seaweed.store.write("new/1.parquet", content)
    at = {"storage_options": seaweed.options}
    assert open_new_files(seaweed.at("new"), known, compare_content=True, **at) is None
    assert len(open_new_files(seaweed.at("new"), known, **at)) == ROWS


def test_a_description_opens_the_same_objects_and_holds_no_credentials(seaweed):
    for number in (1, 2):
        seaweed.store.write(f"data/{number}.csv", as_csv(rows(number)))
    source = open_source(seaweed.at("data"), storage_options=seaweed.options)
    spec = json.dumps(source.to_spec())
    assert "testing" not in spec
    again = source_from_spec(json.loads(spec), storage_options=seaweed.options)
    assert again.fingerprint() == source.fingerprint()
    assert read(again) == read(source)
    seaweed.store.write("data/2.csv", as_csv(rows(3)))
    with pytest.raises(UnreadableFileError, match=r"2\.csv changed since it was recorded"):
        source_from_spec(json.loads(spec), storage_options=seaweed.options)


def test_shards_open_remote_data_and_a_remote_index_from_the_plan(seaweed, tmp_path):
    from arrowds.build.shards import map_shard, plan_build, reduce_build

    for number in (1, 2):
        put(seaweed, tmp_path, f"data/{number}.parquet", as_parquet(rows(number)))
    at, metric = {"storage_options": seaweed.options}, expr("x", pl.col("x"))
    plan_build(seaweed.at("data"), metric, seaweed.at("index"), **at)
    assert "testing" not in str(seaweed.contents("index/builds"))
    for shard in (2, 1):
        map_shard(seaweed.at("index"), shard, 2, progress=False, **at)
    index = reduce_build(seaweed.at("index"), **at)
    expected = arrowds.analyze(tmp_path / "data", metric, tmp_path / "index", progress=False)
    assert np.array_equal(index["x"].sample_ids(), expected["x"].sample_ids())


def test_lost_connections_while_data_are_read_are_repaired(proxy, proxied):
    proxied.store.write("a.parquet", as_parquet(rows(1)))
    proxied.store.write("a.jsonl", as_json_lines(rows(1)))
    for name in ("a.parquet", "a.jsonl"):
        with proxy.faulty(rule=reads, cut_after=300, times=2), proxy.faulty(rule=reads, status=503, times=2):
            source = open_source(proxied.at(name), storage_options=proxied.options)
            assert read(source, columns=["x"]) == rows(1).select(["x"]).to_pydict()


def test_what_is_wrong_is_named(seaweed, tmp_path):
    seaweed.store.write("data/a.parquet", as_parquet(rows(1, 5))[:-9])
    seaweed.store.write("pair/a.bin", b"")
    seaweed.store.write("delta/_delta_log/0.json", b"")
    seaweed.store.write("delta/a.parquet", as_parquet(rows(1, 5)))
    at = {"storage_options": seaweed.options}
    for url, error, words in (
        (seaweed.at("nothing"), UnreadableFileError, "no such object"),
        (seaweed.at("nothing/*.parquet"), UnreadableFileError, "no object matches"),
        (seaweed.at("data/a.parquet"), UnreadableFileError, r"a\.parquet"),
        (seaweed.at("pair/a.bin"), UnsupportedError, "memory-mapped"),
        (seaweed.at("delta"), SourceError, "Delta table"),
        ("s3://no-such-bucket/a.parquet", (StorageError, UnreadableFileError), "no-such-bucket"),
    ):
        with pytest.raises(error, match=words):
            open_source(url, **at)
    with pytest.raises(UnsupportedError, match="https"):
        open_source("https://example.org/a.parquet")
    (tmp_path / "a.csv").write_text("x\n1\n")
    with pytest.raises(ConfigError, match="local files"):
        open_source(tmp_path, **at)
    with pytest.raises(ConfigError, match="list"):
        open_source([1, 2], **at)
    with pytest.raises(ConfigError, match="neither"):
        arrowds.analyze(tmp_path, expr("x", pl.col("x")), tmp_path / "index", **at)


def test_local_data_for_a_remote_index_and_remote_data_for_a_local_one(seaweed, tmp_path):
    put(seaweed, tmp_path, "data/a.parquet", as_parquet(rows(1)))
    metric, at = expr("x", pl.col("x")), {"storage_options": seaweed.options, "progress": False}
    remote = arrowds.analyze(tmp_path / "data", metric, seaweed.at("index"), **at)
    local = arrowds.analyze(seaweed.at("data"), metric, tmp_path / "index", **at)
    assert np.array_equal(remote["x"].sample_ids(), local["x"].sample_ids())


def test_a_path_holds_no_credentials_in_its_text(seaweed):
    seaweed.store.write("a.csv", b"x\n1\n")
    [path] = [ObjectPath(seaweed.store, "a.csv", 1, "e")]
    assert "testing" not in repr(path) + str(path)
