"""A dataset of any size that needs no memory, and its build in stages, each of which can be timed and repeated."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import xxhash
from measure import Cost, measuring

import arrowds
from arrowds.arrays import arrow_view
from arrowds.build.api import map_all
from arrowds.build.commit import begin, commit, plan_columns, run_reduce
from arrowds.build.engines import LocalEngine
from arrowds.build.operations import plan_analysis
from arrowds.build.plan import BuildPlan
from arrowds.index.manifest import Manifest
from arrowds.store import open_store

SHAPES = ("uint16", "half", "floats")
"""60,000 distinct values; one value that fills half of the samples; distinct float64."""

METRIC = arrowds.metrics.expr("m", pl.col("m"))

_BLOCK = 1 << 14  # as many rows as the smallest parts of a million samples have


class Generated(arrowds.sources.Source):
    """Random numbers, the same ones whenever they are read: block by block, each from a seed of its own."""

    concurrent = True

    def __init__(self, samples: int, shape: str, *, seed: int = 0) -> None:
        self.samples, self.shape, self.seed = samples, shape, seed

    def __len__(self) -> int:
        return self.samples

    @property
    def schema(self) -> pa.Schema:
        return pa.schema({"m": pa.float64() if self.shape == "floats" else pa.uint16()})

    def fingerprint(self) -> str:
        return xxhash.xxh3_128_hexdigest(self.description.encode())

    @property
    def description(self) -> str:
        return f"generated, {self.samples} x {self.shape}, seed {self.seed}"

    def block(self, number: int) -> np.ndarray:
        random = np.random.default_rng([self.seed, number])
        if self.shape == "floats":
            return random.random(_BLOCK)
        values = random.integers(0, 60_000, _BLOCK, dtype=np.uint16)
        if self.shape == "half":
            values[random.random(_BLOCK, dtype=np.float32) < 0.5] = 2048
        return values

    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
        for number in range(start // _BLOCK, -(-stop // _BLOCK)):
            first = number * _BLOCK
            values = self.block(number)[max(start - first, 0) : stop - first]
            yield pa.record_batch([arrow_view(values)], schema=self.schema)

    def values(self) -> np.ndarray:
        """All of them, in memory."""
        return np.concatenate([batch["m"].to_numpy() for batch in self.read(0, len(self))])


def planned(folder: str | Path, source: Generated) -> BuildPlan:
    """The plan of an analysis that is not finished."""
    plan = plan_analysis(open_store(folder), source, METRIC, overwrite=False)
    if isinstance(plan, Manifest):
        raise SystemExit(f"{folder} holds a finished index; the benchmark needs mapped parts")
    return plan


def map_parts(folder: str | Path, source: Generated) -> Cost:
    """Leave the mapped parts of an analysis, those that are missing."""
    plan = planned(folder, source)
    with measuring() as cost:
        begin(plan.store, plan.key, plan.to_json(), resume=True)
        map_all(plan, LocalEngine(), progress=False)
    return cost


def same_parts(mapped: str | Path, folder: str | Path) -> None:
    """Give the files of mapped parts a second name: a build removes its own when it commits, and changes none."""
    shutil.copytree(mapped, folder, copy_function=os.link)


def reduce_parts(folder: str | Path, source: Generated) -> dict[str, Cost]:
    """Go from mapped parts to a committed snapshot; say what each stage costs, and all of them together."""
    plan = planned(folder, source)
    with measuring() as whole:
        with measuring() as planning:
            columns = plan_columns(plan, {})
        with measuring() as reducing:
            run_reduce([column for planned in columns for column in planned], LocalEngine())
        with measuring() as committing:
            commit(plan, columns, {})
    return {"plan": planning, "run_reduce": reducing, "commit": committing, "parts to snapshot": whole}


def make_view(folder: str | Path) -> Cost:
    """Bring the memory maps of the newest snapshot up to date."""
    index = arrowds.open_index(folder)
    with measuring() as cost:
        _ = index["m"].values
    return cost
