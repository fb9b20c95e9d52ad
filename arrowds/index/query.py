"""Query an index as a table: a Polars LazyFrame, a DuckDB connection, SQL.

The metric columns stay in their memory maps. Those of an index in an object store that this host has no maps of are
read where they are: by Polars, those columns and row groups alone that a query needs, for DuckDB as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import numpy as np
import polars as pl
import pyarrow as pa

from arrowds.arrays import arrow_view
from arrowds.errors import ConfigError, MissingExtraError, SourceError, StorageError
from arrowds.index import paths
from arrowds.index.data import DataRows, source_files
from arrowds.index.manifest import Manifest, load
from arrowds.index.metric import MetricIndex
from arrowds.index.segments import SegmentColumn
from arrowds.schema import CATEGORY, COUNT, CUMULATIVE_COUNT, SAMPLE_ID, VALUE, numpy_dtype, sample_id_type
from arrowds.store import ObjectStore, Store

if TYPE_CHECKING:
    import duckdb
    from pyarrow.dataset import Dataset

_SECONDS_BETWEEN_CHECKS = 0.2
_SQL_TYPES = {
    "bool": "BOOLEAN",
    "uint8": "UTINYINT",
    "uint16": "USMALLINT",
    "uint32": "UINTEGER",
    "uint64": "UBIGINT",
    "int8": "TINYINT",
    "int16": "SMALLINT",
    "int32": "INTEGER",
    "int64": "BIGINT",
}


class Queryable(Protocol):
    """What a query needs of an :class:`arrowds.index.Index`."""

    manifest: Manifest
    store: Store
    totals: Mapping[str, np.ndarray]

    @property
    def data_rows(self) -> DataRows:
        """The rows of the samples."""

    def __iter__(self) -> Iterator[str]:
        """The names of the metrics."""

    def __getitem__(self, name: str) -> MetricIndex:
        """One metric."""


def scan(index: Queryable) -> pl.LazyFrame:
    """Return ``sample_id`` and one column per metric as a LazyFrame; nothing is read yet.

    Columns have the declared types, categorical ones an ``Enum`` of their names; Polars widens those columns that a
    query uses. Values that were kept as null or NaN are null.

    >>> import arrowds, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data = pl.DataFrame({"x": [5, 7, 5]})
    ...     index = arrowds.analyze(data, arrowds.metrics.expr("x", pl.col("x")), folder)
    ...     scan(index).filter(pl.col("x") > 6).collect().rows()
    [(1, 7)]
    """
    ids = pl.UInt64 if sample_id_type(index.manifest.num_samples) == pa.uint64() else pl.UInt32
    in_place = [index[name] for name in index if index[name].is_read_in_place]
    if not in_place:
        frame = pl.DataFrame(_mapped_table(index)).lazy().select(_polars_column(index[name]) for name in index)
    else:
        columns = [_scanned(index[name]) if index[name] in in_place else _mapped(index[name]) for name in index]
        frame = pl.concat(columns, how="horizontal")
    return frame.with_row_index(SAMPLE_ID).with_columns(pl.col(SAMPLE_ID).cast(ids))


def _mapped(metric: MetricIndex) -> pl.LazyFrame:
    """One column from its memory map."""
    return pl.DataFrame(pa.table({metric.name: metric.column})).lazy().select(_polars_column(metric))


def _scanned(metric: MetricIndex) -> pl.LazyFrame:
    """One column from the files of all segments, in the order of the ids."""
    names = [
        [paths.values(metric.name, item.column.key, number) for number in range(len(item.column.values))]
        for item in metric.spec.columns
    ]
    store = metric.spec.columns[0].store
    segments = zip(names, metric.spec.columns, strict=True)
    scans = (_scan_parquet(store, listed, {VALUE: item.stored_type}) for listed, item in segments)
    columns = (_declared(metric, pl.col(VALUE), item) for item in metric.spec.columns)
    return pl.concat([frame.select(column.alias(metric.name)) for frame, column in zip(scans, columns, strict=True)])


def _declared(metric: MetricIndex, column: pl.Expr, item: SegmentColumn) -> pl.Expr:
    """The values of a segment's files as the metric declares them."""
    if metric.is_categorical:
        if item.codes is not None:
            column = pl.lit(pl.Series(item.codes)).gather(column)
        return column.cat.to(pl.Enum(metric.names))
    column = column.cast(_polars_type(metric.arrow_type))
    return column.fill_nan(None) if _has_nan(metric) else column


def _scan_parquet(store: Store, names: list[str], kinds: Mapping[str, pa.DataType]) -> pl.LazyFrame:
    """Files of an object store as one frame, whose columns are known, so that none is read before a query."""
    urls = [f"{store.url}/{name}" for name in names]
    options = store.polars_options if isinstance(store, ObjectStore) else None
    schema = {name: _polars_type(kind) for name, kind in kinds.items()}
    return pl.scan_parquet(urls, schema=schema, storage_options=options, hive_partitioning=False)


def _polars_column(metric: MetricIndex) -> pl.Expr:
    column = pl.col(metric.name)
    if metric.is_categorical:
        return column.cat.to(pl.Enum(metric.names))
    if metric.column.type != metric.arrow_type:
        return column.cast(_polars_type(metric.arrow_type))
    return column.fill_nan(None) if _has_nan(metric) else column


def _polars_type(kind: pa.DataType) -> type[pl.DataType]:
    found: type[pl.DataType] = pl.Series(pa.nulls(0, kind)).dtype.base_type()
    return found


def connect(index: Queryable) -> duckdb.DuckDBPyConnection:
    """Return a new DuckDB connection in which the index is the view ``samples``, its data ``data``; close it when done.

    The view has ``sample_id`` and one column per metric, of the type that it declares, NULL where a value was kept as
    null or NaN. DuckDB reads the metric columns from the memory maps; only the ids are made (4 bytes for each sample, 8
    above 2^32). While this host has no maps of an index in an object store, a query gets what it needs from
    :func:`scan`.

    ``data`` has ``sample_id`` and the columns of the data, where these came from files that are still there. DuckDB
    itself reads Parquet files of this host, so that a query costs what the columns and rows cost that it uses; of
    others it gets all columns, batch by batch. A column of the data that is called ``sample_id`` itself is
    ``data_sample_id``.

    Each metric also has a view ``distribution_NAME`` (value, count, cumulative_count), each total a view
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
    if any(index[name].is_read_in_place for name in index):
        connection.register("samples", scan(index))
    else:
        ids = np.arange(index.manifest.num_samples, dtype=numpy_dtype(sample_id_type(index.manifest.num_samples)))
        mapped = connection.from_arrow(_named_table(index).add_column(0, SAMPLE_ID, arrow_view(ids)))
        # Views of Arrow data and not of files: they can be read when DuckDB itself may open no file.
        mapped.project(", ".join([SAMPLE_ID, *(_sql_column(index[name]) for name in index)])).create_view("samples")
    with suppress(SourceError, StorageError):  # a query that names it gets the reason
        _create_data_view(connection, index.data_rows)
    for name in index:
        if index[name].is_categorical:
            connection.from_arrow(index[name].distribution().to_arrow()).create_view(f"distribution_{name}")
            continue
        if isinstance(index.store, ObjectStore):
            connection.register(f"distribution_{name}", _scanned_distribution(index[name]))
            continue
        distinct = connection.from_arrow(_distribution_files(index, name))
        distinct.aggregate("value, sum(count)::BIGINT as count", "value").project(
            "value, count, (sum(count) over (order by value))::BIGINT as cumulative_count"
        ).order("value").create_view(f"distribution_{name}")
    for name, total in index.totals.items():
        flat = pa.table({VALUE: arrow_view(np.ascontiguousarray(total).reshape(-1))})
        connection.from_arrow(flat).create_view(f"total_{name}")
    return connection


def _create_data_view(connection: duckdb.DuckDBPyConnection, rows: DataRows) -> None:
    located = rows.local_parquet
    if located is None:
        connection.register("data", _Stream(rows))
        return
    kind = "UBIGINT" if rows.table.types[0] == pa.uint64() else "UINTEGER"
    listed, firsts = ", ".join(_quoted(path, "'") for path, _ in located), [first for _, first in located]
    pairs = zip(rows.schema.names, rows.table.names[1:], strict=True)
    columns = "".join(f", {_quoted(name)} as {_quoted(shown)}" for name, shown in pairs)
    connection.execute(
        f"create view data as select ({firsts}[file_index::BIGINT + 1] + file_row_number)::{kind} as {SAMPLE_ID}"
        f"{columns} from read_parquet([{listed}], union_by_name = true, hive_partitioning = false)"
    )


def _quoted(name: str, mark: str = '"') -> str:
    return mark + name.replace(mark, 2 * mark) + mark


class _Stream:
    """What DuckDB reads the rows of other sources from: a new Arrow stream for each query."""

    def __init__(self, rows: DataRows) -> None:
        self._rows = rows

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        batches = self._rows.batches(self._rows.schema.names)
        return pa.RecordBatchReader.from_batches(self._rows.table, batches).__arrow_c_stream__(requested_schema)


def _check_names(index: Queryable) -> None:
    """SQL names ignore case: two metrics that differ in nothing else would be one column."""
    seen: dict[str, str] = {}
    for name in (SAMPLE_ID, *index):
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise ConfigError(f"SQL can't tell {name!r} from {other!r}; query this index with index.scan()")


def _distribution_files(index: Queryable, name: str) -> Dataset:
    """The distributions of all segments, widened to one type."""
    from pyarrow.dataset import dataset

    spec = index[name].spec
    names = [
        paths.distribution(name, column.column.key, bucket.number)
        for column in spec.columns
        for bucket in column.buckets
    ]
    schema = pa.schema({VALUE: spec.stored, COUNT: pa.int64()})
    return dataset([str(index.store.path(name)) for name in names], schema=schema, format="parquet")


def _scanned_distribution(metric: MetricIndex) -> pl.LazyFrame:
    """What ``distribution_NAME`` is, from the files of all segments where they are."""
    kind = pl.Series(pa.nulls(0, metric.spec.stored)).dtype
    empty = pl.LazyFrame(schema={VALUE: kind, COUNT: pl.Int64})
    found = [empty]
    for item in metric.spec.columns:
        names = [paths.distribution(metric.name, item.column.key, bucket.number) for bucket in item.buckets]
        if names:
            frame = _scan_parquet(item.store, names, {VALUE: item.stored_type, COUNT: pa.int64()})
            found.append(frame.select(pl.col(VALUE).cast(kind), COUNT))
    counts = pl.concat(found).group_by(VALUE).agg(pl.col(COUNT).sum()).sort(VALUE)
    return counts.with_columns(pl.col(COUNT).cum_sum().alias(CUMULATIVE_COUNT))


def _sql_column(metric: MetricIndex) -> str:
    quoted = _quoted(metric.name)
    if metric.is_categorical:
        return quoted
    if metric.column.type != metric.arrow_type:
        return f"{quoted}::{_SQL_TYPES[str(metric.arrow_type)]} as {quoted}"
    return f"case when isnan({quoted}) then null else {quoted} end as {quoted}" if _has_nan(metric) else quoted


def sql(index: Queryable, statement: str, *, allow_files: bool = False) -> pl.DataFrame:
    """Answer a DuckDB SQL query over the views of :func:`connect`.

    Args:
        index: an open index.
        statement: one query. It sees the index and the files of its data, and writes nothing.
        allow_files: let it do whatever the user may do: read and write any file, several statements.

    Raises:
        ConfigError: with DuckDB's message, when it refuses the query or the query returns no table.
        SourceError: when the query names ``data``, and the data can't be read; says why.
        VersionNotFoundError: when the version was vacuumed after it was opened.
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
        connection.execute("set python_enable_replacements = false")  # or it would see variables of this module
        if not allow_files:
            _confine(connection, [file.path for file in source_files(index.store, index.manifest)])
            _check_reads_only(connection, statement)
        return _interruptible(connection, statement)
    except duckdb.PermissionException as error:
        raise ConfigError(
            f"the query sees the index and the files of its data only; pass allow_files=True to lift that ({error})"
        ) from error
    except duckdb.Error as error:
        if isinstance(error, duckdb.CatalogException) and re.search(r"name data\b", str(error)):
            _ = index.data_rows.local_parquet  # says why there is no such view
        load(index.store, index.manifest.version)  # says so where this version was vacuumed since it was opened
        raise ConfigError(f"DuckDB refused the query: {error}") from error
    finally:
        connection.close()


def _interruptible(connection: duckdb.DuckDBPyConnection, statement: str) -> pl.DataFrame:
    """Run a statement in a thread, so that Ctrl-C need not wait until it ends, as it would in DuckDB.

    Polars' signal handler restarts system calls: a wait without a timeout would not notice the signal.
    """

    def run() -> pl.DataFrame:
        relation = connection.sql(statement)
        if relation is None:
            raise ConfigError(f"the statement returns no table: {statement!r}")
        return pl.DataFrame(relation.to_arrow_table())

    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(run)
        try:
            while not wait([running], timeout=_SECONDS_BETWEEN_CHECKS).done:
                pass
            return running.result()
        except KeyboardInterrupt:
            connection.interrupt()
            raise


def _confine(connection: duckdb.DuckDBPyConnection, files: list[str]) -> None:
    """Leave a connection no access to anything but its views and some files, for good."""
    connection.execute("set allowed_paths = $files", {"files": files})
    connection.execute("set enable_external_access = false")
    connection.execute("set lock_configuration = true")


def _check_reads_only(connection: duckdb.DuckDBPyConnection, statement: str) -> None:
    """Raise ConfigError unless a text is one query: DuckDB would write the files that it may read.

    What can stand in parentheses after "from" is a query; COPY can't, not even in a WITH clause.
    """
    import duckdb

    query = re.sub(r"^\s*explain\s+(analyze\s+|\([^()]*\)\s*)?", "", statement, flags=re.IGNORECASE)
    statements = duckdb.extract_statements(query)
    nested = f"explain from (\n{statements[0].query.rstrip().rstrip(';')}\n)" if statements else ""
    try:
        reads = len(statements) == 1 and len(duckdb.extract_statements(nested)) == 1
    except duckdb.ParserException:
        reads = False
    if not reads:
        raise ConfigError(f"expected one query, got {statement!r}; pass allow_files=True to run any statements")
    connection.execute(nested)


def _mapped_table(index: Queryable) -> pa.Table:
    """The memory maps of all metrics side by side: stored types, bool as uint8, names of categories by their codes."""
    return pa.table({name: index[name].column for name in index})


def _named_table(index: Queryable) -> pa.Table:
    """The same with the names of categories."""
    table = _mapped_table(index)
    for number, name in enumerate(table.column_names):
        if index[name].is_categorical:
            names = pa.array(index[name].names, CATEGORY)
            table = table.set_column(number, name, pa.DictionaryArray.from_arrays(index[name].column, names))
    return table


def _has_nan(metric: MetricIndex) -> bool:
    return pa.types.is_floating(metric.arrow_type) and metric.num_valid < len(metric)
