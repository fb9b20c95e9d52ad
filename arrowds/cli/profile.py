"""``arrowds profile``: tables and charts of recorded ZeRO-3 parameter fetches."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import polars as pl
import pyarrow as pa
import typer
from rich.console import Console
from rich.table import Table

from arrowds.errors import ConfigError, StorageError

app = typer.Typer(name="profile", no_args_is_help=True, help="Show what attach_profiler recorded of a ZeRO-3 run.")

Folder = Annotated[Path, typer.Argument(help="The folder passed to attach_profiler or write.")]
Difficulties = Annotated[
    Path | None,
    typer.Option(help="A Parquet or Arrow file (or a folder of them) with the columns step, metric, difficulty."),
]

_UNITS = {
    "total_ns": ("total ms", 1e6),
    "mean_ns": ("mean us", 1e3),
    "p50_ns": ("p50 us", 1e3),
    "p99_ns": ("p99 us", 1e3),
}


@app.command()
def show(
    folder: Folder,
    *,
    step: Annotated[int | None, typer.Option(help="Show only this step.")] = None,
    last: Annotated[int, typer.Option(min=1, help="Show the last N steps.")] = 5,
    by_rank: Annotated[
        bool, typer.Option("--by-rank", help="One line per rank instead of all ranks together.")
    ] = False,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Share of a step by which a rank must delay the others to be a straggler.")
    ] = 0.1,
    difficulties: Difficulties = None,
    csv: Annotated[
        bool, typer.Option("--csv", help="Print all columns as CSV, times in ns, and nothing else.")
    ] = False,
) -> None:
    """Print a table per step and event, and name the stragglers among the ranks.

    Example: arrowds profile show runs/profile --last 3 --by-rank
    """
    from arrowds.stats.profiler import read_difficulties, read_events, summarize, with_difficulties

    events = read_events(folder)
    summary = _steps(summarize(events, by_rank=by_rank), step=step, last=last)
    if difficulties is not None:
        summary = with_difficulties(summary, read_difficulties(difficulties))
    if csv:
        typer.echo(summary.write_csv(), nl=False)
        return
    console = Console(width=None if Console().is_terminal else 200)
    console.print(_table(summary))
    for line in _verdict(events, tolerance):
        console.print(line, soft_wrap=True)


def _steps(summary: pl.DataFrame, *, step: int | None, last: int) -> pl.DataFrame:
    if step is None:
        kept = summary["step"].unique().sort().tail(last)
        return summary.filter(pl.col("step").is_in(kept.implode()))
    chosen = summary.filter(pl.col("step") == step)
    if chosen.is_empty():
        raise ConfigError(f"no events of step {step}; steps are {summary['step'].min()!r} to {summary['step'].max()!r}")
    return chosen


def _table(summary: pl.DataFrame) -> Table:
    names = [name for name in summary.columns if name != "phase"]
    table = Table(title="Parameter fetches per step and event")
    for name in names:
        title = _UNITS[name][0] if name in _UNITS else name.replace("gb_per_s", "GB/s")
        table.add_column(title, justify="left" if name == "event" else "right")
    for row in summary.select(names).iter_rows(named=True):
        table.add_row(*(_cell(name, value) for name, value in row.items()))
    return table


def _cell(name: str, value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, int | float) and name in _UNITS:
        return f"{value / _UNITS[name][1]:,.1f}"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def _verdict(events: pa.Table, tolerance: float) -> list[str]:
    """Return the lines that name the stragglers, and the rule."""
    from arrowds.stats.profiler import stragglers

    ranks = stragglers(events, tolerance=tolerance)
    if ranks.is_empty():
        return ["Only one rank, so no stragglers."]
    lines = []
    for row in ranks.filter("straggler").iter_rows(named=True):
        if row["late_steps"] * 2 >= row["steps"]:
            waited = row["mean_lag_ns"] / 1e6
            lines.append(
                f"Straggler: rank {row['rank']} arrives late in {row['late_steps']} of {row['steps']} steps; "
                f"the median rank waits {waited:.1f} ms longer a step."
            )
        if row["slow_steps"] * 2 >= row["steps"]:
            excess = row["mean_excess_ns"] / 1e6
            lines.append(
                f"Straggler: rank {row['rank']} is slow to submit in {row['slow_steps']} of {row['steps']} steps; "
                f"it takes {excess:.1f} ms longer a step than the median rank."
            )
    lines = lines or [f"No stragglers among {len(ranks)} ranks."]
    rule = (
        f"Rule: late = waits less in *_fetch_wait than the median rank by over {tolerance:.0%} of the step; "
        "slow = takes longer in *_submit by as much; in at least half of the steps."
    )
    return [*lines, rule]


@app.command()
def plot(
    folder: Folder,
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The image; its suffix chooses the format: png, svg, pdf.")
    ] = Path("profile.png"),
    step: Annotated[int | None, typer.Option(help="The step of the timeline; by default the last one.")] = None,
    last: Annotated[int, typer.Option(min=1, help="Bars for the last N steps.")] = 40,
    difficulties: Difficulties = None,
) -> None:
    """Draw the timeline of a step, and the time per step and event of every rank.

    Example: arrowds profile plot runs/profile -o profile.svg --difficulties runs/difficulties.parquet
    """
    from arrowds.stats.profiler import draw_profile, read_difficulties, read_events

    joined = None if difficulties is None else read_difficulties(difficulties)
    figure = draw_profile(read_events(folder), step=step, last=last, difficulties=joined)
    try:
        figure.savefig(output)
    except ValueError as error:
        raise ConfigError(f"{output} has a suffix that is not an image format: {error}") from error
    except OSError as error:
        raise StorageError(error.errno, f"can't write {output}: {error}") from error
    typer.echo(f"wrote {output}")
