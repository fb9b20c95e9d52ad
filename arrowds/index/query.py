"""Query an index as a table: a Polars LazyFrame, a DuckDB connection, SQL. The metric columns stay in their maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import polars as pl
import pyarrow as pa

from arrowds.arrays import arrow_view
from arrowds.errors import ConfigError, MissingExtraError
from arrowds.index import paths
from arrowds.index.manifest import Manifest
from arrowds.index.metric import MetricIndex
from arrowds.schema import SAMPLE_ID, VALUE, numpy_dtype, sample_id_type
from arrowds.store import Store

if TYPE_CHECKING:
    import duckdb

_MAPPED = "arrowds_mapped"
_SQL_TYPES = {
    "bool": "BOOLEAN",
    "uint16": "USMALLINT",
    "uint32": "UINTEGER",
    "uint64": "UBIGINT",
    "int16": "SMALLINT",
    "int32": "INTEGER",
    "int64": "BIGINT",
}


class Queryable(Protocol):
    """What a query needs of an :class:`arrowds.index.Index`."""

    manifest: Manifest
    store: Store
    totals: Mapping[str, np.ndarray]

    def __iter__(self) -> Iterator[str]:
        """The names of the metrics."""

    def __getitem__(self, name: str) -> MetricIndex:
        """One metric."""


def scan(index: Queryable) -> pl.LazyFrame:
    """Return ``sample_id`` and one column per metric as a LazyFrame over the memory maps; nothing is read yet.

    Columns have the declared types; Polars widens those columns that a query uses. Values that were kept as null or
    NaN are null.

    >>> import arrowds, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data = pl.DataFrame({"x": [5, 7, 5]})
    ...     index = arrowds.analyze(data, arrowds.metrics.expr("x", pl.col("x")), folder)
    ...     scan(index).filter(pl.col("x") > 6).collect().rows()
    [(1, 7)]
    """
    mapped = pl.DataFrame(_mapped_table(index))
    columns = [_polars_column(index[name]) for name in index]
    ids = pl.col(SAMPLE_ID).cast(pl.UInt64 if sample_id_type(index.manifest.num_samples) == pa.uint64() else pl.UInt32)
    return mapped.lazy().with_row_index(SAMPLE_ID).select(ids, *columns)


def _polars_column(metric: MetricIndex) -> pl.Expr:
    column = pl.col(metric.name)
    if metric.column.type != metric.arrow_type:
        return column.cast(_polars_type(metric.arrow_type))
    return column.fill_nan(None) if _has_nan(metric) else column


def _polars_type(kind: pa.DataType) -> type[pl.DataType]:
    found: type[pl.DataType] = pl.Series(pa.nulls(0, kind)).dtype.base_type()
    return found


def connect(index: Queryable) -> duckdb.DuckDBPyConnection:
    """Return a new DuckDB connection in which the index is the view ``samples``; close it when done.

    The view has ``sample_id`` and one column per metric, of the type that it declares, NULL where a value was kept as
    null or NaN. DuckDB reads the metric columns from the memory maps; only the ids are made (4 bytes for each sample, 8
    above 2^32). Each metric also has a view ``distribution_NAME`` (value, count, cumulative_count), each total a view
    ``total_NAME`` (value: the flattened array, in order).

    Raises:
        ConfigError: when two metrics differ only in upper and lower case, which SQL ignores.
        MissingExtraError: when DuckDB is not installed.
    """
    try:
        import duckdb
    except ImportError as error:
        raise MissingExtraError("duckdb", "sql") from error
    _check_names(index)
    connection = duckdb.connect()
    ids = np.arange(index.manifest.num_samples, dtype=numpy_dtype(sample_id_type(index.manifest.num_samples)))
    connection.register(_MAPPED, _mapped_table(index).add_column(0, SAMPLE_ID, arrow_view(ids)))
    columns = ", ".join([SAMPLE_ID, *(_sql_column(index[name]) for name in index)])
    connection.execute(f"create view samples as select {columns} from {_MAPPED}")
    for name in index:
        connection.execute(_distribution_view(index, name))
    for name, total in index.totals.items():
        connection.register(f"total_{name}", pa.table({VALUE: arrow_view(np.ascontiguousarray(total).reshape(-1))}))
    return connection


def _check_names(index: Queryable) -> None:
    """SQL names ignore case: two metrics that differ in nothing else would be one column."""
    seen: dict[str, str] = {}
    for name in (SAMPLE_ID, *index):
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise ConfigError(f"SQL can't tell {name!r} from {other!r}; query this index with index.scan()")


def _distribution_view(index: Queryable, name: str) -> str:
    """The statement that makes ``distribution_NAME`` a view of the files of all segments."""
    spec = index[name].spec
    names = [
        paths.distribution(name, column.column.key, bucket.number)
        for column in spec.columns
        for bucket in column.column.buckets
    ]
    if not names:
        source = f"(select null::{_SQL_TYPES.get(str(spec.stored), 'DOUBLE')} as value, 0 as count where false)"
    else:
        listed = ", ".join("'" + str(index.store.path(name)).replace("'", "''") + "'" for name in names)
        source = f"read_parquet([{listed}], hive_partitioning=false, union_by_name=true)"
    return (
        f'create view "distribution_{name}" as select value, sum(count)::BIGINT as count, '
        "(sum(sum(count)) over (order by value))::BIGINT as cumulative_count "
        f"from {source} group by value order by value"
    )


def _sql_column(metric: MetricIndex) -> str:
    quoted = '"' + metric.name + '"'
    if metric.column.type != metric.arrow_type:
        return f"{quoted}::{_SQL_TYPES[str(metric.arrow_type)]} as {quoted}"
    return f"case when isnan({quoted}) then null else {quoted} end as {quoted}" if _has_nan(metric) else quoted


def sql(index: Queryable, statement: str) -> pl.DataFrame:
    """Answer a DuckDB SQL query over the views of :func:`connect`.

    Raises:
        ConfigError: with DuckDB's message, when it refuses the query or the query returns no table.
        MissingExtraError: when DuckDB is not installed.

    >>> import arrowds, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data = pl.DataFrame({"x": [5, 7, 5]})
    ...     index = arrowds.analyze(data, arrowds.metrics.expr("x", pl.col("x")), folder)
    ...     sql(index, "select sample_id, x from samples where x < 6").rows()
    [(0, 5), (2, 5)]
    """
    connection = connect(index)
    import duckdb

    try:
        relation = connection.sql(statement)
        if relation is None:
            raise ConfigError(f"the statement returns no table: {statement!r}; index.connect() runs any statement")
        return pl.DataFrame(relation.to_arrow_table())
    except duckdb.Error as error:
        raise ConfigError(f"DuckDB refused the query: {error}") from error
    finally:
        connection.close()


def _mapped_table(index: Queryable) -> pa.Table:
    """The memory maps of all metrics side by side: stored types, bool as uint8."""
    return pa.table({name: index[name].column for name in index})


def _has_nan(metric: MetricIndex) -> bool:
    return pa.types.is_floating(metric.arrow_type) and metric.num_valid < len(metric)
