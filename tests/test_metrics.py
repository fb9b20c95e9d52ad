"""Every built-in metric against a loop in Python, on Arrow batches and on batches of a collate function."""

from __future__ import annotations

import math
from collections import Counter

import cloudpickle
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import arrowds
from arrowds import metrics
from arrowds.errors import MetricError, MetricFailedError, MetricNameError, MetricValueError, MissingColumnError
from arrowds.sources import TorchSource

TOKENS = st.lists(st.lists(st.integers(0, 12), max_size=6), min_size=1, max_size=12)


class Samples:
    """A map-style dataset of dicts with a list of token ids, as tensors or as plain lists."""

    def __init__(self, rows, tensors: bool) -> None:
        self.rows, self.tensors = rows, tensors

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int):
        row = self.rows[i]
        return {"input_ids": torch.tensor(row) if self.tensors else row, "weight": float(i)}


def sources_of(rows):
    """The same samples in every kind of list and every kind of batch."""
    yield pa.table({"input_ids": pa.array(rows, pa.list_(pa.int64()))})
    yield pa.table({"input_ids": pa.array(rows, pa.large_list(pa.uint16()))})
    yield pa.table({"input_ids": pa.array([[99], *rows], pa.list_(pa.uint64()))}).slice(1)
    yield TorchSource(Samples(rows, tensors=False), batch_size=3)
    yield TorchSource(Samples(rows, tensors=True), batch_size=5)


def rarities(rows) -> list[float]:
    counts = Counter(token for row in rows for token in row)
    total = sum(counts.values())
    return [sum(-math.log(counts[token] / total) for token in row) for row in rows]


@given(rows=TOKENS)
@settings(max_examples=12, deadline=None)
def test_token_metrics_are_those_of_a_loop(tmp_path_factory, rows):
    for number, source in enumerate(sources_of(rows)):
        folder = tmp_path_factory.mktemp("index") / str(number)
        chosen = [
            metrics.seqlen(),
            metrics.token_counts(),
            metrics.token_counts(name="padded", vocab_size=20),
            metrics.vocab_rarity(),
            metrics.vocab_rarity(name="integer_rarity", dtype="int64"),
        ]
        index = arrowds.analyze(source, chosen, folder, workers=1, progress=False)
        counts = Counter(token for row in rows for token in row)
        width = max(counts, default=-1) + 1
        assert index["seqlen"].values.tolist() == [len(row) for row in rows]
        assert index.totals["token_counts"].tolist() == [counts[token] for token in range(width)]
        assert index.totals["padded"].tolist() == [counts[token] for token in range(20)]
        expected = rarities(rows)
        assert index["vocab_rarity"].values == pytest.approx(expected, rel=1e-12, abs=1e-12)
        for value, exact in zip(index["integer_rarity"].values.tolist(), expected, strict=True):
            # Cut off, not rounded, as Megatron-DeepSpeed does; a sum that is whole but for rounding may go either way.
            assert value == int(exact) or abs(exact - round(exact)) < 1e-9


def test_rarity_is_what_megatron_deepspeed_computes():
    """Its formula, on torch tensors: log_prob = log(freq / sum), rarity = (log_prob[tokens] * -1).sum().to(long)."""
    rows = torch.randint(0, 50, (40, 16), generator=torch.Generator().manual_seed(0))
    frequency = torch.bincount(rows.flatten(), minlength=50).double()
    expected = (torch.log(frequency / frequency.sum())[rows] * -1).sum(dim=1).to(torch.long)
    metric = metrics.vocab_rarity(dtype=torch.int64)
    totals = {metric.requires[0].name: metric.requires[0].compute({"input_ids": rows}, {})}
    assert metric.compute({"input_ids": rows}, totals).to_pylist() == expected.tolist()


@pytest.mark.parametrize("metric", [metrics.seqlen("x"), metrics.vocab_rarity("x")], ids=["seqlen", "rarity"])
def test_a_null_list_is_refused_or_kept(tmp_path, metric):
    table = pa.table({"x": pa.array([[1], None, [1, 2]], pa.list_(pa.int32()))})
    with pytest.raises(MetricValueError, match=rf"'{metric.name}' has no value \(null or NaN\) for sample 1"):
        arrowds.analyze(table, metric, tmp_path / "refused", progress=False)
    keep = getattr(metrics, metric.name)("x", nulls="keep")
    index = arrowds.analyze(table, keep, tmp_path / "kept", progress=False)
    assert index[metric.name].order.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array(["text"]), r"reads lists of token ids, but column 'x' has type string; for text, use"),
        (pa.array([[1.5]]), "needs integer token ids"),
        (pa.array([[1, None]]), "1 null ids"),
        (pa.array([[-1]]), "token id -1 lies outside 0 to"),
        (pa.array([[1 << 40]]), "token id 1099511627776 lies outside"),
        (pa.array([[2**64 - 1]], pa.list_(pa.uint64())), "lies outside"),
    ],
)
def test_token_ids_that_are_none_are_refused(column, message):
    with pytest.raises(MetricValueError, match=message):
        metrics.token_counts("x").compute(pa.record_batch({"x": column}), {})


def test_a_vocabulary_size_is_a_limit():
    batch = pa.record_batch({"x": [[3]]})
    with pytest.raises(MetricValueError, match="token id 3 lies outside 0 to 2"):
        metrics.token_counts("x", vocab_size=3).compute(batch, {})


@pytest.mark.parametrize("kind", [pa.list_(pa.int32(), 2), pa.list_(pa.int32()), pa.large_list(pa.uint8())], ids=str)
def test_every_list_type_serves(kind):
    batch = pa.record_batch({"x": pa.array([[1, 2], [2, 2], [0, 1]], kind)}).slice(1)
    assert metrics.seqlen("x").compute(batch, {}).to_pylist() == [2, 2]
    assert metrics.token_counts("x").compute(batch, {}).tolist() == [1, 1, 2]


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (pl.col("x") * 2, [2, 4, 6]),
        (pl.col("x").cast(pl.Float32) / 2, [0.5, 1.0, 1.5]),
        (pl.col("x") > 1, [False, True, True]),
        (pl.col("text").str.len_chars() + pl.col("x"), [2, 4, 6]),
        (pl.col("x").map_elements(lambda x: int(str(x) * 2), return_dtype=pl.Int64), [11, 22, 33]),
        (pl.sum_horizontal(pl.col(pl.Int64)), [1, 2, 3]),
        (pl.len() * 0 + pl.col("x"), [1, 2, 3]),
    ],
    ids=["arithmetic", "float", "bool", "two columns", "python", "by type", "len"],
)
def test_any_expression_that_gives_a_number_for_each_row(tmp_path, expression, expected):
    table = pa.table({"x": [1, 2, 3], "text": ["a", "bb", "ccc"]})
    index = arrowds.analyze(table, metrics.expr("m", expression), tmp_path / "index", progress=False)
    assert index["m"].values.tolist() == expected


def test_expressions_read_only_their_columns():
    assert metrics.expr("m", pl.col("b") + pl.col("a")).columns == ("a", "b")
    assert metrics.expr("m", pl.col("*")).columns is None
    assert metrics.expr("m", pl.all().sum()).columns is None
    assert metrics.expr("m", pl.lit(1)).columns is None


@pytest.mark.parametrize(
    ("expression", "error", "message"),
    [
        (pl.col("x").sum(), MetricValueError, "returned 1 values for the 3 samples 0 to 2"),
        (pl.col("x").filter(pl.col("x") > 1), MetricValueError, "returned 2 values for the 3 samples"),
        (pl.col("text"), MetricValueError, "returned .*string"),
        (pl.col("text").cast(pl.Int64), MetricFailedError, "metric 'm' raised InvalidOperationError on sample 1"),
        (pl.col("y"), MissingColumnError, "no column 'y'; the data has 'x', 'text'"),
    ],
)
def test_other_expressions_are_refused(tmp_path, expression, error, message):
    table = pa.table({"x": [1, 2, 3], "text": ["1", "b", "3"]})
    with pytest.raises(error, match=message):
        arrowds.analyze(table, metrics.expr("m", expression), tmp_path / "index", progress=False)


def test_functions_see_what_the_source_gives(tmp_path):
    """A record batch of a table, the collated batch of a torch dataset."""
    table = pa.table({"x": [1, 2, 3], "y": [5, 6, 7]})
    chosen = [
        metrics.function("numpy", lambda batch: batch["x"].to_numpy() + 1),
        metrics.function("arrow", lambda batch: batch["y"], columns=["y"]),
        metrics.function("polars", lambda batch: pl.from_arrow(batch)["x"] * 3),
        metrics.function("torch", lambda batch: torch.from_numpy(batch["x"].to_numpy().copy()), dtype=torch.int16),
        metrics.function("rows", lambda batch: batch.num_rows, kind="total"),
        metrics.function("outer", lambda batch: np.outer(batch["x"], [1, 2]).sum(0), kind="total", dtype="float32"),
    ]
    index = arrowds.analyze(table, chosen, tmp_path / "table", workers=1, progress=False)
    assert {name: index[name].values.tolist() for name in index.metrics} == {
        "numpy": [2, 3, 4],
        "arrow": [5, 6, 7],
        "polars": [3, 6, 9],
        "torch": [1, 2, 3],
    }
    assert index["torch"].dtype == np.int16
    assert index.totals["rows"] == 3
    assert index.totals["rows"].shape == ()
    assert index.totals["outer"].tolist() == [6.0, 12.0]
    assert index.totals["outer"].dtype == np.float32
    source = TorchSource(Samples([[1, 2], [3]], tensors=True))
    weight = metrics.function("weight", lambda batch: batch["weight"] * 2)
    assert arrowds.analyze(source, weight, tmp_path / "torch", progress=False)["weight"].values.tolist() == [0, 2]


@pytest.mark.parametrize(
    "name", ["a/b", "..", ".", "", ".a", "a b", "a\\b", "a\n", "sample_id", "x" * 128, "é", 3, None]
)
def test_names_that_are_no_folder_are_refused(name):
    with pytest.raises(MetricNameError, match="can't be the name of a metric"):
        metrics.seqlen(name=name)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: metrics.function("m", 3), "needs a callable that takes a batch; got a int"),
        (lambda: metrics.function("m", len, kind="sum"), "got 'sum', expected one of"),
        (lambda: metrics.seqlen(nulls="drop"), "got 'drop', expected one of"),
        (lambda: metrics.function("m", len, dtype="float16"), "can't have the dtype 'float16'; use one of"),
        (lambda: metrics.vocab_rarity(dtype=complex), "can't have the dtype"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(make, message):
    with pytest.raises(MetricError, match=message):
        make()


def test_definitions_tell_metrics_apart_and_travel():
    def factor(by):
        return lambda batch: batch["x"].to_numpy() * by

    chosen = [
        metrics.seqlen("a"),
        metrics.seqlen("b"),
        metrics.seqlen("a", nulls="keep"),
        metrics.vocab_rarity("a"),
        metrics.vocab_rarity("a", dtype="int64"),
        metrics.token_counts("a"),
        metrics.token_counts("a", vocab_size=5),
        metrics.expr("m", pl.col("a")),
        metrics.expr("m", pl.col("a") + 1),
        metrics.expr("m", pl.col("a"), dtype="int8"),
        metrics.function("m", factor(2)),
        metrics.function("m", factor(3)),
        metrics.function("m", factor(2), dtype="int8"),
        metrics.function("m", factor(2), kind="total"),
    ]
    definitions = [metric.definition() for metric in chosen]
    assert len(set(definitions)) == len(definitions)
    assert [cloudpickle.loads(cloudpickle.dumps(metric)).definition() for metric in chosen] == definitions


@pytest.mark.parametrize(
    "expression", [pl.col("x").rank(), pl.col("x") - pl.col("x").mean(), pl.col("x").shift(1), pl.col("x").cum_sum()]
)
def test_expressions_that_look_at_other_rows_are_refused(tmp_path, expression):
    data = pl.DataFrame({"x": [3.0, 1.0, 2.0, 5.0, 4.0]})
    with pytest.raises(MetricError, match=r"'m' .*each row for itself"):
        arrowds.analyze(data, arrowds.metrics.expr("m", expression, nulls="keep"), tmp_path / "index")


def test_text_that_is_not_utf8_is_an_error_and_not_a_crash(tmp_path):
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"ok", b"\xff\xfe"]).buffers())
    metric = arrowds.metrics.expr("n", pl.col("text").str.to_lowercase().str.len_chars())
    with pytest.raises(MetricValueError, match="'text' holds text that is not UTF-8"):
        arrowds.analyze(pa.table({"text": broken}), metric, tmp_path / "index")


def test_decimals_of_sql_literals_are_floats(tmp_path):
    index = arrowds.analyze(
        pl.DataFrame({"x": [1, 2]}), arrowds.metrics.expr("half", pl.sql_expr("x / 2.0")), tmp_path / "index"
    )
    assert index["half"].values.tolist() == [0.5, 1.0]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_an_expression_that_json_can_not_hold_is_given_again_like_a_function(tmp_path, number):
    metric = metrics.expr("m", pl.when(pl.col("x") > 1).then(pl.lit(number)).otherwise(pl.col("x")), nulls="keep")
    assert metric.spec() is None
    arrowds.analyze(pa.table({"x": [1.0, 2.0]}), metric, tmp_path / "index", progress=False)
    with pytest.raises(MetricError, match="can't rebuild m"):
        arrowds.append(pa.table({"x": [3.0]}), tmp_path / "index", progress=False)
    index = arrowds.append(pa.table({"x": [0.5]}), tmp_path / "index", metrics=metric, progress=False)
    assert index["m"].values[[0, 2]].tolist() == [1.0, 0.5]
