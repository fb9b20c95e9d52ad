"""Summaries of events: times per step and event, stragglers, and a curriculum's difficulties joined by step."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from arrowds.errors import ConfigError

DIFFICULTY_COLUMNS = ("step", "metric", "difficulty")
_SUFFIXES = (".parquet", ".arrow", ".arrows", ".ipc", ".feather")
_SUBMITS = ("fetch_submit", "prefetch_submit")


def event_frame(events: pa.Table) -> pl.DataFrame:
    """Return the events as a Polars frame with plain strings."""
    frame = pl.from_arrow(events)
    if not isinstance(frame, pl.DataFrame):
        raise ConfigError(f"expected events as a pyarrow.Table, got {type(events).__name__}")
    return frame.with_columns(pl.col("phase", "event", "elements_of", "clock").cast(pl.String))


def summarize(events: pa.Table, *, by_rank: bool = False) -> pl.DataFrame:
    """Return count, elements and times per step and event.

    Args:
        events: the table of ``to_arrow`` or ``read_events``.
        by_rank: group by rank as well, instead of all ranks together.

    Returns:
        step, (rank,) phase, event, count, elements, total_ns, mean_ns, p50_ns, p99_ns and gb_per_s: the bytes of the
        group over its total time, in 10^9 bytes per second, null where the bytes are unknown. Sorted by its keys, the
        events as they first occurred. Percentiles interpolate linearly.
    """
    keys = ["step", "rank", "phase", "event"] if by_rank else ["step", "phase", "event"]
    total = pl.col("duration_ns").sum()
    known = pl.col("bytes").null_count() == 0
    return (
        event_frame(events)
        .group_by(keys, maintain_order=True)
        .agg(
            count=pl.len(),
            elements=pl.col("num_elements").sum(),
            total_ns=total,
            mean_ns=pl.col("duration_ns").mean(),
            p50_ns=pl.col("duration_ns").quantile(0.5, "linear"),
            p99_ns=pl.col("duration_ns").quantile(0.99, "linear"),
            gb_per_s=pl.when(known & (total > 0)).then(pl.col("bytes").sum() / total),
        )
        .sort(keys[:-2], maintain_order=True)
    )


def stragglers(events: pa.Table, *, tolerance: float = 0.1) -> pl.DataFrame:
    """Return which ranks are stragglers.

    Ranks wait for each other in a fetch: the one that arrives last waits least. A rank is *late* in a step when the
    median rank waited longer than it did (events ``*_fetch_wait``) by more than ``tolerance`` of the step's length,
    and *slow to submit* when it spent that much more than the median rank on submitting (``*_fetch_submit`` and
    ``*_prefetch_submit``). The length of a step is the longest, over ranks, from the start of its first event to the
    end of its last. A rank is a straggler when it is late, or slow to submit, in at least half of the steps.

    Returns:
        A row per rank: rank, steps, late_steps, slow_steps, mean_lag_ns (how much less than the median rank it waited),
        mean_excess_ns (how much longer than the median it submitted), straggler. No row for fewer than two ranks.
    """
    frame = event_frame(events)
    if frame["rank"].n_unique() < 2:
        frame = frame.clear()
    end = pl.col("start_ns") + pl.col("duration_ns")
    spent = pl.col("duration_ns")
    per_rank = frame.group_by("step", "rank").agg(
        span=end.max() - pl.col("start_ns").min(),
        waited=spent.filter(pl.col("event").str.ends_with("_fetch_wait")).sum(),
        submitted=spent.filter(
            pl.col("event").str.ends_with(_SUBMITS[0]) | pl.col("event").str.ends_with(_SUBMITS[1])
        ).sum(),
    )
    limit = pl.col("span").max().over("step") * tolerance
    lag = pl.col("waited").median().over("step") - pl.col("waited")
    excess = pl.col("submitted") - pl.col("submitted").median().over("step")
    return (
        per_rank.with_columns(lag=lag, excess=excess, late=lag > limit, slow=excess > limit)
        .group_by("rank")
        .agg(
            steps=pl.len(),
            late_steps=pl.col("late").sum(),
            slow_steps=pl.col("slow").sum(),
            mean_lag_ns=pl.col("lag").mean(),
            mean_excess_ns=pl.col("excess").mean(),
            straggler=(pl.col("late").mean() >= 0.5) | (pl.col("slow").mean() >= 0.5),
        )
        .sort("rank")
    )


def read_difficulties(path: str | Path) -> pl.DataFrame:
    """Read a run's difficulties: a row per step, a column per metric.

    Args:
        path: a Parquet or Arrow file with the columns step, metric and difficulty, or a folder of such files. If a
            step of a metric occurs twice, the later row counts.

    Raises:
        ConfigError: when no such file exists.
    """
    path = Path(path)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    frames = [
        frame for frame in (_difficulties(file) for file in files if file.suffix in _SUFFIXES) if frame is not None
    ]
    if not frames:
        raise ConfigError(
            f"no difficulties in {path}: expected a file ending in one of {', '.join(_SUFFIXES)} "
            f"with the columns {', '.join(DIFFICULTY_COLUMNS)}"
        )
    return (
        pl.concat(frames)
        .unique(["step", "metric"], keep="last", maintain_order=True)
        .pivot("metric", index="step", values="difficulty")
        .sort("step")
    )


def _difficulties(path: Path) -> pl.DataFrame | None:
    types = pa.schema({"step": pa.int64(), "metric": pa.string(), "difficulty": pa.float64()})
    try:  # not by Polars, which ends in a panic where some files are damaged
        table = _read_table(path)
        if not set(DIFFICULTY_COLUMNS) <= set(table.column_names):
            return None
        table = table.select(types.names)
        table.validate(full=True)  # before anything follows its offsets
        table = table.cast(types)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ConfigError(f"{path} can't be read: {error}") from error
    return pl.DataFrame(table)


def _read_table(path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        return pq.read_table(path, partitioning=None)
    with pa.OSFile(str(path)) as file:
        return (pa.ipc.open_stream if path.suffix == ".arrows" else pa.ipc.open_file)(file).read_all()


def with_difficulties(summary: pl.DataFrame, difficulties: pl.DataFrame) -> pl.DataFrame:
    """Add to each row of a summary the difficulties of its step, null where none was recorded."""
    return summary.join(difficulties, on="step", how="left", maintain_order="left")
