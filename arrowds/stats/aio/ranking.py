"""The best setting: settings ranked by the median speed of their logs."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl
import pyarrow as pa

from arrowds.errors import ConfigError

RULES = ("both", "read_speed", "write_speed", "sum")
"""What :func:`rank` and :func:`best` can rank settings by."""

_SETTING = (
    "block_size_bytes",
    "queue_depth",
    "io_parallel",
    "processes",
    "single_submit",
    "overlap_events",
    "gpu",
    "use_gds",
    "io_size_bytes",
    "target",
)
_NEEDED = (*_SETTING, "operation", "engine", "e2e_speed_gib_s", "status", "arguments")
_ENGINES = ("aio_handle", "aio_basic")
# A tie goes to the cheapest setting: fewer threads, a shallower queue, smaller blocks, DeepSpeed's defaults.
_TIES = (
    "io_parallel",
    "processes",
    "queue_depth",
    "block_size_bytes",
    "single_submit",
    "sequential",
    "gpu",
    "use_gds",
    "io_size_bytes",
    "target",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class BestSetting:
    """The best of all measured settings, and its measurements.

    Attributes:
        by: the rule that chose it.
        block_size_bytes: bytes per I/O request.
        queue_depth: requests in flight.
        io_parallel: threads per operation.
        processes: processes that did I/O at the same time.
        single_submit: requests are submitted one by one.
        overlap_events: requests are submitted before earlier ones have completed.
        gpu: the buffers were in GPU memory.
        use_gds: through GPUDirect Storage.
        io_size_bytes: bytes of one operation; None: the logs do not say.
        target: the folders; None: the logs do not say.
        read_speed_gib_s: median over the read logs of the setting; None: it has none.
        write_speed_gib_s: likewise for writes.
        read_logs: number of read logs of the setting.
        write_logs: number of write logs.
        score: the quantity that the rule maximises.
    """

    by: str
    block_size_bytes: int
    queue_depth: int
    io_parallel: int
    processes: int | None
    single_submit: bool
    overlap_events: bool
    gpu: bool | None
    use_gds: bool | None
    io_size_bytes: int | None
    target: str | None
    read_speed_gib_s: float | None
    write_speed_gib_s: float | None
    read_logs: int
    write_logs: int
    score: float


def rank(table: pa.Table, *, by: str = "both") -> pa.Table:
    """Rank every setting of a table of logs, the best first.

    Only logs with status ``ok`` count, and of the engines those that the ``aio`` block configures, not ``torch_io``.
    Logs of the same setting, folders and I/O size are repetitions: their median speed counts. The rules:

    - ``both``: the geometric mean of read and write speed, each over the best of its kind in the table. In (0, 1].
    - ``read_speed``, ``write_speed``: that speed alone, in GiB/s.
    - ``sum``: read plus write speed in GiB/s, as DeepSpeed's tuner adds them; the faster direction dominates.

    Equal scores go to the cheapest setting: fewer threads and processes, then the shallower queue, then the
    smaller block.

    Args:
        table: what ``read_logs`` returned, or part of it.
        by: one of ``RULES``.

    Returns:
        A row per setting that the rule can rank: the setting, ``read_speed_gib_s``, ``write_speed_gib_s``,
        ``read_logs``, ``write_logs`` and ``score``.

    Raises:
        ConfigError: for an unknown rule, a table of other columns, or one without a setting that the rule can rank.
    """
    if by not in RULES:
        raise ConfigError(f"by is {by!r}, expected one of {', '.join(RULES)}")
    if missing := [name for name in _NEEDED if name not in table.column_names]:
        raise ConfigError(
            f"the table has no column {', '.join(missing)}; give what arrowds.stats.aio.read_logs returned"
        )
    speeds = _speeds(pl.DataFrame(table.select(_NEEDED)))
    ranked = _scored(speeds, by).drop_nulls("score")
    if ranked.is_empty():
        raise ConfigError(_nothing_to_rank(table, speeds, by))
    ranked = ranked.with_columns(sequential=~pl.col("overlap_events"))
    ranked = ranked.sort(["score", *_TIES], descending=[True] + [False] * len(_TIES), nulls_last=True)
    return ranked.drop("sequential").to_arrow(compat_level=pl.CompatLevel.oldest())


def best(table: pa.Table, *, by: str = "both") -> BestSetting:
    """Return the first of ``rank``: the best setting for reads, writes or both.

    Args:
        table: what ``read_logs`` returned, or part of it.
        by: ``both``, ``read_speed``, ``write_speed`` or ``sum``.

    Raises:
        ConfigError: as ``rank`` does.

    >>> from arrowds.stats.aio import SCHEMA
    >>> logs = pa.Table.from_pylist(
    ...     [{"operation": "read", "queue_depth": depth, "e2e_speed_gib_s": speed, "status": "ok"}
    ...      for depth, speed in [(4, 1.0), (8, 1.5), (8, 9.0), (8, 1.4), (16, 1.2)]],
    ...     schema=SCHEMA)
    >>> setting = best(logs, by="read_speed")
    >>> setting.queue_depth, setting.read_speed_gib_s, setting.read_logs
    (8, 1.5, 3)
    """
    first = rank(table, by=by).slice(0, 1).to_pylist()[0]
    return BestSetting(by=by, **first)


def _speeds(logs: pl.DataFrame) -> pl.DataFrame:
    """Return a row per setting with the median speed of its read and of its write logs."""
    usable = (pl.col("status") == "ok") & (pl.col("engine").is_null() | pl.col("engine").is_in(_ENGINES))
    # The older scripts name the size of a write only: there it would part the writes from their reads.
    with_read_size = pl.col("arguments").str.contains('"io_size"', literal=True)
    logs = logs.filter(usable).with_columns(io_size_bytes=pl.when(with_read_size).then("io_size_bytes"))
    columns = []
    for operation in ("read", "write"):
        speed = pl.col("e2e_speed_gib_s").filter(pl.col("operation") == operation)
        columns += [speed.median().alias(f"{operation}_speed_gib_s"), speed.len().alias(f"{operation}_logs")]
    return logs.group_by(_SETTING).agg(columns)


def _scored(speeds: pl.DataFrame, by: str) -> pl.DataFrame:
    read, write = pl.col("read_speed_gib_s"), pl.col("write_speed_gib_s")
    rules = {
        "both": (read / read.max() * (write / write.max())).sqrt(),
        "read_speed": read,
        "write_speed": write,
        "sum": read + write,
    }
    return speeds.with_columns(score=rules[by])


def _nothing_to_rank(table: pa.Table, speeds: pl.DataFrame, by: str) -> str:
    counts = {name: speeds.get_column(f"{name}_logs").sum() for name in ("read", "write")}
    needs = {"read_speed": "a read log", "write_speed": "a write log"}.get(by, "both a read and a write log")
    return (
        f"no setting has {needs} with a result, which by={by!r} needs: of {table.num_rows} logs, "
        f"{counts['read']} reads and {counts['write']} writes are usable; "
        "see the columns status and error, or choose another rule"
    )
