"""The windows that a model reads long samples in."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from arrowds.metrics.models.windows import cut, padded


@given(
    st.lists(st.integers(0, 40), max_size=8),
    st.integers(1, 12).flatmap(lambda most: st.tuples(st.just(most), st.integers(0, most - 1))),
)
def test_windows_predict_every_token_once_with_enough_before_it(lengths, sizes):
    max_length, overlap = sizes
    bounds = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    windows = cut(bounds, max_length, overlap)
    assert (windows.lengths <= max_length).all() and (windows.counted < windows.stops).all()
    predicted = []
    for start, stop, counted, sample in zip(
        windows.starts, windows.stops, windows.counted, windows.samples, strict=True
    ):
        assert bounds[sample] <= start <= counted and stop < bounds[sample + 1]
        assert start == bounds[sample] or counted - start == overlap
        predicted += range(counted + 1, stop + 1)
    assert predicted == [at for i in range(len(lengths)) for at in range(bounds[i] + 1, bounds[i + 1])]
    ids = np.arange(bounds[-1])
    if len(windows):
        read, wanted = padded(ids, windows, np.arange(len(windows)), -1)
        assert sorted(wanted[wanted >= 0]) == predicted
        assert (wanted[wanted >= 0] == read[wanted >= 0] + 1).all()
