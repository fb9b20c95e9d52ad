"""Look up one metric of an index: values by sample, samples by value. Binary searches and slices, never a scan.

Maps are opened when they are first used, in the process that uses them, so a metric is cheap to pickle and to carry
over a fork.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_left
from collections.abc import Callable
from decimal import Context, Decimal
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from arrowds.arrays import numpy_view
from arrowds.errors import ArrowdsWarning, ConfigError
from arrowds.index.lookup import BucketOrder, Lookup, MappedOrder, distribution_of, num_distinct_of
from arrowds.index.manifest import Manifest
from arrowds.index.view import View, ViewSpec
from arrowds.parallel import computed_once
from arrowds.schema import CATEGORY, VALUE, numpy_dtype, type_named
from arrowds.store import Store

if TYPE_CHECKING:
    import polars as pl


class OpenIndex(Protocol):
    """What a metric needs of the :class:`arrowds.Index` that it belongs to."""

    store: Store
    manifest: Manifest

    def open_view(self, spec: ViewSpec) -> View:
        """The memory maps of a metric, made where they are missing."""

    def reads_in_place(self, spec: ViewSpec) -> bool:
        """Whether lookups should read the index's own files, as this host has no maps of them yet."""


_EXACT = Context(prec=60)
"""The 17 digits of a float times the 20 of a count, without rounding."""


class MetricIndex:
    """The values of one metric and the order of the samples by them.

    ``m[7]`` is the value of sample 7, ``m[3:9]`` a view, ``m[np.array([5, 1])]`` one gather and ``m[mask]`` a
    selection: whatever NumPy accepts as an index.

    >>> import arrowds, polars as pl, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data = pl.DataFrame({"x": [0.5, 9.0, 2.5, 2.5]})
    ...     m = arrowds.analyze(data, arrowds.metrics.expr("x", pl.col("x")), folder)["x"]
    ...     m[1:3].tolist(), m[[3, 0]].tolist(), m.order.tolist(), m.quantile(0.5).item(), m.count(above=0.5)
    ([9.0, 2.5], [2.5, 0.5], [0, 2, 3, 1], 2.5, 3)
    """

    def __init__(self, index: OpenIndex, name: str) -> None:
        self.name = name
        self._index = index
        self._entry = index.manifest.metrics[name]

    def __len__(self) -> int:
        return self._index.manifest.num_samples

    def __getitem__(self, ids: Any) -> Any:
        return self.values[ids]

    def __repr__(self) -> str:
        return f"MetricIndex({self.name!r}, num_samples={len(self)}, dtype={self.dtype})"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: type, samples and quantiles."""
        from arrowds.index import notebook

        return notebook.metrics_table(f"{self.name}: {len(self):,} samples", [(self, notebook.levels_of(self))])

    def __reduce__(self) -> tuple[Callable[[OpenIndex, str], MetricIndex], tuple[OpenIndex, str]]:
        return type(self), (self._index, self.name)

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """The dtype that the metric declares; ``values`` may hold a smaller integer type. Of a category, its codes'."""
        return numpy_dtype(self.spec.stored if self.is_categorical else self.arrow_type)

    @property
    def arrow_type(self) -> pa.DataType:
        """The Arrow type that the metric declares."""
        return type_named(self._entry.logical_type)

    @property
    def is_categorical(self) -> bool:
        """Whether the values are codes of names."""
        return bool(self._entry.logical_type == str(CATEGORY))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of a categorical metric, sorted: code i stands for the i-th. Empty for other metrics."""
        return self.spec.names if self.is_categorical else ()

    def sample_ids_of(self, *names: str) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Return the ids of the samples with one of some names of a categorical metric, ascending for each name.

        Raises:
            ConfigError: for a metric that is not categorical, and for a name that does not occur.
        """
        codes = [self._code(name) for name in names]
        found = [self._lookup.ids(self._lookup.rank(code, "left"), self._lookup.rank(code, "right")) for code in codes]
        return found[0] if len(found) == 1 else np.concatenate([np.empty(0, numpy_dtype(self.spec.id_type)), *found])

    def _code(self, name: str) -> int:
        if not self.is_categorical:
            raise ConfigError(f"metric {self.name!r} is not categorical; use sample_ids(above=, up_to=)")
        at = bisect_left(self.names, name)
        if self.names[at : at + 1] != (name,):
            raise ConfigError(f"metric {self.name!r} has no {name!r}; it has {', '.join(self.names[:20])}")
        return at

    def _check_numeric(self) -> None:
        """Raise ConfigError where values are names, which have no size."""
        if self.is_categorical:
            raise ConfigError(
                f"metric {self.name!r} is categorical, so its values have no size; use sample_ids_of, names or "
                "distribution()"
            )

    @computed_once
    def spec(self) -> ViewSpec:
        """What the memory maps of this metric are made of."""
        return ViewSpec.of(self._index.store, self._index.manifest, self.name)

    @property
    def num_valid(self) -> int:
        """How many samples have a value that is neither null nor NaN: the length of ``order``."""
        return self.spec.num_valid

    @property
    def num_distinct(self) -> int:
        """How many values occur; the distributions are read where an index has several segments."""
        return num_distinct_of(self.spec)

    @computed_once
    def _view(self) -> View:
        return self._index.open_view(self.spec)

    @computed_once
    def column(self) -> pa.Array:
        """The mapped Arrow column of ``values.arrow``: the stored type, bool as uint8, nulls in the bitmap."""
        return self._view.values()

    @computed_once
    def values(self) -> np.ndarray:
        """Row i is the value of sample i: a read-only view of the map, in the stored type.

        Of a categorical metric these are codes; see :attr:`names`.
        Where nulls of an integer or bool metric were kept it is a ``numpy.ma.MaskedArray``; floats keep them as NaN.
        """
        plain = numpy_view(self.column)
        values = plain.view(np.bool_) if self.dtype == np.bool_ else plain
        bitmap = self.column.buffers()[0]
        if bitmap is None:
            return values
        mask = np.unpackbits(np.frombuffer(bitmap, np.uint8), count=len(self), bitorder="little") == 0
        return np.ma.MaskedArray(values, mask=mask, copy=False)

    @computed_once
    def order(self) -> npt.NDArray[np.unsignedinteger[Any]]:
        """The ids of all samples with a value, sorted by (value, id): a read-only view of the map."""
        return numpy_view(self._view.order())

    @property
    def is_read_in_place(self) -> bool:
        """Whether lookups and queries read the index's files in an object store, as this host has no maps of them yet.

        ``values`` and ``order`` make the maps.
        """
        return "_view" not in self.__dict__ and self._index.reads_in_place(self.spec)

    @property
    def _lookup(self) -> Lookup:
        """Where lookups are answered: from the maps, or in place while a remote index has none on this host."""
        return self._in_place if self.is_read_in_place else self._mapped

    @computed_once
    def _mapped(self) -> Lookup:
        return MappedOrder(self.order, numpy_view(self.column), self.name)

    @computed_once
    def _in_place(self) -> Lookup:
        return BucketOrder(self.spec)

    def rank(self, value: float, *, side: Literal["left", "right"] = "right") -> int:
        """Return how many samples have a value <= ``value`` (< ``value`` with ``side="left"``).

        Bounds compare exactly with the stored values, also 2.5 with integers and 0.1 with float32.

        Raises:
            ConfigError: when ``value`` is NaN or not a number.
        """
        self._check_numeric()
        return self._lookup.rank(_number(value), side)

    def sample_ids(
        self, above: float | None = None, up_to: float | None = None
    ) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Return the ids with ``above`` < value <= ``up_to``, sorted by (value, id), as a view of ``order``.

        None leaves a side open. Samples without a value are never among them.
        """
        return self._lookup.ids(*self._range(above, up_to))

    def count(self, above: float | None = None, up_to: float | None = None) -> int:
        """Return how many samples have ``above`` < value <= ``up_to``."""
        start, stop = self._range(above, up_to)
        return stop - start

    def _range(self, above: float | None, up_to: float | None) -> tuple[int, int]:
        start = 0 if above is None else self.rank(above)
        stop = self.num_valid if up_to is None else self.rank(up_to)
        return start, max(start, stop)

    def sample_ids_between_percentiles(self, lo: float, hi: float) -> npt.NDArray[np.unsignedinteger[Any]]:
        """Return ``order[floor(n * lo / 100) : floor(n * hi / 100)]``, a view; 0 <= lo <= hi <= 100.

        n is the number of samples with a value. The floors are those of the decimal numbers as they are written, so
        that 0.3 of 1000 samples is 3.

        Raises:
            ConfigError: when the bounds are out of range or reversed.

        Warns:
            ArrowdsWarning: when the bounds look like shares of 1.
        """
        self._check_numeric()
        low, high = _as_written(lo), _as_written(hi)
        if not 0 <= low <= high <= 100:
            raise ConfigError(f"percentiles must be 0 <= lo <= hi <= 100, got lo={lo}, hi={hi}")
        warn_of_shares(lo, hi)
        start, stop = (int(_EXACT.multiply(bound, self.num_valid).scaleb(-2, _EXACT)) for bound in (low, high))
        return self._lookup.ids(start, stop)

    def at_positions(self, start: int, stop: int) -> tuple[npt.NDArray[np.unsignedinteger[Any]], Any]:
        """Return ``order[start:stop]``, 0 <= start < stop <= n, and the values of these samples, which ascend.

        Of an index that is read in place, only the buckets of these positions are read.
        """
        return self._lookup.ids(start, stop), self._at(np.arange(start, stop))

    def quantile(self, q: npt.ArrayLike) -> Any:
        """Return the smallest value that at least the share ``q`` of the samples does not exceed.

        That is the value at position ceil(q * n) - 1 of the order, NumPy's "inverted_cdf" and SQL's
        ``quantile_disc``: always a value that occurs.

        Args:
            q: a number in [0, 1], or an array of them, which gives an array of the same shape.

        Raises:
            ConfigError: when ``q`` is outside [0, 1] or no sample has a value.
        """
        shares = np.asarray(q)
        positions = np.array([self._quantile_position(share) for share in shares.flat], np.intp)
        values = self._at(positions.reshape(shares.shape))
        return values if shares.ndim else values[()]

    def _quantile_position(self, share: float) -> int:
        exact = _as_written(share)
        if not 0 <= exact <= 1:
            meant = f"; did you mean {exact / 100}?" if 1 < exact <= 100 else ""
            raise ConfigError(f"a quantile must lie in [0, 1], got {share}{meant}")
        return max(0, math.ceil(_EXACT.multiply(exact, self.num_valid)) - 1)

    def _at(self, positions: Any) -> Any:
        """Return the values at positions of the order."""
        self._check_numeric()
        if self.num_valid == 0:
            raise ConfigError(f"no sample of {self.name!r} has a value: all are null or NaN")
        values = self._lookup.values_at(np.asarray(positions) % self.num_valid)
        # Of the declared type: in the one that is stored, differences would wrap around.
        return values.view(np.bool_) if self.dtype == np.bool_ else values.astype(self.dtype, copy=False)

    def min(self) -> Any:
        """Return the smallest value, a NumPy scalar; ConfigError when no sample has one."""
        return self._at(0)

    def max(self) -> Any:
        """Return the largest value, a NumPy scalar; ConfigError when no sample has one."""
        return self._at(-1)

    def histogram(self, bins: int = 50) -> pl.DataFrame:
        """Return ``lower``, ``upper`` (float64) and ``count`` of equal bins from the smallest to the largest value.

        The counts are those of ``numpy.histogram`` over all finite values: each bin includes its lower edge, the last
        one both. They are found by binary search. Where floats are too coarse for that many bins there are fewer.

        Raises:
            ConfigError: when ``bins`` is not positive.
        """
        import polars as pl

        if not isinstance(bins, (int, np.integer)) or bins < 1:
            raise ConfigError(f"bins must be a positive integer, got {bins!r}")
        start, stop = self.rank(-math.inf), self.rank(math.inf, side="left")
        low, high = self._at(np.array([start, stop - 1])).tolist() if stop > start else (0.0, 1.0)
        floating = np.issubdtype(self.dtype, np.floating)
        edges = _edges(low, high, int(bins), self.dtype if floating else np.dtype(np.float64))
        inner = [self.rank(edge, side="left") for edge in edges[1:-1].tolist()]
        counts = np.diff([start, *inner, max(start, stop)])
        bounds = edges.astype(np.float64)
        return pl.DataFrame({"lower": bounds[:-1], "upper": bounds[1:], "count": counts.astype(np.int64)})

    def distribution(self) -> pl.DataFrame:
        """Return each distinct ``value`` in order with its ``count`` and the ``cumulative_count`` up to it.

        The values of a categorical metric are its names.
        """
        import polars as pl

        found = distribution_of(self.spec)
        if self.is_categorical:
            names = pl.Series(self.names, dtype=pl.String)
            found = found.with_columns(names.gather(found[VALUE].cast(pl.UInt32)).alias(VALUE))
        return found


def warn_of_shares(lo: float, hi: float) -> None:
    """Warn when two percentiles, of which 100 is the last, look like shares of 1: fractions, and at most 1."""
    if 0 < hi <= 1 and any(isinstance(bound, (float, np.floating)) for bound in (lo, hi)):
        warnings.warn(
            f"percentiles are 0 to 100, so {lo} to {hi} lie in the lowest hundredth; multiply shares of 1 by 100",
            ArrowdsWarning,
            stacklevel=3,
        )


def _number(value: Any) -> Any:
    """Return a bound as a Python number, which compares exactly with any other."""
    number = value.item() if isinstance(value, np.generic) else value
    if not isinstance(number, (int, float)) or number != number:  # noqa: PLR0124  # only NaN differs from itself
        raise ConfigError(f"a bound must be a number and not NaN, got {value!r}")
    return number


def _as_written(value: Any) -> Decimal:
    """Return the number that a float is written as: 0.3 is 3/10, not the binary number nearest to it."""
    number = _number(value)
    return Decimal(repr(number) if isinstance(number, float) else number)


def _edges(low: float, high: float, bins: int, kind: np.dtype[Any]) -> np.ndarray:
    """Return the edges of equal bins as ``numpy.histogram`` has them; fewer where neighbours would coincide. Pure."""
    first, last = kind.type(low), kind.type(high)
    largest = np.finfo(kind).max
    with np.errstate(over="ignore"):
        if first == last:
            spread = max(0.5, abs(np.nextafter(first, kind.type(0)) - first))
            first, last = max(first - spread, -largest), min(last + spread, largest)
        halved = 1 if last - first < largest / 2 else 2  # or a product of linspace would overflow
    unique: np.ndarray = np.unique(np.linspace(first / halved, last / halved, bins + 1, dtype=kind) * kind.type(halved))
    return unique
