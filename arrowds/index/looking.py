"""Look at samples: their values, where these lie among all, and their rows of the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from arrowds.errors import ConfigError
from arrowds.index.metric import MetricIndex
from arrowds.schema import SAMPLE_ID

if TYPE_CHECKING:
    import polars as pl


class Readable(Protocol):
    """What looking at samples needs of an :class:`arrowds.Index`."""

    @property
    def num_samples(self) -> int:
        """How many samples there are."""

    def __iter__(self) -> Iterator[str]:
        """The names of the metrics."""

    def __getitem__(self, name: str) -> MetricIndex:
        """One metric."""

    def samples(self, ids: npt.ArrayLike, columns: Sequence[str] | None = None) -> pl.DataFrame:
        """The rows of the data."""

    def sql(self, statement: str) -> pl.DataFrame:
        """The answer to a query."""


def head(
    index: Readable,
    n: int = 20,
    *,
    metric: str | None = None,
    between: tuple[float, float] | None = None,
    largest: bool = False,
    where: str | None = None,
    columns: Sequence[str] | None = None,
) -> pl.DataFrame:
    """Return some samples with their values and their rows of the data.

    Columns: ``sample_id``; the metric and the ``percentile`` of its value (the share of samples up to that value, 0 to
    100), or all metrics where none is named; the columns of the data, of which those with the name of an earlier column
    are ``data_NAME``.

    Args:
        index: an open index.
        n: how many samples at most.
        metric: the metric that they are ordered by; by default they are in the order of their ids.
        between: two percentiles of the metric, 0 to 100, between which they lie.
        largest: the largest values first.
        where: a condition in SQL over the metrics, such as ``"loss > 8 and language = 'de'"``.
        columns: which columns of the data; by default all, none for an empty list.

    Raises:
        ConfigError: for options that contradict one another, and as lookups and queries raise.
        SourceError: when the data can't be read; says why.

    >>> import arrowds, polars as pl, tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "data.parquet")
    ...     pl.DataFrame({"text": ["to be", "or", "not to be"]}).write_parquet(path)
    ...     metric = arrowds.metrics.expr("n_chars", pl.col("text").str.len_chars())
    ...     index = arrowds.analyze(path, metric, f"{folder}/index")
    ...     index.head(2, metric="n_chars", largest=True).rows()
    [(2, 9, 100.0, 'not to be'), (0, 5, 66.66666666666667, 'to be')]
    """
    if n < 1:
        raise ConfigError(f"n must be at least 1, got {n}")
    if metric is None and (between is not None or largest):
        raise ConfigError("between and largest need a metric")
    if where is not None and between is not None:
        raise ConfigError("give one of where and between")
    if where is not None:
        ids = _chosen(index, n, metric, largest, where)
    elif metric is None:
        ids = np.arange(min(n, index.num_samples))
    else:
        ids = index[metric].sample_ids_between_percentiles(*(between or (0, 100)))
        ids = ids[: -n - 1 : -1] if largest else ids[:n]
    if metric is None:
        return looked_up(index, ids, list(index), columns, percentile=None)
    return looked_up(index, ids, [metric], columns, percentile="percentile")


def _chosen(index: Readable, n: int, metric: str | None, largest: bool, where: str) -> np.ndarray:
    if metric is not None:
        _ = index[metric]  # an unknown one is named as elsewhere
    order = "" if metric is None else f'"{metric}" {"desc" if largest else "asc"}, '
    found = index.sql(f"select {SAMPLE_ID} from samples where ({where}\n) order by {order}{SAMPLE_ID} limit {n}")
    return found[SAMPLE_ID].to_numpy()


def looked_up(
    index: Readable,
    ids: npt.ArrayLike,
    metrics: Sequence[str],
    columns: Sequence[str] | None,
    *,
    percentile: str | None = "percentile_{}",
) -> pl.DataFrame:
    """Return the values of some metrics, the percentiles of each in a column of a name such as this, and the rows.

    Raises:
        ConfigError: for an id that the index does not have.
    """
    import polars as pl

    taken = np.asarray(ids, np.int64)
    if taken.size and taken.max() >= index.num_samples:
        raise ConfigError(f"there is no sample {taken.max()}; the index has {index.num_samples} samples")
    found = pl.DataFrame({SAMPLE_ID: pl.Series(taken, dtype=pl.UInt64)})
    for name in metrics:
        values = values_of(index[name], taken)
        found = beside(found, values.to_frame(), "metric_")
        if percentile is not None and not index[name].is_categorical:
            shares = percentiles_of(index[name], values).alias(percentile.format(name))
            found = beside(found, shares.to_frame(), "metric_")
    return found if columns is not None and not columns else beside(found, index.samples(taken, columns), "data_")


def beside(left: pl.DataFrame, right: pl.DataFrame, prefix: str) -> pl.DataFrame:
    """Return the columns of two frames side by side; those of the second whose names are taken get a prefix."""
    import polars as pl

    names = list(left.columns)
    for name in right.columns:
        free = name
        while free in names or (free != name and free in right.columns):
            free = prefix + free
        names.append(free)
    return pl.concat([left, right.rename(dict(zip(right.columns, names[left.width :], strict=True)))], how="horizontal")


def values_of(metric: MetricIndex, ids: np.ndarray) -> pl.Series:
    """Return the values of some samples, of the declared type, null where there is none; names of a category."""
    import polars as pl

    drawn = metric.values[ids]
    values = pl.Series(metric.name, np.ma.getdata(drawn))
    if metric.is_categorical:
        values = values.cat.to(pl.Enum(metric.names)).cast(pl.String)
    else:
        values = pl.Series(metric.name, np.ma.getdata(drawn).astype(metric.dtype, copy=False), nan_to_null=True)
    missing = pl.Series(np.ma.getmaskarray(drawn))
    return values if not missing.any() else values.zip_with(~missing, pl.Series([None], dtype=values.dtype))


def percentiles_of(metric: MetricIndex, values: pl.Series) -> pl.Series:
    """Return the share of the samples, 0 to 100, with a value up to each of these: float64, null for null."""
    import polars as pl

    rank_of = {value: metric.rank(value) for value in values.unique().drop_nulls().to_list()}
    shares = [None if value is None else 100 * rank_of[value] / metric.num_valid for value in values.to_list()]
    return pl.Series(shares, dtype=pl.Float64)
