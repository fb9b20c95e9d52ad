"""Ten things that go wrong with DeepSpeed's analyzers and must go right here; where it is cheap, both are shown."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from deepspeed_defects import HEAVY, Rows, dict_sample, field, half, same

from arrowds.errors import IndexCorruptError, IndexNotFoundError, WorkerDiedError
from arrowds.integrations import deepspeed as ads

PER_SAMPLE, TOTAL = "single_value_per_sample", "accumulate_value_over_samples"


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the installed DeepSpeed does."""
    folder = tmp_path_factory.mktemp("deepspeed")
    script = str(Path(__file__).with_name("deepspeed_defects.py"))
    done = subprocess.run(
        [sys.executable, script, str(folder)], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "found.json").read_text())


def analyzer(values, path: Path, function=same, *, make=None, **arguments) -> ads.DataAnalyzer:
    settings = {"batch_size": 4, "metric_names": ["m"], "metric_types": [PER_SAMPLE], "metric_dtypes": [torch.int64]}
    return ads.DataAnalyzer(Rows(values, make), save_path=path, metric_functions=[function], **settings | arguments)


def test_1_fields_of_a_batch_are_not_counted_as_samples(tmp_path: Path, theirs: dict) -> None:
    assert np.ravel(theirs["dict"]).tolist() != list(range(10))
    index = analyzer(range(10), tmp_path / "dict", field, make=dict_sample).run_map_reduce()
    assert index["m"].values.tolist() == list(range(10))
    assert index["m"].order.tolist() == list(range(10))
    pair = analyzer(range(10), tmp_path / "tuple", lambda batch: batch[1], make=lambda i, value: (i, value))
    assert pair.run_map_reduce()["m"].values.tolist() == list(range(10))


def test_2_a_dead_worker_is_an_error(tmp_path: Path, theirs: dict) -> None:
    assert theirs["dead_child"] == "no error"
    script = tmp_path / "dies.py"
    script.write_text(DIES)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "index")], capture_output=True, text=True, timeout=200, check=False
    )
    assert (
        f"{WorkerDiedError.__name__}: a worker ended with exit status 1 on samples 3072 to 4095, 2 times" in done.stderr
    )
    with pytest.raises(IndexNotFoundError, match="not measured"):
        analyzer(range(4096), tmp_path / "index").run_reduce()


DIES = """
import os, sys, numpy as np
from arrowds.build.engines import local
from arrowds.integrations import deepspeed as ads
local._STARTUP_SECONDS = -1.0  # three parts are computed here, the rest in workers, however small
here = os.getpid()
def exits(batch):
    if os.getpid() != here:
        os._exit(1)
    return batch
class Rows:
    __len__ = lambda self: 4096
    __getitem__ = lambda self, i: 4095 - i
ads.DataAnalyzer(Rows(), num_threads=2, batch_size=4, metric_names=["m"], metric_functions=[exits],
                 metric_types=["single_value_per_sample"], collate_fn=np.asarray, save_path=sys.argv[1]).run_map()
"""


def test_3_one_specific_thread_can_be_run(tmp_path: Path) -> None:
    values = list(range(4096))
    for thread in (3, 1, 0, 2):
        last = analyzer(values, tmp_path, num_threads=4, specific_threads=[thread], batch_size=64)
        last.run_map()
    assert last.run_reduce()["m"].values.tolist() == values


def test_4_the_number_of_files_does_not_grow_with_the_distinct_values(tmp_path: Path, theirs: dict) -> None:
    assert theirs["files"] == 300
    few = analyzer([7] * 300, tmp_path / "few")
    few.run_map_reduce()
    many = analyzer(range(300), tmp_path / "many")
    many.run_map_reduce()
    assert len([*(tmp_path / "many").rglob("*.*")]) == len([*(tmp_path / "few").rglob("*.*")]) < 10


@pytest.mark.parametrize("arguments", [{"num_threads": 8}, {"num_workers": 8}])
def test_5_more_threads_or_workers_than_samples(tmp_path: Path, theirs: dict, arguments: dict) -> None:
    assert theirs["empty_splits"] == "KeyError: 0"
    for worker in range(arguments.get("num_workers", 1)):
        last = analyzer([5, 6, 7], tmp_path, worker_id=worker, **arguments)
        last.run_map()
    assert last.run_reduce()["m"].values.tolist() == [5, 6, 7]


@pytest.mark.parametrize(("dtype", "function"), [(torch.float32, half), (np.float64, half), (bool, lambda b: b > 4)])
def test_6_floats_and_bools_are_metrics(tmp_path: Path, theirs: dict, dtype: object, function) -> None:
    assert theirs["float"].startswith("AssertionError: metric_dtype torch.float32 not supported")
    index = analyzer(range(10), tmp_path, function, metric_dtypes=[dtype]).run_map_reduce()
    assert index["m"].values.tolist() == function(torch.arange(10)).tolist()


def test_7_values_are_in_the_order_of_the_remapped_ids(tmp_path: Path, theirs: dict) -> None:
    assert theirs["remapped"] == [[5], [6], [7]]
    index = analyzer([5, 6, 7], tmp_path / "index", sample_indices=[2, 0, 1]).run_map_reduce()
    assert index["m"].values.tolist() == [6, 7, 5]
    ads.export_index(index, tmp_path / "exported")
    assert (tmp_path / "exported/m/m_sample_to_metric.bin").read_bytes() == bytes([6, 7, 5])


def test_8_percentiles_count_samples_also_where_one_value_is_heavy(tmp_path: Path, theirs: dict) -> None:
    assert theirs["percentiles"] == ["Metric m 5th percentile: 1", "Metric m 10th percentile: 2"]  # there are 20
    assert theirs["merged"] == [2, 90, 8]  # the first percentile of values has 2 % of the samples, the second 90 %
    metric = analyzer(HEAVY, tmp_path).run_map_reduce()["m"]
    shares = np.arange(5, 101, 5) / 100
    assert metric.quantile(shares).tolist() == np.quantile(HEAVY, shares, method="inverted_cdf").tolist()
    assert [len(metric.sample_ids_between_percentiles(p, p + 1)) for p in range(100)] == [1] * 100


def test_9_values_and_sums_above_the_precision_of_float32(tmp_path: Path, theirs: dict) -> None:
    assert theirs["float32"] == [[2**24]]  # of 2^24 + 1
    values = [2**24, 1, 2**62 + 1]
    index = ads.DistributedDataAnalyzer(
        Rows(values),
        num_threads=2,
        metric_names=["m", "sum"],
        metric_functions=[same, torch.sum],
        metric_types=[PER_SAMPLE, TOTAL],
        save_path=tmp_path,
        device="cpu",
    ).run_map_reduce()
    assert index["m"].values.tolist() == values
    assert index.totals["sum"].item() == sum(values)


def counted(path, batch):
    with path.open("a") as file:
        file.write(f"{len(batch)}\n")
    return batch


def samples_counted(path):
    return sum(map(int, path.read_text().split()))


def test_10_runs_resume_report_and_can_be_checked(tmp_path: Path) -> None:
    progress, counts = [], tmp_path / "counts"
    function, path = partial(counted, counts), tmp_path / "index"
    how = {"batch_size": 64, "num_threads": 2, "progress": lambda done, total: progress.append((done, total))}
    analyzer(range(4096), path, function, specific_threads=[0], **how).run_map()
    assert progress == [(1024, 2048), (2048, 2048)]
    assert samples_counted(counts) == 2048
    resumed = analyzer(range(4096), path, function, **how)
    resumed.run_map()
    assert samples_counted(counts) == 4096, "what was finished is not measured again"
    index = resumed.run_reduce()
    assert len(index.fingerprint) == 32
    assert not [*path.rglob("*.tmp")]
    index.verify()
    damaged = next((path / "metrics").rglob("*.parquet"))
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(IndexCorruptError, match=damaged.name):
        index.verify()
