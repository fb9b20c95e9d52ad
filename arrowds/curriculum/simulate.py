"""What a sampler would draw over a run, before anything is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from arrowds.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

    from arrowds.curriculum.sampler import GroupSampler


def simulate(sampler: GroupSampler, points: int = 20) -> pl.DataFrame:
    """Return what some steps of a run draw, from the first to the last; the position of the sampler stays.

    Columns: ``step``; ``samples``; ``tokens`` and ``fill`` (their share of the budgets), under a token budget;
    ``difficulty_NAME`` for each metric of a curriculum; ``mean_NAME`` and ``max_NAME`` of each metric that is a number;
    and, in a mixture, the share of the samples of each group, ``share_NAME``.

    Args:
        sampler: a :class:`arrowds.CurriculumSampler` or :class:`arrowds.MixtureSampler`.
        points: how many steps, evenly spread.

    Raises:
        ConfigError: when ``points`` is below 1.

    >>> import arrowds, polars as pl, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data = pl.DataFrame({"seqlen": [1 + row % 64 for row in range(1000)]})
    ...     index = arrowds.analyze(data, arrowds.metrics.column("seqlen"), folder, progress=False)
    ...     curriculum = {"seqlen": {"difficulty_type": "value", "clustering_type": "schedule_based",
    ...         "min_difficulty": 8, "max_difficulty": 64, "schedule_type": "fixed_linear",
    ...         "schedule_config": {"total_curriculum_step": 20, "difficulty_step": 8}}}
    ...     sampler = arrowds.CurriculumSampler(index, curriculum, micro_batch_size=20)
    ...     found = simulate(sampler, 3)
    ...     found.select("step", "samples", "difficulty_seqlen", "max_seqlen").rows()
    [(1, 20, 8, 8.0), (26, 20, 64, 64.0), (50, 20, 64, 64.0)]
    """
    import polars as pl

    if points < 1:
        raise ConfigError(f"points must be at least 1, got {points}")
    steps = np.unique(np.linspace(1, sampler.num_steps, points).round().astype(np.int64)).tolist()
    drawn = pl.DataFrame(sampler.trace(steps))
    difficulties = [name for name in drawn.columns if name.startswith("difficulty_")]
    places = ("step", "micro_batch", "rank", "sample_id", "group", *difficulties)
    numbers = [name for name in drawn.columns if name not in places and drawn[name].dtype.is_numeric()]
    told: list[pl.Expr] = [pl.len().alias("samples"), *(pl.col(name).first() for name in difficulties)]
    for name in numbers:
        told += [pl.col(name).mean().alias(f"mean_{name}"), pl.col(name).max().cast(pl.Float64).alias(f"max_{name}")]
    if "group" in drawn.columns:
        told += [(pl.col("group") == name).mean().alias(f"share_{name}") for name in sampler.groups]  # type: ignore[attr-defined]
    found = drawn.group_by("step", maintain_order=True).agg(told)
    if sampler.max_tokens is not None:
        tokens = [sampler.tokens_at(step) for step in steps]
        found.insert_column(2, pl.Series("tokens", [int(each.sum()) for each in tokens]))
        found.insert_column(3, pl.Series("fill", [float(each.mean()) / sampler.max_tokens for each in tokens]))
    return found
