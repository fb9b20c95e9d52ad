"""Every lookup equals brute force over the values, in one segment or many, at any size of files, groups and buckets."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from brute_force import QUESTIONS, check_lookups, check_tables
from hypothesis import given, settings
from hypothesis import strategies as st
from index_files import digests, memory_folder
from strategies import chunked_columns
from thresholds import SIZES, TINY, small_thresholds

import arrowds
from arrowds.errors import ArrowdsWarning, ConfigError
from arrowds.schema import VALUE_TYPES

pytestmark = pytest.mark.filterwarnings("ignore:percentiles are 0 to 100")

M = arrowds.metrics.expr("m", pl.col("m"), nulls="keep")


def analyzed(column: pa.Array, path: Path, **options) -> arrowds.Index:
    return arrowds.analyze(pa.table({"m": column}), M, path, workers=1, progress=False, **options)


def grown(chunks: Sequence[pa.Array], path: Path, *, used: Sequence[bool] = ()) -> arrowds.Index:
    """An index of the first chunk, to which the others are appended; ``used`` says after which the maps are opened."""
    index = analyzed(chunks[0], path)
    for number, chunk in enumerate(chunks[1:]):
        if used and used[number]:
            index["m"].order  # noqa: B018  # the next maps are made from these
        index = arrowds.append(pa.table({"m": chunk}), path, workers=1, progress=False)
    return index


@given(chunks=chunked_columns(), sizes=SIZES, questions=QUESTIONS, used=st.lists(st.booleans(), min_size=3, max_size=3))
@settings(max_examples=40, deadline=None)
def test_lookups_are_those_of_brute_force_whatever_the_segments(chunks, sizes, questions, used):
    column = pa.concat_arrays(chunks)
    with memory_folder() as folder, small_thresholds(**sizes):
        index = grown(chunks, folder, used=used)
        assert index.num_samples == len(column)
        check_lookups(index["m"], column, **questions)
        index.verify()


@given(chunks=chunked_columns(max_chunks=3), sizes=SIZES)
@settings(max_examples=12, deadline=None)
def test_tables_have_every_value_whatever_the_segments(chunks, sizes):
    with memory_folder() as folder, small_thresholds(**sizes):
        check_tables(grown(chunks, folder), {"m": pa.concat_arrays(chunks)})


@given(chunks=chunked_columns(), sizes=SIZES, questions=QUESTIONS)
@settings(max_examples=25, deadline=None)
def test_a_compacted_index_is_one_analysis_of_the_whole(chunks, sizes, questions):
    """Byte by byte, where ids of 32 bits allow one segment."""
    column = pa.concat_arrays(chunks)
    with memory_folder() as folder, small_thresholds(**{**sizes, "segment": 1 << 32}):
        whole = analyzed(column, folder / "whole")
        before = grown(chunks, folder / "grown")
        after = arrowds.compact(folder / "grown", workers=1)
        assert digests(after) == digests(whole)
        assert after.fingerprint == before.fingerprint
        check_lookups(after["m"], column, **questions)
        check_lookups(before["m"], column, **questions)


@given(chunks=chunked_columns(max_size=12), sizes=SIZES)
@settings(max_examples=15, deadline=None)
def test_a_compaction_into_several_segments_answers_the_same(chunks, sizes):
    column = pa.concat_arrays(chunks)
    with memory_folder() as folder, small_thresholds(**{**sizes, "segment": 7}):
        grown(chunks, folder)
        index = arrowds.compact(folder, workers=1)
        check_lookups(index["m"], column)
        assert all(segment.num_samples <= 7 for segment in index.manifest.segments)


@pytest.mark.parametrize("kind", VALUE_TYPES, ids=str)
def test_a_value_that_fills_half_crosses_every_size(tmp_path, kind):
    random = np.random.default_rng(1)
    values = random.integers(0, 2 if pa.types.is_boolean(kind) else 100, 300)
    values[random.permutation(300)[:150]] = 1
    column = pa.array(values, mask=random.random(300) < 0.05).cast(kind)
    with small_thresholds(**TINY):
        index = grown([column[:170], column[170:171], column[171:]], tmp_path / "grown", used=[True, True])
        check_lookups(index["m"], column, above=0, up_to=50, tenths=(333, 667))
        whole = analyzed(column, tmp_path / "whole")
        assert digests(arrowds.compact(tmp_path / "grown", workers=1)) == digests(whole)
        assert len(whole.manifest.segments[0].columns["m"].buckets) > 1


@pytest.mark.parametrize("rows", [1 << 18, (1 << 18) + 1, 1 << 20, (1 << 20) + 1])
def test_sizes_around_the_real_thresholds(tmp_path, rows):
    """Rows that decide the cuts, of a part, of a row group: NumPy sorts them, too."""
    values = np.random.default_rng(rows).integers(0, 1 << 30, rows)
    check_large(tmp_path, values, cut=rows // 3)


def test_a_value_more_frequent_than_a_file_has_rows(tmp_path):
    """Above 2^22 rows: it gets a bucket of its own, of several files, and its neighbours are in others."""
    random = np.random.default_rng(3)
    values = np.full((1 << 22) + (1 << 20), 2048, "uint16")
    rest = random.permutation(len(values))[: 1 << 19]
    values[rest] = random.integers(0, 4096, len(rest))
    check_large(tmp_path, values, cut=1 << 18)
    buckets = arrowds.open_index(tmp_path / "whole").manifest.segments[0].columns["m"].buckets
    assert [len(bucket.files) for bucket in buckets if bucket.low == bucket.high == 2048] == [2]


def check_large(folder: Path, values: np.ndarray, *, cut: int) -> None:
    whole = analyzed(pa.array(values), folder / "whole")
    order = np.argsort(values, kind="stable")
    assert np.array_equal(whole["m"].order, order)
    assert np.array_equal(whole["m"].values, values)
    assert sum(bucket.rows for bucket in whole.manifest.segments[0].columns["m"].buckets) == len(values)
    index = grown([pa.array(values[:cut]), pa.array(values[cut:])], folder / "grown", used=[True])
    assert np.array_equal(index["m"].order, order)
    distinct, counts = np.unique(values, return_counts=True)
    assert np.array_equal(index["m"].distribution()["value"].to_numpy(), distinct)
    assert np.array_equal(index["m"].distribution()["count"].to_numpy(), counts)
    assert digests(arrowds.compact(folder / "grown", workers=1)) == digests(whole)


@pytest.mark.parametrize(
    ("values", "above", "expected"),
    [
        (pa.array([0.1], pa.float32()), 0.1, [0]),  # float32(0.1) is a little more than 0.1
        (pa.array([2, 3]), 2.5, [1]),
        (pa.array([2**53, 2**53 + 1]), float(2**53), [1]),
        (pa.array([2**64 - 1], pa.uint64()), 2**64 - 2, [0]),
        (pa.array([-(2**63)]), -(2**63) - 1, [0]),
        (pa.array([1, 2], pa.uint8()), -math.inf, [0, 1]),
        (pa.array([0.0, -0.0]), -0.0, []),
        (pa.array([1, 2]), np.float32(1.5), [1]),
    ],
)
def test_bounds_compare_exactly(make_index, values, above, expected):
    assert make_index({"m": values})["m"].sample_ids(above=above).tolist() == expected


@given(column=chunked_columns(max_chunks=1), data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_metric_is_indexed_as_numpy_indexes(make_index, column, data):
    (column,) = column
    metric = make_index({"m": column})["m"]
    n = len(column)
    expected = np.ma.MaskedArray(
        column.fill_null(False if column.type == pa.bool_() else 0).to_numpy(zero_copy_only=False),
        mask=column.is_null().to_numpy(zero_copy_only=False),
    )
    floating = np.issubdtype(expected.dtype, np.floating)
    expected = expected.filled(np.nan) if floating else expected

    def same(found, wanted):
        assert np.array_equal(np.ma.getmaskarray(found), np.ma.getmaskarray(wanted))
        assert np.array_equal(np.ma.filled(found, 0), np.ma.filled(wanted, 0), equal_nan=floating)

    ids = np.array(data.draw(st.lists(st.integers(-n, n - 1))), np.intp)
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    for chosen in (ids, mask, data.draw(st.slices(n)), data.draw(st.integers(-n, n - 1))):
        same(metric[chosen], expected[chosen])
    assert not metric.values.flags.writeable
    with pytest.raises(IndexError):
        metric[n]


def test_quantile_is_numpys_inverted_cdf(make_index):
    values = np.random.default_rng(1).integers(0, 50, 997)
    metric = make_index({"m": pa.array(values)})["m"]
    shares = np.linspace(0, 1, 101).reshape(1, 101)
    assert np.array_equal(metric.quantile(shares), np.quantile(values, shares, method="inverted_cdf"))


@pytest.mark.parametrize("samples", [10, 100, 1000, 4096])
def test_percentiles_and_quantiles_are_those_of_the_decimal_numbers(make_index, samples):
    """In binary, 0.07 * 100 is a little more than 7, and 1000 * 32.3 / 100 a little less than 323."""
    metric = make_index({"m": pa.array(range(samples))})["m"]
    for tenths in range(1001):
        assert len(metric.sample_ids_between_percentiles(0, tenths / 10)) == samples * tenths // 1000
        assert metric.quantile(tenths / 1000) == max(0, -(-samples * tenths // 1000) - 1)


@pytest.mark.parametrize("values", [[2**63 - 1], [-(2**63), 2**63 - 1], [2**60, 2**60 + 1], [1e308, -1e308], [1e17]])
def test_a_histogram_where_floats_are_too_coarse_or_too_small_still_counts_all(make_index, values):
    found = make_index({"m": pa.array(values)})["m"].histogram(7)
    assert found["count"].sum() == len(values)
    assert (found["lower"] < found["upper"]).all()


def test_lookups_are_views_of_the_maps(make_index):
    metric = make_index({"m": pa.array([3, 1, 2], pa.int64()), "b": pa.array([True, False, True])})["m"]
    assert np.shares_memory(metric[0:2], metric.values)
    assert np.shares_memory(metric.sample_ids(above=1), metric.order)
    assert np.shares_memory(metric.sample_ids_between_percentiles(0, 50), metric.order)
    address = metric.values.__array_interface__["data"][0]
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if "values.arrow" in line]
    ranges = [[int(end, 16) for end in line.split()[0].split("-")] for line in maps]
    assert any(start <= address < stop for start, stop in ranges)


@pytest.mark.parametrize("bound", [math.nan, np.float32("nan"), "3", 1j])
def test_bounds_that_are_no_numbers_are_refused(make_index, bound):
    metric = make_index({"m": pa.array([1, 2])})["m"]
    with pytest.raises(ConfigError, match="bound"):
        metric.sample_ids(above=bound)


@pytest.mark.parametrize(("lo", "hi"), [(-1, 5), (5, 101), (60, 40), (0, math.inf), (math.nan, 3)])
def test_percentiles_out_of_range_are_refused(make_index, lo, hi):
    with pytest.raises(ConfigError):
        make_index({"m": pa.array([1, 2])})["m"].sample_ids_between_percentiles(lo, hi)


def test_percentiles_that_look_like_shares_of_1_are_warned_of(make_index):
    metric = make_index({"m": pa.array(range(1000))})["m"]
    for lo, hi in [(0, 0.5), (0.0, 1.0), (np.float32(0.25), 1), (0.5, 0.5)]:
        with pytest.warns(ArrowdsWarning, match=r"percentiles are 0 to 100, .* multiply shares of 1 by 100") as caught:
            metric.sample_ids_between_percentiles(lo, hi)
        assert caught[0].filename == __file__  # where the mistake is
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for lo, hi in [(0, 1), (0, 0), (0.0, 0.0), (1, 1), (0.5, 1.5), (0.5, 50)]:
            metric.sample_ids_between_percentiles(lo, hi)


def test_quantiles_and_bins_out_of_range_are_refused(make_index):
    metric = make_index({"m": pa.array([1, 2])})["m"]
    for share, meant in [(50, "0.5"), (99.5, "0.995"), ([0.5, 25], "0.25"), (1.5, "0.015")]:
        with pytest.raises(ConfigError, match=rf"; did you mean {meant}\?"):
            metric.quantile(share)
    for share in (-0.1, 101):
        with pytest.raises(ConfigError, match=r"got \S+$"):
            metric.quantile(share)
    for share in (-0.1, 1.5, [0.5, 2]):
        with pytest.raises(ConfigError, match=r"\[0, 1\]"):
            metric.quantile(share)
    for bins in (0, -1, 2.5):
        with pytest.raises(ConfigError, match="bins"):
            metric.histogram(bins)


def test_single_values_are_of_the_declared_type(make_index):
    metric = make_index({"m": pa.array([3, 7, 250], pa.int64())})["m"]
    assert metric.values.dtype == np.uint8
    assert metric.quantile(0) - metric.quantile(1) == metric.min() - metric.max() == -247
    assert metric.quantile([0.0, 1.0]).dtype == np.int64
