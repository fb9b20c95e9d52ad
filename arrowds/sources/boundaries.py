"""Where to cut rows into parts when only some row numbers are cheap to start from; pure functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from arrowds.sources.base import check_target


def merge_cuts(cuts: npt.NDArray[np.integer[Any]], target_rows: int) -> list[int]:
    """The fewest of `cuts` (increasing, first 0) that leave no part above `target_rows` where cuts allow it.

    >>> merge_cuts(np.array([0, 3, 6, 9, 30, 31]), 7)
    [0, 6, 9, 30, 31]
    """
    check_target(target_rows)
    cuts = np.unique(cuts)
    boundaries = [0]
    while boundaries[-1] < cuts[-1]:
        last = boundaries[-1]
        reach = int(np.searchsorted(cuts, last + target_rows, side="right")) - 1
        if cuts[reach] <= last:
            reach += 1
        boundaries.append(int(cuts[reach]))
    return boundaries
