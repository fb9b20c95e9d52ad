"""What a notebook shows of an index and of a metric: a table in plain HTML, which loads nothing from anywhere."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Any

from arrowds.index.metric import MetricIndex

LEVELS = {"min": 0.0, "p1": 0.01, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p99": 0.99, "max": 1.0}
"""The quantiles that describe a metric, by the name of their column."""


def levels_of(metric: MetricIndex) -> dict[str, Any]:
    """Return the quantiles of a metric by their names as Python numbers; None without any value, and of a category."""
    has_levels = metric.num_valid and not metric.is_categorical
    levels = metric.quantile(list(LEVELS.values())).tolist() if has_levels else [None] * len(LEVELS)
    return dict(zip(LEVELS, levels, strict=True))


def type_of(metric: MetricIndex) -> str:
    """Return what the values are, for people."""
    return "category" if metric.is_categorical else str(metric.dtype)


def ends_of(metric: MetricIndex) -> dict[str, Any]:
    """Return the smallest and the largest value alone, which the manifest has."""
    buckets = [bucket for column in metric.spec.columns for bucket in column.buckets]
    if not buckets or metric.is_categorical:
        return {}
    return {"min": min(bucket.low for bucket in buckets), "max": max(bucket.high for bucket in buckets)}


def metrics_table(title: str, metrics: Iterable[tuple[MetricIndex, dict[str, Any]]]) -> str:
    """Return the table of some metrics with their quantiles, under a title."""
    head = "".join(f"<th>{name}</th>" for name in ("metric", "type", "samples", *LEVELS))
    rows = "".join(
        f"<tr><th>{escape(metric.name)}</th><td>{type_of(metric)}</td><td>{metric.num_valid:,}</td>"
        + "".join(f"<td>{escape(_shown(levels.get(name)))}</td>" for name in LEVELS)
        + "</tr>"
        for metric, levels in metrics
    )
    return f"<table><caption>{escape(title)}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _shown(level: Any) -> str:
    if level is None:
        return ""
    if isinstance(level, float):
        return f"{level:.6g}"
    return str(level) if isinstance(level, bool) else f"{level:,}"
