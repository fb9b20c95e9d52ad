"""Corrections to finished batches: a smallest size for each, and a number that divides over the ranks. Pure."""

from __future__ import annotations

import heapq

import numpy as np

from arrowds.curriculum.batch_rules import BatchRules, IntArray
from arrowds.errors import ConfigError


def split_to_multiple(offsets: IntArray, rules: BatchRules) -> IntArray:
    """Split the largest batches until `effective_batch_size` divides their number; as they were, where that can't be.

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
    """Spread the samples of batches that are still too small over the others, each where it fits most tightly."""
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
