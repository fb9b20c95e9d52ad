"""Distribute sample ids into the cells of the difficulty order, part by part, keeping their order within a cell.

This is the distribution pass of a sample sort (Frazer and McKellar, "Samplesort", JACM 1970) and, where every value has
its own cell, all of a counting sort. One part is in memory at a time; the order itself is a memory map.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from arrowds.build.ordered import ordered_map
from arrowds.index.manifest import PartRange


@dataclass(frozen=True, slots=True)
class _SortedPart:
    """The rows of one part, by cell: ids ascending within each cell."""

    cells: np.ndarray
    ids: np.ndarray
    counts: np.ndarray


def count_cells(
    parts: Iterable[PartRange], cells_of: Callable[[PartRange], tuple[np.ndarray, np.ndarray | None]], num_cells: int
) -> np.ndarray:
    """Return how many rows each cell has, as int64 of shape (cells,)."""
    counts = np.zeros(num_cells, dtype=np.int64)
    for found in ordered_map(lambda part: np.bincount(cells_of(part)[0], minlength=num_cells), parts):
        counts += found
    return counts


def distribute(
    order: np.ndarray,
    parts: Iterable[PartRange],
    cells_of: Callable[[PartRange], tuple[np.ndarray, np.ndarray | None]],
    counts: np.ndarray,
) -> None:
    """Write the ids of all parts into ``order``, sorted by (cell, id).

    Args:
        order: where the ids go, of shape (rows that have a cell,).
        parts: the row ranges, ascending.
        cells_of: gives the cell of each row of a part, and its rows where some have no cell (else None).
        counts: rows of each cell over all parts, from :func:`count_cells`.
    """
    free = np.cumsum(counts) - counts

    def sort_part(part: PartRange) -> _SortedPart:
        cells, rows = cells_of(part)
        by_cell = np.argsort(cells, kind="stable")  # a radix sort, as cells are uint16
        ids = (by_cell if rows is None else rows[by_cell]).astype(order.dtype)
        ids += order.dtype.type(part.start)
        return _SortedPart(cells[by_cell], ids, np.bincount(cells, minlength=len(counts)))

    for found in ordered_map(sort_part, parts):
        starts = np.cumsum(found.counts) - found.counts
        target = (free - starts)[found.cells]
        target += np.arange(len(target))
        order[target] = found.ids
        free += found.counts
