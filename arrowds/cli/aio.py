"""``arrowds aio``: NVMe benchmark logs, the best setting among them, and the tuner itself."""

from __future__ import annotations

import contextlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import polars as pl
import pyarrow as pa
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from arrowds.errors import ConfigError
from arrowds.stats import aio
from arrowds.stats.aio.store import new_run_id
from arrowds.stats.aio.sweep import DEFAULT_SPACE, Finished, Scalar, Sweep, check_sweep, plan_jobs, run_sweep

app = typer.Typer(no_args_is_help=True, help="NVMe benchmark logs: import, compare, configure, measure.")

_GIB = 1 << 30
_WIDTH_OF_A_FILE = 160
_NUMBERS = {"block", "depth", "parallel", "processes", "GiB/s", "read GiB/s", "write GiB/s", "logs", "score"}

Source = Annotated[Path, typer.Argument(help="A Parquet file of 'aio import', or a folder of logs.", metavar="RESULTS")]
By = Annotated[str, typer.Option(help=f"What is best: {', '.join(aio.RULES)}.")]
Run = Annotated[str | None, typer.Option(help="Only the logs of this run id.")]
Target = Annotated[str | None, typer.Option(help="Only logs whose target contains this text, as /mnt/nvme0.")]


def _console(*, stderr: bool = False) -> Console:
    console = Console(stderr=stderr, highlight=False)
    return console if console.is_terminal else Console(stderr=stderr, highlight=False, width=_WIDTH_OF_A_FILE)


def _load(source: Path, *, run: str | None, target: str | None) -> pa.Table:
    """Load results and keep those of a run and of a target."""
    table = aio.load(source)
    logs = pl.DataFrame(table).with_row_index("row")
    if run is not None:
        if "run_id" not in logs.columns:
            raise ConfigError(f"{source} is a folder of logs, which has no runs; import it first, or omit --run")
        logs = logs.filter(pl.col("run_id") == run)
    if target is not None:
        logs = logs.filter(pl.col("target").str.contains(target, literal=True))
    if logs.is_empty():
        raise ConfigError(f"{source} has no logs of run {run or '(any)'} and target {target or '(any)'}")
    return table.take(logs.get_column("row").to_arrow())


@app.command("import")
def import_logs(
    logs: Annotated[list[Path], typer.Argument(help="Folders of logs, read to any depth.", metavar="LOGS...")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="The Parquet file to append to.")],
    run: Annotated[str | None, typer.Option(help="A name for this run; by default the time.")] = None,
) -> None:
    """Append logs of ds_nvme_tune or ds_io to a Parquet file, as one run; refuse logs that are already in it.

    Example: arrowds aio import _aio_bench_logs -o aio.parquet
    """
    table = pa.concat_tables([aio.read_logs(folder) for folder in logs])
    _append(table, output, run)


def _append(table: pa.Table, output: Path, run: str | None) -> None:
    appended = aio.append(table, output, run_id=run)
    if not appended.added:
        raise ConfigError(f"all {appended.duplicates} logs are already in {output}; nothing was imported")
    console = _console()
    console.print(f"run {appended.run_id}: {appended.added} logs added to {output}", soft_wrap=True)
    if appended.duplicates:
        console.print(f"{appended.duplicates} logs refused: already imported")
    bad = pl.DataFrame(table).filter(pl.col("status") != "ok")
    for row in bad.select("status", "file", "error").iter_rows():
        console.print(f"{row[0]}: {row[1]}: {row[2]}", style="yellow", markup=False, soft_wrap=True)


@app.command()
def show(
    source: Source,
    *,
    operation: Annotated[str | None, typer.Option(help="Only read or write.")] = None,
    status: Annotated[str | None, typer.Option(help=f"Only logs of a status: {', '.join(aio.STATUSES)}.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 40,
    run: Run = None,
    target: Target = None,
) -> None:
    """List logs, the fastest first; logs without a result with the reason.

    Example: arrowds aio show aio.parquet --operation read
    """
    _check_choice("--operation", operation, ("read", "write"))
    _check_choice("--status", status, aio.STATUSES)
    logs = pl.DataFrame(_load(source, run=run, target=target))
    if operation:
        logs = logs.filter(pl.col("operation") == operation)
    if status:
        logs = logs.filter(pl.col("status") == status)
    logs = logs.sort(["operation", "e2e_speed_gib_s", "file"], descending=[False, True, False], nulls_last=True)
    columns = ["operation", "block", "depth", "parallel", "submit", "order", "processes", "GiB/s", "target", "status"]
    table = _table([*columns, "file or reason"])
    for row in logs.head(limit).iter_rows(named=True):
        last = row["file"] if row["error"] is None else f"{row['file']}: {row['error']}"
        cells = [row["operation"], *_setting_cells(row), row["e2e_speed_gib_s"], row["target"], row["status"], last]
        table.add_row(*map(_cell, cells))
    console = _console()
    console.print(table)
    if logs.height > limit:
        console.print(f"{logs.height - limit} more; see them with --limit {logs.height}")


@app.command()
def best(
    source: Source,
    *,
    by: By = "both",
    top: Annotated[int, typer.Option(min=1, help="Settings to show.")] = 5,
    run: Run = None,
    target: Target = None,
) -> None:
    """Rank the settings by the median speed of their logs.

    'both' is the geometric mean of read and write speed, each over its best; 'sum' adds them as DeepSpeed's tuner does.

    Example: arrowds aio best aio.parquet --by read_speed
    """
    _check_choice("--by", by, aio.RULES)
    ranked = aio.rank(_load(source, run=run, target=target), by=by)
    columns = ["block", "depth", "parallel", "submit", "order", "processes"]
    table = _table([*columns, "read GiB/s", "write GiB/s", "logs", "score", "target"], title=f"by {by}")
    for row in ranked.slice(0, top).to_pylist():
        speeds = [row["read_speed_gib_s"], row["write_speed_gib_s"], row["read_logs"] + row["write_logs"]]
        table.add_row(*map(_cell, [*_setting_cells(row), *speeds, row["score"], row["target"]]))
    _console().print(table)


@app.command()
def config(
    source: Source,
    *,
    by: By = "both",
    check: Annotated[bool, typer.Option("--check", help="Also load it with the installed DeepSpeed.")] = False,
    run: Run = None,
    target: Target = None,
) -> None:
    """Print the best setting as the aio block of DeepSpeed's JSON configuration.

    Example: arrowds aio config aio.parquet > aio.json
    """
    _check_choice("--by", by, aio.RULES)
    block = aio.deepspeed_config(_load(source, run=run, target=target), by=by)
    if check:
        with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed logs to stdout, which is for the JSON
            aio.check_config(block)
    typer.echo(json.dumps(block, indent=2))


@app.command()
def plot(
    source: Source,
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="The image: .png, .svg or .pdf.")] = Path("aio.png"),
    run: Run = None,
    target: Target = None,
) -> None:
    """Draw speed over queue depth and block size, for reads and writes.

    Example: arrowds aio plot aio.parquet -o aio.png
    """
    aio.plot(_load(source, run=run, target=target), output)
    typer.echo(f"{output} written")


@app.command()
def sweep(
    folders: Annotated[list[Path], typer.Argument(help="Writable folders on the devices.", metavar="DIR...")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="The Parquet file to append to.")] = Path(
        "aio.parquet"
    ),
    logs: Annotated[Path, typer.Option(help="The folder for the logs, with a subfolder per sweep.")] = Path("aio_logs"),
    space: Annotated[Path | None, typer.Option("--sweep-config", help="DeepSpeed's JSON file of values.")] = None,
    block_size: Annotated[str | None, typer.Option(help="Values, as 128K,1M.")] = None,
    queue_depth: Annotated[str | None, typer.Option(help="Values, as 8,32.")] = None,
    io_parallel: Annotated[str | None, typer.Option(help="Values, as 1,4.")] = None,
    single_submit: Annotated[str | None, typer.Option(help="Values, as no,yes.")] = None,
    sequential: Annotated[str | None, typer.Option(help="Values, as no,yes.")] = None,
    io_size: Annotated[str, typer.Option(help="Bytes per operation and folder.")] = "400M",
    loops: Annotated[int, typer.Option(min=1, help="Timed repetitions.")] = 1,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds after which a job is stopped.")] = 120.0,
    read: Annotated[bool, typer.Option(help="Measure reads.")] = True,
    write: Annotated[bool, typer.Option(help="Measure writes.")] = True,
    gpu: Annotated[bool, typer.Option("--gpu", help="Transfer to GPU memory.")] = False,
    gds: Annotated[bool, typer.Option("--gds", help="Through GPUDirect Storage, with --gpu.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Start without asking.")] = False,
) -> None:
    """Run DeepSpeed's tuner over many settings and store the results, even if some jobs fail.

    Announces first what it will write, and asks. Without values it runs the default search space of ds_nvme_tune.

    Example: arrowds aio sweep /mnt/nvme0 --block-size 1M,8M --queue-depth 32 --io-parallel 1,4 --io-size 1G --yes
    """
    texts = {
        "block_size": block_size,
        "queue_depth": queue_depth,
        "io_parallel": io_parallel,
        "single_submit": single_submit,
        "sequential_requests": sequential,
    }
    operations = ["read"] * read + ["write"] * write
    run_id = new_run_id(datetime.now(UTC))
    plan = Sweep(
        folders=tuple(folders),
        log_folder=logs / run_id,
        jobs=plan_jobs(_space(space, texts), operations=operations),
        io_size=io_size,
        loops=loops,
        timeout_s=timeout,
        gpu=gpu,
        gds=gds,
    )
    check_sweep(plan)
    _announce(plan)
    if not yes:
        typer.confirm("Start?", abort=True, err=True)
    finished: list[Finished] = []
    try:
        _run(plan, finished)
    finally:
        if any(path.is_file() for path in plan.log_folder.rglob("*")):
            _append(aio.read_logs(plan.log_folder), output, run_id)
    if all(job.status != "ok" for job in finished):
        raise ConfigError(f"none of the {len(finished)} jobs has a result; error of the first: {finished[0].error}")


def _space(path: Path | None, texts: dict[str, str | None]) -> dict[str, Any]:
    """Return the search space of the file, or the default, updated with the values of the command line."""
    space: dict[str, Any] = dict(DEFAULT_SPACE)
    if path is not None:
        try:
            space = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} is not a sweep configuration: {error}") from error
        if not isinstance(space, dict):
            raise ConfigError(f"{path} is a {type(space).__name__}, expected an object of parameter: [values]")
    return space | {name: _values(name, text) for name, text in texts.items() if text is not None}


def _values(name: str, text: str) -> list[Scalar]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if name == "block_size":
        return list(words)
    truth = {"no": False, "false": False, "yes": True, "true": True}
    try:
        if name in {"single_submit", "sequential_requests"}:
            return [truth[word.lower()] for word in words]
        return [int(word) for word in words]
    except (KeyError, ValueError):
        expected = "yes or no" if name in {"single_submit", "sequential_requests"} else "integers"
        raise typer.BadParameter(f"{name} is {text!r}, expected {expected}, separated by commas") from None


def _announce(plan: Sweep) -> None:
    console = _console(stderr=True)
    console.print(
        f"{len(plan.jobs)} jobs of at most {plan.timeout_s:g} s each (at most {plan.longest_s / 60:.0f} min); "
        f"about {plan.disk_bytes / _GIB:.2f} GiB of disk in each of {len(plan.folders)} folders, removed at the "
        f"end; {plan.written_bytes / _GIB:.2f} GiB written in all. "
        f"DeepSpeed builds its operator before the first job, once, which takes minutes. Logs: {plan.log_folder}",
        soft_wrap=True,
        markup=False,
    )


def _run(plan: Sweep, done: list[Finished]) -> None:
    """Run the jobs with a progress bar; ``done`` grows as they end."""
    console = _console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("sweep", total=len(plan.jobs))
        for finished in run_sweep(plan):
            done.append(finished)
            progress.advance(task)
            progress.print(_line(finished), markup=False, soft_wrap=True)


def _line(finished: Finished) -> str:
    job = finished.job
    setting = f"{job.operation} block {job.block_size}, depth {job.queue_depth}, parallel {job.io_parallel}"
    setting += (", single" if job.single_submit else "") + (", sequential" if job.sequential_requests else "")
    if finished.speed_gib_s is not None:
        return f"{setting}: {finished.speed_gib_s:.2f} GiB/s"
    return f"{setting}: {finished.status}: {finished.error}"


def _check_choice(option: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise typer.BadParameter(f"{option} is {value!r}, expected one of {', '.join(choices)}")


def _setting_cells(row: dict[str, Any]) -> list[Any]:
    submit = {True: "single", False: "block"}.get(row["single_submit"])
    order = {True: "overlap", False: "sequential"}.get(row["overlap_events"])
    return [_size(row["block_size_bytes"]), row["queue_depth"], row["io_parallel"], submit, order, row["processes"]]


def _size(size: int | None) -> str | None:
    if size is None:
        return None
    units = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))
    return next((f"{size // unit} {name}" for unit, name in units if size % unit == 0), f"{size} B")


def _table(columns: list[str], *, title: str | None = None) -> Table:
    table = Table(title=title)
    for name in columns:
        table.add_column(name, justify="right" if name in _NUMBERS else "left", overflow="fold")
    return table


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value).replace("[", "\\[")
