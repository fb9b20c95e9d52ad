"""An index with all kinds of metrics, of data that would like to be HTML, and the page of it."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from pages import Page

import arrowds
from arrowds.metrics import column, function, token_counts

ROWS = 3000
EVIL = "</script><script>document.title='owned'</script>"


@pytest.fixture(scope="session")
def data() -> pl.DataFrame:
    """Texts with markup, a skewed length, a loss with gaps, a bool, few numbers, a category, sizes of clusters."""
    rng = np.random.default_rng(5)
    length = rng.lognormal(4, 1.5, ROWS).astype(np.int64) + 1
    loss = pl.Series(rng.gamma(3, 1, ROWS) + 20 / length).scatter(rng.choice(ROWS, 50, replace=False), None)
    return pl.DataFrame(
        {
            "text": [f"row {row} {EVIL} & 'quoted' \x00\x1b " + "x" * (row % 500) for row in range(ROWS)],
            "<b>url</b>": [f"https://example.org/{row}?a=1&b=2" for row in range(ROWS)],
            "input_ids": [rng.zipf(1.4, size).clip(1, 99).astype(np.uint8) for size in rng.integers(1, 20, ROWS)],
            "length": length,
            "loss": loss,
            "clean": rng.random(ROWS) < 0.8,
            "quality": rng.integers(1, 6, ROWS),
            "language": rng.choice(["de", "en", EVIL, "all others"], ROWS, p=[0.5, 0.3, 0.15, 0.05]),
            "cluster_size": np.repeat([40, 7, 7, 3, 1], [40, 7, 7, 3, ROWS - 57]),
        }
    )


@pytest.fixture(scope="session")
def index(data: pl.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> arrowds.Index:
    """The index of two versions, the second one with more samples."""
    folder = tmp_path_factory.mktemp("report") / "<i>data"
    folder.mkdir()
    data[:2000].write_parquet(folder / "0.parquet")
    data[2000:].write_parquet(folder / "1.parquet")
    names = ["length", "loss", "clean", "quality", "language", "cluster_size"]
    metrics = [
        *(column(name, nulls="keep") for name in names),
        token_counts("input_ids"),
        function("rows", lambda batch: np.array(batch.num_rows), dtype=np.int64, kind="total", version="1"),
    ]
    arrowds.analyze(folder / "0.parquet", metrics, folder / "index", progress=False)
    return arrowds.append(folder / "1.parquet", folder / "index", metrics=metrics, progress=False)


@pytest.fixture(scope="session")
def page(index: arrowds.Index, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The report on it."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    arrowds.write_report(index, path)
    return Page(path)
