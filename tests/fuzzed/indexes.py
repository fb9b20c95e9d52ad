"""Manifests, Parquet files, and memory maps of an index of two segments with every kind of metric."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
from pydantic import ValidationError

import arrowds
from arrowds.errors import IndexCorruptError
from arrowds.index.manifest import Manifest
from arrowds.metrics import expr, seqlen, token_counts, vocab_rarity
from fuzzed.damage import as_json, damaged, mutated

METRICS = [
    seqlen("ids"),
    vocab_rarity("ids"),
    token_counts("ids", name="tokens"),
    expr("share", pl.col("share"), nulls="keep"),
    expr("label", pl.col("label"), nulls="keep"),
    expr("even", pl.col("n") % 2 == 0),
]


def rows(start: int, stop: int) -> pa.Table:
    """Some rows of the data, the same for the same numbers."""
    numbers = range(start, stop)
    return pa.table(
        {
            "n": pa.array(numbers, pa.int64()),
            "ids": pa.array([[*range(i % 7)] for i in numbers], pa.list_(pa.int32())),
            "share": pa.array([None if i % 11 == 0 else i * 37 % 100 / 8 for i in numbers], pa.float64()),
            "label": pa.array([None if i % 5 == 0 else i * 13 % 300 - 150 for i in numbers], pa.int16()),
        }
    )


def make_index(folder: Path) -> arrowds.Index:
    """An index of two segments, with views."""
    arrowds.analyze(rows(0, 300), METRICS, folder, workers=1, progress=False)
    index = arrowds.append(rows(300, 400), folder, workers=1, progress=False)
    for name in index:
        _ = index[name].values, index[name].order
    return index


def answers(index: arrowds.Index) -> dict[str, Any]:
    """What an index says of its samples, by every way to ask."""
    said: dict[str, Any] = {"samples": len(index), "metrics": index.metrics, "fingerprint": index.fingerprint}
    for name in index:
        metric = index[name]
        said[f"{name} values"] = np.ma.getdata(metric.values).tobytes()
        said[f"{name} missing"] = np.ma.getmaskarray(metric.values).tobytes()
        said[f"{name} order"] = metric.order.tobytes()
        said[f"{name} lookups"] = [
            metric.rank(3),
            metric.sample_ids(above=1, up_to=5).tolist(),
            metric.sample_ids_between_percentiles(10, 60).tolist(),
        ]
        said[f"{name} distribution"] = metric.distribution().to_dict(as_series=False)
        if metric.num_valid:
            said[f"{name} lookups"] += [metric.quantile([0.1, 0.5, 1]).tolist(), metric.min(), metric.max()]
            said[f"{name} histogram"] = metric.histogram(5).to_dict(as_series=False)
    said["totals"] = {name: index.totals[name].tolist() for name in index.totals}
    # Not NaN, which differs from itself.
    said["scan"] = index.scan().fill_nan(None).collect().to_dict(as_series=False) if index.metrics else None
    return said


def manifests(*, signed: bool) -> Callable[[Path], Callable[[random.Random], None]]:
    """Return what prepares to open damaged manifests: as they are, or with a digest that fits the damage."""

    def prepare(folder: Path) -> Callable[[random.Random], None]:
        whole = folder / "whole"
        expected = answers(make_index(whole))
        index = folder / "index"
        shutil.copytree(whole, index)
        manifest = index / "manifests" / "00000002.json"
        text = manifest.read_bytes()

        def read(rng: random.Random) -> None:
            if signed:
                manifest.write_bytes(_signed(mutated(json.loads(text), rng), rng))
            elif rng.random() < 0.5:
                manifest.write_bytes(damaged(text, rng))
            else:
                manifest.write_bytes(as_json(mutated(json.loads(text), rng), rng))
            views = index / "views"
            if rng.random() < 0.3:
                shutil.rmtree(views, ignore_errors=True)
            try:
                opened = arrowds.open_index(index)
                said = answers(opened)
                if not signed:
                    assert said == expected, "a damaged manifest gives another answer"
                elif rng.random() < 0.1:
                    opened.verify()
                    arrowds.versions(index)
                    arrowds.append(rows(400, 420), index, workers=1, progress=False)
                    arrowds.compact(index, workers=1)
            finally:
                if (index / "builds").exists() or not manifest.exists() or len(list(manifest.parent.iterdir())) > 2:
                    shutil.rmtree(index)
                    shutil.copytree(whole, index)
                elif signed:  # views of what the manifest says
                    shutil.rmtree(views, ignore_errors=True)
                    shutil.copytree(whole / "views", views)

        return read

    return prepare


def _signed(document: Any, rng: random.Random) -> bytes:
    """The text of a manifest, with its own digest where it is one."""
    text = as_json(document, rng)
    try:
        return Manifest.model_validate_json(text).to_json()
    except (ValidationError, ValueError, OverflowError, RecursionError):
        return text


def files_of_an_index(folder: Path) -> Callable[[random.Random], None]:
    """Prepare to damage one Parquet file: verify names it, and what it is needed for is right or refused."""
    root = folder / "index"
    expected = answers(make_index(root))
    files = sorted([*root.glob("metrics/**/*.parquet"), *root.glob("totals/**/*.parquet")])

    def read(rng: random.Random) -> None:
        path = rng.choice(files)
        whole = path.read_bytes()
        damage = b"" if rng.random() < 0.02 else damaged(whole, rng)
        if damage == whole:
            return
        path.write_bytes(damage)
        shutil.rmtree(root / "views", ignore_errors=True)
        try:
            _check_damage(root, path, len(damage) == len(whole))
            said = answers(arrowds.open_index(root))
            # Only verify reads a digest of an index on a disk; a change that leaves a valid file is seen by it alone.
            assert said.keys() == expected.keys()
        finally:
            path.write_bytes(whole)

    return read


def _check_damage(root: Path, path: Path, same_size: bool) -> None:
    """Assert that a damaged file is found: by its size when the index is opened, by its content when verified."""
    for verify in (False, True):
        try:
            arrowds.open_index(root, verify=verify)
        except IndexCorruptError as error:
            assert path.name in str(error), f"{error} does not name {path.name}"
        else:
            assert same_size and not verify, f"the damage of {path.relative_to(root)} is not found (verify={verify})"


def views(folder: Path) -> Callable[[random.Random], None]:
    """Prepare to damage one file of a memory map."""
    root = folder / "index"
    expected = answers(make_index(root))
    files = sorted(root.glob("views/*/*.*"))

    def read(rng: random.Random) -> None:
        path = rng.choice(files)
        whole = path.read_bytes()
        if path.suffix == ".json" and rng.random() < 0.7:
            damage = as_json(mutated(json.loads(whole), rng), rng)
        else:
            damage = b"" if rng.random() < 0.02 else damaged(whole, rng)
        path.write_bytes(damage)
        try:
            index = arrowds.open_index(root)
            try:
                index.verify()
            except IndexCorruptError as error:
                assert path.parent.name in str(error), f"{error} does not name {path.parent}"
                verified = False
            else:
                verified = True
            assert not (verified and path.suffix == ".arrow" and len(damage) == len(whole) and damage != whole), (
                "verify does not find the damage"
            )
            said = answers(index)
            if verified:
                assert said == expected, "a damaged view gives another answer, though it was verified"
        finally:
            path.write_bytes(whole)

    return read


READERS = {
    "manifest": manifests(signed=False),
    "manifest, signed": manifests(signed=True),
    "files of an index": files_of_an_index,
    "views": views,
}
