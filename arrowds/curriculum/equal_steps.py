"""Steps whose batches all hold the same number of samples, as pipeline parallelism asks. Pure."""

from __future__ import annotations

import numpy as np

from arrowds.curriculum.batch_rules import BatchRules, IntArray
from arrowds.errors import ConfigError


def deal_equal_steps(lengths: IntArray, rules: BatchRules) -> tuple[IntArray, IntArray]:
    """Cut consecutive samples into steps and deal each step's samples to its batches, as many to each.

    A step takes as many samples as its batches can hold. They are dealt from the longest to the shortest, to and fro,
    so that the batches of a step have nearly the same tokens.

    Args:
        lengths: shape (n,), n a multiple of `rules.effective_batch_size`, none above `rules.max_tokens`.
        rules: what a batch may look like.

    Returns:
        The positions, batch after batch, shape (n,), and the offsets of the batches.

    Raises:
        ConfigError: when a step can't give every batch `min_batch_size` samples.
    """
    batches = rules.effective_batch_size
    total = np.concatenate([[0], np.cumsum(lengths)])
    start, dealt, rows_of = 0, [], []
    while start < len(lengths):
        left = (len(lengths) - start) // batches
        upto = int(total.searchsorted(total[start] + batches * rules.max_tokens, side="right")) - 1
        most = min(rules.max_rows, left, (upto - start) // batches)
        rows, positions = _most_rows(lengths[start : start + most * batches], rules)
        if 0 < left - rows < rules.min_batch_size:  # leave enough for the last step
            rows = max(1, rows - (rules.min_batch_size - (left - rows)))
            positions = _deal(lengths[start : start + rows * batches], batches)
        if rows < rules.min_batch_size:
            raise ConfigError(
                f"min_batch_size={rules.min_batch_size}: a step of {batches} batches of the same size holds {rows} "
                f"samples each within max_tokens={rules.max_tokens}; lower min_batch_size or raise max_tokens"
            )
        dealt.append(start + positions.ravel())
        rows_of.append(rows)
        start += rows * batches
    return np.concatenate(dealt), np.concatenate([[0], np.cumsum(np.repeat(rows_of, batches))])


def _most_rows(lengths: IntArray, rules: BatchRules) -> tuple[int, IntArray]:
    """How many rows each batch of a step can take from the front of these samples, and who goes where."""
    low, high = 1, len(lengths) // rules.effective_batch_size
    best = _deal(lengths[: rules.effective_batch_size], rules.effective_batch_size)
    while low < high:
        middle = (low + high + 1) // 2
        dealt = _deal(lengths[: middle * rules.effective_batch_size], rules.effective_batch_size)
        if _tokens(lengths[dealt], rules.padded) <= rules.max_tokens:
            low, best = middle, dealt
        else:
            high = middle - 1
    return low, best


def _deal(lengths: IntArray, batches: int) -> IntArray:
    """Positions of shape (batches, rows): the longest first, to and fro over the batches."""
    rows = np.argsort(-lengths, kind="stable").reshape(-1, batches)
    rows[1::2] = rows[1::2, ::-1].copy()
    return rows.T


def _tokens(lengths: IntArray, padded: bool) -> int:
    """The tokens of the fullest batch of a step, lengths of shape (batches, rows)."""
    return int(lengths.max()) * lengths.shape[1] if padded else int(lengths.sum(axis=1).max())
