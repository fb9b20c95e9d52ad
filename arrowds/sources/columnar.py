"""What tables, Arrow datasets and Hugging Face datasets share: one schema, and a fingerprint of their rows."""

from __future__ import annotations

from functools import cached_property

import pyarrow as pa

from arrowds.sources import fingerprint
from arrowds.sources.base import Source


class ColumnarSource(Source):
    """A source of record batches whose fingerprint is the digest of its rows, whatever their chunks or files."""

    concurrent = True

    def __init__(self, schema: pa.Schema) -> None:
        """`schema` is that of every batch."""
        self._schema = schema

    @property
    def schema(self) -> pa.Schema:
        """The columns and their types."""
        return self._schema

    def fingerprint(self) -> str:
        """The digest of the rows in order."""
        return self._fingerprint

    def fingerprint_of(self, start: int, stop: int) -> str:
        """The digest of the rows [start, stop)."""
        return self.fingerprint() if (start, stop) == (0, len(self)) else self._digest(start, stop)

    def _digest(self, start: int, stop: int) -> str:
        return fingerprint.of_batches(self._schema, self.read(start, stop))

    @cached_property
    def _fingerprint(self) -> str:
        return self._digest(0, len(self))
