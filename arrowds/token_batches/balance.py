"""Batches made even: equal sizes within a step, a minimum size, a number that divides over the ranks. Pure."""

from __future__ import annotations

import heapq

import numpy as np

from arrowds.errors import ConfigError
from arrowds.token_batches.rules import BatchRules, IntArray


def split_to_multiple(offsets: IntArray, rules: BatchRules) -> IntArray:
    """Split the largest batches until `effective_batch_size` divides their number; if impossible, change nothing.

    >>> split_to_multiple(np.array([0, 4, 5]), BatchRules(max_tokens=9, effective_batch_size=4)).tolist()
    [0, 1, 2, 4, 5]
    """
    missing = -(len(offsets) - 1) % rules.effective_batch_size
    if not missing:
        return offsets
    sizes = np.diff(offsets)
    largest = np.argsort(-sizes, kind="stable")[:missing].tolist()
    pieces = dict.fromkeys(largest, 1)
    heap = [(-int(sizes[batch]), batch) for batch in largest]
    for _ in range(missing):
        _, batch = heapq.heappop(heap)
        pieces[batch] += 1
        size = int(sizes[batch])
        if size // pieces[batch] < rules.min_batch_size:
            return offsets
        heapq.heappush(heap, (-size // pieces[batch], batch))
    borders = [offsets]
    for batch, number in pieces.items():
        borders.append(offsets[batch] + int(sizes[batch]) * np.arange(1, number) // number)
    return np.sort(np.concatenate(borders))


def fill_small_batches(
    lengths: IntArray, positions: IntArray, offsets: IntArray, rules: BatchRules
) -> tuple[IntArray, IntArray]:
    """Bring every batch to `min_batch_size`: with the shortest samples of larger batches, else by dissolving it.

    Raises:
        ConfigError: when neither works within the budget.
    """
    sizes = np.diff(offsets)
    if int(sizes.min()) >= rules.min_batch_size:
        return positions, offsets
    batch_of = np.repeat(np.arange(len(sizes)), sizes)
    batch_of = _borrow(lengths[positions], batch_of, offsets, rules)
    batch_of = _dissolve(lengths[positions], batch_of, len(sizes), rules)
    order = np.argsort(batch_of, kind="stable")
    kept = np.bincount(batch_of)
    return positions[order], np.concatenate([[0], np.cumsum(kept[kept > 0])])


def _borrow(lengths: IntArray, batch_of: IntArray, offsets: IntArray, rules: BatchRules) -> IntArray:
    """Move the shortest samples that larger batches can spare to the smaller ones, the fullest first."""
    sizes, least = np.diff(offsets), rules.min_batch_size
    by_length = np.lexsort((lengths, batch_of))
    rank = np.arange(len(lengths)) - offsets[batch_of]
    spare = by_length[rank < (sizes - least)[batch_of]]
    spare = spare[np.argsort(lengths[spare], kind="stable")]
    tokens, longest = np.add.reduceat(lengths, offsets[:-1]), np.maximum.reduceat(lengths, offsets[:-1])
    small = np.flatnonzero(sizes < least)
    moved, used = batch_of.copy(), 0
    for batch in small[np.argsort(-tokens[small], kind="stable")].tolist():
        guests = spare[used : used + least - int(sizes[batch])]
        if not len(guests):
            break
        top = max(int(longest[batch]), int(lengths[guests[-1]]))
        size = int(sizes[batch]) + len(guests)
        need = top * size if rules.padded else int(tokens[batch] + lengths[guests].sum())
        if size == least and need <= rules.max_tokens:
            moved[guests] = batch
            used += len(guests)
    return moved


def _dissolve(lengths: IntArray, batch_of: IntArray, count: int, rules: BatchRules) -> IntArray:
    """Spread the samples of batches that are still too small over the others, each to the tightest fit."""
    sizes = np.bincount(batch_of, minlength=count)
    small = np.flatnonzero((sizes > 0) & (sizes < rules.min_batch_size))
    if not len(small):
        return batch_of
    tokens = np.bincount(batch_of, weights=lengths, minlength=count)
    longest = np.zeros(count, np.int64)
    np.maximum.at(longest, batch_of, lengths)
    open_to = sizes >= rules.min_batch_size
    for sample in np.flatnonzero(np.isin(batch_of, small)).tolist():
        length = int(lengths[sample])
        after = np.maximum(longest, length) * (sizes + 1) if rules.padded else tokens + length
        fits = np.flatnonzero(open_to & (after <= rules.max_tokens) & (sizes < rules.max_rows))
        if not len(fits):
            raise ConfigError(
                f"min_batch_size={rules.min_batch_size}: {len(small)} batches can't be brought to it within "
                f"max_tokens={rules.max_tokens}; lower min_batch_size, raise max_tokens, or leave long samples out"
            )
        host = int(fits[np.argmax(after[fits])])
        batch_of[sample] = host
        sizes[host] += 1
        tokens[host] += length
        longest[host] = max(int(longest[host]), length)
    return batch_of


def deal_equal_steps(lengths: IntArray, rules: BatchRules) -> tuple[IntArray, IntArray]:
    """Cut consecutive samples into steps and deal each step's samples to its batches, as many to each.

    A step takes as many samples as its batches can hold. They are dealt from the longest to the shortest, back
    and forth, so that the batches of a step have nearly the same tokens.

    Args:
        lengths: shape (n,), n a multiple of `rules.effective_batch_size`, none above `rules.max_tokens`.
        rules: what the batches must satisfy.

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
    """Return how many rows each batch of a step can take from the first samples, and the dealt positions."""
    low, high = 1, len(lengths) // rules.effective_batch_size
    best = _deal(lengths[: rules.effective_batch_size], rules.effective_batch_size)
    while low < high:
        middle = (low + high + 1) // 2
        dealt = _deal(lengths[: middle * rules.effective_batch_size], rules.effective_batch_size)
        rectangle = lengths[dealt]
        tokens = rectangle.max() * middle if rules.padded else rectangle.sum(axis=1).max()
        if int(tokens) <= rules.max_tokens:
            low, best = middle, dealt
        else:
            high = middle - 1
    return low, best


def _deal(lengths: IntArray, batches: int) -> IntArray:
    """Return positions of shape (batches, rows): the longest first, back and forth over the batches."""
    rows = np.argsort(-lengths, kind="stable").reshape(-1, batches)
    rows[1::2] = rows[1::2, ::-1].copy()
    return rows.T
