"""The chart of a run: the loss of each step, and the difficulty of each metric below it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa

from arrowds.errors import MissingExtraError
from arrowds.store import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHART = "run.svg"


def draw_run(losses: pa.Table, difficulties: pa.Table) -> Figure:
    """Draw the loss over steps and, with a curriculum, a panel for each metric's difficulty.

    Raises:
        MissingExtraError: when matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error
    by_metric = pl.DataFrame(difficulties).partition_by("metric", as_dict=True, maintain_order=True)
    figure = Figure(figsize=(8, 3 + 1.6 * len(by_metric)), layout="constrained")
    panels = figure.subplots(
        1 + len(by_metric), squeeze=False, sharex=True, height_ratios=[2.5, *(1 for _ in by_metric)]
    )[:, 0]
    panels[0].plot(losses["step"].to_numpy(), losses["loss"].to_numpy(), color="tab:blue")
    panels[0].set(ylabel="loss", title=f"{losses.num_rows:,} steps")
    for panel, ((metric,), rows) in zip(panels[1:], by_metric.items(), strict=True):
        panel.step(rows["step"].to_numpy(), rows["difficulty"].to_numpy(), where="post", color="tab:orange")
        panel.set(ylabel=f"{metric} up to")
    panels[-1].set(xlabel="step")
    return figure


def plot_run(losses: pa.Table, difficulties: pa.Table, path: Path) -> None:
    """Draw a run into an SVG file; equal runs give equal bytes.

    Raises:
        MissingExtraError: when matplotlib is not installed.
        StorageError: when the file can't be written.
    """
    figure = draw_run(losses, difficulties)
    from matplotlib import rc_context

    with replacing(path) as draft, rc_context({"svg.hashsalt": "arrowds"}):
        figure.savefig(draft.path, format="svg", metadata={"Date": None})
