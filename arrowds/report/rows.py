"""The rows of the data behind some samples, as short texts; where they can't be read, why not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl
import pyarrow as pa

from arrowds.errors import ArrowdsError, MissingColumnError
from arrowds.index import Index

MOST_CHARACTERS = 300
_MOST_COLUMNS = 4
_MOST_ITEMS = 40
_BLANK_LINES = re.compile(r"\n\s*\n")
_CONTROLS = dict.fromkeys([*range(9), *range(11, 32), 127], "\N{REPLACEMENT CHARACTER}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Rows of the data by the id of their sample.

    Attributes:
        columns: the names of the columns that are shown.
        texts: the cells of each row, each of at most ``MOST_CHARACTERS`` and a mark where it was cut.
        fault: why the data can't be read; None where it was.
    """

    columns: list[str]
    texts: dict[int, list[str]]
    fault: str | None = None


def read_rows(index: Index, ids: Iterable[int], columns: Sequence[str] | None) -> Rows:
    """Read the rows of some samples, all at once.

    Args:
        index: an open index.
        ids: of the samples.
        columns: which columns; None: those of text, or else other short ones; none for an empty list.

    Raises:
        MissingColumnError: for a column that the data does not have.
    """
    chosen = sorted(set(ids))
    try:
        shown = _telling(index.data_rows.schema) if columns is None else list(columns)
        frame = index.samples(chosen, shown) if chosen and shown else pl.DataFrame()
    except MissingColumnError:
        raise  # of a column that was asked for
    except (ArrowdsError, OSError, pa.ArrowException, pl.exceptions.PolarsError) as error:
        return Rows(columns=[], texts={}, fault=str(error))
    cells = [[_text(value) for value in frame[name]] for name in frame.columns]
    return Rows(columns=frame.columns, texts=dict(zip(chosen, map(list, zip(*cells, strict=True)), strict=False)))


def _telling(schema: pa.Schema) -> list[str]:
    """Choose the columns that tell most of a row: text first, then numbers and dates, lists where there is no other."""
    texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    nested = [field.name for field in schema if pa.types.is_nested(field.type) or pa.types.is_large_binary(field.type)]
    others = [name for name in schema.names if name not in texts and name not in nested]
    return ((texts + others) or nested)[:_MOST_COLUMNS]


def _text(value: Any) -> str:
    """Return a short text of a value, without control characters and blank lines."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, pl.Series):
        items = ", ".join(map(str, value.head(_MOST_ITEMS).to_list()))
        value = f"[{items}, ...]" if len(value) > _MOST_ITEMS else f"[{items}]"
    if isinstance(value, bytes):
        value = value[:MOST_CHARACTERS].hex()
    whole = str(value)
    start = whole[: 4 * MOST_CHARACTERS]
    text = _BLANK_LINES.sub("\n", start).strip("\n") + (" ..." if len(start) < len(whole) else "")
    return shortened(text, MOST_CHARACTERS).translate(_CONTROLS)


def shortened(text: str, most: int) -> str:
    """Return the first characters of a text, with a mark where some are left out.

    >>> shortened("to be or not to be", 5), shortened("to be", 5)
    ('to be ...', 'to be')
    """
    return text if len(text) <= most else f"{text[:most].rstrip()} ..."
