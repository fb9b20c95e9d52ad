"""Compare two indexes, or two versions of one: their samples, metrics, and how far distributions have moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from arrowds.index.metric import MetricIndex
from arrowds.index.notebook import type_of

if TYPE_CHECKING:
    from arrowds.index import Index

_SHARES = {"p1": 0.01, "p50": 0.5, "p99": 0.99}


def diff(a: Index, b: Index) -> pl.DataFrame:
    """Return a row for each metric of two indexes, those first whose distributions differ most.

    Columns: ``metric``; ``distance``, the largest difference between the shares of samples up to a value (the
    two-sample Kolmogorov-Smirnov statistic, 0 to 1), of a category half the sum of the differences of its shares (the
    total variation distance), null where one of the indexes has no such metric or no value of it; ``type_a``,
    ``samples_a`` (that have a value), ``p1_a``, ``p50_a``, ``p99_a``, and the same of b, null where there are none.

    >>> import arrowds, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     x = arrowds.metrics.column("x")
    ...     a = arrowds.analyze(pl.DataFrame({"x": [1, 2, 3, 4]}), x, f"{folder}/a", progress=False)
    ...     b = arrowds.analyze(pl.DataFrame({"x": [1, 2, 9, 9]}), x, f"{folder}/b", progress=False)
    ...     diff(a, b).select("metric", "distance", "p99_a", "p99_b").rows()
    [('x', 0.5, 4.0, 9.0)]
    """
    rows = []
    for name in dict.fromkeys([*a, *b]):
        pair = [index[name] if name in index.metrics else None for index in (a, b)]
        distance = None if None in pair else distance_between(*pair)  # type: ignore[arg-type]  # neither is None
        row: dict[str, Any] = {"metric": name, "distance": distance}
        for side, metric in zip("ab", pair, strict=True):
            row |= {f"{key}_{side}": value for key, value in _described(metric).items()}
        rows.append(row)
    numbers = {f"{key}_{side}": pl.Float64 for side in "ab" for key in _SHARES}
    counts = {f"samples_{side}": pl.Int64 for side in "ab"}
    schema = {"distance": pl.Float64, "type_a": pl.String, "type_b": pl.String, **numbers, **counts}
    found = (
        pl.DataFrame(rows, schema_overrides=schema) if rows else pl.DataFrame(schema={"metric": pl.String, **schema})
    )
    return found.sort("distance", descending=True, nulls_last=True, maintain_order=True)


def _described(metric: MetricIndex | None) -> dict[str, Any]:
    if metric is None:
        return {"type": None, "samples": None, **dict.fromkeys(_SHARES)}
    levels: list[float | None] = [None] * len(_SHARES)
    if metric.num_valid and not metric.is_categorical:
        levels = [float(level) for level in metric.quantile(list(_SHARES.values()))]
    return {"type": type_of(metric), "samples": metric.num_valid, **dict(zip(_SHARES, levels, strict=True))}


def distance_between(a: MetricIndex, b: MetricIndex) -> float | None:
    """Return how far two distributions are apart, 0 to 1, from the distinct values alone; None without any value."""
    if a.is_categorical != b.is_categorical or not (a.num_valid and b.num_valid):
        return None
    if a.is_categorical:
        shares = [m.distribution().select("value", share=pl.col("count") / m.num_valid) for m in (a, b)]
        both = shares[0].join(shares[1], on="value", how="full", coalesce=True).fill_null(0)
        return float((both["share"] - both["share_right"]).abs().sum() / 2)
    values, shares_of = [], []
    for metric in (a, b):
        counted = metric.distribution()
        values.append(counted["value"].cast(pl.Float64).to_numpy())
        shares_of.append(np.concatenate([[0.0], counted["cumulative_count"].to_numpy() / metric.num_valid]))
    places = np.concatenate(values)
    first, second = (
        shares[np.searchsorted(own, places, side="right")] for own, shares in zip(values, shares_of, strict=True)
    )
    return float(np.abs(first - second).max())


def common_samples(a: Index, b: Index) -> int:
    """Return how many samples of the second index were added from the same data as samples of the first."""
    known = {piece.fingerprint for segment in a.manifest.segments for piece in segment.pieces}
    pieces = (piece for segment in b.manifest.segments for piece in segment.pieces)
    return sum(piece.num_samples for piece in pieces if piece.fingerprint in known)
