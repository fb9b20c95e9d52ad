"""``arrowds analyze``, ``info``, ``sql``, ``plot``, ``verify``: make an index and look at it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from arrowds.cli import tables
from arrowds.errors import ConfigError

if TYPE_CHECKING:
    from arrowds.metrics import Metric

IndexFolder = Annotated[Path, typer.Argument(metavar="INDEX", help="The folder of an index.")]
Bins = Annotated[int | None, typer.Option(min=1, help="Number of bins; by default 50, 20 in the terminal.")]


def analyze(
    data: Annotated[
        list[str],
        typer.Argument(metavar="DATA...", help="Parquet, Arrow, JSON Lines, CSV or .bin/.idx files, or globs of them."),
    ],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="INDEX", help="The folder to write.")],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]KIND[:COLUMN]",
            help="seqlen, vocab_rarity or token_counts of a column of token ids (default: input_ids). Repeatable.",
        ),
    ] = None,
    expr: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=SQL", help="A number or bool per row, as a Polars SQL expression. Repeatable."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="FILE", help="tokenizer.json, or 'bytes': makes input_ids from the text.")
    ] = None,
    text_column: Annotated[str, typer.Option(help="The column that --tokenizer reads.")] = "text",
    keep_nulls: Annotated[
        bool, typer.Option("--keep-nulls", help="Keep null and NaN out of the order, not an error.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; by default as many as pay.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an index that is there.")] = False,
    no_resume: Annotated[bool, typer.Option("--no-resume", help="Compute finished parts again.")] = False,
) -> None:
    """Measure every sample of a dataset and write an index. Run again, it goes on where it was interrupted.

    Example: arrowds analyze 'data/*.parquet' -o index --metric seqlen:input_ids --metric vocab_rarity:input_ids

    Example: arrowds analyze docs.jsonl -o index --tokenizer bytes --metric seqlen --expr 'n_chars=length(text)'
    """
    import arrowds

    nulls = "keep" if keep_nulls else "refuse"
    wanted = [_metric(spec, nulls) for spec in metric or []] + [_expression(spec, nulls) for spec in expr or []]
    if not wanted:
        raise typer.BadParameter("name at least one --metric or --expr", param_hint="--metric")
    source: Any = data[0] if len(data) == 1 else data
    if tokenizer is not None:
        opened = arrowds.sources.open_source(source)
        source = arrowds.sources.TokenizedSource(opened, column=text_column, tokenizer=tokenizer)
    index = arrowds.analyze(source, wanted, output, workers=workers, overwrite=overwrite, resume=not no_resume)
    tables.print_summary(index)


def _metric(spec: str, nulls: Any) -> Metric:
    """Turn ``[NAME=]KIND[:COLUMN]`` into a metric."""
    from arrowds import metrics

    name, _, rest = spec.rpartition("=")
    kind, _, column = rest.partition(":")
    options: dict[str, Any] = {"name": name} if name else {}
    column = column or "input_ids"
    if kind == "seqlen":
        return metrics.seqlen(column, nulls=nulls, **options)
    if kind == "vocab_rarity":
        return metrics.vocab_rarity(column, nulls=nulls, **options)
    if kind == "token_counts":
        return metrics.token_counts(column, **options)
    raise typer.BadParameter(
        f"{spec!r}: there is no metric {kind!r}; choose seqlen, vocab_rarity or token_counts, or use --expr",
        param_hint="--metric",
    )


def _expression(spec: str, nulls: Any) -> Metric:
    """Turn ``NAME=SQL`` into a metric; the expression is parsed by Polars and evaluated by nothing else."""
    import polars as pl

    from arrowds import metrics

    name, equals, text = spec.partition("=")
    if not equals:
        raise typer.BadParameter(f"{spec!r} is not NAME=SQL, such as 'n_chars=length(text)'", param_hint="--expr")
    try:
        expression = pl.sql_expr(text)
    except pl.exceptions.PolarsError as error:
        raise ConfigError(f"--expr {spec!r}: {error}") from error
    return metrics.expr(name.strip(), expression, nulls=nulls)


def info(
    index: IndexFolder, *, as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False
) -> None:
    """Show the metrics of an index: types, ranges, percentiles and sizes.

    Example: arrowds info index
    """
    from arrowds.index import open_index
    from arrowds.plots import describe

    opened = open_index(index)
    if as_json:
        # JSON has no infinity: as text it stays readable by every parser.
        print(json.dumps(tables.json_ready(describe(opened)), indent=1, ensure_ascii=False))
    else:
        tables.print_summary(opened)


def sql(
    index: IndexFolder,
    query: Annotated[str, typer.Argument(help="A DuckDB query; the index is the table samples.")],
    *,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object per row.")] = False,
) -> None:
    """Query an index with SQL: the table samples has sample_id and a column per metric.

    Example: arrowds sql index 'select sample_id, seqlen from samples order by vocab_rarity desc limit 10'
    """
    import polars as pl

    from arrowds.index import open_index

    if csv and as_json:
        raise typer.BadParameter("choose one of --csv and --json", param_hint="--csv")
    try:
        answer = open_index(index).sql(query)
    except pl.exceptions.PolarsError as error:
        raise ConfigError(f"a column of the answer has a type that can't be shown; cast it to text: {error}") from error
    if csv:
        typer.echo(tables.csv(answer), nl=False)
    elif as_json:
        typer.echo(tables.json_lines(answer), nl=False)
    else:
        tables.print_frame(answer)


def plot(
    index: IndexFolder,
    metric: Annotated[str, typer.Argument(help="The metric to draw.")],
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .png, .svg or .pdf file; without it, the terminal.")
    ] = None,
    bins: Bins = None,
) -> None:
    """Draw the histogram and the cumulative curve of a metric.

    Example: arrowds plot index seqlen -o seqlen.svg
    """
    from arrowds import plots
    from arrowds.index import open_index

    chosen = open_index(index)[metric]
    if output is None:
        typer.echo(plots.text_histogram(chosen, bins=bins or 20, width=tables.width()))
    else:
        plots.plot(chosen, output, bins=bins or 50)
        typer.echo(f"wrote {output}")


def verify(index: IndexFolder) -> None:
    """Read every file of an index and compare it with the checksums; name every file that is damaged.

    Example: arrowds verify index
    """
    from arrowds.index import open_index

    opened = open_index(index, verify=True)
    typer.echo(f"{index}: {len(opened.manifest.files)} files are as they were written")
