"""One figure of a profile: the timeline of a step and the time per step and event, rank beside rank."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from arrowds.errors import ConfigError, MissingExtraError
from arrowds.stats.profiler.summary import event_frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {
    "forward_fetch_wait": "#08519c",
    "forward_fetch_submit": "#3182bd",
    "forward_prefetch_submit": "#6baed6",
    "forward_all_gather": "#bdd7e7",
    "backward_fetch_wait": "#a63603",
    "backward_fetch_submit": "#e6550d",
    "backward_prefetch_submit": "#fd8d3c",
    "backward_all_gather": "#fdbe85",
}
_OTHER = "#969696"
_LINES = ("#111111", "#54278f", "#006d2c")
_NESTED = "_all_gather"  # happens within the submits, so stacking it would count the time twice


def draw_profile(
    events: pa.Table, *, step: int | None = None, last: int = 40, difficulties: pl.DataFrame | None = None
) -> Figure:
    """Draw the timeline of one step above the time per step, stacked by event, with a bar per rank.

    Args:
        events: the table of ``read_events``.
        step: the step of the timeline; by default the last one with events of every rank.
        last: how many of the last steps get bars.
        difficulties: step and a column per metric (``read_difficulties``), drawn as lines over the bars.

    Raises:
        ConfigError: when there are no events, or none of the step.
        MissingExtraError: when matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "report") from error

    frame = event_frame(events)
    if frame.is_empty():
        raise ConfigError("no events to draw")
    ranks = frame["rank"].unique().sort().to_list()
    chosen = _last_common_step(frame) if step is None else step
    in_step = frame.filter(pl.col("step") == chosen)
    if in_step.is_empty():
        raise ConfigError(f"no events of step {chosen}; steps are {frame['step'].min()!r} to {frame['step'].max()!r}")
    names = _ordered(in_step["event"].unique().to_list())
    height = 0.22 * len(ranks) * len(names) + 0.6
    figure = Figure(figsize=(11, 3 + height), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[height, 3])
    _timeline(above, in_step, ranks, names)
    _bars(below, frame, ranks, last)
    if difficulties is not None:
        _difficulty_lines(below, difficulties)
    handles, labels = below.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small", frameon=False)
    return figure


def _last_common_step(frame: pl.DataFrame) -> int:
    counts = frame.group_by("step").agg(ranks=pl.col("rank").n_unique())
    return int(counts.filter(pl.col("ranks") == pl.col("ranks").max())["step"].max())  # type: ignore[arg-type]  # the frame is not empty


def _ordered(names: list[str]) -> list[str]:
    known = [name for name in _COLOURS if name in names]
    return known + sorted(set(names) - set(known))


def _timeline(axes: Axes, frame: pl.DataFrame, ranks: list[int], names: list[str]) -> None:
    begin: Any = frame["start_ns"].min()
    lanes = [(rank, name) for rank in ranks for name in names]
    for lane, (rank, name) in enumerate(lanes):
        events = frame.filter((pl.col("rank") == rank) & (pl.col("event") == name))
        bars = events.select((pl.col("start_ns") - begin) / 1e6, pl.col("duration_ns") / 1e6)
        axes.broken_barh(list(bars.iter_rows()), (lane - 0.4, 0.8), color=_COLOURS.get(name, _OTHER))
    for first in range(len(names), len(lanes), len(names)):
        axes.axhline(first - 0.5, color="0.6", linewidth=0.8)
    axes.set_yticks(range(len(lanes)), [f"rank {rank}  {name}" for rank, name in lanes], fontsize="x-small")
    axes.invert_yaxis()
    axes.set_xlabel("ms since the step's first event")
    axes.set_title(f"Timeline of step {frame['step'][0]}", loc="left", fontsize="medium")


def _bars(axes: Axes, frame: pl.DataFrame, ranks: list[int], last: int) -> None:
    from matplotlib.ticker import MaxNLocator

    totals = frame.group_by("step", "rank", "event").agg(ms=pl.col("duration_ns").sum() / 1e6)
    steps = totals["step"].unique().sort().tail(last)
    names = _ordered(totals.filter(pl.col("step").is_in(steps.implode()))["event"].unique().to_list())
    width = 0.8 / len(ranks)
    for position, rank in enumerate(ranks):
        bottom = pl.zeros(len(steps), pl.Float64, eager=True)
        for name in names:
            if name.endswith(_NESTED):
                continue
            of_event = totals.filter((pl.col("rank") == rank) & (pl.col("event") == name))
            heights = steps.to_frame().join(of_event, on="step", how="left", maintain_order="left")["ms"].fill_null(0.0)
            left = steps.cast(pl.Float64) - 0.4 + width * (position + 0.5)
            axes.bar(
                left.to_numpy(),
                heights.to_numpy(),
                width * 0.92,
                bottom.to_numpy(),
                color=_COLOURS.get(name, _OTHER),
                label=name if position == 0 else None,
            )
            bottom = bottom + heights
    axes.set_xlabel("step")
    axes.set_ylabel("ms per step")
    axes.set_xlim(float(steps[0]) - 0.6, float(steps[-1]) + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    title = f"Time per step and event; bars of a step: {', '.join(f'rank {rank}' for rank in ranks)}"
    axes.set_title(title, loc="left", fontsize="medium")


def _difficulty_lines(axes: Axes, difficulties: pl.DataFrame) -> None:
    low, high = axes.get_xlim()
    shown = difficulties.filter(pl.col("step").is_between(low, high))
    lines = axes.twinx()
    for position, metric in enumerate(name for name in shown.columns if name != "step"):
        style: dict[str, Any] = {
            "color": _LINES[position % len(_LINES)],
            "linestyle": "--",
            "marker": ".",
            "linewidth": 1.2,
        }
        lines.plot(shown["step"].to_numpy(), shown[metric].to_numpy(), label=metric, **style)
        axes.plot([], [], label=f"difficulty: {metric}", **style)  # adds the line to the legend of the bars
    lines.set_ylabel("difficulty")
