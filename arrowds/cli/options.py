"""Arguments and options that several commands share, and what the library is given for them."""

from __future__ import annotations

import difflib
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from arrowds.errors import ConfigError

if TYPE_CHECKING:
    from arrowds.index import Index
    from arrowds.metrics import Metric

Data = Annotated[
    list[str],
    typer.Argument(metavar="DATA...", help="Parquet, Arrow, JSON Lines, CSV or .bin/.idx files, or globs of them."),
]
IndexPath = Annotated[str, typer.Argument(metavar="INDEX", help="The folder or URL of an index.")]
Output = Annotated[str, typer.Option("--output", "-o", metavar="INDEX", help="The folder or URL of the index.")]
Schema = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN=TYPE", help="The type of a column, such as id=uint64 or ids=list<int32>. Repeatable."),
]
Quoting = Annotated[
    Literal["standard", "none"],
    typer.Option(help="Whether double quotes enclose fields of CSV files, or are characters."),
]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        metavar="[NAME=]KIND[:COLUMN]",
        help="seqlen, vocab_rarity or token_counts of a column of token ids (default: input_ids); column:NAME for a "
        "column as it is; text.n_words and its like, models.loss:FOLDER and its like, of a column of text. Repeatable.",
    ),
]
Expressions = Annotated[
    list[str] | None,
    typer.Option("--expr", metavar="NAME=SQL", help="A number or bool per row, in Polars SQL. Repeatable."),
]
Tokenizer = Annotated[
    str | None, typer.Option(metavar="FILE", help="tokenizer.json, or 'bytes': makes input_ids from the text.")
]
TextColumn = Annotated[str, typer.Option(help="The column that --tokenizer reads.")]
KeepNulls = Annotated[bool, typer.Option("--keep-nulls", help="Keep null and NaN out of the order, not an error.")]
Workers = Annotated[int | None, typer.Option(min=1, help="Worker processes; by default chosen automatically.")]
Engine = Annotated[
    Literal["local", "ray", "torch"],
    typer.Option(help="Where the work is done: this machine, a Ray cluster, or the ranks of torchrun."),
]
NoResume = Annotated[bool, typer.Option("--no-resume", help="Compute finished parts again.")]
StorageOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-option", metavar="KEY=VALUE", help="For URLs, such as aws_endpoint_url=http://host:9000. Repeatable."
    ),
]
Version = Annotated[int | None, typer.Option(min=1, help="Which version; by default the newest.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON object per row.")]
AsJsonObject = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV.")]


def check_format(csv: bool, as_json: bool) -> None:
    """Refuse two formats at once."""
    if csv and as_json:
        raise typer.BadParameter("choose one of --csv and --json", param_hint="--csv")


def storage_options(given: Sequence[str] | None) -> dict[str, str] | None:
    """Turn ``KEY=VALUE`` of every --storage-option into a dictionary; None for none.

    >>> storage_options(["aws_region=eu-central-1", "aws_secret_access_key=a=b"])
    {'aws_region': 'eu-central-1', 'aws_secret_access_key': 'a=b'}
    """
    return _pairs(given, "KEY=VALUE", "--storage-option")


def _pairs(given: Sequence[str] | None, form: str, option: str) -> dict[str, str] | None:
    pairs = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise typer.BadParameter(f"{text!r} is not {form}", param_hint=option)
        pairs[key] = value
    return pairs or None


def open_index(path: str, version: int | None, storage_option: Sequence[str] | None) -> Index:
    """Open the version of an index that a command is asked for."""
    from arrowds import index

    return index.open_index(path, version=version, storage_options=storage_options(storage_option))


def data(
    given: Sequence[str],
    schema: Sequence[str] | None = None,
    quoting: Literal["standard", "none"] = "standard",
    tokenizer: str | None = None,
    text_column: str = "text",
) -> Any:
    """Return what the library takes for DATA...: paths and patterns, or the source that reads them as asked."""
    source: Any = given[0] if len(given) == 1 else list(given)
    types = _pairs(schema, "COLUMN=TYPE", "--schema")
    if types is None and quoting == "standard" and tokenizer is None:
        return source
    from arrowds import sources

    opened = sources.open_source(source, schema=types, quoting=quoting)
    if tokenizer is None:
        return opened
    return sources.TokenizedSource(opened, column=text_column, tokenizer=tokenizer)


def metrics(metric: Sequence[str] | None, expr: Sequence[str] | None, *, keep_nulls: bool) -> list[Metric]:
    """Return the metrics that --metric and --expr name, in that order."""
    nulls = "keep" if keep_nulls else "refuse"
    return [_metric(text, nulls) for text in metric or ()] + [_expression(text, nulls) for text in expr or ()]


def needed_metrics(metric: Sequence[str] | None, expr: Sequence[str] | None, *, keep_nulls: bool) -> list[Metric]:
    """Return the same; no metric at all is wrong usage."""
    if not (metric or expr):
        raise typer.BadParameter("name at least one --metric or --expr", param_hint="--metric")
    return metrics(metric, expr, keep_nulls=keep_nulls)


def _metric(text: str, nulls: Any) -> Metric:
    """Turn ``[NAME=]KIND[:COLUMN]`` into a metric."""
    from arrowds import metrics

    name, _, rest = text.rpartition("=")
    kind, _, column = rest.partition(":")
    options: dict[str, Any] = {"name": name} if name else {}
    if kind.startswith("text.") and kind[5:] in metrics.text.measures.MEASURES:
        measure: Callable[..., Metric] = getattr(metrics.text, kind[5:])
        return measure(column=column or "text", nulls=nulls, **options)
    if kind in ("models.loss", "models.perplexity", "models.bits_per_byte") and column:
        model, _, column = column.partition(":")
        by_model: Callable[..., Metric] = getattr(metrics.models, kind[7:])
        return by_model(model, column=column or "text", nulls=nulls, **options)
    if kind == "column" and column:
        return metrics.column(column, nulls=nulls, **options)
    column = column or "input_ids"
    if kind == "seqlen":
        return metrics.seqlen(column, nulls=nulls, **options)
    if kind == "vocab_rarity":
        return metrics.vocab_rarity(column, nulls=nulls, **options)
    if kind == "token_counts":
        return metrics.token_counts(column, **options)
    close = difflib.get_close_matches(kind, [f"text.{name}" for name in metrics.text.measures.MEASURES], n=3)
    meant = f"did you mean {', '.join(close)}? Or " if close else ""
    raise typer.BadParameter(
        f"{text!r}: there is no metric {kind!r}; {meant}choose seqlen, vocab_rarity, token_counts, column:NAME, "
        "text.n_words and its like, models.loss:FOLDER and its like, or use --expr",
        param_hint="--metric",
    )


def _expression(text: str, nulls: Any) -> Metric:
    """Turn ``NAME=SQL`` into a metric; the expression is parsed by Polars and evaluated by nothing else."""
    import polars as pl

    from arrowds import metrics

    name, equals, sql = text.partition("=")
    if not equals:
        raise typer.BadParameter(f"{text!r} is not NAME=SQL, such as 'n_chars=length(text)'", param_hint="--expr")
    try:
        expression = pl.sql_expr(sql)
    except pl.exceptions.PolarsError as error:
        raise ConfigError(f"--expr {text!r}: {error}") from error
    return metrics.expr(name.strip(), expression, nulls=nulls)


def shard(text: str) -> tuple[int, int]:
    """Turn ``I/N`` into two numbers, 1 <= I <= N.

    >>> shard("3/40")
    (3, 40)
    """
    number, slash, count = text.partition("/")
    if slash and number.isascii() and count.isascii() and number.isdigit() and count.isdigit():
        if 1 <= int(number) <= int(count):
            return int(number), int(count)
        raise typer.BadParameter(f"a shard is 1/{count} to {count}/{count}, got {text}", param_hint="--shard")
    raise typer.BadParameter(f"{text!r} is not I/N, such as 3/40", param_hint="--shard")


def steps(step: int | None, several: str | None) -> range:
    """Turn ``--step N`` or ``--steps FIRST:LAST`` into steps.

    >>> steps(None, "5:7")
    range(5, 8)
    """
    if (step is None) == (several is None):
        raise typer.BadParameter("name one of --step N and --steps FIRST:LAST", param_hint="--step")
    if several is None:
        return range(int(step or 0), int(step or 0) + 1)
    first, colon, last = several.partition(":")
    if not (colon and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise typer.BadParameter(f"{several!r} is not FIRST:LAST, such as 5000:5010", param_hint="--steps")
    return range(int(first), int(last) + 1)


def is_first_rank() -> bool:
    """Whether this process is the one of a launch by torchrun or srun that prints."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"


def typed(*arguments: str | Path) -> str:
    """Return a command line of this program as it can be typed, in the way in which the program was started."""
    program = sys.argv[0]
    on_path = shutil.which("arrowds")
    started = program if Path(program).name == "arrowds" else "arrowds"
    same = on_path is not None and Path(program).exists() and Path(on_path).samefile(program)
    return shlex.join(["arrowds" if same else started, *map(str, arguments)])
