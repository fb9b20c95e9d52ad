"""Describe an index for people: a summary of each metric, and charts of its distribution, in a file or as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arrowds.errors import ConfigError, MissingExtraError
from arrowds.index import Index
from arrowds.index.metric import MetricIndex
from arrowds.schema import numpy_dtype
from arrowds.store import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PERCENTILES = (1, 25, 50, 75, 99)
_BLOCKS = " ▏▎▍▌▋▊▉█"


def describe(index: Index) -> dict[str, Any]:
    """Return what there is to know of an index as plain values, ready for JSON.

    Under ``metrics`` is a row per metric: name, type, stored_type, samples (that have a value), missing, distinct, min,
    p1, p25, p50, p75, p99, max (None without any value) and bytes (of all its files). Under ``totals``: name, type,
    shape, bytes.
    """
    manifest = index.manifest
    descriptions = list(dict.fromkeys(segment.description for segment in manifest.segments))
    return {
        "path": str(index.path),
        "version": index.version,
        "dataset": "; ".join(descriptions),
        "fingerprint": index.fingerprint,
        "format_version": manifest.format_version,
        "num_samples": index.num_samples,
        "segments": len(manifest.segments),
        "bytes": sum(entry.bytes for entry in manifest.files.values()),
        "metrics": [_describe_metric(index, name) for name in index],
        "totals": [
            {"name": name, "type": str(total.dtype), "shape": list(total.shape)}
            | {"bytes": sum(segment.totals[name].file.bytes for segment in manifest.segments)}
            for name, total in index.totals.items()
        ],
    }


def _describe_metric(index: Index, name: str) -> dict[str, Any]:
    entry, metric = index.manifest.metrics[name], index[name]
    shares = [0.0, *(percentile / 100 for percentile in PERCENTILES), 1.0]
    levels = metric.quantile(shares).tolist() if metric.num_valid else [None] * len(shares)
    columns = [segment.columns[name] for segment in index.manifest.segments]
    return {
        "name": name,
        "type": str(metric.dtype),
        "stored_type": str(numpy_dtype(metric.spec.stored)),
        "samples": metric.num_valid,
        "missing": index.num_samples - metric.num_valid,
        "distinct": metric.num_distinct,
        **dict(zip(["min", *(f"p{percentile}" for percentile in PERCENTILES), "max"], levels, strict=True)),
        "defined_with": {total: basis.version for total, basis in entry.basis.items()},
        "bytes": sum(file.bytes for column in columns for file in column.files(name).values()),
    }


def text_histogram(metric: MetricIndex, *, bins: int = 20, width: int = 80) -> str:
    """Draw a histogram: a bar, the count and the cumulative share in each line of at most ``width`` characters.

    A last line says how many infinite values are left out. A metric without any value gives "no values".

    >>> import arrowds, polars as pl, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data = pl.DataFrame({"x": [0, 1, 1, 4]})
    ...     index = arrowds.analyze(data, arrowds.metrics.expr("x", pl.col("x")), folder)
    ...     print(text_histogram(index["x"], bins=2, width=30))
    0.0 to 2.0 ██████████ 3  75.0%
    2.0 to 4.0 ███▍       1 100.0%
    """
    if not metric.num_valid:
        return "no values"
    frame = metric.histogram(bins)
    counts = frame["count"].to_list()
    edges = _edge_labels([*frame["lower"], frame["upper"][-1]])
    edge_width, count_width = max(map(len, edges)), max(len(f"{count:,}") for count in counts)
    bar_width = max(1, width - 2 * edge_width - count_width - 13)
    most, total, before = max(*counts, 1), max(sum(counts), 1), 0
    lines = []
    for number, count in enumerate(counts):
        before += count
        bar = _bar(count / most * bar_width)
        lines.append(
            f"{edges[number]:>{edge_width}} to {edges[number + 1]:>{edge_width}} "
            f"{bar:<{bar_width}} {count:>{count_width},} {before / total:>6.1%}"
        )
    return "\n".join([*lines, *filter(None, [_left_out(metric)])])


def _left_out(metric: MetricIndex) -> str:
    """Say how many values a histogram has no place for; nothing when it shows all."""
    infinite = metric.rank(-math.inf) + metric.num_valid - metric.rank(math.inf, side="left")
    if not infinite:
        return ""
    return f"{infinite:,} infinite value{'s are' if infinite > 1 else ' is'} not shown"


def _edge_labels(edges: Sequence[float]) -> list[str]:
    """Write edges with as many decimals as tell neighbours apart."""
    decimals = max(0, 1 - math.floor(math.log10(edges[1] - edges[0])))
    if decimals > 9 or max(abs(edges[0]), abs(edges[-1])) >= 10 ** (17 - decimals):
        return [f"{edge:.6g}" for edge in edges]
    return [f"{edge:,.{decimals}f}" for edge in edges]


def _bar(length: float) -> str:
    """Return a bar of ``length`` characters, in eighths of one."""
    eighths = round(length * 8)
    return _BLOCKS[8] * (eighths // 8) + (_BLOCKS[eighths % 8] if eighths % 8 else "")


def draw(metric: MetricIndex, *, bins: int = 50) -> Figure:
    """Draw the histogram of a metric and, over it, the share of samples up to each value.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error
    frame = metric.histogram(bins)
    edges = [*frame["lower"], frame["upper"][-1]]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.stairs(frame["count"].to_numpy(), edges, fill=True, color="tab:blue", alpha=0.6)
    axes.set(xlabel=metric.name, ylabel="samples", title=f"{metric.name}: {metric.num_valid:,} samples")
    axes.set_xlim(edges[0], edges[-1])
    if note := _left_out(metric) if metric.num_valid else "no values":
        axes.text(0.5, 0.97, note, transform=axes.transAxes, ha="center", va="top")
    cumulative = axes.twinx()
    cumulative.plot(edges, _cumulative_shares(metric, edges), color="tab:orange", label="cumulative")
    cumulative.set(ylabel="share of samples up to this value", ylim=(0, 1.02))
    return figure


def _cumulative_shares(metric: MetricIndex, edges: Sequence[float]) -> list[float]:
    return [metric.rank(edge) / max(metric.num_valid, 1) for edge in edges]


def plot(metric: MetricIndex, path: Path, *, bins: int = 50) -> None:
    """Draw a metric into a file whose suffix names the format: ``.png``, ``.svg`` or ``.pdf``; always the same bytes.

    Raises:
        ConfigError: for another suffix.
        StorageError: when the file can't be written.
        MissingExtraError: when matplotlib is not installed.
    """
    form = path.suffix.lower().removeprefix(".")
    if form not in ("png", "svg", "pdf"):
        raise ConfigError(f"{path} must end in .png, .svg or .pdf, which chooses the format of the picture")
    figure = draw(metric, bins=bins)
    from matplotlib import rc_context

    undated = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[form]
    with replacing(path) as draft, rc_context({"svg.hashsalt": "arrowds"}):
        figure.savefig(draft.path, format=form, dpi=150, metadata=undated)
