"""The drop-in analyzer: DeepSpeed's arguments, several workers and threads, hooks, remapped ids, ranks."""

import inspect
import os
import re
import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import numpy as np
import pytest
import torch
from analyzer_oracle import FILES, TensorDataset, batch_sum, pair_bytes, run_oracle, same, save_case
from analyzer_oracle import Run as OracleRun
from map_hooks import HOOKS, die

from arrowds.errors import (
    ConfigError,
    IndexExistsError,
    IndexNotFoundError,
    MetricFailedError,
    MetricNameError,
    MetricValueError,
    SourceError,
    WorkerDiedError,
)
from arrowds.integrations import deepspeed as ads

PER_SAMPLE, TOTAL = "single_value_per_sample", "accumulate_value_over_samples"


def two_metrics(values: torch.Tensor, path: Path, **arguments) -> dict:
    """Arguments for the analysis of a tensor by one metric of each type."""
    return {
        "dataset": TensorDataset(values),
        "batch_size": 16,
        "metric_names": ["value", "sum"],
        "metric_functions": [same, batch_sum],
        "metric_types": [PER_SAMPLE, TOTAL],
        "metric_dtypes": [torch.int64, np.int64],
        "save_path": path,
    } | arguments


def files_of(path: Path) -> dict[str, bytes]:
    """What an index consists of; views are derived, by whoever opens it."""
    found = {str(file.relative_to(path)): file for file in path.rglob("*.*") if file.is_file()}
    return {name: file.read_bytes() for name, file in found.items() if not name.startswith("views/")}


@pytest.fixture
def values() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 50, 5000))


@pytest.mark.parametrize("name", ["DataAnalyzer", "DistributedDataAnalyzer"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what DeepSpeed imports
def test_arguments_and_their_order_are_deepspeeds(name: str) -> None:
    module = pytest.importorskip("deepspeed.runtime.data_pipeline.data_sampling.data_analyzer")
    theirs = inspect.signature(getattr(module, name)).parameters
    ours = {
        key: value
        for key, value in inspect.signature(getattr(ads, name)).parameters.items()
        if value.kind is not inspect.Parameter.KEYWORD_ONLY
    }
    assert list(ours) == list(theirs)
    for key, parameter in theirs.items():
        default = () if parameter.default == [] else parameter.default
        assert ours[key].default == default


def test_importing_the_integration_loads_no_framework() -> None:
    code = (
        "import sys; from arrowds.integrations import deepspeed as ads; print({'torch', 'deepspeed'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"
    assert ads.__all__ == sorted(ads.__all__)
    assert all(getattr(ads, name) for name in ads.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        ads.nothing  # noqa: B018


def test_index_and_export_of_the_same_run_as_deepspeed(tmp_path: Path, values: torch.Tensor) -> None:
    save_case(tmp_path / "case", values.numpy(), OracleRun(batch_size=16, num_workers=2))
    run_oracle(tmp_path)
    for worker in (1, 0):
        analyzer = ads.DataAnalyzer(**two_metrics(values, tmp_path / "index", num_workers=2, worker_id=worker))
        analyzer.run_map()
    ads.export_index(analyzer.run_reduce(), tmp_path / "exported", like=ads.AnalyzerRun(num_workers=2))
    for metric, kinds in {"value": FILES, "sum": ("metric_value",)}.items():
        expected = pair_bytes(tmp_path / "case" / "deepspeed", metric, kinds)
        assert expected == pair_bytes(tmp_path / "exported", metric, kinds)


@pytest.mark.parametrize(("workers", "threads"), [(1, 3), (3, 1), (2, 40), (7, 2)])
def test_any_number_of_workers_and_threads_gives_the_same_files(
    tmp_path: Path, values: torch.Tensor, workers: int, threads: int
) -> None:
    ads.DataAnalyzer(**two_metrics(values, tmp_path / "one")).run_map_reduce()
    for worker in reversed(range(workers)):
        analyzer = ads.DataAnalyzer(
            **two_metrics(values, tmp_path / "many", num_workers=workers, worker_id=worker, num_threads=threads)
        )
        analyzer.run_map()
    assert analyzer.run_reduce()["value"].values.tolist() == values.tolist()
    assert files_of(tmp_path / "one") == files_of(tmp_path / "many")


def test_specific_threads_map_their_share_and_no_other(tmp_path: Path, values: torch.Tensor) -> None:
    def analyzer(*threads: int) -> ads.DataAnalyzer:
        return ads.DataAnalyzer(**two_metrics(values, tmp_path, num_threads=4, specific_threads=threads))

    for threads in ((3,), (0, 1)):
        analyzer(*threads).run_map()
    with pytest.raises(IndexNotFoundError, match=r"1 of 5 parts .* samples 2048 to 3071"):
        analyzer(2).run_reduce()
    analyzer(2).run_map()
    assert analyzer().run_reduce()["value"].values.tolist() == values.tolist()


@pytest.mark.parametrize("dtype", [torch.int64, np.int64, "int64", np.dtype("int64")])
def test_every_spelling_of_a_dtype(tmp_path: Path, values: torch.Tensor, dtype: object) -> None:
    index = ads.DataAnalyzer(**two_metrics(values, tmp_path, metric_dtypes=[dtype, dtype])).run_map_reduce()
    assert index["value"].dtype == np.int64
    assert index.totals["sum"].dtype == np.int64


def test_results_of_another_dtype_are_converted_unless_a_value_would_change(tmp_path: Path) -> None:
    def analyzer(function, name: str) -> ads.DataAnalyzer:
        metric = {"metric_names": ["m"], "metric_functions": [function], "metric_types": [PER_SAMPLE]}
        return ads.DataAnalyzer(
            TensorDataset(torch.arange(9)), metric_dtypes=[torch.uint8], save_path=tmp_path / name, **metric
        )

    index = analyzer(lambda batch: batch.to(torch.float32).numpy(), "exact").run_map_reduce()
    assert index["m"].dtype == np.uint8
    assert index["m"].values.tolist() == list(range(9))
    for function in (lambda batch: batch + 0.5, lambda batch: batch + 250):
        with pytest.raises(MetricValueError, match="'m'"):
            analyzer(function, "inexact").run_map_reduce()


def test_a_column_of_one_is_as_good_as_a_vector(tmp_path: Path, values: torch.Tensor) -> None:
    functions = [lambda batch: batch.reshape(-1, 1), batch_sum]
    index = ads.DataAnalyzer(**two_metrics(values, tmp_path, metric_functions=functions)).run_map_reduce()
    assert index["value"].values.tolist() == values.tolist()


class MegatronDataset(TensorDataset):
    """Samples that say their own number, as Megatron-DeepSpeed's do."""

    def __init__(self, tensor, numbers):
        super().__init__(tensor)
        self.numbers = numbers

    def __getitem__(self, i):
        return {"text": self.tensor[i], "index": np.array([self.numbers[i]], dtype=np.int64)}


def test_the_index_field_tells_the_sample_ids(tmp_path: Path, values: torch.Tensor) -> None:
    numbers = np.random.default_rng(1).permutation(len(values))
    arguments = two_metrics(
        values,
        tmp_path / "index",
        dataset=MegatronDataset(values, numbers),
        metric_functions=[lambda batch: batch["text"], lambda batch: batch["text"].sum()],
        num_workers=2,
    )
    for worker in (0, 1):
        analyzer = ads.DataAnalyzer(**arguments, worker_id=worker)
        analyzer.run_map()
    index = analyzer.run_reduce()
    assert index["value"].values[numbers].tolist() == values.tolist()
    assert index["value"].dtype == np.int64
    assert index.totals["sum"].tolist() == values.sum()
    assert index.metrics == ["value"]
    assert [path.name for path in tmp_path.iterdir()] == ["index"]
    again = ads.DataAnalyzer(**arguments)
    again.run_map()
    ads.DataAnalyzer(**arguments, worker_id=1).run_map()
    assert again.run_reduce().fingerprint == index.fingerprint


def test_an_index_field_that_repeats_ids_is_refused(tmp_path: Path) -> None:
    arguments = two_metrics(torch.arange(4), tmp_path / "index", dataset=MegatronDataset(torch.arange(4), [0, 1, 1, 2]))
    arguments |= {"metric_names": ["m"], "metric_functions": [lambda batch: batch["text"]]}
    arguments |= {"metric_types": [PER_SAMPLE], "metric_dtypes": [np.int64]}
    analyzer = ads.DataAnalyzer(**arguments)
    with pytest.raises(SourceError, match="sample id 1 2 times and lacks 3"):
        analyzer.run_map_reduce()


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_sample_indices_tell_the_sample_ids(tmp_path: Path, values: torch.Tensor, kind) -> None:
    ids = np.random.default_rng(1).permutation(len(values))
    arguments = two_metrics(values, tmp_path / "index", sample_indices=kind(ids.tolist()))
    index = ads.DataAnalyzer(**arguments).run_map_reduce()
    assert index["value"].values[ids].tolist() == values.tolist()


def test_bool_and_float_metrics_keep_their_type_when_ids_are_remapped(tmp_path: Path) -> None:
    arguments = two_metrics(torch.arange(4), tmp_path / "index", sample_indices=[3, 2, 1, 0])
    arguments |= {
        "metric_names": ["odd", "half"],
        "metric_types": [PER_SAMPLE] * 2,
        "metric_dtypes": [torch.bool, np.float32],
    }
    arguments |= {"metric_functions": [lambda batch: batch % 2 == 1, lambda batch: batch / 2]}
    index = ads.DataAnalyzer(**arguments).run_map_reduce()
    assert index["odd"].values.tolist() == [True, False, True, False]
    assert index["half"].values.tolist() == [1.5, 1.0, 0.5, 0.0]
    assert index["half"].dtype == np.float32


@pytest.mark.parametrize(
    ("indices", "complaint"),
    [([0, 1, 1, 2], "sample id 1 2 times and lacks 3"), ([0, 1, 2, 4], "holds the sample id 4"), ([0, 1], "shape")],
)
def test_sample_indices_must_be_a_permutation(tmp_path: Path, indices: list[int], complaint: str) -> None:
    analyzer = ads.DataAnalyzer(**two_metrics(torch.arange(4), tmp_path, sample_indices=indices))
    with pytest.raises(ConfigError, match=complaint):
        analyzer.run_map()


def light_arguments(path: Path, **arguments) -> dict:
    """Arguments that a worker process can load without torch."""
    return two_metrics(
        None, path, dataset=np.arange(10), collate_fn=np.asarray, metric_dtypes=["int64", np.int64], **arguments
    )


@pytest.mark.parametrize("threads", [1, 3])
def test_custom_hooks_replace_the_map(tmp_path: Path, threads: int) -> None:
    arguments = light_arguments(tmp_path, batch_size=2, num_workers=2, worker_id=1, num_threads=threads)
    analyzer = ads.DataAnalyzer(**arguments, **HOOKS)
    analyzer.run_map()
    found = {path.name: literal_eval(path.read_text()) for path in tmp_path.glob("*.txt")}
    expected = {"1-0.txt": [(5, [5, 6]), (7, [7, 8]), (9, [9])]}
    if threads == 3:
        expected = {"1-0.txt": [(5, [5])], "1-1.txt": [(6, [6, 7])], "1-2.txt": [(8, [8, 9])]}
    assert {name: rows for name, (rows, _, _) in found.items()} == expected
    assert found["1-0.txt"][1:] == (["value", "sum", PER_SAMPLE, TOTAL], ["int64", "<class 'numpy.int64'>"])
    with pytest.raises(ConfigError, match="custom_reduce"):
        analyzer.run_reduce()


def test_custom_reduce_gets_deepspeeds_arguments(tmp_path: Path) -> None:
    calls = []
    arguments = two_metrics(torch.arange(10), tmp_path, num_threads_reduce=5, num_threads=2)
    analyzer = ads.DataAnalyzer(**arguments, custom_reduce=lambda *given: calls.append(given))
    assert analyzer.run_map_reduce() is None
    assert calls == [
        (analyzer.dataset, ["value", "sum"], [PER_SAMPLE, TOTAL], tmp_path, 1, 2, 5),
    ]


def test_a_second_run_opens_what_is_there_and_other_data_are_refused(tmp_path: Path, values: torch.Tensor) -> None:
    first = ads.DataAnalyzer(**two_metrics(values, tmp_path)).run_map_reduce()
    seen = []

    def counted(batch):
        seen.append(len(batch))
        return batch

    assert ads.DataAnalyzer(**two_metrics(values, tmp_path)).run_map_reduce().fingerprint == first.fingerprint
    other = two_metrics(values + 1, tmp_path, metric_functions=[counted, batch_sum])
    with pytest.raises(IndexExistsError, match="other data"):
        ads.DataAnalyzer(**other).run_map_reduce()
    assert seen == []
    replaced = ads.DataAnalyzer(**other, overwrite=True).run_map_reduce()
    assert replaced["value"].values.tolist() == (values + 1).tolist()


@pytest.mark.parametrize(
    ("wrong", "error", "complaint"),
    [
        ({"metric_names": ["value"]}, ConfigError, "got 1, 2, 2 and 2"),
        ({"metric_types": [PER_SAMPLE, "sum"]}, ConfigError, "unknown metric type 'sum'"),
        ({"metric_dtypes": ["float16", "int64"]}, MetricValueError, "float16"),
        ({"num_workers": 2, "worker_id": 2}, ConfigError, "worker_id: 2"),
        ({"num_threads": 2, "specific_threads": [2]}, ConfigError, "specific_threads: 2"),
        ({"num_threads": 0}, ConfigError, "num_threads must be at least 1"),
        ({"metric_names": ["../value", "sum"]}, MetricNameError, "can't be the name"),
        ({"num_workers": 2}, ConfigError, "torch.distributed is initialised"),
    ],
)
def test_wrong_arguments(tmp_path: Path, wrong: dict, error: type[Exception], complaint: str) -> None:
    with pytest.raises(error, match=complaint):
        ads.DataAnalyzer(**two_metrics(torch.arange(4), tmp_path, **wrong)).run_map_reduce()


def test_a_metric_that_raises_names_the_sample(tmp_path: Path) -> None:
    def picky(batch):
        if (batch == 7).any():
            raise ZeroDivisionError("seven")
        return batch

    with pytest.raises(MetricFailedError, match=r"'value' raised ZeroDivisionError on sample 7: seven"):
        ads.DataAnalyzer(
            **two_metrics(torch.arange(20), tmp_path, metric_functions=[picky, batch_sum])
        ).run_map_reduce()


def test_distributed_analyzer_on_one_process_keeps_types(tmp_path: Path) -> None:
    large = torch.tensor([2**24 + 1, 2**53 + 1, -5])
    index = ads.DistributedDataAnalyzer(
        TensorDataset(large),
        num_threads=2,
        metric_names=["value", "sum", "half"],
        metric_functions=[same, batch_sum, lambda batch: batch / 2],
        metric_types=[PER_SAMPLE, TOTAL, PER_SAMPLE],
        save_path=tmp_path,
    ).run_map_reduce()
    assert index["value"].values.tolist() == large.tolist()
    assert index.totals["sum"].tolist() == large.sum()
    assert index["half"].dtype == np.float32


RANKS = """
import os, sys, torch, torch.distributed as dist
sys.path.insert(0, os.environ["ORACLE"])
from analyzer_oracle import TensorDataset, same, batch_sum
from arrowds.integrations import deepspeed as ads
from arrowds.errors import WorkerDiedError
rank, root = int(os.environ["RANK"]), os.environ["ROOT"]
how = dict(batch_size=16, metric_names=["value", "sum"],
           metric_types=["single_value_per_sample", "accumulate_value_over_samples"])
functions = [same, batch_sum]
values = (torch.arange(3000) * 7919) % 1000
first = ads.DistributedDataAnalyzer(TensorDataset(values), num_workers=2, worker_id=rank, save_path=f"{root}/even",
                                    metric_functions=functions, **how)
index = first.run_map_reduce()
assert index["value"].values.tolist() == values.tolist() and index.totals["sum"] == values.sum()
one = ads.DistributedDataAnalyzer(TensorDataset(values[:1]), comm_group=dist.group.WORLD,
                                  save_path=f"{root}/one_sample", metric_functions=functions, **how)
assert one.num_workers == 2 and one.run_map_reduce()["value"].values.tolist() == [0]
shared = ads.DataAnalyzer(TensorDataset(values), num_workers=2, worker_id=rank, save_path=f"{root}/shared",
                          metric_functions=functions, metric_dtypes=[torch.int64] * 2, **how)
assert shared.run_map_reduce()["value"].values.tolist() == values.tolist()
def fails(batch):
    raise ZeroDivisionError("on one rank")
for first in (fails, fails if rank else same):
    try:
        ads.DistributedDataAnalyzer(TensorDataset(values), num_workers=2, worker_id=rank, save_path=f"{root}/failed",
                                    metric_functions=[first, batch_sum], **how).run_map_reduce()
        print("RANK", rank, "no error")
    except Exception as error:
        os.write(1, f"RANK {rank} {type(error).__name__} {error}\\n".encode())  # one piece: ranks share a pipe
dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # gloo's threads may outlive the interpreter, and then abort it on the way out
"""


def test_two_gloo_ranks_also_with_a_rank_without_samples_and_one_that_fails(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone", str(script)]
    environment = os.environ | {"ORACLE": str(Path(__file__).parent), "ROOT": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launcher, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told = [line for line in done.stdout.splitlines() if line.startswith("RANK")]
    raised = re.compile(r"RANK . MetricFailedError (rank .: )?metric 'value' raised Zero")
    failed = [line for line in told if raised.match(line)]
    assert {line[5] for line in failed} == {"0", "1"}
    differing = [
        line for line in told if "ConfigError the ranks differ: rank 1 has another code of the metrics" in line
    ]
    assert {line[5] for line in differing} == {"0", "1"}
    values = (torch.arange(3000) * 7919) % 1000
    ads.DataAnalyzer(**two_metrics(values, tmp_path / "alone", metric_dtypes=())).run_map_reduce()
    assert files_of(tmp_path / "alone") == files_of(tmp_path / "even")


def test_a_killed_worker_process_is_noticed(tmp_path: Path) -> None:
    analyzer = ads.DataAnalyzer(**light_arguments(tmp_path, num_threads=2), **HOOKS | {"custom_map_finalize": die})
    # Both shares end their workers; which of them is tried a second time first is up to the system.
    with pytest.raises(WorkerDiedError, match=r"exit status 3 on samples (0 to 4|5 to 9), 2 times"):
        analyzer.run_map()
