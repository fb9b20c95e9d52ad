"""A chart of the speed over queue depth and block size, for reads and writes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa

from arrowds.errors import ConfigError, MissingExtraError

_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def plot(table: pa.Table, path: str | os.PathLike[str]) -> None:
    """Draw the speeds of a table of logs, one panel for reads and one for writes.

    A dot is a log. A line joins, for one block size, the best median over all other parameters at each queue depth.

    Args:
        table: what ``read_logs`` returned, or part of it.
        path: the image; its suffix (``.png``, ``.svg``, ``.pdf``) chooses the format.

    Raises:
        ConfigError: when no log has a result, or the suffix is not an image format.
        MissingExtraError: when matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error
    logs = pl.DataFrame(table).filter(status="ok").drop_nulls(["block_size_bytes", "queue_depth"])
    if logs.is_empty():
        raise ConfigError(f"none of the {table.num_rows} logs has a result to draw; see the columns status and error")
    operations = [name for name in ("read", "write") if name in logs.get_column("operation")]
    figure = Figure(figsize=(1.0 + 4.5 * len(operations), 4.2), layout="constrained")
    axes = figure.subplots(1, len(operations), squeeze=False, sharey=True)[0]
    sizes = sorted(logs.get_column("block_size_bytes").unique())
    for axis, operation in zip(axes, operations, strict=True):
        _draw(axis, logs.filter(operation=operation), operation, sizes)
    axes[0].set_ylabel("speed, end to end (GiB/s)")
    axes[0].set_ylim(bottom=0)
    handles = {line.get_label(): line for axis in axes for line in axis.get_lines() if line.get_marker() == "o"}
    figure.legend(handles.values(), handles.keys(), title="block size", frameon=False, loc="outside right center")
    figure.suptitle("NVMe speed by queue depth and block size")
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110)
    except ValueError as error:
        raise ConfigError(f"{path} can't be drawn: {error}") from error


def _draw(axis: Any, logs: pl.DataFrame, operation: str, sizes: list[int]) -> None:
    """Draw one operation; a block size has the same colour in every panel."""
    from matplotlib import colormaps

    others = [
        "io_parallel",
        "processes",
        "single_submit",
        "overlap_events",
        "gpu",
        "use_gds",
        "target",
        "io_size_bytes",
    ]
    for number, size in enumerate(sizes):
        colour = colormaps["viridis"](0.1 + 0.75 * number / max(1, len(sizes) - 1))
        of_size = logs.filter(block_size_bytes=size)
        axis.plot(of_size["queue_depth"], of_size["e2e_speed_gib_s"], ".", color=colour, alpha=0.35, markersize=5)
        medians = of_size.group_by("queue_depth", *others).agg(pl.col("e2e_speed_gib_s").median())
        line = medians.group_by("queue_depth").agg(pl.col("e2e_speed_gib_s").max()).sort("queue_depth")
        axis.plot(line["queue_depth"], line["e2e_speed_gib_s"], "o-", color=colour, markersize=4, label=_size(size))
    depths = sorted(logs.get_column("queue_depth").unique())
    axis.set_xscale("log", base=2)
    axis.set_xticks(depths, [str(depth) for depth in depths], minor=False)
    axis.set_xlabel("queue depth")
    axis.set_title(operation)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def _size(size: int) -> str:
    for unit, name in _UNITS:
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"
