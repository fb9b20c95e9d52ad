"""More metrics of the same samples: nothing else is touched; the totals that define a metric keep their version."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from index_files import contents, digests, leftovers

import arrowds
from arrowds.errors import IndexExistsError, IndexNotFoundError, MetricError, MissingColumnError, SourceError
from arrowds.plots import describe

FIRST = pa.table({"t": [[0, 0, 1], [1], []], "x": [3.5, 1.5, 2.5]})
SECOND = pa.table({"t": [[1, 1, 2], [0]], "x": [0.5, 9.5]})
WHOLE = pa.concat_tables([FIRST, SECOND])
RARITY = arrowds.metrics.vocab_rarity("t")
X = arrowds.metrics.expr("x", pl.col("x"))


def analyze(path, table=FIRST, metrics=X, **options) -> arrowds.Index:
    return arrowds.analyze(table, metrics, path, workers=1, progress=False, **options)


def append(path, table=SECOND, **options) -> arrowds.Index:
    return arrowds.append(table, path, workers=1, progress=False, **options)


def add(path, metrics, table=FIRST, **options) -> arrowds.Index:
    return arrowds.add_metrics(table, metrics, path, workers=1, progress=False, **options)


def rarity(counted: pa.Table, table: pa.Table) -> list[float]:
    """By its definition, from counts of ``counted``; a token that these do not have counts as one that occurs once."""
    counts = Counter(token for row in counted["t"].to_pylist() for token in row)
    total = sum(counts.values())
    return [-sum(math.log(max(counts[token], 1) / total) for token in row) for row in table["t"].to_pylist()]


def test_no_file_of_the_index_is_touched(tmp_path):
    analyze(tmp_path)["x"].order  # noqa: B018
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    content = contents(tmp_path)
    index = add(tmp_path, [arrowds.metrics.seqlen("t"), arrowds.metrics.token_counts("t")])
    assert (index.version, index.metrics, list(index.totals)) == (2, ["x", "seqlen"], ["token_counts"])
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert {name: contents(tmp_path)[name] for name in content} == content
    assert index["seqlen"].values.tolist() == [3, 1, 0]
    assert index.totals["token_counts"].tolist() == [2, 2]
    assert arrowds.open_index(tmp_path, version=1).metrics == ["x"]


def test_nothing_else_is_measured_again(tmp_path):
    seen = []
    noted = arrowds.metrics.function("m", lambda batch: seen.append(len(batch)) or batch["x"], version="1")
    analyze(tmp_path, metrics=noted)
    seen.clear()
    add(tmp_path, arrowds.metrics.seqlen("t"))
    assert seen == []


def test_the_same_columns_as_if_all_had_been_measured_at_once(tmp_path):
    analyze(tmp_path / "one")
    append(tmp_path / "one")
    index = add(tmp_path / "one", [RARITY, arrowds.metrics.seqlen("t")], WHOLE)
    assert len(index.manifest.segments) == 2
    arrowds.compact(tmp_path / "one", workers=1)
    whole = analyze(tmp_path / "all", WHOLE, [X, RARITY, arrowds.metrics.seqlen("t")])
    assert digests(arrowds.open_index(tmp_path / "one")) == digests(whole)
    assert index["vocab_rarity"].values.tolist() == pytest.approx(rarity(WHOLE, WHOLE))


def test_metrics_that_are_there_are_opened_or_refused(tmp_path):
    analyze(tmp_path)
    assert add(tmp_path, X).version == 1  # the same again
    with pytest.raises(IndexExistsError, match="has x already; choose other names, or pass refresh=True"):
        add(tmp_path, arrowds.metrics.expr("x", -pl.col("x")))
    with pytest.raises(IndexExistsError, match="has x already"):
        add(tmp_path, [X, arrowds.metrics.seqlen("t")])
    refreshed = add(tmp_path, arrowds.metrics.expr("x", -pl.col("x")), refresh=True)
    assert (refreshed.version, refreshed["x"].values.tolist()) == (2, [-3.5, -1.5, -2.5])
    assert refreshed["x"].order.tolist() == [0, 2, 1]  # not the maps of before
    assert arrowds.open_index(tmp_path, version=1)["x"].values.tolist() == [3.5, 1.5, 2.5]


def test_the_data_must_be_that_of_the_index(tmp_path):
    with pytest.raises(IndexNotFoundError):
        add(tmp_path / "nothing", X)
    analyze(tmp_path / "ix")
    for other in (SECOND, WHOLE, FIRST.slice(0, 2), FIRST.take([1, 0, 2])):
        with pytest.raises(SourceError, match="pass all of the data of the index, in its order"):
            add(tmp_path / "ix", RARITY, other)
    with pytest.raises(MissingColumnError):
        add(tmp_path / "ix", arrowds.metrics.seqlen("nope"))
    assert leftovers(tmp_path / "ix") == []


def test_the_files_must_be_those_of_the_index(tmp_path):
    for name, values in {"a": [1, 2], "b": [3, 4], "c": [1, 2]}.items():
        pl.DataFrame({"x": values}).write_parquet(tmp_path / f"{name}.parquet")
    analyze(tmp_path / "ix", tmp_path / "a.parquet")
    negative = arrowds.metrics.expr("negative", -pl.col("x"))
    with pytest.raises(SourceError, match="pass all of the data of the index, in its order"):
        add(tmp_path / "ix", negative, tmp_path / "b.parquet")
    for same in ("a", "c"):
        assert add(tmp_path / "ix", negative, tmp_path / f"{same}.parquet")["negative"].values.tolist() == [-1, -2]


def test_an_append_keeps_the_counts_that_a_metric_was_defined_with(tmp_path):
    analyze(tmp_path, metrics=[RARITY, arrowds.metrics.seqlen("t")])
    index = append(tmp_path)
    assert index["vocab_rarity"].values.tolist() == pytest.approx(rarity(FIRST, WHOLE))
    facts = {row["name"]: row["defined_with"] for row in describe(index)["metrics"]}
    assert facts == {"vocab_rarity": {"vocab_rarity.token_counts": 1}, "seqlen": {}}
    assert index.totals["vocab_rarity.token_counts"].tolist() == [3, 4, 1]  # the total itself is of all samples

    compacted = arrowds.compact(tmp_path, workers=1)
    assert compacted["vocab_rarity"].values.tolist() == index["vocab_rarity"].values.tolist()
    arrowds.vacuum(tmp_path)
    again = append(tmp_path)  # the counts of version 1 are kept although that is gone
    assert again["vocab_rarity"].values.tolist()[3:5] == again["vocab_rarity"].values.tolist()[5:]

    refreshed = add(tmp_path, RARITY, pa.concat_tables([WHOLE, SECOND]), refresh=True)
    expected = rarity(pa.concat_tables([WHOLE, SECOND]), pa.concat_tables([WHOLE, SECOND]))
    assert refreshed["vocab_rarity"].values.tolist() == pytest.approx(expected)
    facts = {row["name"]: row["defined_with"] for row in describe(refreshed)["metrics"]}
    assert facts["vocab_rarity"] == {"vocab_rarity.token_counts": refreshed.version}
    assert append(tmp_path)["vocab_rarity"].values.tolist() == pytest.approx(
        rarity(pa.concat_tables([WHOLE, SECOND]), pa.concat_tables([WHOLE, SECOND, SECOND]))
    )


def function(by: int, name: str = "m"):
    return arrowds.metrics.function(name, lambda batch: np.asarray(batch["x"]) * by, version=f"by {by}")


def test_an_append_rebuilds_what_it_can_and_asks_for_functions(tmp_path):
    analyze(tmp_path, metrics=[X, function(2)])
    with pytest.raises(
        MetricError, match=r"can't rebuild m, which only the code that made it can measure; pass metrics="
    ):
        append(tmp_path)
    with pytest.raises(MetricError, match="defines metric 'm' otherwise; append with the metric that it was made with"):
        append(tmp_path, metrics=function(3))
    with pytest.raises(MetricError, match=r"has no metric 'n'; measure it with arrowds\.add_metrics first"):
        append(tmp_path, metrics=[function(2), function(2, "n")])
    assert leftovers(tmp_path) == []
    index = append(tmp_path, metrics=function(2))
    assert index["m"].values.tolist() == [7.0, 3.0, 5.0, 1.0, 19.0]
    assert index["x"].values.tolist() == [3.5, 1.5, 2.5, 0.5, 9.5]


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (
            pa.table({"x": [1, 2]}),
            "gives int64 for the new samples but double for those of the index; declare its dtype",
        ),
        (pa.table({"y": [1.5]}), "no column 'x'"),
        (pa.table({"x": pa.array([1.5, None])}), r"no value \(null or NaN\) for sample 1"),
        (pa.table({"x": pa.array([], pa.float64())}), "has no samples"),
    ],
)
def test_an_append_of_other_columns_or_types_is_refused_and_loses_nothing(tmp_path, more, error):
    analyze(tmp_path)
    with pytest.raises(arrowds.errors.ArrowdsError, match=error):
        append(tmp_path, more)
    index = arrowds.open_index(tmp_path, verify=True)
    assert (index.version, index["x"].values.tolist()) == (1, [3.5, 1.5, 2.5])
    assert append(tmp_path)["x"].values.tolist()[3:] == [0.5, 9.5]


def test_totals_alone_can_be_appended_to_and_compacted(tmp_path):
    analyze(tmp_path, metrics=arrowds.metrics.token_counts("t"))
    assert append(tmp_path).totals["token_counts"].tolist() == [3, 4, 1]
    index = arrowds.compact(tmp_path, workers=1)
    assert (index.num_samples, index.totals["token_counts"].tolist()) == (5, [3, 4, 1])
    assert digests(index) == digests(analyze(tmp_path / "whole", WHOLE, arrowds.metrics.token_counts("t")))


def test_the_fingerprint_tells_values_apart_and_survives_a_compaction_and_other_metrics(tmp_path):
    one = analyze(tmp_path)
    two = append(tmp_path)
    three = add(tmp_path, RARITY, WHOLE)
    four = arrowds.compact(tmp_path, workers=1)
    five = add(tmp_path, arrowds.metrics.expr("x", -pl.col("x")), WHOLE, refresh=True)
    assert len({one.fingerprint, two.fingerprint, three.fingerprint, five.fingerprint}) == 4
    assert three.fingerprint == four.fingerprint
    of_x = [index.manifest.fingerprint(["x"]) for index in (two, three, four)]
    assert len(set(of_x)) == 1
    assert five.manifest.fingerprint(["x"]) not in of_x
