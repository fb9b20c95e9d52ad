"""Make a handful of rows cross every size at which arrowds does something else; all those sizes are named here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import strategies as st

import arrowds
import arrowds.index.lookup
import arrowds.index.query

for _name in arrowds.__all__:
    getattr(arrowds, _name)  # all modules are there before any is patched: one that came later would keep what is small

_NAMES = {
    "part": (("arrowds.build.plan", "_FEWEST_ROWS"), ("arrowds.build.plan", "_MOST_ROWS")),
    "bucket": (("arrowds.index.ranges", "_FEWEST_ROWS"), ("arrowds.index.ranges", "_MOST_ROWS")),
    "file": ((None, "ROWS_PER_FILE"),),
    "batch": ((None, "ROWS_PER_BATCH"),),
    "group": ((None, "ROWS_PER_GROUP"),),
    "sample": ((None, "SAMPLE_SIZE"),),
    "segment": ((None, "MOST_SEGMENT_ROWS"),),
    "inserted": (("arrowds.index.view", "_MOST_INSERTED_ROWS"),),
    "run": (("arrowds.index.ranges", "_ROWS_PER_RUN"),),
    "hole": (("arrowds.index.files", "_SMALLEST_HOLE"),),
}
"""A public constant (no module named) is patched in every module that imports it."""


@contextmanager
def small_thresholds(**sizes: int) -> Iterator[None]:
    """Patch the sizes of ``_NAMES`` in this process, forks and threads included; worker processes keep theirs."""
    with pytest.MonkeyPatch.context() as patch:
        for kind, size in sizes.items():
            for module, name in _NAMES[kind]:
                places = [sys.modules[module]] if module else _importers_of(name)
                assert places, f"no module has {name}"
                for place in places:
                    patch.setattr(place, name, size)
        arrowds.build.runs.sampled_rows.cache_clear()
        try:
            yield
        finally:
            arrowds.build.runs.sampled_rows.cache_clear()


def _importers_of(name: str) -> list[object]:
    return [
        module for known, module in list(sys.modules.items()) if known.startswith("arrowds") and name in vars(module)
    ]


TINY = {"part": 8, "bucket": 12, "file": 5, "batch": 3, "group": 4, "sample": 30, "hole": 64, "inserted": 20, "run": 2}
"""Sizes that a hundred rows cross many times."""

SIZES = st.fixed_dictionaries(
    {
        "part": st.sampled_from([1, 3, 8, 64]),
        "bucket": st.sampled_from([1, 4, 16, 1000]),
        "file": st.sampled_from([1, 5, 1000]),
        "batch": st.sampled_from([1, 4, 1000]),
        "group": st.sampled_from([1, 3, 1000]),
        "sample": st.sampled_from([1, 7, 1000]),
        "segment": st.sampled_from([4, 30, 1 << 32]),
        "inserted": st.sampled_from([0, 10, 1 << 20]),
        "run": st.sampled_from([1, 8]),
        "hole": st.sampled_from([1 << 4, 1 << 20]),
    }
)
