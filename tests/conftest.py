"""Fixtures that several test files share."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import settings

import arrowds
from arrowds.metrics import expr, function

# A landing must not hang on what a random search finds that day; every other run searches anew.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("search", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "search")


@pytest.fixture(scope="session")
def make_index() -> Iterator[Callable[..., arrowds.Index]]:
    """Index a table of ``{metric: pyarrow array}`` (and ``{total: array}``) in a new folder, nulls and NaN kept.

    Of session scope, so that Hypothesis tests may use it.
    """
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        counter = iter(range(10**9))

        def make(
            columns: Mapping[str, pa.Array], totals: Mapping[str, np.ndarray] | None = None, path: Path | None = None
        ) -> arrowds.Index:
            metrics = [expr(name, pl.col(name), nulls="keep") for name in columns]
            metrics += [
                function(name, lambda batch, total=total: total, dtype=total.dtype, kind="total")
                for name, total in (totals or {}).items()
            ]
            path = path or Path(folder) / f"index-{next(counter)}"
            return arrowds.analyze(pa.table(dict(columns)), metrics, path, workers=1, progress=False)

        yield make
