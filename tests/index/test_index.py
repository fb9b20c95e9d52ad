"""Every lookup equals brute force over the values; damaged files are errors, never crashes."""

from __future__ import annotations

import math
import multiprocessing
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arrowds.errors import (
    ConfigError,
    IndexCorruptError,
    IndexNotFoundError,
    IndexVersionError,
    UnknownMetricError,
    UnsupportedError,
)
from arrowds.index import manifest as manifests
from arrowds.index import open_index
from arrowds.schema import VALUE_TYPES


@st.composite
def columns(draw, kinds=VALUE_TYPES):
    """An Arrow column of any value type: many ties, extremes of the type, infinities, -0.0 and nulls."""
    kind = draw(st.sampled_from(kinds))
    if pa.types.is_boolean(kind):
        values = st.booleans()
    elif pa.types.is_floating(kind):
        special = st.sampled_from([0.0, -0.0, 0.1, 2.5, math.inf, -math.inf, math.nan])
        values = special | st.floats(width=kind.bit_width, allow_nan=False)
    else:
        limits = np.iinfo(kind.to_pandas_dtype())
        few = st.integers(max(limits.min, -3), 3)
        values = few | st.sampled_from([int(limits.min), int(limits.max)]) | st.integers(limits.min, limits.max)
    if draw(st.booleans()):
        values |= st.none()
    return pa.array(draw(st.lists(values, min_size=1, max_size=40)), kind)


BOUNDS = st.none() | st.integers(-4, 4) | st.integers(-(2**65), 2**65) | st.floats(allow_nan=False) | st.booleans()


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


def sorted_pairs(column):
    """(value, id) of every sample that has a value, sorted; Python numbers, which compare exactly."""
    return sorted((v, i) for i, v in enumerate(column.to_pylist()) if v is not None and not math.isnan(v))


@given(column=columns(), above=BOUNDS, up_to=BOUNDS, tenths=st.tuples(st.integers(0, 1000), st.integers(0, 1000)))
@settings(max_examples=120, deadline=None)
def test_lookups_are_those_of_brute_force(make_index, column, above, up_to, tenths):
    metric = make_index({"m": column})["m"]
    pairs = sorted_pairs(column)
    check_ranges(metric, pairs, above, up_to)
    check_positions(metric, pairs, *sorted(tenths))
    check_distribution(metric, [value for value, _ in pairs])


def check_ranges(metric, pairs, above, up_to):
    expected = [i for v, i in pairs if (above is None or v > above) and (up_to is None or v <= up_to)]
    ids = metric.sample_ids(above, up_to)
    assert ids.tolist() == expected
    assert ids.dtype == np.uint32
    assert metric.count(above, up_to) == len(expected)
    if above is not None:
        assert metric.rank(above) == sum(v <= above for v, _ in pairs)
        assert metric.rank(above, side="left") == sum(v < above for v, _ in pairs)


def check_positions(metric, pairs, low, high):
    """Bounds are in tenths of a percent."""
    ids = metric.sample_ids_between_percentiles(low / 10, high / 10)
    assert ids.tolist() == [i for _, i in pairs][len(pairs) * low // 1000 : len(pairs) * high // 1000]
    if not pairs:
        for lookup in (lambda: metric.quantile(0.5), metric.min, metric.max):
            with pytest.raises(ConfigError, match="has a value"):
                lookup()
        return
    wanted = [pairs[max(0, -(-len(pairs) * tenths // 1000) - 1)][0] for tenths in (low, high)]
    assert metric.quantile([low / 1000, high / 1000]).tolist() == wanted
    assert metric.quantile(low / 1000) == wanted[0]
    assert (metric.min(), metric.max()) == (pairs[0][0], pairs[-1][0])


def check_distribution(metric, values):
    frame = metric.distribution()
    distinct = sorted(set(values))
    assert frame["value"].to_list() == distinct
    assert frame["count"].to_list() == [values.count(v) for v in distinct]
    assert frame["cumulative_count"].to_list() == [sum(w <= v for w in values) for v in distinct]


@given(column=columns(), data=st.data())
@settings(max_examples=80, deadline=None)
def test_values_are_those_that_were_indexed(make_index, column, data):
    metric = make_index({"m": column})["m"]
    n = len(column)
    expected = np.ma.MaskedArray(
        column.fill_null(False if column.type == pa.bool_() else 0).to_numpy(zero_copy_only=False),
        mask=column.is_null().to_numpy(zero_copy_only=False),
    )
    if np.issubdtype(expected.dtype, np.floating):
        expected = expected.filled(np.nan)

    def same(found, wanted):
        assert np.array_equal(np.ma.getmaskarray(found), np.ma.getmaskarray(wanted))
        floating = np.issubdtype(expected.dtype, np.floating)
        assert np.array_equal(np.ma.filled(found, 0), np.ma.filled(wanted, 0), equal_nan=floating)

    assert len(metric) == n
    assert metric.dtype == expected.dtype
    assert metric.dtype.kind in (metric.values.dtype.kind, "i")
    same(metric.values, expected)
    ids = np.array(data.draw(st.lists(st.integers(-n, n - 1))), np.intp)
    same(metric[ids], expected[ids])
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    same(metric[mask], expected[mask])
    cut = data.draw(st.slices(n))
    same(metric[cut], expected[cut])
    one = data.draw(st.integers(-n, n - 1))
    same(metric[one], expected[one])
    assert not metric.values.flags.writeable
    with pytest.raises(IndexError):
        metric[n]


def test_quantile_is_numpys_inverted_cdf(make_index):
    values = np.random.default_rng(1).integers(0, 50, 997)
    metric = make_index({"m": pa.array(values)})["m"]
    shares = np.linspace(0, 1, 101).reshape(1, 101)
    assert np.array_equal(metric.quantile(shares), np.quantile(values, shares, method="inverted_cdf"))


# NumPy compares integers beyond 2**53 with its edges after rounding them; the index compares exactly.
@given(column=columns(kinds=[pa.int32(), pa.uint8(), pa.float32(), pa.float64(), pa.bool_()]), bins=st.integers(1, 60))
@settings(max_examples=80, deadline=None)
def test_histogram_is_numpys(make_index, column, bins):
    metric = make_index({"m": column})["m"]
    found = metric.histogram(bins)
    values = np.array([v for v, _ in sorted_pairs(column) if math.isfinite(v)], metric.dtype)
    values = values.astype(np.uint8) if values.dtype == bool else values
    assert found["count"].sum() == len(values)
    try:
        with np.errstate(all="raise"):
            counts, edges = np.histogram(values, bins)
    except (ValueError, FloatingPointError):
        return  # NumPy refuses values whose range overflows or is finer than the type; the sum above still holds.
    if len(values):  # of nothing, NumPy's edges from 0 to 1 are rounded otherwise
        assert found["lower"].to_list() == edges[:-1].tolist()
        assert found["upper"].to_list() == edges[1:].tolist()
    assert found["count"].to_list() == counts.tolist()


@pytest.mark.parametrize("values", [[2**63 - 1], [-(2**63), 2**63 - 1], [2**60, 2**60 + 1], [1e308, -1e308], [1e17]])
def test_histogram_where_floats_are_too_coarse_or_too_small_still_counts_all(make_index, values):
    found = make_index({"m": pa.array(values)})["m"].histogram(7)
    assert found["count"].sum() == len(values)
    assert (found["lower"] < found["upper"]).all()


def test_lookups_are_views_of_the_maps(make_index):
    metric = make_index({"m": pa.array([3, 1, 2], pa.int64()), "b": pa.array([True, False, True])})["m"]
    assert np.shares_memory(metric[0:2], metric.values)
    assert np.shares_memory(metric.sample_ids(above=1), metric.order)
    assert np.shares_memory(metric.sample_ids_between_percentiles(0, 50), metric.order)
    address = metric.values.__array_interface__["data"][0]
    assert any(
        int(start, 16) <= address < int(stop, 16)
        for start, stop in (
            line.split()[0].split("-")
            for line in Path("/proc/self/maps").read_text().splitlines()
            if "values.arrow" in line
        )
    )


@pytest.mark.parametrize("bound", [math.nan, np.float32("nan"), "3", 1j])
def test_bounds_that_are_no_numbers_are_refused(make_index, bound):
    metric = make_index({"m": pa.array([1, 2])})["m"]
    with pytest.raises(ConfigError, match="bound"):
        metric.sample_ids(above=bound)


@pytest.mark.parametrize(("lo", "hi"), [(-1, 5), (5, 101), (60, 40), (0, math.inf), (math.nan, 3)])
def test_percentiles_out_of_range_are_refused(make_index, lo, hi):
    with pytest.raises(ConfigError):
        make_index({"m": pa.array([1, 2])})["m"].sample_ids_between_percentiles(lo, hi)


def test_quantiles_and_bins_out_of_range_are_refused(make_index):
    metric = make_index({"m": pa.array([1, 2])})["m"]
    for share in (-0.1, 1.5, [0.5, 2]):
        with pytest.raises(ConfigError, match=r"\[0, 1\]"):
            metric.quantile(share)
    for bins in (0, -1, 2.5):
        with pytest.raises(ConfigError, match="bins"):
            metric.histogram(bins)


def test_index_names_its_metrics_and_totals(make_index):
    total = np.arange(6, dtype=np.float32).reshape(2, 3)
    index = make_index({"a": pa.array([1, 2]), "b": pa.array([True, False])}, {"t": total, "scalar": np.array(7)})
    assert (index.num_samples, index.metrics, list(index)) == (2, ["a", "b"], ["a", "b"])
    assert "a" in index and "t" not in index
    assert list(index.totals) == ["t", "scalar"]
    assert np.array_equal(index.totals["t"], total) and index.totals["t"].dtype == np.float32
    assert index.totals["scalar"].shape == () and index.totals["scalar"] == 7
    with pytest.raises(ValueError, match="read-only"):
        index.totals["t"][0, 0] = 1
    assert "num_samples=2" in repr(index)
    assert index["a"] is index["a"]


def test_unknown_names_say_what_there_is(make_index):
    index = make_index({"a": pa.array([1, 2])}, {"t": np.array([1])})
    for lookup, message in [(lambda: index["c"], "it has a"), (lambda: index["t"], r"index.totals\['t'\]")]:
        with pytest.raises(UnknownMetricError, match=message):
            lookup()
    with pytest.raises(KeyError):
        index["c"]
    with pytest.raises(KeyError, match="it has t"):
        index.totals["c"]
    assert index.totals.get("c") is None


def test_pickled_index_and_metric_answer_the_same(make_index):
    index = make_index({"a": pa.array([3, 1, 2])}, {"t": np.array([1])})
    index["a"].sample_ids(above=1)
    again = pickle.loads(pickle.dumps(index))
    assert again["a"].order.tolist() == [1, 2, 0]
    assert pickle.loads(pickle.dumps(index["a"]))[0] == 3
    assert again.fingerprint == index.fingerprint
    assert len(pickle.dumps(index["a"])) < 1000


def _send_order(index, connection):
    connection.send((index["a"].order.tolist(), int(index["b"][1]), index["a"].count(above=1)))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")  # other tests start threads here
def test_index_works_after_a_fork(make_index):
    index = make_index({"a": pa.array([3, 1, 2]), "b": pa.array([5, 6, 7])})
    index["a"].order  # one map is open before the fork, the other is not  # noqa: B018
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=_send_order, args=(index, there))
    process.start()
    assert here.poll(20)
    assert here.recv() == ([1, 2, 0], 6, 2)
    process.join(20)
    assert process.exitcode == 0


def test_opening_needs_an_index(tmp_path, make_index):
    with pytest.raises(IndexNotFoundError, match="does not exist"):
        open_index(tmp_path / "nothing")
    with pytest.raises(IndexNotFoundError, match="manifest"):
        open_index(tmp_path)
    with pytest.raises(UnsupportedError, match="local"):
        open_index("s3://bucket/index", cache_dir=tmp_path)
    path = make_index({"a": pa.array([1])}).path
    assert open_index(str(path), cache_dir=tmp_path)["a"][0] == 1
    newer = shutil.copytree(path, tmp_path / "newer") / "manifest.json"
    newer.write_text(newer.read_text().replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(IndexVersionError, match="99"):
        open_index(newer.parent)


def test_manifest_that_forgets_a_file_is_corrupt(tmp_path, make_index):
    path = make_index({"a": pa.array([1])}).path
    written = manifests.load(path)
    kept = {name: entry for name, entry in written.files.items() if "order.arrow" not in name}
    manifests.commit(path, written.model_copy(update={"files": kept}))
    with pytest.raises(IndexCorruptError, match=r"order\.arrow"):
        open_index(path)


def files_of(index):
    return sorted(path for path in index.path.rglob("*") if path.is_file() and path.name != "manifest.json")


@pytest.mark.parametrize("damage", ["missing", "truncated", "grown"])
def test_files_of_another_size_are_found_at_opening(make_index, damage):
    for number in range(len(files_of(make_index({"a": pa.array([1, 2, 3])}, {"t": np.array([1])})))):
        index = make_index({"a": pa.array([1, 2, 3])}, {"t": np.array([1])})
        path = files_of(index)[number]
        content = path.read_bytes()
        path.unlink() if damage == "missing" else path.write_bytes(
            content[:-1] if damage == "truncated" else content + b"\0"
        )
        with pytest.raises(IndexCorruptError, match=path.name):
            open_index(index.path)
        with pytest.raises(IndexCorruptError, match=path.name):
            index.verify()


def test_file_truncated_after_opening_is_an_error_and_no_crash(make_index):
    index = make_index({"a": pa.array(range(100_000))})
    for path in (index.path / "metrics/a/values.arrow", index.path / "metrics/a/order.arrow"):
        path.write_bytes(path.read_bytes()[:1000])
    for lookup in (lambda: index["a"][99_999], lambda: index["a"].sample_ids(up_to=3)):
        with pytest.raises(IndexCorruptError, match="1000 bytes"):
            lookup()


def test_verify_names_every_changed_file(make_index):
    index = make_index({"a": pa.array([1, 2, 3])}, {"t": np.array([1])})
    index.verify()
    flipped = files_of(index)[::2]
    for path in flipped:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    with pytest.raises(IndexCorruptError) as caught:
        index.verify()
    assert all(str(path.relative_to(index.path)) in str(caught.value) for path in flipped)
    with pytest.raises(IndexCorruptError):
        open_index(index.path, verify=True)


FLIP_EVERY_BYTE = """
import sys
from pathlib import Path
import numpy as np
from arrowds.errors import ArrowdsError
from arrowds.index import open_index
from arrowds.schema import VALUE_TYPES

root = Path(sys.argv[1])
for name in ("values", "order"):
    path = root / f"metrics/a/{name}.arrow"
    good = path.read_bytes()
    for position in range(len(good)):
        for bits in (0xFF, 0x01):
            bad = bytearray(good)
            bad[position] ^= bits
            path.write_bytes(bad)
            try:
                metric = open_index(root)["a"]
                metric.values.sum(), metric.order.sum(), metric.sample_ids(above=1), metric.histogram(3), metric.max()
            except ArrowdsError:
                pass
    path.write_bytes(good)
print("survived")
"""


def test_no_flipped_byte_of_a_map_crashes_the_interpreter(make_index):
    index = make_index({"a": pa.array([1, None, 3, 2, 2], pa.int16())})
    run = subprocess.run(
        [sys.executable, "-c", FLIP_EVERY_BYTE, index.path], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.stdout == "survived\n", run.stderr
