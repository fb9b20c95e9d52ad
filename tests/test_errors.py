"""Bad input gets a clear error and loses nothing."""

from __future__ import annotations

import inspect
import json
import pickle
import re
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from index_files import contents

import arrowds
from arrowds import errors
from arrowds.errors import (
    ConfigError,
    EmptyDatasetError,
    IndexExistsError,
    IndexVersionError,
    MetricError,
    MetricFailedError,
    MetricNameError,
    MetricValueError,
    MissingColumnError,
    SourceError,
    StorageError,
    UnreadableFileError,
)
from arrowds.index import paths

seqlen, function, expr = arrowds.metrics.seqlen, arrowds.metrics.function, arrowds.metrics.expr
TABLE = pa.table({"x": [[1, 2], [3], []], "y": [1.0, 2.0, 3.0]})


def analyze(source, metrics, path, **options) -> arrowds.Index:
    return arrowds.analyze(source, metrics, path, progress=False, **options)


class Samples:
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int):
        return {"x": torch.tensor(i), "ids": list(range(i % 3))}


def test_the_tree_in_the_docstring_is_the_tree_of_classes():
    drawn = re.findall(r"[|`]-- (\w+)", errors.__doc__)
    classes = [
        each
        for each in vars(errors).values()
        if inspect.isclass(each) and issubclass(each, errors.ArrowdsError) and each is not errors.ArrowdsError
    ]
    assert sorted(drawn) == sorted(each.__name__ for each in classes)
    for each in classes:
        builtin = [base for base in each.__mro__ if base.__module__ == "builtins"]
        assert builtin[0] is not Exception, f"{each.__name__} derives from no closer built-in class"


@pytest.mark.parametrize(
    "error",
    [errors.MissingExtraError("torch", "torch"), errors.StorageError(28, "full"), errors.UnknownMetricError("no 'x'")],
)
def test_errors_travel_between_processes(error):
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (type(error), str(error))


@pytest.mark.parametrize(
    "data",
    [pa.table({"x": pa.array([], pa.list_(pa.int8()))}), pl.DataFrame({"x": []}), [], Samples(0)],
    ids=["table", "polars", "list", "torch"],
)
def test_an_empty_dataset(tmp_path, data):
    with pytest.raises(EmptyDatasetError, match=r"the dataset \(.*\) has no samples; there is nothing to index"):
        analyze(data, seqlen("x"), tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_a_missing_column_names_those_there_are(tmp_path):
    for metric in (seqlen("nope"), expr("m", pl.col("nope")), function("m", len, columns=["nope"])):
        with pytest.raises(MissingColumnError, match="no column 'nope'; the data has 'x', 'y'"):
            analyze(TABLE, metric, tmp_path / "index")
    assert not (tmp_path / "index").exists()
    with pytest.raises(MissingColumnError, match=r"no field 'nope'; its fields are \['x', 'ids'\]"):
        analyze(Samples(3), seqlen("nope"), tmp_path / "torch")


@pytest.mark.parametrize("name", ["a/b", "..", "../../escaped", "", "sample_id"])
def test_a_name_that_is_no_folder(tmp_path, name):
    with pytest.raises(MetricNameError, match="can't be the name of a metric"):
        analyze(TABLE, seqlen("x", name=name), tmp_path / "index")


def test_names_that_clash(tmp_path):
    clashing = [
        [seqlen("x"), seqlen("y")],
        [seqlen("x", name="m"), function("m", len, kind="total")],
        [arrowds.metrics.vocab_rarity("x"), seqlen("x", name="vocab_rarity.token_counts")],
        [seqlen("x"), seqlen("x")],
    ]
    for metrics in clashing:
        with pytest.raises(MetricNameError, match=r"two metrics are named '.*'; give one of them another name="):
            analyze(TABLE, metrics, tmp_path / "index")


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        ([], "no metric to compute"),
        (["seqlen"], "expected a Metric, got a str"),
        ("seqlen", "expected a Metric, got a str"),
    ],
)
def test_metrics_that_are_none(tmp_path, metrics, message):
    with pytest.raises(MetricError, match=message):
        analyze(TABLE, metrics, tmp_path / "index")


@pytest.mark.parametrize("where", ["table", "torch"])
def test_a_metric_that_raises_names_itself_and_the_sample_and_keeps_the_cause(tmp_path, where):
    """The sample is found by halving, although the metric sees a whole batch."""

    def reciprocal(batch):
        return np.array(
            [1 // (int(value) - 1234) for value in (batch["x"] if where == "torch" else batch["x"].to_numpy())]
        )

    data = Samples(3000) if where == "torch" else pa.table({"x": np.arange(3000)})
    with pytest.raises(MetricFailedError, match="metric 'm' raised ZeroDivisionError on sample 1234: ") as caught:
        analyze(data, function("m", reciprocal), tmp_path / "index")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_metric_that_fails_on_no_sample_alone_names_the_batch(tmp_path):
    def crowded(batch):
        if len(batch) > 100:
            raise MemoryError("too many")
        return batch["x"]

    message = "metric 'm' raised MemoryError on samples 0 to 1023: too many"
    with pytest.raises(MetricFailedError, match=message):
        analyze(pa.table({"x": np.arange(2000)}), function("m", crowded), tmp_path / "index")


@pytest.mark.parametrize(
    ("fn", "dtype", "message"),
    [
        (lambda batch: np.zeros(len(batch) + 1), None, "returned 1025 values for the 1024 samples 0 to 1023"),
        (lambda batch: np.full(len(batch), 0.5), "int64", "returned double values for the samples 0 to 1023 that its"),
        (lambda batch: batch["nan"], None, r"has no value \(null or NaN\) for sample 1500"),
        (lambda batch: batch["null"], None, r"has no value \(null or NaN\) for sample 1501"),
        (lambda batch: batch["nan"], "int32", r"has no value \(null or NaN\) for sample 1500"),
    ],
)
def test_a_metric_that_returns_something_wrong(tmp_path, fn, dtype, message):
    rows = np.arange(2000)
    table = pa.table({"nan": np.where(rows == 1500, np.nan, 1.0), "null": pa.array(rows, mask=rows == 1501)})
    with pytest.raises(MetricValueError, match=f"metric 'm' {message}"):
        analyze(table, function("m", fn, dtype=dtype), tmp_path / "index")


def test_a_metric_may_change_its_type_within_a_part_no_more_than_between_parts(tmp_path):
    def drifting(batch):
        return batch["x"].to(torch.int32 if batch["x"][0] < 1500 else torch.int64)

    with pytest.raises(
        MetricValueError, match="gave int32 for sample 1024 but int64 for sample 1536; declare its dtype"
    ):
        source = arrowds.sources.TorchSource(Samples(2000), batch_size=256)
        analyze(source, function("m", drifting), tmp_path / "index")


def test_a_truncated_or_unreadable_source_file_is_named(tmp_path):
    for number in range(3):
        pq.write_table(TABLE, tmp_path / f"{number}.parquet")
    damaged = tmp_path / "1.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(UnreadableFileError, match=r"1\.parquet"):
        analyze(str(tmp_path / "*.parquet"), seqlen("x"), tmp_path / "index")
    with pytest.raises(UnreadableFileError, match="missing"):
        analyze(tmp_path / "missing.parquet", seqlen("x"), tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_a_source_file_that_changes_during_the_run_is_named(tmp_path):
    path = tmp_path / "data.parquet"
    pq.write_table(pa.table({"x": np.arange(9000)}), path, row_group_size=1000)

    def shortened(batch):
        path.write_bytes(path.read_bytes()[:3000])
        return batch["x"]

    with pytest.raises(SourceError, match=r"data\.parquet"):
        analyze(path, function("m", shortened), tmp_path / "index", workers=1)


def test_a_source_that_gives_fewer_rows_than_it_has(tmp_path):
    class Short(arrowds.sources.Source):
        description = "short"

        def __len__(self):
            return 10

        def fingerprint(self):
            return "0" * 32

        def read(self, start, stop, columns=None):
            yield pa.record_batch({"x": [1, 2, 3]})

    with pytest.raises(SourceError, match=r"the source \(short\) gave 3 of the 10 rows 0 to 9; was it changed"):
        analyze(Short(), function("m", lambda batch: batch["x"]), tmp_path / "index")


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    for number in range(7):
        (tmp_path / f"{number}.txt").write_text("mine")
    before = contents(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(
            IndexExistsError, match=r"is not empty and is not an arrowds index \(0\.txt, .*4\.txt\); choose"
        ):
            analyze(TABLE, seqlen("x"), tmp_path, overwrite=overwrite)
        with pytest.raises(IndexExistsError, match="is a file; an index needs a folder of its own"):
            analyze(TABLE, seqlen("x"), tmp_path / "1.txt", overwrite=overwrite)
        with pytest.raises(StorageError, match=r"Not a directory|could not be"):
            analyze(TABLE, seqlen("x"), tmp_path / "1.txt" / "index", overwrite=overwrite)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("text", ["{}", "not json", '{"format": "x", "format_version": 1}'])
def test_a_manifest_of_something_else_is_left_alone(tmp_path, text):
    (tmp_path / "manifests").mkdir()
    (tmp_path / "manifests" / "00000001.json").write_text(text)
    for overwrite in (False, True):
        with pytest.raises(errors.IndexCorruptError, match="is not the manifest of an index"):
            analyze(TABLE, seqlen("x"), tmp_path, overwrite=overwrite)
    assert contents(tmp_path) == {"manifests/00000001.json": text.encode()}


def test_an_index_of_a_newer_format_is_left_alone(tmp_path):
    path = tmp_path / paths.manifest(1)
    analyze(TABLE, seqlen("x"), tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 7}))
    before = contents(tmp_path)
    for overwrite in (False, True):
        with pytest.raises(IndexVersionError, match="has index format 7; this arrowds reads up to 2: upgrade arrowds"):
            analyze(TABLE, seqlen("x"), tmp_path, overwrite=overwrite)
    assert contents(tmp_path) == before


@contextmanager
def file_size_limit(nbytes: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [100, 6_000, 20_000, 50_000, 90_000])
def test_a_file_size_limit_in_the_middle_keeps_the_old_index(tmp_path, limit):
    """At the plan, a run, a bucket; a run with more room resumes, and makes what it would have made at once."""
    random = np.random.default_rng(0)
    old, new = (pa.table({"x": random.random(rows)}) for rows in (10, 12_000))
    metric = expr("x", pl.col("x"))
    path = tmp_path / "index"
    analyze(old, metric, path)
    message = r"file-size limit of this process \(ulimit -f\) is too small; raise it, then run again"
    with file_size_limit(limit), pytest.raises(StorageError, match=message):
        analyze(new, metric, path, overwrite=True, workers=1)
    before = arrowds.open_index(path, verify=True)
    assert (before.version, before.num_samples) == (1, 10)
    index = analyze(new, metric, path, overwrite=True)
    assert (index.version, index.num_samples) == (2, 12_000)
    assert not (path / "builds").exists()
    whole = analyze(new, metric, tmp_path / "whole")
    found, expected = (each.manifest.segments[0].columns["x"].files("x").values() for each in (index, whole))
    assert [file.xxh3 for file in found] == [file.xxh3 for file in expected]


def test_unknown_engines_and_schemes_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no engine 'gpu'; the engines are local, torch, ray"):
        analyze(TABLE, seqlen("x"), tmp_path / "index", engine="gpu")
    for path in ("hdfs://host:9000/x", Path("hdfs://host/x")):
        with pytest.raises(
            ConfigError, match=r"unknown scheme 'hdfs'; expected a folder, or one of s3://, gs://, az://"
        ):
            analyze(TABLE, seqlen("x"), path)
    with pytest.raises(ConfigError, match="storage_options belong to a URL"):
        analyze(TABLE, seqlen("x"), tmp_path / "index", storage_options={"aws_region": "x"})
    assert list(tmp_path.iterdir()) == []


def test_an_append_to_nothing_says_so(tmp_path):
    with pytest.raises(errors.IndexNotFoundError, match="does not exist; create an index there"):
        arrowds.append(pa.table({"x": [1]}), tmp_path / "index")
