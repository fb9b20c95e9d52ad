"""Cutting an order into buckets, and merging within a range, by brute force."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from thresholds import small_thresholds

from arrowds.arrays import arrow_view
from arrowds.index.ranges import Cut, cut_buckets, is_single_value, merged, rows_per_bucket, rows_up_to


@given(samples=st.integers(1, 10**12))
def test_a_bucket_has_two_to_four_million_rows(samples):
    assert 1 << 21 <= rows_per_bucket(samples) <= 1 << 22
    if 1 << 27 <= samples <= 1 << 28:
        assert samples / rows_per_bucket(samples) == pytest.approx(64, rel=0.01)


@given(values=st.lists(st.integers(-20, 20), min_size=1, max_size=60), target=st.integers(1, 30))
def test_buckets_hold_their_share_or_one_value(values, target):
    values = np.sort(np.array(values))
    cuts = cut_buckets(values, target)
    places = [0, *(rows_up_to(values, cut) for cut in cuts), len(values)]
    assert places == sorted(places)
    for number, (start, stop) in enumerate(pairwise(places)):
        mine = values[start:stop]
        after, up_to = (cuts[n] if 0 <= n < len(cuts) else None for n in (number - 1, number))
        assert len(mine) <= target or len(np.unique(mine)) == 1
        if len(mine) > target and number < len(cuts):
            assert is_single_value(after, up_to) or mine[0] == values[0]
        assert not set(mine.tolist()) & set(values[stop:].tolist())  # no value is in two buckets


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64, np.float32, np.float64])
def test_cuts_keep_the_extremes_of_the_type(dtype):
    limits = np.finfo(dtype) if np.issubdtype(dtype, np.floating) else np.iinfo(dtype)
    values = np.array([limits.min, 3, limits.max], dtype)
    cuts = cut_buckets(values, 1)
    assert [rows_up_to(values, cut) for cut in cuts] == [1, 2]
    infinite = np.array([-np.inf, -0.0, 0.0, np.inf])
    assert [rows_up_to(infinite, cut) for cut in cut_buckets(infinite, 2)] == [1, 3]


def test_a_cut_of_a_wider_type_than_the_values():
    values = np.array([0, 255], np.uint8)
    assert rows_up_to(values, Cut(-1)) == 0
    assert rows_up_to(values, Cut(256)) == 2
    assert rows_up_to(np.array([2**63 - 1, 2**63], np.uint64), Cut(2**63 - 1)) == 1  # equal as floats


PIECES = st.lists(st.lists(st.integers(0, 5), max_size=20), max_size=4)


@given(pieces=PIECES, rows=st.sampled_from([1, 3, 100]), run=st.sampled_from([1, 2, 100]))
def test_sorted_pieces_are_merged_by_value_and_place(pieces, rows, run):
    tables, first = [], 0
    for piece in pieces:
        order = np.argsort(piece, kind="stable")
        values = np.array(piece, np.int64)[order]
        ids = (order + first).astype(np.uint32)
        tables.append(pa.table({"value": arrow_view(values), "sample_id": arrow_view(ids)}))
        first += len(piece)
    flat = [value for piece in pieces for value in piece]
    with small_thresholds(file=rows, run=run):
        frames = list(merged(tables, pa.int64(), single_value=False))
    assert all(frame.height <= rows for frame in frames)
    found = pl.concat(frames).rows() if frames else []
    assert found == sorted((value, i) for i, value in enumerate(flat))


@given(sizes=st.lists(st.integers(0, 20), max_size=5), rows=st.sampled_from([1, 3, 100]))
def test_rows_of_one_value_stream_in_files_of_a_fixed_size(sizes, rows):
    tables = [pa.table({"value": np.full(size, 7), "sample_id": np.arange(size, dtype=np.uint32)}) for size in sizes]
    with small_thresholds(file=rows):
        frames = [frame.height for frame in merged(iter(tables), pa.int64(), single_value=True)]
    assert sum(frames) == sum(sizes)
    assert all(height == rows for height in frames[:-1])
