"""The distribution pass against NumPy's stable argsort."""

from __future__ import annotations

import numpy as np
import pytest
from arrowds.build.ordered import ordered_map
from arrowds.build.partition import count_cells, distribute
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowds.build.plan import cut


@given(
    cells=st.lists(st.none() | st.integers(0, 9), min_size=1, max_size=80),
    part=st.integers(1, 30),
    wide=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_ids_lie_sorted_by_cell_and_id(cells, part, wide):
    """Rows without a cell (None) are left out; ids of more than 32 bits are possible."""
    known = np.array([cell is not None for cell in cells])
    codes = np.array([cell or 0 for cell in cells], np.uint16)
    parts = cut([*range(0, len(cells), part), len(cells)])

    def cells_of(each):
        mine = slice(each.start, each.stop)
        if known.all():
            return codes[mine], None
        rows = np.flatnonzero(known[mine])
        return codes[mine][rows], rows

    counts = count_cells(parts, cells_of, 10)
    assert counts.tolist() == np.bincount(codes[known], minlength=10).tolist()
    order = np.zeros(known.sum(), np.uint64 if wide else np.uint32)
    distribute(order, parts, cells_of, counts)
    ids = np.flatnonzero(known)
    assert order.tolist() == ids[np.argsort(codes[known], kind="stable")].tolist()


def test_results_come_in_order_and_an_error_stops_the_rest():
    started = []

    def half(number):
        started.append(number)
        if number == 3:
            raise ValueError("three")
        return number / 2

    assert list(ordered_map(abs, range(-5, 0))) == [5, 4, 3, 2, 1]
    results = ordered_map(half, iter(range(1000)))
    assert [next(results) for _ in range(3)] == [0, 0.5, 1]
    with pytest.raises(ValueError, match="three"):
        next(results)
    assert len(started) < 30  # few are computed ahead, so that memory stays bounded
