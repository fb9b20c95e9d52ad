"""What every columnar source must do, checked against the table that it should hold."""

from __future__ import annotations

import re

import cloudpickle
import pyarrow as pa
import pytest

from arrowds.errors import MissingColumnError, SourceError
from arrowds.sources import Source


def rows(source: Source, start: int, stop: int, columns: list[str] | None = None) -> list[dict[str, object]]:
    return [row for batch in source.read(start, stop, columns) for row in batch.to_pylist()]


def check_columnar(source: Source, expected: pa.Table, *, every_range: bool = True) -> None:
    """Compare every range, projection and partition of a small source with slices of `expected`."""
    whole, names = expected.to_pylist(), expected.schema.names
    n = len(whole)
    assert len(source) == n
    assert source.column_names == tuple(names)
    for start in range(n + 1) if every_range else {0, n // 3, n}:
        for stop in range(start, n + 1) if every_range else {start, (start + n) // 2, n}:
            assert rows(source, start, stop) == whole[start:stop]
    some = names[::-1][:2]
    assert rows(source, 0, n, some) == [{name: row[name] for name in some} for row in whole]
    for batch in source.read(0, n, some):
        assert batch.schema.names == some
        assert batch.schema.equals(pa.schema([source.schema.field(name) for name in some]), check_metadata=True)
    assert sum(batch.num_rows for batch in source.read(0, n, [])) == n
    check_boundaries(source)
    check_refusals(source)
    copy = cloudpickle.loads(cloudpickle.dumps(source))
    assert rows(copy, 0, n) == whole
    assert copy.fingerprint() == source.fingerprint() == source.fingerprint()
    assert re.fullmatch(r"[0-9a-f]{32}", source.fingerprint())
    assert "/" not in source.description.replace(".bin/.idx", "")


def check_boundaries(source: Source) -> None:
    n = len(source)
    for target in {1, 2, 3, max(n // 2, 1), n + 1}:
        cuts = source.part_boundaries(target)
        assert cuts[0] == 0
        assert cuts[-1] == n
        assert list(cuts) == sorted(set(cuts))
        assert all(type(cut) is int for cut in cuts)
    with pytest.raises(SourceError, match="at least 1"):
        source.part_boundaries(0)


def check_refusals(source: Source) -> None:
    n = len(source)
    for start, stop in [(-1, 0), (0, n + 1), (n + 1, n + 1), (1, 0)]:
        with pytest.raises(SourceError, match="are not within"):
            source.read(start, stop)
    with pytest.raises(MissingColumnError, match="no column 'nonsense'; the data has"):
        source.read(0, n, ["nonsense"])
    with pytest.raises(SourceError, match="not the string"):
        source.read(0, n, "nonsense")
