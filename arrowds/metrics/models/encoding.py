"""A column of text or of lists of token ids as the tokens of all its samples, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arrowds.arrays import numpy_view
from arrowds.batch import Batch
from arrowds.batch import column as column_of
from arrowds.errors import MetricError, MetricValueError
from arrowds.metrics.expressions import checked_text


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of n samples; null and empty ones have none.

    Attributes:
        ids: token ids of all samples: int64.
        bounds: those of sample i are ``ids[bounds[i]:bounds[i + 1]]``; int64 of shape (n + 1,).
        num_bytes: UTF-8 bytes of each text, of shape (n,); None where the column has token ids.
    """

    ids: np.ndarray
    bounds: np.ndarray
    num_bytes: np.ndarray | None

    @property
    def predicted(self) -> np.ndarray:
        """How many tokens of each sample follow another one, of shape (n,)."""
        predicted: np.ndarray = np.maximum(np.diff(self.bounds) - 1, 0)
        return predicted


def encoded(batch: Batch, column: str, tokenizer: Callable[[], Any], *, bos: bool) -> Encoded:
    """Return the tokens of a column.

    Args:
        batch: n samples.
        column: of text, or of lists of token ids, which are taken as they are.
        tokenizer: returns the tokenizer; called for text alone.
        bos: whether a text begins with the token that begins a text.

    Raises:
        MetricError: where ``bos`` is asked of a tokenizer that has no such token.
        MetricValueError: for a column that is neither text nor lists of integers, and for text that is not UTF-8.
    """
    values = column_of(batch, column)
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if pa.types.is_string_view(values.type):
        values = values.cast(pa.large_string())
    if pa.types.is_string(values.type) or pa.types.is_large_string(values.type):
        checked_text(pa.record_batch({column: values}))
        return _from_text(values, tokenizer(), bos=bos)
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_fixed_size_list(values.type):
        return _from_lists(values, column)
    raise MetricValueError(
        f"a model reads text or lists of token ids, but column {column!r} has type {values.type}; name another column"
    )


def _from_text(texts: pa.Array, tokenizer: Any, *, bos: bool) -> Encoded:
    filled = texts.fill_null("") if texts.null_count else texts
    before = [_beginning(tokenizer)] if bos else []
    rows: Sequence[Sequence[int]] = []
    if len(filled):
        found = tokenizer(filled.to_pylist(), add_special_tokens=False, return_attention_mask=False, verbose=False)
        rows = found["input_ids"]
    bounds = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(before) + len(row) for row in rows], out=bounds[1:])
    ids = chain.from_iterable(chain(before, row) for row in rows)
    num_bytes = numpy_view(pc.binary_length(filled)).astype(np.int64)
    return Encoded(np.fromiter(ids, np.int64, int(bounds[-1])), bounds, num_bytes)


def _beginning(tokenizer: Any) -> int:
    """Return the token before the first one of a text: BOS, or EOS of models that separate texts by it."""
    for name in ("bos_token_id", "eos_token_id"):
        token: int | None = getattr(tokenizer, name, None)
        if token is not None:
            return token
    raise MetricError(
        "the tokenizer has no BOS or EOS token that a text could begin with; give it one (bos_token), or pass "
        "bos=False, which leaves the first token of each text out"
    )


def _from_lists(lists: pa.Array, column: str) -> Encoded:
    lengths = numpy_view(pc.list_value_length(lists).fill_null(0).cast(pa.int64()))
    if pa.types.is_fixed_size_list(lists.type):
        lists = lists.cast(pa.large_list(lists.type.value_type))
    flat = lists.flatten()  # without what lies under nulls
    if len(flat) and (not pa.types.is_integer(flat.type) or flat.null_count):
        raise MetricValueError(
            f"a model reads integer token ids without nulls; column {column!r} has {lists.type}"
            + (f" with {flat.null_count} null ids" if flat.null_count else "")
        )
    ids = numpy_view(flat).astype(np.int64) if len(flat) else np.empty(0, np.int64)
    return Encoded(ids, np.concatenate([[0], np.cumsum(lengths)]), None)
