"""What the installed DeepSpeed's analyzers do where arrowds differs: writes FOLDER/found.json."""

import json
import logging
import os
import sys
from pathlib import Path

import numpy as np
import torch

PER_SAMPLE = ["single_value_per_sample"]
HEAVY = np.repeat([0, 1, 2], [2, 90, 8])


class Rows:
    """Samples that `make` makes of a row's number and value."""

    def __init__(self, values, make=None):
        self.values, self.make = values, make or plain_sample

    def __len__(self):
        return len(self.values)

    def __getitem__(self, i):
        return self.make(i, int(self.values[i]))


def field(batch):
    return batch["x"]


def same(batch):
    return batch


def half(batch):
    return batch / 2


def exits_from_five_on(batch):
    if (batch >= 5).any():
        os._exit(1)
    return batch


def plain_sample(i, value):
    return value


def dict_sample(i, value):
    return {"x": value}


def main(folder: Path) -> dict:
    import deepspeed
    from deepspeed.runtime.data_pipeline.data_sampling import data_analyzer
    from deepspeed.runtime.data_pipeline.data_sampling.indexed_dataset import MMapIndexedDataset

    messages: list[str] = []
    data_analyzer.logger.handlers = [_Collector(messages)]

    def run(name, values, function=same, *, make=plain_sample, reduce=True, dtype=torch.int64, **arguments):
        analyzer = data_analyzer.DataAnalyzer(
            Rows(values, make),
            metric_names=["m"],
            metric_functions=[function],
            metric_types=PER_SAMPLE,
            metric_dtypes=[dtype],
            save_path=str(folder / name),
            **{"batch_size": 4} | arguments,
        )
        analyzer.run_map()
        if reduce:
            analyzer.run_reduce()

    def read(name, kind):
        pair = MMapIndexedDataset(str(folder / name / "m" / f"m_{kind}"), skip_warmup=True)
        return [pair[row].tolist() for row in range(len(pair))]

    found: dict = {}
    run("dict", range(10), field, make=dict_sample)
    found["dict"] = read("dict", "index_to_sample")
    found["dead_child"] = _outcome(lambda: run("dead", range(10), exits_from_five_on, num_threads=2, reduce=False))
    run("many", range(300))
    found["files"] = sum(path.suffix == ".csv" for path in (folder / "many").rglob("*"))
    found["empty_splits"] = _outcome(lambda: run("empty", range(3), num_threads=8, num_threads_reduce=8))
    found["float"] = _outcome(lambda: run("float", range(10), half, dtype=torch.float32))
    run("remapped", [5, 6, 7], sample_indices=[2, 0, 1])
    found["remapped"] = read("remapped", "sample_to_metric")
    messages.clear()
    data_analyzer.logger.setLevel(logging.INFO)
    run("heavy", HEAVY)
    found["percentiles"] = [message for message in messages if "th percentile" in message]
    found["merged"] = [len(row) for row in read("heavy", "index_to_sample_percentile_merged")]

    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    deepspeed.init_distributed("gloo", verbose=False)
    data_analyzer.DistributedDataAnalyzer(
        Rows([2**24, 1]),
        num_threads=2,
        metric_names=["m"],
        metric_functions=[torch.sum],
        metric_types=["accumulate_value_over_samples"],
        save_path=str(folder / "ranks"),
        device="cpu",
    ).run_map_reduce()
    found["float32"] = read("ranks", "metric_value")
    return found


class _Collector(logging.Handler):
    def __init__(self, messages):
        super().__init__()
        self.messages = messages

    def emit(self, record):
        self.messages.append(record.getMessage())


def _outcome(call) -> str:
    try:
        call()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


if __name__ == "__main__":
    outcome = main(Path(sys.argv[1]))
    (Path(sys.argv[1]) / "found.json").write_text(json.dumps(outcome))
