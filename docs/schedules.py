"""Draw the pictures of schedules.md from the code on the page: python docs/schedules.py."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import arrowds

HERE = Path(__file__).parent
STEPS, BATCH = 400, 64


def curricula() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of the picture and the curriculum of each section."""
    for section in (HERE / "schedules.md").read_text(encoding="utf-8").split("\n## ")[1:]:
        title = section.split("\n", 1)[0]
        code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
        if code:
            found: dict[str, Any] = {}
            exec(code[1], found)
            yield f"schedule-{re.sub('[^a-z]+', '-', title.lower()).strip('-')}.png", found["curriculum"]


def make_index(folder: str) -> arrowds.Index:
    """An index of 25,600 samples: lognormal lengths, uniform quality."""
    random = np.random.default_rng(0)
    count = STEPS * BATCH
    data = pl.DataFrame(
        {
            "seqlen": np.minimum(random.lognormal(6, 1, count) + 1, 8192).astype(np.int64),
            "quality": random.random(count),
        }
    )
    metrics = [arrowds.metrics.expr(name, pl.col(name)) for name in data.columns]
    return arrowds.analyze(data, metrics, f"{folder}/index", workers=1, progress=False)


def main() -> None:
    """Write a picture of each section."""
    from matplotlib.figure import Figure

    with tempfile.TemporaryDirectory() as folder:
        index = make_index(folder)
        for name, curriculum in curricula():
            sampler = arrowds.CurriculumSampler(index, curriculum, micro_batch_size=BATCH)
            (metric,) = curriculum
            steps = np.repeat(np.arange(1, STEPS + 1), BATCH)
            values = index[metric].values[
                np.concatenate([sampler.global_batch_at(step) for step in range(1, STEPS + 1)])
            ]
            figure = Figure(figsize=(6, 2.4), layout="constrained")
            axes = figure.add_subplot()
            edges = np.geomspace(1, 8192, 41) if metric == "seqlen" else np.linspace(0, 1, 41)
            axes.hist2d(steps, values, bins=(np.arange(0, STEPS + 1, 10), edges), cmap="Blues")
            axes.set(xlabel="step", ylabel=metric, yscale="log" if metric == "seqlen" else "linear")
            if metric == "seqlen":
                axes.set_ylim(16, 8192)
            figure.savefig(HERE / "images" / name, dpi=110, metadata={"Software": None})


if __name__ == "__main__":
    main()
