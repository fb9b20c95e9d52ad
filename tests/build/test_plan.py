"""The plan: row ranges, segments and passes are pure functions of the source and the metrics."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from thresholds import small_thresholds

import arrowds
from arrowds import metrics
from arrowds.build.operations import build_key, plan_analysis
from arrowds.build.plan import cut_parts, cut_segments, rows_per_part, with_required
from arrowds.index import paths
from arrowds.sources import TorchSource, open_source
from arrowds.store import LocalStore


def planned(source, chosen, folder=Path("/nowhere/index")):
    return plan_analysis(LocalStore(folder), open_source(source), chosen, overwrite=False)


@given(samples=st.integers(1, 10**12))
def test_parts_are_a_power_of_two_and_few(samples):
    rows = rows_per_part(samples)
    assert rows & (rows - 1) == 0
    assert 1 << 10 <= rows <= 1 << 20
    assert samples / rows <= 64 or rows == 1 << 20


@given(samples=st.integers(1, 20_000), batch=st.integers(1, 5000))
def test_parts_cover_every_row_once_and_begin_with_a_batch(samples, batch):
    parts = cut_parts(TorchSource(range(samples), batch_size=batch, fingerprint=""))
    assert (parts[0].start, parts[-1].stop) == (0, samples)
    assert all(left.stop == right.start for left, right in pairwise(parts))
    assert all(part.start < part.stop and part.start % batch == 0 for part in parts)
    assert [part.number for part in parts] == list(range(len(parts)))
    assert all(type(part.start) is int for part in parts)


def test_parts_of_parquet_are_row_groups(tmp_path):
    pq.write_table(pa.table({"x": np.arange(5000)}), tmp_path / "a.parquet", row_group_size=700)
    plan = planned(tmp_path / "a.parquet", metrics.seqlen("x"))
    assert all(part.start % 700 == 0 for part in plan.parts)
    assert plan.num_samples == 5000


@given(ends=st.lists(st.integers(1, 100), min_size=1, unique=True).map(sorted), most=st.integers(1, 120))
def test_segments_are_few_and_end_at_parts_where_they_can(ends, most):
    cut = cut_segments([0, *ends], most)
    sizes = np.diff([0, *cut])
    assert cut[-1] == ends[-1] and (sizes > 0).all() and (sizes <= most).all()
    for start, stop in pairwise([0, *cut]):
        reachable = [end for end in ends if start < end <= start + most]
        assert stop == (max(reachable) if reachable else min(start + most, ends[-1]))


def test_a_source_longer_than_a_segment_becomes_several(tmp_path):
    with small_thresholds(segment=4, part=3):
        plan = planned(pa.table({"x": [[n] for n in range(10)]}), metrics.seqlen("x"))
        assert [(segment.start, segment.stop) for segment in plan.segments] == [(0, 3), (3, 6), (6, 10)]
        assert len({segment.fingerprint for segment in plan.segments}) == 3
        assert [plan.task([], {}).segment_of(part).number for part in plan.parts] == [0, 1, 2, 2]
        index = arrowds.analyze(
            pa.table({"x": [[n] * (n % 3) for n in range(10)]}),
            metrics.seqlen("x"),
            tmp_path,
            workers=1,
            progress=False,
        )
        assert index["seqlen"].order.tolist() == [0, 3, 6, 9, 1, 4, 7, 2, 5, 8]


def test_metrics_that_need_totals_come_in_a_second_pass():
    rarity, length = metrics.vocab_rarity("x"), metrics.seqlen("x")
    plan = planned(pa.table({"x": [[1]]}), [rarity, length])
    assert [[metric.name for metric in each] for each in plan.passes] == [
        ["vocab_rarity.token_counts", "seqlen"],
        ["vocab_rarity"],
    ]
    assert [metric.name for metric in plan.per_sample] == ["vocab_rarity", "seqlen"]
    assert [metric.name for metric in plan.totals] == ["vocab_rarity.token_counts"]


def test_a_required_total_is_taken_once():
    rarity = metrics.vocab_rarity("x")
    (counts,) = rarity.requires
    assert with_required([rarity, metrics.vocab_rarity("x", name="again")])[:2] == (counts, rarity)
    assert with_required(metric for metric in [rarity]) == (counts, rarity)


def test_the_digest_of_a_part_tells_data_rows_metric_and_totals_apart():
    def digests(values, metric, totals=None, part=0):
        plan = planned(pa.table({"x": values}), metric)
        return plan.task(plan.metrics, totals or {}).part_digest(metric, plan.parts[part])

    same = digests([[1]], metrics.seqlen("x"))
    assert digests([[1]], metrics.seqlen("x")) == same
    rarity = metrics.vocab_rarity("x")
    others = [
        digests([[2]], metrics.seqlen("x")),
        digests([[1], [2]], metrics.seqlen("x")),
        digests([[1]], metrics.seqlen("x", name="other")),
        digests([[1]], metrics.seqlen("x", nulls="keep")),
        digests([[1]], metrics.token_counts("x")),
        *(digests([[1]] * 2000, metrics.seqlen("x"), part=part) for part in (0, 1)),
        *(digests([[1]], rarity, {"vocab_rarity.token_counts": np.array(counts)}) for counts in ([0, 1], [0, 2])),
    ]
    assert len({same, *others}) == 1 + len(others)


def test_a_build_is_named_by_what_goes_in_and_by_the_versions_before_it(tmp_path):
    store = LocalStore(tmp_path)
    key = build_key(store, "append", "data", "3")
    others = [build_key(store, *content) for content in (("analyze", "data", "3"), ("append", "data", "4"))]
    assert len({key.split("-")[0], *(other.split("-")[0] for other in others)}) == 3
    assert key == build_key(store, "append", "data", "3") and key.endswith("-0")
    store.write(paths.manifest(7), b"")
    assert build_key(store, "append", "data", "3") == key.replace("-0", "-7")
    store.write(paths.plan(key), b"{}")
    assert build_key(store, "append", "data", "3") == key  # taken up again


@pytest.mark.parametrize("total", ["a", "b"])
def test_files_that_a_build_makes_carry_its_key(tmp_path, total):
    table = pa.table({"x": [[1, 2], [3]]})
    chosen = [metrics.seqlen("x"), metrics.vocab_rarity("x"), metrics.token_counts("x", name=total)]
    plan = planned(table, chosen, tmp_path)
    index = arrowds.analyze(table, chosen, tmp_path, workers=1, progress=False)
    assert all(plan.key in name for name in index.manifest.files)
