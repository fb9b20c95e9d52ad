"""Tables on the terminal: the summary of an index, and the answer to a query."""

from __future__ import annotations

import json
import math
import shutil
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import polars as pl

    from arrowds.index import Index

_WIDTH_OF_A_FILE = 200
_MOST_CHARACTERS, _CUT = 500, " ..."
MOST_CHARACTERS_OF_A_SAMPLE = 160
"""Documents of megabytes are for files: to lay them out in a table takes minutes."""

_MOST_ROWS = 1000
_CONTROLS = dict.fromkeys([*range(9), *range(11, 32), 127], "\N{REPLACEMENT CHARACTER}")


def width() -> int:
    """Return the columns of the terminal, or 80."""
    return shutil.get_terminal_size((80, 24)).columns


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=_WIDTH_OF_A_FILE, highlight=False)


def print_object(facts: dict[str, Any]) -> None:
    """Print facts as one JSON object; infinities, which JSON has no number for, as text."""
    typer.echo(json.dumps(json_ready(facts), indent=1, ensure_ascii=False))


def print_summary(index: Index, *, as_json: bool = False) -> None:
    """Print what :func:`arrowds.plots.describe` knows, a column per metric, or as JSON."""
    from arrowds.plots import describe

    facts = describe(index)
    if as_json:
        print_object(facts)
        return
    console = _console()
    console.print(
        Text(f"{facts['path']}: {facts['num_samples']:,} samples of {facts['dataset']}, {decimal(facts['bytes'])}"),
        soft_wrap=True,
    )
    segments = f"{facts['segments']} segment{'s' if facts['segments'] > 1 else ''}"
    console.print(f"version {facts['version']}, made by {facts['operation']}; {segments}")
    described = facts["metrics"]
    if described:
        keys = [key for key in described[0] if key not in ("name", "names", "defined_with")]
        rows = [[key, *(_cell(key, metric[key]) for metric in described)] for key in keys]
        _print(console, ["", *(metric["name"] for metric in described)], rows, [False, *(True for _ in described)])
    for total in facts["totals"]:
        shape = " x ".join(map(str, total["shape"])) or "scalar"
        console.print(Text(f"total {total['name']}: {total['type']}, {shape}, {decimal(total['bytes'])}"))
    for metric in described:
        if names := metric.get("names"):
            shown = ", ".join(f"{name} {count:,}" for name, count in names.items())
            more = ", ..." if metric["distinct"] > len(names) else ""
            console.print(Text(f"{metric['name']}: {shown}{more}"))
        for total, version in metric["defined_with"].items():
            console.print(Text(f"{metric['name']}: defined with the {total} of version {version}"))


def _cell(name: str, value: Any) -> str:
    if name == "bytes":
        return decimal(value)
    if isinstance(value, float):
        return f"{value:,.6g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "" if value is None else str(value)


def print_answer(frame: pl.DataFrame, *, csv: bool, as_json: bool, most_characters: int = _MOST_CHARACTERS) -> None:
    """Print a data frame in the format that was asked for."""
    if csv:
        typer.echo(comma_separated(frame), nl=False)
    elif as_json:
        typer.echo(json_lines(frame), nl=False)
    else:
        print_frame(frame, most_characters)


def readable(frame: pl.DataFrame, *, zeros: str | None = None) -> pl.DataFrame:
    """Return a table for people: six digits of each float, and no column of zeros whose name begins with ``zeros``."""
    import polars.selectors as cs

    named = [name for name in frame.columns if zeros is not None and name.startswith(zeros)]
    empty = [name for name in named if not (frame[name] != 0).any()]
    return frame.drop(empty).with_columns(cs.float().round_sig_figs(6))


def print_frame(frame: pl.DataFrame, most_characters: int = _MOST_CHARACTERS) -> None:
    """Print the rows of a data frame, at most 1000 of them, and say how many there are and what was cut."""
    shown = frame.head(_MOST_ROWS).iter_rows()
    rows = [
        ["" if value is None else _shortened(value, most_characters).translate(_CONTROLS) for value in row]
        for row in shown
    ]
    numeric = [dtype.is_numeric() for dtype in frame.dtypes]
    console = _console()
    _print(console, frame.columns, rows, numeric)
    if frame.height > _MOST_ROWS:
        console.print(f"{_MOST_ROWS:,} of {frame.height:,} rows; --csv or --json prints all")
    if any(cell.endswith(_CUT) for row in rows for cell in row):
        console.print(f"long values are cut after {most_characters:,} characters; --csv or --json prints all of them")


def _shortened(value: object, most_characters: int) -> str:
    text = str(value)
    return text if len(text) <= most_characters else text[:most_characters] + _CUT


def print_versions(versions: pl.DataFrame) -> None:
    """Print what :func:`arrowds.versions` returned."""
    rows = [
        [_cell(name, value) if name != "metrics" else ", ".join(value) for name, value in row.items()]
        for row in versions.with_columns(versions["committed"].dt.strftime("%Y-%m-%d %H:%M:%S")).iter_rows(named=True)
    ]
    titles = {
        "operation": "made by",
        "num_samples": "samples",
        "num_segments": "segments",
        "committed": "committed (UTC)",
    }
    numeric = [dtype.is_numeric() for dtype in versions.dtypes]
    _print(_console(), [titles.get(name, name) for name in versions.columns], rows, numeric)


def _print(console: Console, columns: list[str], rows: list[list[str]], right: list[bool]) -> None:
    """Print a table; its cells are text and never markup."""
    table = Table()
    for name, is_right in zip(columns, right, strict=True):
        table.add_column(Text(name), justify="right" if is_right else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def comma_separated(frame: pl.DataFrame) -> str:
    """Return the rows as CSV: nested values as JSON, blobs as hexadecimal digits."""
    import polars as pl

    nested = {
        name: pl.Series(name, [None if value is None else _json(value) for value in frame[name].to_list()], pl.String)
        for name, dtype in frame.schema.items()
        if dtype.is_nested()
    }
    return frame.with_columns(**nested).with_columns(pl.col(pl.Binary).bin.encode("hex")).write_csv()


def json_lines(frame: pl.DataFrame) -> str:
    """Return a JSON object per row: blobs as hexadecimal digits, which Polars has no JSON for."""
    if "Binary" not in str(frame.schema):
        return frame.write_ndjson()
    return "".join(f"{_json(row)}\n" for row in frame.iter_rows(named=True))


def _json(value: Any) -> str:
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    """Return the same as JSON values, in the way of Polars' own JSON: no infinities, other types as text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def json_ready(value: Any) -> Any:
    """Return the same with infinities as text, which JSON has no number for."""
    if isinstance(value, dict):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, list):
        return [json_ready(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
