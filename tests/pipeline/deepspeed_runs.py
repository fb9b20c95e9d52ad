"""Runs with DeepSpeed ZeRO-3 on the CPU, in a process of their own: prints as JSON what they came to.

Arguments: a configuration file, a folder of Python files, a folder to write into.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from arrowds.demo import run_demo
from arrowds.errors import StateMismatchError
from arrowds.pipeline import run_pipeline
from arrowds.training_demo import run_training_demo


def main(configuration: Path, library: Path, folder: Path) -> dict[str, object]:
    values = json.loads(configuration.read_text())
    whole = run_pipeline({**values, "output": folder / "whole"})
    stopped = {**values, "output": folder / "stopped"}
    run_pipeline({**stopped, "training": {**values["training"], "steps": 5, "checkpoint_every": 2}})
    resumed = run_pipeline(stopped)
    try:
        run_pipeline({**stopped, "batches": {**values["batches"], "seed": 99}})
        refused = ""
    except StateMismatchError as error:
        refused = str(error)
    demo = run_training_demo(run_demo(folder / "demo", library=library), steps=4)
    return {
        "losses": whole.losses["loss"].to_pylist(),
        "rates": whole.losses["lr"].to_pylist(),
        "resumed_from": resumed.resumed_from,
        "same": resumed.losses.equals(whole.losses) and resumed.difficulties.equals(whole.difficulties),
        "refused": refused,
        "demo": [demo.resumed.resumed_from, demo.same_batches, demo.largest_difference, demo.whole_samples.num_rows],
    }


if __name__ == "__main__":
    result = main(*map(Path, sys.argv[1:4]))
    print("\nRESULT", json.dumps(result))
