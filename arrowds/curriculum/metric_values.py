"""What a sampler needs of an index: values and orders of metrics, and of expressions over metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from arrowds.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

Ids = npt.NDArray[np.unsignedinteger[Any]]


class MetricValues(Protocol):
    """One metric, as ``arrowds.Index`` gives it: see :class:`arrowds.index.metric.MetricIndex`."""

    @property
    def values(self) -> np.ndarray: ...

    @property
    def order(self) -> Ids: ...

    def rank(self, value: float, *, side: Literal["left", "right"] = "right") -> int: ...


class MetricSource(Protocol):
    """What a sampler needs of an index."""

    @property
    def num_samples(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    @property
    def metrics(self) -> list[str]: ...

    def __getitem__(self, name: str) -> MetricValues: ...


def fingerprint_of(index: MetricSource, metrics: Iterable[str]) -> str:
    """Return a digest of the samples and of some metrics, of those alone if the index can tell: others may be added."""
    tells = getattr(index, "fingerprint_of", None)
    return index.fingerprint if tells is None else str(tells(sorted(set(metrics) & set(index.metrics))))


class DerivedMetric:
    """A metric computed from others: one value per sample, in memory; NaN and null values are never admitted."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    @cached_property
    def order(self) -> Ids:
        """The ids sorted by (value, id)."""
        valid = valid_rows(self.values)
        ids = np.arange(len(self.values), dtype=id_dtype(len(self.values)))
        ids = ids if valid is None else ids[valid]
        ordered: Ids = ids[np.argsort(np.ma.getdata(self.values)[ids], kind="stable")]
        return ordered

    def rank(self, value: float, *, side: Literal["left", "right"] = "right") -> int:
        """Return how many samples have a value <= ``value`` (< with ``side="left"``)."""
        return int(np.searchsorted(np.ma.getdata(self.values)[self.order], value, side=side))


def valid_rows(values: np.ndarray) -> npt.NDArray[np.bool_] | None:
    """Return which rows are neither null nor NaN; None stands for all."""
    plain, mask = np.ma.getdata(values), np.ma.getmask(values)
    number = ~np.isnan(plain) if plain.dtype.kind == "f" else None
    if mask is np.ma.nomask:
        return number
    return np.asarray(~mask if number is None else number & ~mask)


def id_dtype(num_samples: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Return uint32 where all ids fit, else uint64."""
    return np.dtype(np.uint32 if num_samples <= 1 << 32 else np.uint64)


def evaluate(index: MetricSource, expression: pl.Expr) -> np.ndarray:
    """Return the values of an expression over metrics, one per sample.

    It sees whole columns, so it may look at other samples, and integers of 64 bits, so that differences do not wrap.

    Raises:
        ConfigError: when the expression reads anything but metrics of the index, or gives no number per sample.
    """
    import polars as pl

    if not isinstance(expression, pl.Expr):
        raise ConfigError(f"expected a Polars expression such as pl.col('loss') < 8, got {expression!r}")
    names = expression.meta.root_names()
    for name in names:
        check_known(index, name)
    if not names:
        raise ConfigError(f"{expression} uses no metric; the index has {', '.join(index.metrics)}")
    columns = {name: _series(index[name].values, getattr(index[name], "names", ())) for name in names}
    series = pl.DataFrame(columns).select(expression.alias("value"))["value"]
    if len(series) != index.num_samples:
        raise ConfigError(
            f"{expression} gives {len(series)} values for {index.num_samples} samples; it must give one each"
        )
    if not (series.dtype.is_numeric() or series.dtype.to_python() is bool):
        raise ConfigError(f"{expression} gives {series.dtype}, expected numbers")
    if not series.null_count():
        return series.to_numpy()
    return np.ma.MaskedArray(series.fill_null(0).to_numpy(), mask=series.is_null().to_numpy())


def _series(values: np.ndarray, names: Sequence[str]) -> pl.Series:
    import polars as pl

    series = pl.Series(np.ma.getdata(values))
    if names:
        series = series.cat.to(pl.Enum(names))
    elif series.dtype.is_integer() and series.dtype != pl.UInt64:
        series = series.cast(pl.Int64)
    mask = np.ma.getmask(values)
    return series if mask is np.ma.nomask else series.to_frame("x").select(pl.when(~pl.Series(mask)).then("x"))["x"]


def find_metric(index: MetricSource, name: str) -> MetricValues:
    """Return a metric of the index whose values are numbers.

    Raises:
        ConfigError: for an unknown name; the message lists the metrics of the index. And for a categorical metric.
    """
    check_known(index, name)
    if getattr(index[name], "names", ()):
        raise ConfigError(f"metric {name!r} is categorical: it can choose samples (where=), but has no sizes to go by")
    return index[name]


def check_known(index: MetricSource, name: str) -> None:
    """Raise ConfigError unless the index has a metric of that name."""
    if name not in index.metrics:
        raise ConfigError(f"the index has no metric {name!r}; it has {', '.join(index.metrics) or 'none'}")


def joined(values: Sequence[np.ndarray], offsets: Sequence[int]) -> Callable[[npt.NDArray[np.int64]], np.ndarray]:
    """Return what gives the values of ids, where the ids of array i begin at ``offsets[i]``, ascending from 0."""
    if len(values) == 1:
        return values[0].__getitem__

    def gather(ids: npt.NDArray[np.int64]) -> np.ndarray:
        place = np.searchsorted(offsets, ids, side="right") - 1
        found = np.ma.zeros(len(ids), np.result_type(*(array.dtype for array in values)))
        for number in np.unique(place).tolist():
            mine = np.flatnonzero(place == number)
            found[mine] = values[number][ids[mine] - offsets[number]]
        return found if np.ma.is_masked(found) else found.data

    return gather
