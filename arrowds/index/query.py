"""Query an index as a table: a Polars LazyFrame, a DuckDB connection, SQL. The metric columns stay in their maps."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import polars as pl
import pyarrow as pa

from arrowds.errors import ConfigError, MissingExtraError
from arrowds.index.manifest import Manifest
from arrowds.index.metric import MetricIndex
from arrowds.schema import SAMPLE_ID, numpy_dtype

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

    path: Path
    manifest: Manifest

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
    ids = pl.col(SAMPLE_ID).cast(pl.UInt32 if index.manifest.sample_id_type == "uint32" else pl.UInt64)
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
    ids = np.arange(
        index.manifest.dataset.num_samples, dtype=numpy_dtype(pa.type_for_alias(index.manifest.sample_id_type))
    )
    connection.register(_MAPPED, _mapped_table(index).add_column(0, SAMPLE_ID, pa.array(ids)))
    columns = ", ".join([SAMPLE_ID, *(_sql_column(index[name]) for name in index)])
    connection.execute(f"create view samples as select {columns} from {_MAPPED}")
    layout = index.manifest.layout(index.path)
    for name in index:
        _create_file_view(connection, f"distribution_{name}", layout.distribution(name))
    for name in index.manifest.totals:
        _create_file_view(connection, f"total_{name}", layout.total(name))
    return connection


def _check_names(index: Queryable) -> None:
    """SQL names ignore case: two metrics that differ in nothing else would be one column."""
    seen: dict[str, str] = {}
    for name in (SAMPLE_ID, *index):
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise ConfigError(f"SQL can't tell {name!r} from {other!r}; query this index with index.scan()")


def _create_file_view(connection: duckdb.DuckDBPyConnection, name: str, path: Path) -> None:
    literal = glob.escape(str(path)).replace("'", "''")
    connection.execute(f"create view \"{name}\" as from read_parquet('{literal}', hive_partitioning=false)")


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
