"""``arrowds analyze``, ``append``, ``add-metric``: measure a dataset, more samples, more metrics."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from arrowds.cli import options, tables
from arrowds.index import Index


def analyze(
    data: options.Data,
    *,
    output: options.Output,
    metric: options.Metrics = None,
    expr: options.Expressions = None,
    schema: options.Schema = None,
    quoting: options.Quoting = "standard",
    tokenizer: options.Tokenizer = None,
    text_column: options.TextColumn = "text",
    keep_nulls: options.KeepNulls = False,
    workers: options.Workers = None,
    engine: options.Engine = "local",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the index; versions before this one stay until a vacuum.")
    ] = False,
    no_resume: options.NoResume = False,
    as_json: options.AsJsonObject = False,
    storage_option: options.StorageOptions = None,
) -> None:
    """Measure every sample of a dataset and write an index. Run again after an interruption, it resumes.

    Example: arrowds analyze 'data/*.parquet' -o index --metric seqlen:input_ids --metric vocab_rarity:input_ids

    Example: arrowds analyze docs.jsonl -o index --tokenizer bytes --metric seqlen --expr 'n_chars=length(text)'
    """
    import arrowds

    wanted = options.needed_metrics(metric, expr, keep_nulls=keep_nulls)
    storage = options.storage_options(storage_option)
    before = newest_version(output, storage)
    index = arrowds.analyze(
        options.data(data, schema, quoting, tokenizer, text_column),
        wanted,
        output,
        workers=workers,
        engine=engine,
        resume=not no_resume,
        overwrite=overwrite,
        storage_options=storage,
    )
    show_result(index, before, "has these samples and metrics", as_json=as_json)


def lint(
    data: options.Data,
    *,
    vocab_size: Annotated[
        int | None, typer.Option(min=1, help="How many token ids there are; lists of integers are compared with it.")
    ] = None,
    id_column: Annotated[str | None, typer.Option("--id", help="A column whose values should be distinct.")] = None,
    schema: options.Schema = None,
    quoting: options.Quoting = "standard",
    csv: options.AsCsv = False,
    as_json: options.AsJson = False,
    storage_option: options.StorageOptions = None,
) -> None:
    """Look through data before hours of work; exit status 1 where something is an error.

    Errors are text that is not UTF-8, token ids out of range, ids that occur twice, columns that do not fit into one
    table. Warnings are nulls, NaN, empty texts and lists, odd files. Rows count from 0.

    Example: arrowds lint 'corpus/*.parquet' --vocab-size 128256 --id doc_id
    """
    from arrowds import sources
    from arrowds.sources.lint import lint as found_in

    options.check_format(csv, as_json)
    source = sources.open_source(
        options.data(data, schema, quoting), storage_options=options.storage_options(storage_option)
    )
    found = found_in(source, vocab_size=vocab_size, id_column=id_column)
    tables.print_answer(found, csv=csv, as_json=as_json)
    errors = found.filter(found["level"] == "error").height
    if not (csv or as_json):
        typer.echo(f"{len(source):,} rows: {errors} kinds of errors, {found.height - errors} of warnings")
    if errors:
        raise typer.Exit(1)


def append(
    data: options.Data,
    *,
    output: options.Output,
    compare_content: Annotated[
        bool, typer.Option("--compare-content", help="Recognise files by content: for files that were moved or copied.")
    ] = False,
    metric: options.Metrics = None,
    expr: options.Expressions = None,
    schema: options.Schema = None,
    quoting: options.Quoting = "standard",
    tokenizer: options.Tokenizer = None,
    text_column: options.TextColumn = "text",
    keep_nulls: options.KeepNulls = False,
    workers: options.Workers = None,
    engine: options.Engine = "local",
    no_resume: options.NoResume = False,
    as_json: options.AsJsonObject = False,
    storage_option: options.StorageOptions = None,
) -> None:
    """Add samples to an index: files that it has already are left out, new ones are measured with its metrics.

    The index knows its metrics; --metric, --expr and --keep-nulls are needed only for one that it can't rebuild. Data
    that analyze has tokenized need the same --tokenizer.

    Example: arrowds append 'data/*.parquet' -o index
    """
    import arrowds

    given = options.metrics(metric, expr, keep_nulls=keep_nulls)
    storage = options.storage_options(storage_option)
    before = newest_version(output, storage)
    index = arrowds.append(
        options.data(data, schema, quoting, tokenizer, text_column),
        output,
        metrics=given or None,
        compare_content=compare_content,
        workers=workers,
        engine=engine,
        resume=not no_resume,
        storage_options=storage,
    )
    show_result(index, before, "has all of these files", as_json=as_json)


def add_metric(
    data: options.Data,
    *,
    output: options.Output,
    metric: options.Metrics = None,
    expr: options.Expressions = None,
    refresh: Annotated[
        bool,
        typer.Option("--refresh", help="Measure metrics again: vocab_rarity with the counts of all samples."),
    ] = False,
    schema: options.Schema = None,
    quoting: options.Quoting = "standard",
    tokenizer: options.Tokenizer = None,
    text_column: options.TextColumn = "text",
    keep_nulls: options.KeepNulls = False,
    workers: options.Workers = None,
    engine: options.Engine = "local",
    no_resume: options.NoResume = False,
    as_json: options.AsJsonObject = False,
    storage_option: options.StorageOptions = None,
) -> None:
    """Measure more metrics of the samples of an index; nothing else is measured again.

    DATA is all of the data of the index, in its order.

    Example: arrowds add-metric 'data/*.parquet' -o index --expr 'n_chars=length(text)'

    Example: arrowds add-metric 'data/*.parquet' -o index --metric vocab_rarity --refresh
    """
    import arrowds

    wanted = options.needed_metrics(metric, expr, keep_nulls=keep_nulls)
    storage = options.storage_options(storage_option)
    before = newest_version(output, storage)
    index = arrowds.add_metrics(
        options.data(data, schema, quoting, tokenizer, text_column),
        wanted,
        output,
        refresh=refresh,
        workers=workers,
        engine=engine,
        resume=not no_resume,
        storage_options=storage,
    )
    show_result(index, before, "has these metrics", as_json=as_json)


def newest_version(path: str, storage: dict[str, str] | None) -> int:
    """The newest version of an index, 0 where there is none yet; one listing."""
    from arrowds.index import manifest
    from arrowds.store import open_store

    return max(manifest.numbers(open_store(path, storage)), default=0)


def show_result(index: Index, before: int, reason: str, *, as_json: bool) -> None:
    """Print the summary of an index and what may come next, after saying whether it was opened as it was before."""
    if not options.is_first_rank():
        return
    if as_json:
        tables.print_summary(index, as_json=True)
        return
    if index.version == before:
        typer.echo(f"{index.path} is up to date, opened: version {index.version} {reason} already")
    tables.print_summary(index)
    if sys.stdout.isatty():
        typer.echo("next: " + "\n      ".join(_next_commands(index, before)))


def _next_commands(index: Index, before: int) -> list[str]:
    """Commands that people run on an index that has just been made or grown."""
    path = str(index.path)
    ordered = next((name for name in index if not index[name].is_categorical), None)
    commands = []
    if ordered is not None:
        commands = [options.typed("head", path, "--metric", ordered, "--largest"), options.typed("plot", path, ordered)]
    if 0 < before < index.version:
        commands.append(options.typed("diff", path, "--versions", str(before), str(index.version)))
    return [*commands, options.typed("sql", path, "select count(*) from samples")]
