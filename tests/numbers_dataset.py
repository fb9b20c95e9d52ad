"""A map-style dataset that worker processes load quickly: NumPy alone, and metrics of every kind over it."""

from __future__ import annotations

import numpy as np

import arrowds
from arrowds.sources import TorchSource

ROWS = 5000  # five parts


class Numbers:
    def __init__(self, n: int = ROWS) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> dict[str, object]:
        return {"id": i, "x": i * 7919 % 1000, "tokens": np.arange(i % 4)}


def collate(samples: list[dict[str, object]]) -> dict[str, object]:
    batch: dict[str, object] = {name: np.array([sample[name] for sample in samples]) for name in ("id", "x")}
    return batch | {"tokens": [sample["tokens"] for sample in samples]}


def numbers() -> TorchSource:
    return TorchSource(Numbers(), batch_size=100, collate_fn=collate)


def metrics_of_numbers() -> list[arrowds.metrics.Metric]:
    return [
        arrowds.metrics.function("mod", lambda batch: batch["x"] % 97, dtype="int64"),
        arrowds.metrics.function("tenth", lambda batch: batch["x"] / 10),
        arrowds.metrics.vocab_rarity("tokens"),
        arrowds.metrics.function("sum", lambda batch: (batch["x"] / 3).sum(), kind="total"),
        arrowds.metrics.function("histogram", lambda batch: np.bincount(batch["x"]), kind="total"),
    ]
