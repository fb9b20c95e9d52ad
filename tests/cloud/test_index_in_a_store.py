"""Builds straight to an object store: the same bytes as on a disk, whatever the connection does meanwhile."""

from __future__ import annotations

import threading

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from proxy import every, reads, writes

import arrowds
from arrowds.errors import IndexExistsError, StorageError, VersionNotFoundError
from arrowds.metrics import expr, function, seqlen, vocab_rarity


def table(seed: int, rows: int = 4000) -> pa.Table:
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "input_ids": [rng.integers(0, 50, size).tolist() for size in rng.integers(1, 30, rows)],
            "loss": pa.array(rng.normal(size=rows), mask=rng.random(rows) < 0.05),
        }
    )


METRICS = [
    seqlen("input_ids"),
    vocab_rarity("input_ids"),
    expr("loss", pl.col("loss"), nulls="keep"),
]


def truth(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files of values, buckets, distributions and totals, by what they are: keys name the build that made them."""
    found = {}
    for name, content in files.items():
        if name.startswith(("metrics/", "totals/")):
            parts = [part for part in name.split("/") if not part.startswith("segment=")]
            found.setdefault("/".join(parts), []).append(content)
    return {name: sorted(contents) for name, contents in found.items()}


def on_disk(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_operation_gives_the_bytes_that_it_gives_on_a_disk(place, tmp_path):
    url, disk = place.at("index"), tmp_path / "index"

    def both(operation, *arguments, **keywords):
        operation(*arguments, disk, **keywords)
        return operation(*arguments, url, storage_options=place.options, **keywords)

    def assert_same():
        remote, local = place.contents("index"), on_disk(disk)
        assert truth(remote) == truth(local)
        assert not [name for name in remote if name.startswith("builds/")]
        with arrowds.open_index(url, storage_options=place.options).connect() as connection:
            found = connection.sql("select seqlen, count(*) as n from samples group by all order by all").pl()
        assert found["n"].sum() == len(arrowds.open_index(disk))

    index = both(arrowds.analyze, table(1), METRICS, progress=False)
    assert index.path == url
    assert_same()
    both(arrowds.analyze, table(1), METRICS, progress=False)
    with pytest.raises(IndexExistsError, match="holds an index"):
        arrowds.analyze(table(2), METRICS, url, storage_options=place.options, progress=False)
    both(arrowds.append, table(2, 700), progress=False)
    assert_same()
    whole = pa.concat_tables([table(1), table(2, 700)])
    both(arrowds.add_metrics, whole, expr("twice", pl.col("loss") * 2, nulls="keep"), progress=False)
    assert_same()
    both(arrowds.compact)
    assert_same()
    versions = arrowds.versions(url, storage_options=place.options)
    assert versions["operation"].to_list() == ["compact", "add_metrics", "append", "analyze"]
    old = arrowds.open_index(url, version=1, storage_options=place.options)
    assert len(old) == 4000
    assert arrowds.vacuum(url, storage_options=place.options) == [1, 2, 3]
    arrowds.vacuum(disk)
    assert_same()
    with pytest.raises(VersionNotFoundError, match="vacuumed"):
        arrowds.open_index(url, version=1, storage_options=place.options)
    arrowds.open_index(url, storage_options=place.options, verify=True)
    again = both(arrowds.analyze, table(3), METRICS, overwrite=True, progress=False)
    assert again.version == 5
    assert_same()


def test_many_parts_and_buckets_are_reduced_by_ranges(proxy, proxied, tmp_path):
    """Runs of several batches each, larger than the head that is read first."""
    rng = np.random.default_rng(0)
    data = pa.table({"x": rng.integers(0, 1 << 40, 5_000_000), "y": rng.integers(0, 3, 5_000_000)})
    metrics = [expr("x", pl.col("x")), expr("y", pl.col("y"))]
    with proxy.counting() as requests:
        arrowds.analyze(data, metrics, proxied.at("index"), storage_options=proxied.options, progress=False)
    arrowds.analyze(data, metrics, tmp_path / "index", progress=False)
    assert truth(proxied.contents("index")) == truth(on_disk(tmp_path / "index"))
    parts, buckets, metrics = 39, 3, 2
    assert sum(map(reads, requests)) < metrics * parts * (buckets + 6)


def test_worker_processes_write_to_the_store(seaweed, tmp_path):
    metric = function("n", slow_length, dtype=np.int64, columns=["input_ids"])
    arrowds.analyze(table(1), metric, seaweed.at("i"), storage_options=seaweed.options, workers=2, progress=False)
    arrowds.analyze(table(1), metric, tmp_path / "i", workers=1, progress=False)
    assert truth(seaweed.contents("i")) == truth(on_disk(tmp_path / "i"))


def slow_length(batch):
    return np.array([len(ids.as_py()) for ids in batch["input_ids"]])


def test_two_appends_at_once_both_land(place):
    arrowds.analyze(table(1), METRICS, place.at("i"), storage_options=place.options, progress=False)
    errors = []

    def append(seed):
        try:
            arrowds.append(table(seed, 500), place.at("i"), storage_options=place.options, progress=False)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=append, args=(seed,)) for seed in (2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    index = arrowds.open_index(place.at("i"), storage_options=place.options)
    assert (index.version, len(index)) == (4, 5500)
    lengths = sorted(
        len(ids) for seed, rows in ((1, 4000), (2, 500), (3, 500), (4, 500)) for ids in table(seed, rows)["input_ids"]
    )
    assert np.sort(index["seqlen"].values).tolist() == lengths


@pytest.mark.parametrize(
    "fault",
    [{"status": 503}, {"lose_answer": True}, {"rule": reads, "cut_after": 100}],
    ids=["503", "lost answers", "cut"],
)
def test_a_bad_connection_changes_nothing(proxy, proxied, tmp_path, fault):
    spread = iter(range(10**9))
    rule = fault.pop("rule", every)
    with proxy.faulty(rule=lambda request: rule(request) and next(spread) % 7 == 3, **fault) as faults:
        for operation, seed in ((arrowds.analyze, 1), (arrowds.append, 2)):
            arguments = (table(seed, 500), METRICS) if operation is arrowds.analyze else (table(seed, 500),)
            operation(*arguments, proxied.at("i"), storage_options=proxied.options, progress=False)
            operation(*arguments, tmp_path / "i", progress=False)
    assert faults.hits > 3
    assert truth(proxied.contents("i")) == truth(on_disk(tmp_path / "i"))
    assert len(arrowds.open_index(proxied.at("i"), storage_options=proxied.options)) == 1000


def test_a_store_that_goes_away_keeps_the_work_and_a_rerun_finishes_it(proxy, proxied, tmp_path):
    options = {**proxied.options, "max_retries": 1}
    data = table(1, 20_000)  # of 20 parts

    def analyze():
        return arrowds.analyze(data, METRICS[0], proxied.at("i"), storage_options=options, workers=1, progress=False)

    written = iter(range(10**9))
    gone = lambda request: writes(request) and next(written) > 25  # noqa: E731
    with (
        proxy.faulty(rule=gone, status=503),
        pytest.raises(StorageError, match=r"s3://.* could not be written: .*run again: finished work is kept"),
    ):
        analyze()
    kept = [name for name in proxied.contents("i") if "/runs/" in name]
    assert 5 < len(kept) < 20
    with proxy.counting() as requests:
        index = analyze()
    again = [request.path for request in requests if request.method == "PUT" and "/runs/" in request.path]
    assert len(again) == 20 - len(kept)
    expected = arrowds.analyze(data, METRICS[0], tmp_path / "i", progress=False)
    assert np.array_equal(index["seqlen"].sample_ids(), expected["seqlen"].sample_ids())
    assert truth(proxied.contents("i")) == truth(on_disk(tmp_path / "i"))


def test_a_commit_whose_answer_is_lost_for_good_is_neither_lost_nor_doubled(proxy, proxied):
    options = {**proxied.options, "max_retries": 0}
    arrowds.analyze(table(1), METRICS, proxied.at("i"), storage_options=options, progress=False)
    more = table(2, 100)
    committing = []

    def from_the_commit_on(request):
        committing.extend([request] if request.method == "PUT" and request.path.endswith("00000002.json") else [])
        return bool(committing)

    with proxy.faulty(rule=from_the_commit_on, lose_answer=True), pytest.raises(StorageError):
        arrowds.append(more, proxied.at("i"), storage_options=options, progress=False)
    assert len(committing) == 1
    index = arrowds.append(more, proxied.at("i"), storage_options=options, progress=False)
    assert (index.version, len(index)) == (2, 4100)


def test_the_sampler_draws_from_a_remote_index_as_from_a_local_one(seaweed, tmp_path):
    curriculum = {
        "seqlen": {
            "difficulty_type": "value",
            "clustering_type": "schedule_based",
            "min_difficulty": 8,
            "max_difficulty": 30,
            "schedule_type": "fixed_linear",
            "schedule_config": {"total_curriculum_step": 20, "difficulty_step": 2},
        }
    }
    indexes = (
        arrowds.analyze(table(1), METRICS[0], seaweed.at("i"), storage_options=seaweed.options, progress=False),
        arrowds.analyze(table(1), METRICS[0], tmp_path / "i", progress=False),
    )
    remote, local = (
        arrowds.CurriculumSampler(index, curriculum, micro_batch_size=8, rank=0, world_size=1, seed=1)
        for index in indexes
    )
    for step in (1, 7, 25):
        assert np.array_equal(remote.global_batch_at(step), local.global_batch_at(step))
