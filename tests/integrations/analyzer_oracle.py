"""The installed DeepSpeed analyzer as an oracle: `python analyzer_oracle.py FOLDER` runs it over the cases saved there.

DeepSpeed starts a process for every piece of a reduce, which would take most of a test's time; with one map thread they
run in this process instead. It remains DeepSpeed's own code that reads, sorts and writes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

FILES = ("sample_to_metric", "index_to_metric", "index_to_sample", "index_to_sample_percentile_merged")


@dataclass(frozen=True, kw_only=True)
class Run:
    """How DeepSpeed's analyzer is run over a dataset of integers."""

    batch_size: int = 8
    num_workers: int = 1
    num_threads: int = 1
    num_threads_reduce: int = 1


def save_case(folder: Path, values: np.ndarray, run: Run) -> None:
    """Describe one dataset, one value per sample, for the oracle."""
    folder.mkdir(parents=True)
    np.save(folder / "values.npy", values)
    (folder / "run.json").write_text(json.dumps(asdict(run)), encoding="utf-8")


def run_oracle(folder: Path) -> None:
    """Run DeepSpeed's analyzer over every case below `folder`; each writes to its folder `deepspeed`."""
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        raise RuntimeError(f"the oracle failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def pair_bytes(folder: Path, metric: str, kinds: tuple[str, ...]) -> dict[str, bytes]:
    """Read the `.bin` and `.idx` files of one metric."""
    names = [f"{metric}/{metric}_{kind}{suffix}" for kind in kinds for suffix in (".bin", ".idx")]
    return {name: (folder / name).read_bytes() for name in names}


def same(batch):
    return batch


def batch_sum(batch):
    import torch

    return batch.to(torch.int64).sum()


def remainders(batch):
    import torch

    return torch.bincount(batch.to(torch.int64) % 7, minlength=7)


class TensorDataset:
    """A map-style dataset over the first axis of a tensor."""

    def __init__(self, tensor):
        self.tensor = tensor

    def __len__(self):
        return len(self.tensor)

    def __getitem__(self, i):
        return self.tensor[i]


class _InProcess:
    """What `multiprocessing.Process` is used for, in this process."""

    def __init__(self, *, target, args):
        self.call = lambda: target(*args)

    def start(self):
        self.call()

    def join(self):
        pass


class _LocalManager:
    """What `multiprocessing.Manager` is used for, in this process."""

    dict = staticmethod(dict)


def _analyze(folder: Path, analyzer_module) -> None:
    import torch

    run = Run(**json.loads((folder / "run.json").read_text(encoding="utf-8")))
    tensor = torch.from_numpy(np.load(folder / "values.npy"))
    for worker in [*range(1, run.num_workers), 0]:
        analyzer = analyzer_module.DataAnalyzer(
            TensorDataset(tensor),
            **asdict(run),
            worker_id=worker,
            metric_names=["value", "sum", "remainders"],
            metric_functions=[same, batch_sum, remainders],
            metric_types=["single_value_per_sample"] + ["accumulate_value_over_samples"] * 2,
            metric_dtypes=[tensor.dtype, torch.int64, torch.int64],
            save_path=str(folder / "deepspeed"),
        )
        analyzer.run_map()
    analyzer.run_reduce()


def main(folder: Path) -> None:
    import deepspeed.runtime.data_pipeline.data_sampling.data_analyzer as analyzer_module

    analyzer_module.logger.setLevel("ERROR")
    processes = analyzer_module.Process, analyzer_module.Manager
    for case in sorted(path.parent for path in folder.rglob("run.json")):
        in_process = json.loads((case / "run.json").read_text(encoding="utf-8"))["num_threads"] == 1
        analyzer_module.Process, analyzer_module.Manager = (_InProcess, _LocalManager) if in_process else processes
        _analyze(case, analyzer_module)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
