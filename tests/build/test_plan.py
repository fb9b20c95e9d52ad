"""The plan: row ranges and passes are pure functions of the source and the metrics."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from arrowds import metrics
from arrowds.build.plan import cut, make_plan, rows_per_part, with_required
from arrowds.index.paths import Layout
from arrowds.sources import TorchSource, open_source

LAYOUT = Layout(Path("index"))


@given(samples=st.integers(1, 10**12))
def test_parts_are_a_power_of_two_and_few(samples):
    rows = rows_per_part(samples)
    assert rows & (rows - 1) == 0
    assert 1 << 10 <= rows <= 1 << 20
    assert samples / rows <= 64 or rows == 1 << 20


@given(samples=st.integers(1, 20_000), batch=st.integers(1, 5000))
def test_parts_cover_every_row_once_and_begin_with_a_batch(samples, batch):
    source = TorchSource(range(samples), batch_size=batch, fingerprint="")
    parts = make_plan(source, metrics.seqlen(), LAYOUT).parts
    assert (parts[0].start, parts[-1].stop) == (0, samples)
    assert all(left.stop == right.start for left, right in pairwise(parts))
    assert all(part.start < part.stop and part.start % batch == 0 for part in parts)
    assert [part.number for part in parts] == list(range(len(parts)))


def test_parts_of_parquet_are_row_groups(tmp_path):
    pq.write_table(pa.table({"x": np.arange(5000)}), tmp_path / "a.parquet", row_group_size=700)
    plan = make_plan(open_source(tmp_path / "a.parquet"), metrics.seqlen("x"), LAYOUT)
    assert all(part.start % 700 == 0 for part in plan.parts)
    assert plan.num_samples == 5000


def test_metrics_that_need_totals_come_in_a_second_pass():
    rarity, length = metrics.vocab_rarity("x"), metrics.seqlen("x")
    plan = make_plan(open_source(pa.table({"x": [[1]]})), [rarity, length], LAYOUT)
    assert [[metric.name for metric in each] for each in plan.passes] == [
        ["vocab_rarity.token_counts", "seqlen"],
        ["vocab_rarity"],
    ]
    assert [metric.name for metric in plan.per_sample] == ["vocab_rarity", "seqlen"]
    assert [metric.name for metric in plan.totals] == ["vocab_rarity.token_counts"]


def test_a_required_total_is_taken_once():
    rarity = metrics.vocab_rarity("x")
    (counts,) = rarity.requires
    assert with_required([rarity, rarity]) == (counts, rarity)
    assert with_required(metric for metric in [rarity]) == (counts, rarity)


def test_the_digest_of_a_part_tells_data_rows_and_metric_apart():
    def digests(values, metric):
        plan = make_plan(open_source(pa.table({"x": values})), metric, LAYOUT)
        return plan.task(plan.metrics, {}).part_digest(metric, plan.parts[0])

    same = digests([[1]], metrics.seqlen("x"))
    assert digests([[1]], metrics.seqlen("x")) == same
    others = [
        digests([[2]], metrics.seqlen("x")),
        digests([[1], [2]], metrics.seqlen("x")),
        digests([[1]], metrics.seqlen("x", name="other")),
        digests([[1]], metrics.seqlen("x", nulls="keep")),
        digests([[1]], metrics.token_counts("x")),
    ]
    assert len({same, *others}) == 6


def test_ranges_are_numbered():
    assert [(part.number, part.start, part.stop) for part in cut([0, 3, 5])] == [(0, 0, 3), (1, 3, 5)]
    assert all(type(part.start) is int for part in cut(np.array([0, 3, 5])))
