"""Fixtures that several test files share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from index_by_hand import write_index

from arrowds.index import Index


@pytest.fixture(scope="session")
def make_index() -> Iterator[Callable[..., Index]]:
    """Write an index of ``{name: pyarrow array}`` (and ``{name: total}``) into a new folder and open it.

    Of session scope, so that Hypothesis tests may use it.
    """
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        counter = iter(range(10**9))

        def make(metrics: dict[str, Any], totals: dict[str, Any] | None = None) -> Index:
            return write_index(Path(folder) / f"index-{next(counter)}", metrics, totals)

        yield make
