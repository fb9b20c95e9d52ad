"""Small runs of every operation that changes an index, for tests that kill them or cut their power."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

import arrowds
from arrowds.metrics import Metric


def rows(seed: int, count: int = 60) -> pa.Table:
    random = np.random.default_rng(seed)
    return pa.table(
        {
            "tokens": pa.array([list(range(n)) for n in random.integers(0, 5, count)], pa.list_(pa.uint16())),
            "loss": pa.array(random.normal(size=count), mask=random.random(count) < 0.1),
        }
    )


def loss() -> Metric:
    return arrowds.metrics.expr("loss", pl.col("loss"), nulls="keep")


def chosen() -> list[Metric]:
    return [loss(), arrowds.metrics.vocab_rarity("tokens")]


def analyze(path: Path, seed: int, **options) -> arrowds.Index:
    return arrowds.analyze(rows(seed), chosen(), path, workers=1, progress=False, **options)


def append(path: Path, seed: int) -> arrowds.Index:
    return arrowds.append(rows(seed), path, workers=1, progress=False)


def add_metrics(path: Path, seed: int) -> arrowds.Index:
    more = [arrowds.metrics.seqlen("tokens"), arrowds.metrics.token_counts("tokens")]
    return arrowds.add_metrics(rows(seed), more, path, workers=1, progress=False)


def nothing(path: Path) -> None:
    """What is there before a first analysis."""


def two_segments(path: Path) -> None:
    analyze(path, 1)
    append(path, 2)


def overwritten(path: Path) -> None:
    analyze(path, 1)
    analyze(path, 2, overwrite=True)


OPERATIONS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "analyze": (nothing, lambda path: analyze(path, 1)),
    "overwrite": (lambda path: analyze(path, 1), lambda path: analyze(path, 2, overwrite=True)),
    "append": (lambda path: analyze(path, 1), lambda path: append(path, 2)),
    "add_metrics": (lambda path: analyze(path, 1), lambda path: add_metrics(path, 1)),
    "compact": (two_segments, lambda path: arrowds.compact(path, workers=1)),
    "vacuum": (overwritten, lambda path: arrowds.vacuum(path)),
}
"""What is done first, and the operation itself."""
