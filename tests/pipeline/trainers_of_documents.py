"""Run what the pages about trainers say, in this process, and print as JSON what it came to.

Arguments: sections of training.md and other pages as NAME=PACKAGE; one whose package is not installed is left out.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import torch
from documents import DOCS, Ran, blocks_of, run

import arrowds

COMMON = "What all have in common"


def pretend_a_launcher() -> None:
    """Set what the launcher of DeepSpeed or torchrun sets, for one process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def section_of_training(title: str) -> list[float]:
    """Run a section after the common one; return the losses of both runs, or the shape of a batch where it draws."""
    page = DOCS / "training.md"
    names = run([*blocks_of(page, "python", section=COMMON), *blocks_of(page, "python", section=title)])[-1].names
    if "batches" in names:
        return list(next(names["batches"])["input_ids"].shape)
    return [names["in_one_go"], names["resumed"]]


class SquareOfTokens(torch.nn.Module):
    """A model that returns its loss as those of transformers do, or by itself."""

    def __init__(self, *, alone: bool) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(32, 32) for _ in range(3)])
        self.alone = alone

    def forward(self, input_ids: torch.Tensor) -> Any:
        values = input_ids.float() / 100
        for layer in self.layers:
            values = layer(values)
        loss = values.square().mean()
        return loss if self.alone else SimpleNamespace(loss=loss)


ADAM = {"type": "Adam", "params": {"lr": 1e-3, "torch_adam": True}}


def deepspeed_page() -> list[float]:
    """Run deepspeed.md with a dataset of as many samples as its batches need; return the losses of some of them."""
    page = DOCS / "deepspeed.md"
    lengths = pl.DataFrame({"seqlen": [1 + number * 7 % 2048 for number in range(3000)]})
    arrowds.analyze(lengths, arrowds.metrics.expr("seqlen", pl.col("seqlen")), "data/index", workers=1, progress=False)
    (settings,) = blocks_of(page, "json")
    Path("ds.json").write_text(json.dumps(json.loads(settings.code) | {"optimizer": ADAM}))
    dataset = [{"input_ids": torch.arange(32) * number % 97} for number in range(3000)]
    ran = run(blocks_of(page, "python"), {"model": SquareOfTokens(alone=False), "dataset": dataset})
    engine = ran[-1].names["engine"]
    return [float(engine.global_steps), 3 * 3000 // 256, len(engine.training_dataloader)]


def profiler_page() -> list[str]:
    """Run profiler.md with a model under ZeRO-3, then its commands; return what they printed."""
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "optimizer": ADAM,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }
    loader = [torch.arange(64).reshape(2, 32)] * 16
    Path("runs/profile").mkdir(parents=True)
    difficulties = {"step": range(1, 17), "metric": ["seqlen"] * 16, "difficulty": [512] * 16}
    pl.DataFrame(difficulties).write_parquet("runs/profile/difficulties.parquet")
    names = {"model": SquareOfTokens(alone=True), "config": config, "loader": loader}
    ran: list[Ran] = run(blocks_of(DOCS / "profiler.md", "python", "console"), names)
    return [ran[-1].output]


PAGES = {"deepspeed.md": deepspeed_page, "profiler.md": profiler_page}


def main(parts: dict[str, str]) -> dict[str, Any]:
    results = {}
    for name, package in parts.items():
        if importlib.util.find_spec(package) is None:
            continue
        if package == "deepspeed":
            pretend_a_launcher()
        results[name] = PAGES[name]() if name in PAGES else section_of_training(name)
    return results


if __name__ == "__main__":
    print("\nRESULT", json.dumps(main(dict(argument.split("=") for argument in sys.argv[1:]))))
    sys.stdout.flush()
