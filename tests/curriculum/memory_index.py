"""An index in memory: what a sampler needs of one, without files."""

from __future__ import annotations

import hashlib
from typing import Literal

import numpy as np

LINEAR = {"total_curriculum_step": 20, "difficulty_step": 8}


class MemoryMetric:
    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        plain = np.ma.getdata(values)
        valid = ~np.ma.getmaskarray(values)
        if plain.dtype.kind == "f":
            valid &= ~np.isnan(plain)
        ids = np.flatnonzero(valid)
        self.order = ids[np.argsort(plain[ids], kind="stable")].astype(np.uint32)
        self._sorted = plain[self.order]

    def __len__(self) -> int:
        return len(self.values)

    def rank(self, value: float, *, side: Literal["left", "right"] = "right") -> int:
        return int(np.searchsorted(self._sorted, value, side=side))


class MemoryIndex:
    def __init__(self, **metrics: np.ndarray) -> None:
        self._metrics = {name: MemoryMetric(values) for name, values in metrics.items()}
        self.num_samples = len(next(iter(metrics.values())))
        content = repr([(name, np.ma.getdata(values).tolist()) for name, values in metrics.items()])
        self.fingerprint = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    @property
    def metrics(self) -> list[str]:
        return list(self._metrics)

    def __getitem__(self, name: str) -> MemoryMetric:
        return self._metrics[name]


def linear(low: float, high: float, *, total: int = 20, multiple: int = 1, **more: object) -> dict[str, object]:
    """A metric's dictionary with a linear schedule."""
    return {
        "difficulty_type": "value",
        "clustering_type": "schedule_based",
        "min_difficulty": low,
        "max_difficulty": high,
        "schedule_type": "fixed_linear",
        "schedule_config": {"total_curriculum_step": total, "difficulty_step": multiple},
    } | more


def discrete(levels: list[float], last_steps: list[int], **more: object) -> dict[str, object]:
    """A metric's dictionary with a list of difficulties."""
    return {
        "difficulty_type": "value",
        "clustering_type": "schedule_based",
        "min_difficulty": min(levels),
        "max_difficulty": max(levels),
        "schedule_type": "fixed_discrete",
        "schedule_config": {"difficulty": levels, "max_step": last_steps},
    } | more
