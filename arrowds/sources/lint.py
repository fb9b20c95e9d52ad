"""Look through data before hours of work: what is missing, empty, out of range, odd or twice there."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from arrowds.arrays import numpy_view
from arrowds.errors import ConfigError
from arrowds.sources.base import Source
from arrowds.sources.files import FileSource

if TYPE_CHECKING:
    import polars as pl

_ODD_SHARE = 4
"""A file with so many times fewer or more rows than the others is odd."""


@dataclass
class _Findings:
    """What was found, by check and column: how often, and the first row."""

    source: Source
    rows: dict[tuple[str, str, str], tuple[int, int | None]] = field(default_factory=dict)

    def add(self, level: str, check: str, column: str, found: np.ndarray | int, first_row: int | None) -> None:
        """Add rows of a batch, which begins with a row; or a count, with the first row itself."""
        if isinstance(found, np.ndarray):
            if not len(found):
                return
            first_row = None if first_row is None else first_row + int(found[0])
            found = len(found)
        count, before = self.rows.get((level, check, column), (0, None))
        self.rows[level, check, column] = (count + found, first_row if before is None else before)

    def place(self, row: int | None) -> str | None:
        """The file that a row is of, and its number there."""
        if row is None or not isinstance(self.source, FileSource):
            return None if row is None else f"row {row}"
        for path, num_rows in self.source.rows_of_files:
            if row < num_rows:
                return f"{path}, row {row}"
            row -= num_rows
        return None


def lint(source: Source, *, vocab_size: int | None = None, id_column: str | None = None) -> pl.DataFrame:
    """Return what is wrong or odd in some data, read once; rows count from 0.

    Columns: ``level`` ("error": a metric would be refused or wrong; "warning": it may be meant so), ``check``,
    ``column``, ``count`` (rows, or files), ``first`` (where the first of them is). Errors: text that is not UTF-8,
    token ids below 0, or from ``vocab_size`` on, ids that occur twice, columns that do not fit into one table.
    Warnings: null, NaN, empty texts and lists, lists with null, files without rows or with few or many beside the
    others.

    Args:
        source: columnar data, of :func:`arrowds.sources.open_source`.
        vocab_size: how many token ids there are.
        id_column: a column whose values should be distinct.

    Raises:
        ConfigError: for data that have no columns.
        MissingColumnError: for an unknown ``id_column``.

    >>> import arrowds.sources
    >>> table = pa.table({"text": ["a", "", None], "input_ids": [[1, 2], [900], []]})
    >>> lint(arrowds.sources.open_source(table), vocab_size=256).rows()[:2]
    [('error', 'token id outside the vocabulary', 'input_ids', 1, 'row 1'), ('warning', 'null', 'text', 1, 'row 2')]
    """
    import polars as pl

    if source.schema is None:
        raise ConfigError("lint needs data with columns: files, tables or data frames")
    if id_column is not None:
        source.check_columns([id_column])
    findings = _Findings(source)
    _look_at_files(findings)
    seen: list[np.ndarray] = []
    places: list[np.ndarray] = []
    row = 0
    for batch in source.read(0, len(source)):
        for name, values in zip(batch.schema.names, batch.columns, strict=True):
            _look_at(findings, name, values, row, vocab_size)
        if id_column is not None:
            ids = batch.column(batch.schema.get_field_index(id_column))
            digests = (xxhash.xxh3_64_intdigest(repr(value).encode()) for value in ids.drop_null().to_pylist())
            seen.append(np.fromiter(digests, np.uint64, len(ids) - ids.null_count))
            places.append(row + np.flatnonzero(numpy_view(ids.is_valid())))
        row += batch.num_rows
    if id_column is not None and seen:
        ids_seen = np.concatenate(seen)
        order = np.argsort(ids_seen, kind="stable")  # so that the first of each comes first
        again = order[1:][ids_seen[order][1:] == ids_seen[order][:-1]]
        findings.add("error", "id that occurred before", id_column, np.sort(np.concatenate(places)[again]), 0)
    rows = [
        {"level": level, "check": check, "column": column, "count": count, "first": findings.place(first)}
        for (level, check, column), (count, first) in findings.rows.items()
    ]
    texts = dict.fromkeys(("level", "check", "column", "first"), pl.String)
    found = pl.DataFrame(rows, schema={**texts, "count": pl.Int64})
    return found.select("level", "check", "column", "count", "first").sort("level", maintain_order=True)


def _look_at_files(findings: _Findings) -> None:
    source = findings.source
    if not isinstance(source, FileSource):
        return
    for column in source.left_out:
        findings.add("error", "column that does not fit into one table", column, 1, None)
    start, usual = 0, median(num_rows for _, num_rows in source.rows_of_files)
    for _, num_rows in source.rows_of_files:
        if num_rows == 0:
            findings.add("warning", "file without rows", "", 1, None)
        elif num_rows * _ODD_SHARE < usual or num_rows > usual * _ODD_SHARE:
            findings.add("warning", "file with far fewer or more rows than the others", "", 1, start)
        start += num_rows


def _look_at(findings: _Findings, name: str, values: pa.Array, row: int, vocab_size: int | None) -> None:
    """Look at one column of a batch whose first row has this number."""

    def rows_where(mask: pa.Array) -> np.ndarray:
        return np.flatnonzero(numpy_view(mask.fill_null(False)))

    kind = values.type
    if pa.types.is_dictionary(kind):
        values, kind = values.dictionary_decode(), kind.value_type
    findings.add("warning", "null", name, rows_where(values.is_null()), row)
    if pa.types.is_floating(kind):
        findings.add("warning", "NaN", name, rows_where(pc.is_nan(values)), row)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        try:
            values.validate(full=True)
        except pa.ArrowInvalid:
            broken = [number for number in range(len(values)) if not _is_text(values[number : number + 1])]
            findings.add("error", "text that is not UTF-8", name, np.array(broken), row)
        findings.add("warning", "empty text", name, rows_where(pc.equal(pc.binary_length(values), 0)), row)
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lengths = pc.list_value_length(values)
        findings.add("warning", "empty list", name, rows_where(pc.equal(lengths, 0)), row)
        _look_at_ids(findings, name, values, row, vocab_size)


def _look_at_ids(findings: _Findings, name: str, lists: pa.Array, row: int, vocab_size: int | None) -> None:
    parents, flat = numpy_view(pc.list_parent_indices(lists)), pc.list_flatten(lists)
    if flat.null_count:
        holes = np.unique(parents[numpy_view(flat.is_null())])
        findings.add("warning", "null in a list", name, holes, row)
    if pa.types.is_integer(flat.type) and len(flat):
        ids = numpy_view(flat.fill_null(0))
        outside = ids < 0 if vocab_size is None else (ids < 0) | (ids >= vocab_size)
        check = "token id below 0" if vocab_size is None else "token id outside the vocabulary"
        findings.add("error", check, name, np.unique(parents[outside]), row)


def _is_text(value: pa.Array) -> bool:
    try:
        value.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
