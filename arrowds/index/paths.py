"""The name of every object of an index, relative to its root, as pure functions; nothing here reads or writes."""

from __future__ import annotations

import re

from arrowds.schema import BUCKET, check_metric_name

MANIFESTS = "manifests"
METRICS = "metrics"
TOTALS = "totals"
SOURCES = "sources"
BUILDS = "builds"
VIEWS = "views"

_MANIFEST = re.compile(rf"{MANIFESTS}/(\d{{8,}})\.json")


def manifest(version: int) -> str:
    """The commit of a snapshot.

    >>> manifest(3)
    'manifests/00000003.json'
    """
    return f"{MANIFESTS}/{version:08d}.json"


def version_of(name: str) -> int | None:
    """The version whose manifest has this name, or None.

    >>> version_of("manifests/00000003.json"), version_of("manifests/notes.txt")
    (3, None)
    """
    found = _MANIFEST.fullmatch(name)
    return int(found[1]) if found else None


def column(metric: str, key: str) -> list[str]:
    """The prefixes below which all files of one metric of one segment lie."""
    folder = f"{METRICS}/{check_metric_name(metric)}"
    return [f"{folder}/{kind}/segment={key}" for kind in ("values", "buckets", "distribution", "names")]


def values(metric: str, key: str, number: int) -> str:
    """A fixed row range of a segment's values, in sample order."""
    return f"{column(metric, key)[0]}/{number:05d}.parquet"


def bucket(metric: str, key: str, number: int, file: int) -> str:
    """One file of a hive partition: a range of values, sorted by (value, sample_id).

    >>> bucket("seqlen", "9c1f", 7, 0)
    'metrics/seqlen/buckets/segment=9c1f/bucket=00007/00000.parquet'
    """
    return f"{column(metric, key)[1]}/{BUCKET}={number:05d}/{file:05d}.parquet"


def distribution(metric: str, key: str, number: int) -> str:
    """The distinct values of one bucket and how often each occurs."""
    return f"{column(metric, key)[2]}/{BUCKET}={number:05d}.parquet"


def names(metric: str, key: str) -> str:
    """The names of a categorical metric of one segment, in the order of their codes."""
    return f"{column(metric, key)[3]}.parquet"


def total(name: str, key: str) -> str:
    """The sum of an accumulated metric over a segment."""
    return f"{TOTALS}/{check_metric_name(name)}/segment={key}.parquet"


def source(key: str) -> str:
    """What is recorded of the data of a build: its files, and how they are read."""
    return f"{SOURCES}/{key}.json"


def build(key: str) -> str:
    """The folder of an unfinished build: its plan, and what its tasks leave for one another."""
    return f"{BUILDS}/{key}"


def plan(key: str) -> str:
    """What an unfinished build sets out to do."""
    return f"{build(key)}/plan.json"


def run(key: str, metric: str, part: int) -> str:
    """The values of one part, sorted by (value, sample_id)."""
    return f"{build(key)}/runs/{check_metric_name(metric)}/{part:05d}.arrow"


def part_values(key: str, metric: str, part: int) -> str:
    """The values of one part, in the order of its rows."""
    return f"{build(key)}/values/{check_metric_name(metric)}/{part:05d}.arrow"


def part_sum(key: str, total: str, part: int) -> str:
    """The sum of an accumulated metric over one part."""
    return f"{build(key)}/sums/{check_metric_name(total)}/{part:05d}.parquet"


def kept_batch(key: str, part: int, batch: int) -> str:
    """The computed columns of one batch of a part, kept for the second pass."""
    return f"{build(key)}/kept/{part:05d}/{batch:05d}.arrow"


def kept_record(key: str, part: int) -> str:
    """What these files of one part were made from, and their digests."""
    return f"{build(key)}/kept/{part:05d}.json"


def results(key: str, metric: str) -> list[str]:
    """The prefixes below which all results of one metric of a build lie."""
    return [f"{build(key)}/{kind}/{check_metric_name(metric)}" for kind in ("runs", "values", "sums", "reduced")]


def outcome(key: str, metric: str, task: str) -> str:
    """What a reduce task reports when its files are written."""
    return f"{build(key)}/reduced/{check_metric_name(metric)}/{task}.json"


def view(metric: str, key: str) -> str:
    """The folder of the memory maps of one metric."""
    return f"{VIEWS}/{check_metric_name(metric)}-{key}"
