"""How metrics go together: rank correlations and medians by category, over samples drawn at random."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import polars as pl

from arrowds.index import Index
from arrowds.index.looking import values_of

_MOST_READ_FROM_A_STORE = 1 << 24


def drawn_samples(index: Index, names: Sequence[str], most: int) -> pl.DataFrame | None:
    """Draw samples at random, the same ones of all indexes of a size, and look up their values in the memory maps.

    Args:
        index: an open index.
        names: of metrics.
        most: how many samples at most.

    Returns:
        A column per metric: null where there is no value, names of a category.
        None for a large index in an object store that this host has no memory maps of: to make them takes too long.
    """
    if index.num_samples > _MOST_READ_FROM_A_STORE and any(index[name].is_read_in_place for name in names):
        return None
    if index.num_samples <= most:
        ids = np.arange(index.num_samples)
    else:
        ids = np.sort(np.random.default_rng(0).choice(index.num_samples, most, replace=False))
    return pl.DataFrame([values_of(index[name], ids) for name in names])


def spearman(values: pl.DataFrame) -> np.ndarray:
    """Return Spearman's rank correlation of each pair of columns, of the rows in which both have a value.

    Equal values have the mean of their ranks. NaN where a column has no two different values there.

    Returns:
        float64, ``[columns, columns]``.

    >>> spearman(pl.DataFrame({"a": [1, 2, 3, None], "b": [5.0, 6.0, 7.0, 0.0], "c": [9, 4, 4, 4]})).round(3).tolist()
    [[1.0, 1.0, -0.866], [1.0, 1.0, -0.258], [-0.866, -0.258, 1.0]]
    """
    names = values.columns
    whole = {name: _ranks(values[name]) for name in names if not values[name].null_count()}
    found = np.full((len(names), len(names)), np.nan)
    for row, first in enumerate(names):
        for column, second in enumerate(names[: row + 1]):
            if first in whole and second in whole:
                pair = whole[first], whole[second]
            else:
                both = values.filter(pl.col(first).is_not_null() & pl.col(second).is_not_null())
                pair = _ranks(both[first]), _ranks(both[second])
            found[row, column] = found[column, row] = _correlation(*pair)
    return found


def _ranks(values: pl.Series) -> np.ndarray:
    numbers = values.cast(pl.UInt8) if values.dtype == pl.Boolean else values
    return numbers.rank("average").cast(pl.Float64).to_numpy()


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    if len(first) < 2:
        return np.nan
    x, y = first - first.mean(), second - second.mean()
    spread = np.sqrt((x @ x) * (y @ y))
    return float(np.clip(x @ y / spread, -1, 1)) if spread else np.nan


def strongest(names: Sequence[str], matrix: np.ndarray, most: int = 8) -> list[tuple[str, str, float]]:
    """Return the pairs of names with the largest correlations, of either sign, and these.

    >>> strongest(["a", "b", "c"], np.array([[1, 0.5, -0.9], [0.5, 1, np.nan], [-0.9, np.nan, 1]]))
    [('a', 'c', -0.9), ('a', 'b', 0.5)]
    """
    pairs = [
        (names[row], names[column], float(matrix[row, column]))
        for row, column in itertools.combinations(range(len(matrix)), 2)
    ]
    defined = [pair for pair in pairs if not np.isnan(pair[2])]
    return sorted(defined, key=lambda pair: -abs(pair[2]))[:most]


def by_category(values: pl.DataFrame, category: str, numbers: Sequence[str], names: Sequence[str]) -> pl.DataFrame:
    """Return the median of each number for some names of a category; of bools the share that is true.

    Columns: the category, ``samples`` (that were drawn of it), and each number, null where no sample has a value.
    """
    told = [
        (pl.col(name).mean() if values[name].dtype == pl.Boolean else pl.col(name).cast(pl.Float64).median()).alias(
            name
        )
        for name in numbers
    ]
    found = values.group_by(category).agg(pl.len().alias("samples"), *told)
    return (
        pl.DataFrame({category: pl.Series(names, dtype=pl.String)})
        .join(found, on=category, how="left", maintain_order="left")
        .with_columns(pl.col("samples").fill_null(0))
    )
