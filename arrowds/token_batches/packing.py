"""From lengths and rules to batches: which position goes where. Pure NumPy; knows no sample ids.

sequence of samples --cut, close or deal--> batches --balance--> (positions, offsets)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arrowds.errors import ConfigError
from arrowds.token_batches.balance import deal_equal_steps, fill_small_batches, split_to_multiple
from arrowds.token_batches.best_fit import best_fit_decreasing
from arrowds.token_batches.rules import BatchRules, IntArray

WINDOW = 512  # batches: how far a sample may move in the order of the data, where best-fit packing keeps that order
_SAMPLES, _BATCHES, _PHASE, _LEFT_OUT = range(4)  # what a random stream is for


@dataclass(frozen=True, slots=True)
class Packing:
    """Batch b holds the samples at `positions[offsets[b]:offsets[b + 1]]`; `left_out` are those in no batch."""

    positions: IntArray
    offsets: IntArray
    left_out: IntArray


def pack(lengths: IntArray, rules: BatchRules, epoch: int) -> Packing:
    """Pack samples into batches; the same for the same arguments, on every machine and NumPy version.

    Args:
        lengths: shape (n,), tokens per sample, at most `rules.max_tokens`.
        rules: what the batches must satisfy.
        epoch: with the seed, what the random choices depend on.

    Raises:
        ConfigError: when there are fewer samples than batches in a step, or `min_batch_size` can't be reached.
    """
    lengths = np.maximum(lengths, 1)  # an empty sample still takes a row
    if len(lengths) < rules.effective_batch_size:
        raise ConfigError(
            f"{len(lengths)} samples can't fill effective_batch_size={rules.effective_batch_size} batches of each "
            "step: lower it, or batch more samples"
        )
    positions = _sequence(lengths, rules, epoch)
    if rules.same_size:
        positions, left_out = _leave_out(positions, len(positions) % rules.effective_batch_size, rules.seed, epoch)
        if rules.padded and rules.packing == "best_fit":
            windows = _windows(lengths, positions, rules)
            positions = np.concatenate([window[_ascending(lengths[window])] for window in windows])
        moved, offsets = deal_equal_steps(lengths[positions], rules)
        positions = positions[moved]
    else:
        positions, offsets = _into_batches(lengths, positions, rules, epoch)
        positions, offsets = fill_small_batches(lengths, positions, offsets, rules)
        offsets = split_to_multiple(offsets, rules)
        positions, offsets, left_out = _whole_steps(positions, offsets, rules, epoch)
    if rules.order == "random" and rules.packing == "best_fit":
        group = rules.effective_batch_size if rules.same_size else 1
        positions, offsets = _shuffle_batches(positions, offsets, group, rules.seed, epoch)
    return Packing(positions, offsets, left_out)


def shuffled(samples: int, seed: int, epoch: int, purpose: int = _SAMPLES) -> IntArray:
    """Return a random permutation of [0, samples), by sorting random bits that carry the position in their low bits.

    Only the bit stream of a NumPy generator is used: NumPy promises that it does not change between versions, but
    does not promise it for `Generator.permutation`.

    >>> shuffled(5, seed=0, epoch=0).tolist() != shuffled(5, seed=0, epoch=1).tolist()
    True
    """
    raw: npt.NDArray[np.uint64] = _bits(seed, epoch, purpose).random_raw(samples)
    low = np.uint64((1 << max(samples - 1, 1).bit_length()) - 1)
    raw &= ~low
    raw |= np.arange(samples, dtype=np.uint64)
    raw.sort()
    raw &= low
    return raw.view(np.int64)


def _bits(seed: int, epoch: int, purpose: int) -> np.random.PCG64:
    return np.random.PCG64(np.random.SeedSequence([seed, epoch, purpose]))


def cut(lengths: IntArray, budget: int, max_rows: int) -> IntArray:
    """Return the offsets of batches of consecutive samples, each as long as the budget allows.

    >>> cut(np.array([3, 3, 3, 2, 8]), budget=8, max_rows=9).tolist()
    [0, 2, 4, 5]
    """
    total = np.concatenate([[0], np.cumsum(lengths)])
    offsets = [0]
    while (start := offsets[-1]) < len(lengths):
        stop = int(total.searchsorted(total[start] + budget, side="right")) - 1
        offsets.append(min(stop, start + max_rows))
    return np.array(offsets)


def cut_padded(lengths: IntArray, budget: int, max_rows: int) -> IntArray:
    """Return the offsets of batches of consecutive samples whose rows x longest stay within the budget.

    >>> cut_padded(np.array([2, 2, 4, 1, 1]), budget=8, max_rows=9).tolist()
    [0, 2, 4, 5]
    """
    offsets = [0]
    rows = np.arange(1, min(budget, max_rows, len(lengths)) + 1)
    while (start := offsets[-1]) < len(lengths):
        block = np.maximum.accumulate(lengths[start : start + min(budget // int(lengths[start]), max_rows)])
        offsets.append(start + int((block * rows[: len(block)]).searchsorted(budget, side="right")))
    return np.array(offsets)


def _sequence(lengths: IntArray, rules: BatchRules, epoch: int) -> IntArray:
    """Return the positions sorted as the rules say; with "seqlen", equal lengths are reshuffled every epoch."""
    if rules.order == "dataloader":
        return np.arange(len(lengths))
    positions = shuffled(len(lengths), rules.seed, epoch)
    return positions if rules.order == "random" else positions[_ascending(lengths[positions])]


def _leave_out(positions: IntArray, count: int, seed: int, epoch: int) -> tuple[IntArray, IntArray]:
    """The positions without `count` random ones, others every epoch, and those."""
    left_out = np.sort(shuffled(len(positions), seed, epoch, _LEFT_OUT)[:count])
    stays = np.ones(len(positions), bool)
    stays[left_out] = False
    return positions[stays[positions]], left_out


def _whole_steps(
    positions: IntArray, offsets: IntArray, rules: BatchRules, epoch: int
) -> tuple[IntArray, IntArray, IntArray]:
    """Return the batches that make up whole steps, and the samples left out: random batches, different every epoch."""
    batches = len(offsets) - 1
    kept, left = _leave_out(np.arange(batches), batches % rules.effective_batch_size, rules.seed, epoch)
    if not len(left):
        return positions, offsets, positions[:0]
    if not len(kept):
        raise ConfigError(
            f"{batches} batches can't be split into effective_batch_size={rules.effective_batch_size} with "
            f"min_batch_size={rules.min_batch_size} samples each: lower either, or batch more samples"
        )
    moved, borders = _reorder(positions, offsets, np.concatenate([kept, left]))
    end = int(borders[len(kept)])
    return moved[:end], borders[: len(kept) + 1], np.sort(moved[end:])


def _ascending(lengths: IntArray) -> IntArray:
    """Return the stable ascending argsort of the lengths; NumPy sorts 16-bit numbers by radix."""
    narrow = lengths.astype(np.uint16) if int(lengths.max()) < 2**16 else lengths
    return np.argsort(narrow, kind="stable")


def _descending(lengths: IntArray) -> IntArray:
    """Return the stable descending argsort of the lengths."""
    return _ascending(int(lengths.max()) - lengths)


def _into_batches(lengths: IntArray, positions: IntArray, rules: BatchRules, epoch: int) -> tuple[IntArray, IntArray]:
    """Return the positions, batch after batch, and the offsets of the batches."""
    if rules.packing == "best_fit":
        packed = _best_fitted(lengths, positions, rules, epoch)
        if rules.max_batch_size is None and rules.order != "dataloader":
            return packed
    cutter = cut_padded if rules.padded else cut
    offsets = cutter(lengths[positions], rules.max_tokens, rules.max_rows)
    # the plain cut keeps the order of the data, and is the better one where the limit on rows binds
    return packed if rules.packing == "best_fit" and len(packed[1]) < len(offsets) else (positions, offsets)


def _best_fitted(lengths: IntArray, positions: IntArray, rules: BatchRules, epoch: int) -> tuple[IntArray, IntArray]:
    if rules.order == "dataloader":
        return _by_windows(lengths, positions, rules)
    if rules.padded:
        phase = _bits(rules.seed, epoch, _PHASE).random_raw() if rules.order == "random" else 0
        return _by_length(lengths, positions, rules, phase)
    if rules.order == "random":
        return _close_gaps(lengths, positions, rules)
    descending = positions[_descending(lengths[positions])]
    bins, count = _best_fit(lengths[descending], rules)
    # bins were opened from the longest sample to the shortest; the batches come the other way round
    return _gather(descending, count - 1 - bins.astype(np.int64), count)


def _by_windows(lengths: IntArray, positions: IntArray, rules: BatchRules) -> tuple[IntArray, IntArray]:
    """Pack windows of consecutive samples one by one, so that none moves far; batches follow their first sample."""
    pieces, sizes = [], []
    for window in _windows(lengths, positions, rules):
        moved, offsets = _by_length(lengths, window, rules) if rules.padded else _close_gaps(lengths, window, rules)
        # the first sample of a batch is one that was not moved to close a gap
        moved, offsets = _reorder(moved, offsets, np.argsort(moved[offsets[:-1]], kind="stable"))
        pieces.append(moved)
        sizes.append(np.diff(offsets))
    return np.concatenate(pieces), np.concatenate([[0], np.cumsum(np.concatenate(sizes))])


def _windows(lengths: IntArray, positions: IntArray, rules: BatchRules) -> list[IntArray]:
    """Return what is packed together: windows of the data with "dataloader", else everything."""
    if rules.order != "dataloader":
        return [positions]
    samples = max(1, int(WINDOW * rules.max_tokens / float(lengths.mean())))
    return [positions[start : start + samples] for start in range(0, len(positions), samples)]


def _by_length(lengths: IntArray, positions: IntArray, rules: BatchRules, phase: int = 0) -> tuple[IntArray, IntArray]:
    """Padded batches of samples of near-equal length, from short to long: the fewest that there can be.

    The phase, when not 0, cuts the first batch short, so that the borders between batches move from epoch to epoch.
    """
    positions = positions[_descending(lengths[positions])]
    ordered = lengths[positions].tolist()
    offsets = [0]
    while (start := offsets[-1]) < len(ordered):
        rows = min(rules.max_tokens // ordered[start], rules.max_rows)
        offsets.append(start + (1 + phase % rows if phase and not start else rows))
    offsets[-1] = len(ordered)
    return positions[::-1], len(ordered) - np.array(offsets[::-1])


def _close_gaps(lengths: IntArray, positions: IntArray, rules: BatchRules) -> tuple[IntArray, IntArray]:
    """Batches of consecutive samples, nearly filled, then closed with short samples by best fit.

    Some of the shorter samples are kept back; the others fill as many batches as there must be up to a level, in the
    sequence given, so that a batch is as mixed as that sequence; the samples kept back fill the gaps.
    """
    ordered = lengths[positions]
    total, capacity = int(ordered.sum()), rules.max_tokens
    count = max(-(-total // capacity), -(-len(ordered) // rules.max_rows))
    gap = min(capacity, max(capacity // 16, 3 * total // len(ordered)))
    kept = _kept_back(ordered, total * gap * 4 // (5 * capacity), gap)
    sequence = np.concatenate([np.flatnonzero(~kept), np.flatnonzero(kept)])
    ordered, positions = ordered[sequence], positions[sequence]
    offsets = _fill_to_level(ordered[: len(ordered) - int(kept.sum())], capacity, gap, rules.max_rows, count)
    filled = int(offsets[-1])
    room = capacity - np.add.reduceat(ordered, offsets[:-1]) if filled else offsets[:0]
    room[-1:] += int(ordered[filled:].sum())  # the last slice of reduceat runs to the end
    if filled == len(ordered):
        return positions, offsets
    rest = _descending(ordered[filled:])
    closing, count = _best_fit(ordered[filled:][rest], rules, room, np.diff(offsets))
    closers, closed = _gather(positions[filled:][rest], closing, count)
    ends = np.concatenate([offsets, np.full(count + 1 - len(offsets), filled)])  # of what each batch held before
    return np.insert(positions[:filled], np.repeat(ends[1:], np.diff(closed)), closers), ends + closed


def _kept_back(lengths: IntArray, tokens: int, gap: int) -> npt.NDArray[np.bool_]:
    """Return a mask of evenly spread short samples with about this many tokens in all."""
    shift = max(0, int(lengths.max()).bit_length() - 20)  # a histogram of at most 2^20 cells will do
    upto = np.cumsum(np.bincount(lengths >> shift, weights=lengths))
    # at most every other short sample, so that the batches keep short ones of their own
    cell = min(max(gap // 2 >> shift, int(upto.searchsorted(2 * tokens))), len(upto) - 1)
    share = min(1.0, tokens / upto[cell])
    short = np.flatnonzero(lengths >> shift <= cell)
    kept = np.zeros(len(lengths), bool)
    steps = np.floor(np.arange(len(short) + 1) * share)
    kept[short[np.diff(steps) > 0]] = True
    return kept


def _fill_to_level(lengths: IntArray, capacity: int, gap: int, max_rows: int, most: int) -> IntArray:
    """Return the offsets of at most `most` batches of consecutive samples, each with less than `gap` tokens of room."""
    total = np.concatenate([[0], np.cumsum(lengths)])
    offsets = [0]
    while gap < capacity and len(offsets) <= most and (start := offsets[-1]) < len(lengths):
        stop = min(int(total.searchsorted(total[start] + capacity - gap)), len(lengths))
        stop -= int(total[stop] - total[start] > capacity)
        offsets.append(min(stop, start + max_rows))
    return np.array(offsets)


def _best_fit(
    descending: IntArray, rules: BatchRules, room: IntArray | None = None, rows: IntArray | None = None
) -> tuple[npt.NDArray[np.uint32], int]:
    none = np.empty(0, np.int64)
    return best_fit_decreasing(
        descending,
        none if room is None else room,
        none if rows is None else rows,
        capacity=rules.max_tokens,
        max_rows=rules.max_batch_size,
    )


def _gather(positions: IntArray, bins: npt.NDArray[np.integer], count: int) -> tuple[IntArray, IntArray]:
    """Sort positions by bin, stably; bin and place are sorted as one number."""
    shift = np.uint64(max(len(positions) - 1, 1).bit_length())
    keys = (bins.astype(np.uint64) << shift) | np.arange(len(positions), dtype=np.uint64)
    keys.sort()
    keys &= (np.uint64(1) << shift) - np.uint64(1)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(bins, minlength=count))])
    return positions[keys.view(np.int64)], offsets


def _shuffle_batches(
    positions: IntArray, offsets: IntArray, group: int, seed: int, epoch: int
) -> tuple[IntArray, IntArray]:
    """Shuffle groups of batches."""
    groups = shuffled((len(offsets) - 1) // group, seed, epoch, _BATCHES)
    order = (groups[:, None] * group + np.arange(group)).ravel()
    return _reorder(positions, offsets, order)


def _reorder(positions: IntArray, offsets: IntArray, order: IntArray) -> tuple[IntArray, IntArray]:
    """Return the batches permuted."""
    sizes = np.diff(offsets)[order]
    moved = np.concatenate([[0], np.cumsum(sizes)])
    index = np.repeat(offsets[:-1][order] - moved[:-1], sizes) + np.arange(len(positions))
    return positions[index], moved
