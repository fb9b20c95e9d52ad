"""Which tokens a model reads at once: windows of long samples, and windows of about one length in a forward."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Windows:
    """What the model reads: the tokens ``starts`` to ``stops`` predict those one further, each predicted token once.

    Attributes:
        starts: the first token that is read, of shape (w,).
        stops: one behind the last token that is read, which is the last one that is predicted, of shape (w,).
        counted: the first token that is read whose prediction counts; before it, tokens are context only.
        samples: the sample that each window is of.
    """

    starts: np.ndarray
    stops: np.ndarray
    counted: np.ndarray
    samples: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> np.ndarray:
        """How many tokens are read, of shape (w,)."""
        lengths: np.ndarray = self.stops - self.starts
        return lengths


def cut(bounds: np.ndarray, max_length: int | None, overlap: int) -> Windows:
    """Cut samples into windows of at most ``max_length`` tokens to read. Pure.

    The first window of a sample counts everything; each later one begins ``max_length - overlap`` further on, reads
    ``overlap`` tokens once more and counts what follows. A sample of fewer than two tokens has no window.

    Args:
        bounds: the tokens of sample i are those from ``bounds[i]`` to ``bounds[i + 1]``; int64 of shape (n + 1,).
        max_length: None for whole samples.
        overlap: from 0 to ``max_length - 1``.

    >>> windows = cut(np.array([0, 8, 9]), max_length=4, overlap=2)  # tokens 0 to 7 of one sample, 8 of another
    >>> windows.starts.tolist(), windows.stops.tolist(), windows.counted.tolist()
    ([0, 2, 4], [4, 6, 7], [0, 4, 6])
    """
    to_read = np.maximum(np.diff(bounds) - 1, 0)
    if max_length is None:
        max_length, overlap = max(int(to_read.max(initial=1)), 1), 0
    step = max_length - overlap
    per_sample = np.where(to_read > 0, 1 + -(-np.maximum(to_read - max_length, 0) // step), 0)
    samples = np.repeat(np.arange(len(to_read)), per_sample)
    firsts = np.cumsum(per_sample) - per_sample
    number = np.arange(len(samples)) - firsts[samples]
    starts = bounds[:-1][samples] + number * step
    stops = np.minimum(starts + max_length, bounds[1:][samples] - 1)
    return Windows(starts, stops, np.where(number > 0, starts + overlap, starts), samples)


def padded(ids: np.ndarray, windows: Windows, chosen: np.ndarray, ignored: int) -> np.ndarray:
    """Return what the model reads and what it is to predict for some windows: int64 of shape (2, rows, longest). Pure.

    Padding lies behind the tokens, where no causal model looks: it repeats the last token, whatever pads in training.
    What does not count has the target ``ignored``.

    >>> windows = cut(np.array([0, 4, 6]), max_length=None, overlap=0)
    >>> padded(np.array([5, 6, 7, 8, 1, 2]), windows, np.array([0, 1]), ignored=-100).tolist()
    [[[5, 6, 7], [1, 1, 1]], [[6, 7, 8], [2, -100, -100]]]
    """
    places = windows.starts[chosen, None] + np.arange(windows.lengths[chosen].max())
    stops = windows.stops[chosen, None]
    read = np.minimum(places, stops - 1)
    counts = (places >= windows.counted[chosen, None]) & (places < stops)
    return np.stack([ids[read], np.where(counts, ids[read + 1], ignored)])
