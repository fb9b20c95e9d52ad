"""Exports are compared, byte for byte, with what the installed DeepSpeed writes for the same generated datasets."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from analyzer_oracle import FILES, Run, pair_bytes, run_oracle, save_case

import arrowds
from arrowds.errors import ConfigError, UnsupportedError
from arrowds.integrations import deepspeed as ads

NUM_CASES = 64
RANGES = {
    "uint8": (0, 256),
    "uint16": (0, 2**16),
    "uint32": (0, 2**32),
    "uint64": (0, 2**60),
    "int8": (-128, 128),
    "int16": (-(2**15), 2**15),
    "int32": (-(2**31), 2**31),
    "int64": (-(2**60), 2**60),
}


def generated_case(seed: int) -> tuple[np.ndarray, Run]:
    """One dataset: every stored type, few and many distinct values, one heavy value, uneven splits."""
    rng = np.random.default_rng(seed)
    low, high = list(RANGES.values())[seed % len(RANGES)]
    num_samples = int(rng.choice([1, 2, 7, 100, 101, 255, 256, 257, 300, 700]))
    distinct = int(rng.choice([1, 2, 99, 100, 101, 199, 200, 201, 350]))
    values = rng.permutation(np.resize(rng.integers(low, high, distinct, dtype=np.int64), num_samples))
    if seed % 3 == 0:
        values[rng.random(num_samples) < 0.5] = values[0]
    workers = int(rng.integers(1, min(3, num_samples) + 1))
    # DeepSpeed starts real processes for several map threads, so there are only a few such cases.
    threads = int(rng.integers(2, 4)) if seed % 16 == 5 and num_samples >= 9 else 1
    reducers = int(rng.integers(1, min(workers * threads, len(np.unique(values))) + 1))
    return values, Run(
        batch_size=int(rng.integers(1, 150)), num_workers=workers, num_threads=threads, num_threads_reduce=reducers
    )


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    for seed in range(NUM_CASES):
        save_case(folder / f"{seed:03d}", *generated_case(seed))
    run_oracle(folder)
    return folder


def index_of(values: np.ndarray, path: Path) -> arrowds.Index:
    counts = np.bincount(values % 7, minlength=7)
    metrics = [
        arrowds.metrics.expr("value", pl.col("value")),
        arrowds.metrics.function("sum", lambda batch: batch["value"].to_numpy().sum(keepdims=True), kind="total"),
        arrowds.metrics.function(
            "remainders", lambda batch: np.bincount(batch["value"].to_numpy() % 7, minlength=7), kind="total"
        ),
    ]
    index = arrowds.analyze(pa.table({"value": values}), metrics, path, workers=1)
    assert index.totals["remainders"].tolist() == counts.tolist()
    return index


@pytest.mark.parametrize("seed", range(NUM_CASES))
def test_export_equals_deepspeeds_bytes(cases: Path, tmp_path: Path, seed: int) -> None:
    values, run = generated_case(seed)
    splits = {name: count for name, count in asdict(run).items() if name != "batch_size"}
    index = index_of(values, tmp_path / "index")
    ads.export_index(index, tmp_path / "exported", like=ads.AnalyzerRun(**splits))
    for metric, kinds in {"value": FILES, "sum": ("metric_value",), "remainders": ("metric_value",)}.items():
        expected = pair_bytes(cases / f"{seed:03d}" / "deepspeed", metric, kinds)
        found = pair_bytes(tmp_path / "exported", metric, kinds)
        assert [name for name in expected if expected[name] != found[name]] == []


def test_the_generated_cases_cover_what_the_format_depends_on() -> None:
    cases = [generated_case(seed) for seed in range(NUM_CASES)]
    assert max(np.unique(values, return_counts=True)[1].max() for values, _ in cases) > 100, "DeepSpeed flushes at 100"
    assert max(len(np.unique(values)) for values, _ in cases) >= 200, "percentiles merge several values"
    assert any(run.num_threads > 1 for _, run in cases)
    assert any(run.num_workers > 1 and len(values) % run.num_workers for values, run in cases)
    assert any(run.num_threads_reduce > 1 for _, run in cases)


def test_without_like_only_the_document_marks_differ(cases: Path, tmp_path: Path) -> None:
    seed = next(seed for seed in range(NUM_CASES) if generated_case(seed)[1].num_threads_reduce > 1)
    ads.export_index(index_of(generated_case(seed)[0], tmp_path / "index"), tmp_path / "exported")
    expected = pair_bytes(cases / f"{seed:03d}" / "deepspeed", "value", FILES)
    found = pair_bytes(tmp_path / "exported", "value", FILES)
    assert [name for name in expected if name.endswith(".bin") and expected[name] != found[name]] == []
    assert any(expected[name] != found[name] for name in expected)


def test_bool_is_written_as_zero_and_one(tmp_path: Path) -> None:
    table = pa.table({"odd": [True, False, True]})
    index = arrowds.analyze(table, [arrowds.metrics.expr("odd", pl.col("odd"))], tmp_path / "index")
    ads.export_index(index, tmp_path / "exported")
    assert (tmp_path / "exported/odd/odd_sample_to_metric.bin").read_bytes() == b"\1\0\1"
    assert (tmp_path / "exported/odd/odd_index_to_sample.bin").read_bytes() == b"\1\0\2"


def test_floats_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    table = pa.table({"n": [1, 2], "x": [0.5, 1.5]})
    metrics = [arrowds.metrics.expr(name, pl.col(name)) for name in ("n", "x")]
    index = arrowds.analyze(table, metrics, tmp_path / "index")
    with pytest.raises(UnsupportedError, match=r"x is of type float64.*metrics=\['n'\]"):
        ads.export_index(index, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
    ads.export_index(index, tmp_path / "exported", metrics=["n"])
    assert [path.name for path in (tmp_path / "exported").iterdir()] == ["n"]


def test_samples_without_a_value_are_refused(tmp_path: Path) -> None:
    metric = arrowds.metrics.expr("n", pl.col("n"), nulls="keep")
    index = arrowds.analyze(pa.table({"n": [1, None, 3]}), [metric], tmp_path / "index")
    with pytest.raises(UnsupportedError, match="no value for 1 samples"):
        ads.export_index(index, tmp_path / "exported")


def test_a_name_that_is_not_there_is_refused(tmp_path: Path) -> None:
    metric = arrowds.metrics.expr("n", pl.col("n"))
    index = arrowds.analyze(pa.table({"n": [1]}), [metric], tmp_path / "index")
    with pytest.raises(ConfigError, match="no metric 'm'; it has n"):
        ads.export_index(index, tmp_path / "exported", metrics=["m"])
    with pytest.raises(ConfigError, match="num_threads must be at least 1"):
        ads.AnalyzerRun(num_threads=0)
