"""Lookups and queries of an index in an object store that this host has no maps of answer as those of a local one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from strategies import value_columns

import arrowds
from arrowds.errors import ConfigError, IndexCorruptError, VersionNotFoundError
from arrowds.metrics import column, expr, function

QUERIES = [
    "select count(*) as n, sum(sample_id) as ids from samples",
    "select length, count(*) as n, sum(sample_id) as ids, avg(loss) as loss from samples group by all order by all",
    "select * from samples where kept and length > 20 order by loss desc, sample_id limit 50",
    "select * from distribution_length",
    "select * from distribution_loss where cumulative_count > 10",
    "select * from distribution_kept",
    "select language, count(*) as n, sum(sample_id) as ids from samples where language != 'de' group by 1 order by 1",
    "select * from distribution_language",
    "select sum(value) as v from total_tokens",
]


def table(rows: int, seed: int) -> pa.Table:
    rng = np.random.default_rng(seed)
    loss = rng.normal(size=rows).round(2)
    return pa.table(
        {
            "length": rng.integers(0, 300 * seed, rows),
            "loss": pa.array(loss, mask=rng.random(rows) < 0.1),
            "kept": rng.random(rows) < 0.5,
            "language": rng.choice(["de", "en", f"new in {seed}"], rows),
        }
    )


def metrics() -> list[arrowds.metrics.Metric]:
    return [
        expr("length", pl.col("length")),
        expr("loss", pl.col("loss"), nulls="keep"),
        expr("kept", pl.col("kept")),
        column("language"),
        function("tokens", counted, dtype=np.int64, kind="total"),
    ]


def counted(batch: pa.RecordBatch) -> np.ndarray:
    return np.bincount(np.asarray(batch["length"]) % 7, minlength=7)


@pytest.fixture(params=[1, 3], ids=["one segment", "three segments"])
def both(request, place, tmp_path, monkeypatch):
    """The same index in a store and on a disk."""
    monkeypatch.setenv("ARROWDS_CACHE_DIR", str(tmp_path / "cache"))
    for target, options in ((place.at("index"), place.options), (tmp_path / "index", None)):
        arrowds.analyze(table(5000, 1), metrics(), target, storage_options=options, progress=False)
        for more in range(2, request.param + 1):
            arrowds.append(table(700, more), target, metrics=metrics(), storage_options=options, progress=False)
    yield arrowds.open_index(place.at("index"), storage_options=place.options), arrowds.open_index(tmp_path / "index")


def test_queries_answer_as_those_of_a_local_index(both):
    remote, local = both
    # Without maps, with those of one metric, with those of all.
    for mapped in ([], ["length"], list(remote)):
        for name in mapped:
            assert len(remote[name].values) == len(remote)
        assert [name for name in remote if not remote[name].is_read_in_place] == mapped
        assert_frame_equal(remote.scan().collect(), local.scan().collect())
        late = pl.col("sample_id") > 4900
        assert_frame_equal(remote.scan().filter(late).collect(), local.scan().filter(late).collect())
        for query in QUERIES:
            assert_frame_equal(remote.sql(query), local.sql(query))


def test_a_connection_sees_every_view(both):
    remote, local = both
    with remote.connect() as ours, local.connect() as theirs:
        for query in QUERIES:
            assert_frame_equal(ours.sql(query).pl(), theirs.sql(query).pl())


def test_a_query_that_duckdb_refuses_is_a_clear_error(both):
    with pytest.raises(ConfigError, match="nothing"):
        both[0].sql("select nothing from samples")


def test_making_maps_ends_reading_in_place(both):
    remote, local = both
    m, expected = remote["length"], local["length"]
    assert m.is_read_in_place
    before = m.sample_ids(above=100)
    assert np.array_equal(m.values, expected.values)
    assert not m.is_read_in_place
    assert np.array_equal(m.order, expected.order)
    assert np.array_equal(m.sample_ids(above=100), before)
    again = arrowds.open_index(remote.path, storage_options=remote.store.options)
    assert not again["length"].is_read_in_place


@pytest.mark.filterwarnings("ignore:percentiles are 0 to 100")
@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lookups_answer_as_those_of_a_local_index(seaweed, tmp_path_factory, data):
    """Every type, nulls and NaN, one segment and several."""
    folder = tmp_path_factory.mktemp("index")
    first = data.draw(value_columns(nulls=True))
    more = data.draw(st.lists(value_columns(kinds=(first.type,), nulls=True), max_size=2))
    url = seaweed.at(folder.name)
    for target, options in ((url, seaweed.options), (folder / "index", None)):
        metric = expr("m", pl.col("m"), nulls="keep")
        arrowds.analyze(pa.table({"m": first}), metric, target, storage_options=options, progress=False)
        for values in more:
            arrowds.append(pa.table({"m": values}), target, storage_options=options, progress=False)
    remote = arrowds.open_index(url, storage_options=seaweed.options, cache_dir=folder / "cache")["m"]
    local = arrowds.open_index(folder / "index")["m"]
    bounds = st.none() | st.integers(-4, 4) | st.floats(allow_nan=False) | st.booleans()
    for _ in range(4):
        above, up_to = data.draw(bounds), data.draw(bounds)
        found, expected = remote.sample_ids(above, up_to), local.sample_ids(above, up_to)
        assert found.tolist() == expected.tolist()
        assert found.dtype == expected.dtype
        assert remote.count(above, up_to) == local.count(above, up_to)
    low, high = sorted(data.draw(st.tuples(st.integers(0, 1000), st.integers(0, 1000))))
    percentiles = (low / 10, high / 10)
    assert (
        remote.sample_ids_between_percentiles(*percentiles).tolist()
        == local.sample_ids_between_percentiles(*percentiles).tolist()
    )
    assert (remote.num_valid, remote.num_distinct, remote.dtype) == (local.num_valid, local.num_distinct, local.dtype)
    assert_frame_equal(remote.distribution(), local.distribution())
    if local.num_valid:
        shares = [low / 1000, high / 1000, 0, 1]
        assert remote.quantile(shares).tolist() == local.quantile(shares).tolist()
        assert (remote.min(), remote.max()) == (local.min(), local.max())
        assert_frame_equal(remote.histogram(7), local.histogram(7))
        ends = local.num_valid * low // 1001, 1 + local.num_valid * high // 1001
        for found, expected in zip(remote.at_positions(*ends), local.at_positions(*ends), strict=True):
            assert found.tolist() == expected.tolist()
    assert remote.is_read_in_place


def test_a_report_is_that_of_a_local_index_and_of_a_large_one_without_maps_has_no_correlations(
    both, tmp_path, monkeypatch
):
    remote, local = both
    for name, index in (("remote", remote), ("local", local)):
        with monkeypatch.context() as patch:
            patch.setattr("arrowds.report.relations._MOST_READ_FROM_A_STORE", 100)
            arrowds.write_report(index, tmp_path / f"{name}.html")
    assert all(remote[name].is_read_in_place for name in remote)
    in_place, whole = (charts(tmp_path / f"{name}.html") for name in ("remote", "local"))
    assert in_place == {name: chart for name, chart in whole.items() if name != "correlations"} != whole
    assert "Correlations need memory maps" in (tmp_path / "remote.html").read_text(encoding="utf-8")
    arrowds.write_report(remote, tmp_path / "remote.html")
    assert charts(tmp_path / "remote.html") == whole


def charts(page: Path) -> dict[str, Any]:
    """The charts of a report."""
    text = page.read_text(encoding="utf-8")
    start = text.index('id="charts">') + len('id="charts">')
    found: dict[str, Any] = json.loads(text[start : text.index("</script>", start)])
    return found


def test_opening_takes_three_requests_and_a_large_range_eight_more(proxy, proxied, tmp_path, monkeypatch):
    monkeypatch.setenv("ARROWDS_CACHE_DIR", str(tmp_path / "cache"))
    values = np.random.default_rng(0).integers(0, 60_000, 10_000_000, dtype=np.uint16)
    arrowds.analyze(
        pa.table({"m": values}),
        expr("m", pl.col("m")),
        proxied.at("i"),
        storage_options=proxied.options,
        progress=False,
    )
    with proxy.counting() as opening:
        m = arrowds.open_index(proxied.at("i"), storage_options=proxied.options)["m"]
    assert len(opening) <= 3
    with proxy.counting() as reading:
        ids = m.sample_ids(above=10_000, up_to=52_000)
    assert len(reading) <= 8
    inside = (values > 10_000) & (values <= 52_000)
    assert len(ids) == np.count_nonzero(inside) > 6_900_000
    assert np.array_equal(np.sort(ids), np.flatnonzero(inside))
    assert np.all(np.diff(values[ids].astype(int)) >= 0)
    with proxy.counting() as again:
        assert m.count(above=10_000, up_to=52_000) == len(ids)
    assert len(again) == 0
    with proxy.counting() as median:
        assert m.quantile(0.5) == np.quantile(values, 0.5, method="inverted_cdf")
    assert len(median) <= 1


def test_a_file_with_other_bytes_is_refused(both):
    remote, _ = both
    name = next(name for name in remote.manifest.files if "/metrics/length/buckets/" in f"/{name}")
    content = remote.store.read(name).to_pybytes()
    remote.store.write(name, content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    with pytest.raises(IndexCorruptError, match="changed since it was written"):
        remote["length"].sample_ids(up_to=1000)
    with pytest.raises(IndexCorruptError, match="changed"):
        arrowds.open_index(remote.path, storage_options=remote.store.options, verify=True)


def test_a_reader_whose_version_was_vacuumed_is_told_to_open_the_index_again(place, tmp_path):
    def opened():
        return arrowds.open_index(place.at("i"), storage_options=place.options, cache_dir=tmp_path)

    arrowds.analyze(table(500, 1), metrics(), place.at("i"), storage_options=place.options, progress=False)
    old = opened()
    arrowds.append(table(500, 2), place.at("i"), metrics=metrics(), storage_options=place.options, progress=False)
    arrowds.compact(place.at("i"), storage_options=place.options)
    assert arrowds.vacuum(place.at("i"), storage_options=place.options) == [1, 2]
    for question in (
        lambda: old["length"].sample_ids(above=3),
        lambda: old["length"].values,
        lambda: old["loss"].quantile(0.5),
        lambda: old.sql("select avg(length) from samples"),
    ):
        with pytest.raises((IndexCorruptError, VersionNotFoundError), match="vacuumed"):
            question()
    assert len(opened()["length"].sample_ids()) == 1000
