"""Describe an index for people: a summary of each metric, and charts of its distribution, in a file or as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arrowds.errors import ConfigError, MissingExtraError
from arrowds.index import Index
from arrowds.index.metric import MetricIndex, warn_of_shares
from arrowds.index.notebook import levels_of, type_of
from arrowds.schema import numpy_dtype
from arrowds.store import replacing

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

_BLOCKS = " ▏▎▍▌▋▊▉█"


def describe(index: Index) -> dict[str, Any]:
    """Return what there is to know of an index as plain values, ready for JSON.

    Under ``metrics`` is a row per metric: name, type, stored_type, samples (that have a value), missing, distinct, min,
    p1, p25, p50, p75, p99, max (None without any value, and of a category), names (of a category, the most frequent
    ones with their counts), defined_with (of which version the totals are that it was defined with, by name) and bytes
    (of all its files). Under ``totals``: name, type, shape, bytes.
    """
    manifest = index.manifest
    descriptions = list(dict.fromkeys(segment.description for segment in manifest.segments))
    return {
        "path": str(index.path),
        "version": index.version,
        "operation": manifest.operation,
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
    columns = [segment.columns[name] for segment in index.manifest.segments]
    return {
        "name": name,
        "type": type_of(metric),
        "stored_type": str(numpy_dtype(metric.spec.stored)),
        "samples": metric.num_valid,
        "missing": index.num_samples - metric.num_valid,
        "distinct": metric.num_distinct,
        **levels_of(metric),
        **({"names": most_frequent(metric)} if metric.is_categorical else {}),
        "defined_with": {total: basis.version for total, basis in entry.basis.items()},
        "bytes": sum(file.bytes for column in columns for file in column.files(name).values()),
    }


def most_frequent(metric: MetricIndex, most: int = 20) -> dict[str, int]:
    """Return the most frequent names of a categorical metric with their counts, the largest first."""
    counts = metric.distribution().sort("count", descending=True, maintain_order=True).head(most)
    return dict(zip(counts["value"], counts["count"], strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """The bars of a chart: the samples with edges[i] <= value < edges[i + 1], the last bar with both of its edges.

    Attributes:
        edges: one more than there are bars, ascending.
        counts: samples of each bar.
        below: finite values before the first edge, which no bar counts.
        above: finite values after the last edge.
        log: whether the edges grow with the value.
    """

    edges: list[float]
    counts: list[int]
    below: int
    above: int
    log: bool


def bars(
    metric: MetricIndex, bins: int = 50, *, log: bool | None = None, between: tuple[float, float] | None = None
) -> Bars:
    """Choose bars in which the bulk of the samples can be told apart.

    They are those of :meth:`MetricIndex.histogram` unless the middle 98 % of the samples take less than a quarter of
    the range. Then they are logarithmic if no value is negative and most are small, else they end at these percentiles.

    Args:
        metric: of an open index.
        bins: how many bars at most.
        log: whether bars grow with the value; None: chosen by the data.
        between: two percentiles (0 to 100) at which bars begin and end; None: chosen by the data.

    Raises:
        ConfigError: when ``log`` is asked for negative values, or ``between`` is out of range or reversed.

    Warns:
        ArrowdsWarning: when ``between`` looks like shares of 1.

    >>> import arrowds, polars as pl, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     data = pl.DataFrame({"x": [*range(1, 999), 10_000, 100_000]})
    ...     index = arrowds.analyze(data, arrowds.metrics.expr("x", pl.col("x")), folder)
    ...     bars(index["x"], 4), bars(index["x"], 2, between=(0, 50)).counts
    (Bars(edges=[1.0, 18.0, 317.0, 5624.0, 100000.0], counts=[17, 299, 682, 2], below=0, above=0, log=True), [250, 250])
    """
    frame = metric.histogram(bins)
    low, high = frame["lower"][0], frame["upper"][-1]
    counted = frame["count"].sum()
    plain = Bars(edges=[*frame["lower"], high], counts=frame["count"].to_list(), below=0, above=0, log=False)
    if not counted:
        return plain
    levels = [min(max(float(level), low), high) for level in metric.quantile(_LEVELS).tolist()]
    first, median, last = levels[_LEVELS.index(0.01)], levels[_LEVELS.index(0.5)], levels[_LEVELS.index(0.99)]
    far_out = 0 < last - first < (high - low) / 4
    if between is not None:
        low, high = _percentile_bounds(metric, between, low, high)
    elif log is None and far_out:
        log = low >= 0 and high >= 10 * median
        low, high = (low, high) if log else (first, last)
    elif not log:
        return plain
    if log and low < 0:
        raise ConfigError(f"{metric.name!r} has values below zero, which have no logarithm; pass log=False")
    edges = _log_edges(metric, levels, low, high, bins) if log else _equal_edges(metric, low, high, bins)
    ranks = [metric.rank(edge, side="left") for edge in edges[:-1]] + [metric.rank(edges[-1])]
    start, stop = metric.rank(-math.inf), metric.rank(math.inf, side="left")
    counts = [after - before for before, after in pairwise(ranks)]
    return Bars(edges=edges, counts=counts, below=ranks[0] - start, above=stop - ranks[-1], log=bool(log))


def bars_table(
    metric: MetricIndex, bins: int = 50, *, log: bool | None = None, between: tuple[float, float] | None = None
) -> pl.DataFrame:
    """Return the :func:`bars` of a metric, a row for each: ``lower``, ``upper``, ``count``; of a category ``name``."""
    import polars as pl

    if metric.is_categorical:
        named = most_frequent(metric, bins)
        return pl.DataFrame({"name": list(named), "count": list(named.values())})
    chosen = bars(metric, bins, log=log, between=between)
    return pl.DataFrame({"lower": chosen.edges[:-1], "upper": chosen.edges[1:], "count": chosen.counts})


_LEVELS = [0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999]
_MOST_DECADES = 8


def _percentile_bounds(
    metric: MetricIndex, between: tuple[float, float], low: float, high: float
) -> tuple[float, float]:
    first, last = between
    if not 0 <= first < last <= 100:
        raise ConfigError(f"percentiles must be 0 <= LO < HI <= 100, got between={between}")
    warn_of_shares(first, last)
    shares = [first / 100, last / 100]
    lower, upper = (min(max(float(level), low), high) for level in metric.quantile(shares).tolist())
    return lower, upper


def _equal_edges(metric: MetricIndex, low: float, high: float, bins: int) -> list[float]:
    """The edges of equal bins; between integers no more bins than there are."""
    if low == high:
        low, high = low - 0.5, high + 0.5
    elif metric.dtype.kind in "iu":
        bins = min(bins, round(high - low))
    return sorted({low + (high - low) * (number / bins) for number in range(bins)} | {high})


def _log_edges(metric: MetricIndex, levels: Sequence[float], low: float, high: float, bins: int) -> list[float]:
    """Edges in a constant ratio, rounded for integers. What is far below comes into one bin before them."""
    smallest = 1.0 if metric.dtype.kind in "iu" else next((level for level in levels if level > 0), high)
    start = low if low > 0 and math.log10(high / low) <= _MOST_DECADES else max(smallest, low)
    if bins < 2 or not 0 < start < high:
        return _equal_edges(metric, low, high, bins)
    before = [low] if low < start else []
    steps = max(bins - len(before), 1)
    grown = [start * (high / start) ** (number / steps) for number in range(steps)]
    if metric.dtype.kind in "iu":
        grown = [float(math.ceil(edge)) for edge in grown]
    return sorted({*before, *(edge for edge in grown if edge < high), high})


def text_histogram(
    metric: MetricIndex,
    *,
    bins: int = 20,
    width: int = 80,
    log: bool | None = None,
    between: tuple[float, float] | None = None,
) -> str:
    """Draw the :func:`bars` of a metric: in each line of ``width`` characters a bar, its count, the cumulative share.

    Lines of their own count what lies below and above the bars. A last line says how many infinite values are left out.
    A metric without any value gives "no values"; of a category the lines are its most frequent names.

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
    if metric.is_categorical:
        named = most_frequent(metric, bins)
        rest = metric.num_valid - sum(named.values())
        return _lines([*named.items(), *([("all others", rest)] if rest else [])], width)
    chosen = bars(metric, bins, log=log, between=between)
    edges = _edge_labels(chosen)
    edge_width = max(map(len, edges))
    rows = [
        (f"{low:>{edge_width}} to {high:>{edge_width}}", count)
        for low, high, count in zip(edges, edges[1:], chosen.counts, strict=False)
    ]
    if chosen.below:
        rows.insert(0, (f"below {edges[0]:>{edge_width}}", chosen.below))
    if chosen.above:
        rows.append((f"above {edges[-1]:>{edge_width}}", chosen.above))
    return "\n".join([_lines(rows, width), *filter(None, [_left_out(metric)])])


def _lines(rows: Sequence[tuple[str, int]], width: int) -> str:
    """Draw one bar for each label and count, with the count and the share up to it."""
    label_width, count_width = max(len(label) for label, _ in rows), max(len(f"{count:,}") for _, count in rows)
    bar_width = max(1, width - label_width - count_width - 9)
    most, total, before = max(*(count for _, count in rows), 1), max(sum(count for _, count in rows), 1), 0
    lines = []
    for label, count in rows:
        before += count
        bar = _bar(count / most * bar_width)
        lines.append(f"{label:>{label_width}} {bar:<{bar_width}} {count:>{count_width},} {before / total:>6.1%}")
    return "\n".join(lines)


def _left_out(metric: MetricIndex) -> str:
    """Say how many values a histogram has no place for; nothing when it shows all."""
    infinite = metric.rank(-math.inf) + metric.num_valid - metric.rank(math.inf, side="left")
    if not infinite:
        return ""
    return f"{infinite:,} infinite value{'s are' if infinite > 1 else ' is'} not shown"


def _edge_labels(chosen: Bars) -> list[str]:
    """Write edges with as many digits as tell neighbours apart."""
    edges = chosen.edges
    if all(edge.is_integer() and abs(edge) < 1e15 for edge in edges):
        if chosen.log:
            return [f"{edge:,.0f}" for edge in edges]
    elif chosen.log:
        digits = next((digits for digits in (3, 6) if len({f"{edge:.{digits}g}" for edge in edges}) == len(edges)), 17)
        return [f"{edge:,.0f}" if 1000 <= edge < 1e15 else f"{edge:.{digits}g}" for edge in edges]
    decimals = max(0, 1 - math.floor(math.log10(edges[1] - edges[0])))
    if decimals > 9 or max(abs(edges[0]), abs(edges[-1])) >= 10 ** (17 - decimals):
        return [f"{edge:.6g}" for edge in edges]
    return [f"{edge:,.{decimals}f}" for edge in edges]


def _bar(length: float) -> str:
    """Return a bar of ``length`` characters, in eighths of one."""
    eighths = round(length * 8)
    return _BLOCKS[8] * (eighths // 8) + (_BLOCKS[eighths % 8] if eighths % 8 else "")


def draw(
    metric: MetricIndex, *, bins: int = 50, log: bool | None = None, between: tuple[float, float] | None = None
) -> Figure:
    """Draw the :func:`bars` of a metric and, over them, the share of samples up to each value.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error
    if metric.is_categorical:
        return _draw_names(Figure(figsize=(8, 4.5), layout="constrained"), metric, bins)
    chosen = bars(metric, bins, log=log, between=between)
    edges = chosen.edges
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.stairs(chosen.counts, edges, fill=True, color="tab:blue", alpha=0.6)
    axes.set(xlabel=metric.name, ylabel="samples", title=f"{metric.name}: {metric.num_valid:,} samples")
    if chosen.log and edges[0] > 0:
        axes.set_xscale("log")
    elif chosen.log:
        axes.set_xscale("symlog", linthresh=edges[1])  # the bin of zero has a width, too
    axes.set_xlim(edges[0], edges[-1])
    if note := _note(metric, chosen):
        axes.text(0.5, 0.97, note, transform=axes.transAxes, ha="center", va="top")
    cumulative = axes.twinx()
    cumulative.plot(edges, _cumulative_shares(metric, edges), color="tab:orange", label="cumulative")
    cumulative.set(ylabel="share of samples up to this value", ylim=(0, 1.02))
    return figure


def _draw_names(figure: Figure, metric: MetricIndex, most: int) -> Figure:
    named = most_frequent(metric, most)
    axes = figure.add_subplot()
    axes.barh(list(named), list(named.values()), color="tab:blue", alpha=0.6)
    axes.invert_yaxis()
    axes.set(xlabel="samples", title=f"{metric.name}: {metric.num_valid:,} samples, {len(metric.names):,} names")
    return figure


def _note(metric: MetricIndex, chosen: Bars) -> str:
    """Say what a picture does not show."""
    if not metric.num_valid:
        return "no values"
    outside = f"{chosen.below:,} samples below and {chosen.above:,} above are not shown"
    return "\n".join(filter(None, [outside if chosen.below or chosen.above else "", _left_out(metric)]))


def _cumulative_shares(metric: MetricIndex, edges: Sequence[float]) -> list[float]:
    return [metric.rank(edge) / max(metric.num_valid, 1) for edge in edges]


def plot(
    metric: MetricIndex,
    path: Path,
    *,
    bins: int = 50,
    log: bool | None = None,
    between: tuple[float, float] | None = None,
) -> None:
    """Write the picture of :func:`draw` into a ``.png``, ``.svg`` or ``.pdf`` file; always the same bytes.

    Raises:
        ConfigError: for another suffix.
        StorageError: when the file can't be written.
        MissingExtraError: when matplotlib is not installed.
    """
    _check_picture(path)
    _write(draw(metric, bins=bins, log=log, between=between), path)


def plot_steps(steps: pl.DataFrame, path: Path) -> None:
    """Draw each column of :func:`arrowds.curriculum.trace.simulate` over the step, into a file as :func:`plot` does.

    Raises:
        ConfigError: for another suffix.
        StorageError: when the file can't be written.
        MissingExtraError: when matplotlib is not installed.
    """
    _check_picture(path)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error
    columns = [name for name in steps.columns if name != "step"]
    figure = Figure(figsize=(8, 1 + 1.4 * len(columns)), layout="constrained")
    for axes, name in zip(figure.subplots(len(columns), 1, sharex=True, squeeze=False)[:, 0], columns, strict=True):
        axes.plot(steps["step"].to_list(), steps[name].to_list(), color="tab:blue")
        axes.set_title(name, loc="left", fontsize="small")
    axes.set_xlabel("step")
    _write(figure, path)


def _check_picture(path: Path) -> None:
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"{path} must end in .png, .svg or .pdf, which chooses the format of the picture")


def _write(figure: Figure, path: Path) -> None:
    from matplotlib import rc_context

    form = path.suffix.lower().removeprefix(".")
    undated = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[form]
    with replacing(path) as draft, rc_context({"svg.hashsalt": "arrowds"}):
        figure.savefig(draft.path, format=form, dpi=150, metadata=undated)
