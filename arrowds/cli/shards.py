"""``arrowds plan``, ``map``, ``reduce``: a build by processes that share nothing but the index's folder or bucket."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from arrowds.cli import options, tables


def plan(
    data: options.Data,
    *,
    output: options.Output,
    metric: options.Metrics = None,
    expr: options.Expressions = None,
    append: Annotated[
        bool, typer.Option("--append", help="Plan to add samples to an index, as arrowds append does.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Plan to replace the index; versions before stay until a vacuum.")
    ] = False,
    schema: options.Schema = None,
    quoting: options.Quoting = "standard",
    tokenizer: options.Tokenizer = None,
    text_column: options.TextColumn = "text",
    keep_nulls: options.KeepNulls = False,
    as_json: options.AsJsonObject = False,
    storage_option: options.StorageOptions = None,
) -> None:
    """Plan a build that any number of processes then do: arrowds map for each shard, arrowds reduce at the end.

    docs/launchers.md has scripts for Slurm, Kubernetes and GNU parallel. Planned again, an unfinished build is kept.

    Example: arrowds plan 'data/*.parquet' -o index --metric seqlen:input_ids --metric vocab_rarity:input_ids

    Example: arrowds plan 'data/*.parquet' -o index --append
    """
    from arrowds.build import shards
    from arrowds.index import Index

    if append and overwrite:
        raise typer.BadParameter("choose one of --append and --overwrite", param_hint="--append")
    choose = options.metrics if append else options.needed_metrics
    planned = shards.plan_build(
        options.data(data, schema, quoting, tokenizer, text_column),
        choose(metric, expr, keep_nulls=keep_nulls) or None,
        output,
        overwrite=overwrite,
        append=append,
        storage_options=options.storage_options(storage_option),
    )
    parts, rounds = (0, []) if isinstance(planned, Index) else (len(planned.parts), planned.passes)
    if as_json:
        facts: dict[str, Any] = {"samples": planned.num_samples, "parts": parts, "rounds": len(rounds)}
        tables.print_object(facts | {"metrics": [[metric.name for metric in metrics] for metrics in rounds]})
    elif isinstance(planned, Index):
        typer.echo(f"{planned.path} is up to date: version {planned.version} has all of this; nothing is planned")
    else:
        later = ", ".join(metric.name for metrics in rounds[1:] for metric in metrics)
        typer.echo(f"planned: {planned.num_samples:,} samples of {planned.source.description}, in {parts} parts")
        typer.echo(
            f"next:    {options.typed('map', output, '--shard', '1/N')}  (up to N/N, in any order, N at most {parts})"
        )
        if later:
            typer.echo(f"         and each shard once more when all have ended, for {later}: totals come first")
        typer.echo(f"then:    {options.typed('reduce', output)}")


def map_(
    index: options.IndexPath,
    *,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Which share of the work this is, from 1/N to N/N.")],
    workers: options.Workers = None,
    as_json: options.AsJsonObject = False,
    storage_option: options.StorageOptions = None,
) -> None:
    """Measure one shard of a planned build. What is finished is skipped, so a shard may be run again at any time.

    Shards run in any order, on any machines that see the index and the data; N may differ between runs. Metrics that
    need a total of all samples, such as vocab_rarity, need each shard to be run once more when all have ended.

    Example: arrowds map index --shard 3/40
    """
    from arrowds.build import shards

    number, of = options.shard(shard)
    storage = options.storage_options(storage_option)
    waiting = shards.map_shard(index, number, of, workers=workers, storage_options=storage)
    if as_json:
        tables.print_object({"shard": shard, "planned": waiting is not None, "waiting": list(waiting or ())})
        return
    if waiting is None:
        typer.echo(f"{index} is finished: no build is planned; nothing is left to measure")
        return
    typer.echo(f"shard {number}/{of} is done")
    if waiting:
        typer.echo(
            f"{', '.join(waiting)} {'waits' if len(waiting) == 1 else 'wait'} for totals of all samples: "
            "when every shard has ended, run each once more"
        )


def reduce(
    index: options.IndexPath,
    *,
    shard: Annotated[
        str, typer.Option(metavar="I/N", help="Which share of the work this is; by default all of it.")
    ] = "1/1",
    workers: options.Workers = None,
    as_json: options.AsJsonObject = False,
    storage_option: options.StorageOptions = None,
) -> None:
    """Sort what the shards of a planned build have measured, and commit it as the next version of the index.

    With --shard, the process that finishes last commits. Run again, it opens the index.

    Example: arrowds reduce index

    Example: arrowds reduce index --shard 1/8
    """
    from arrowds.build import shards

    number, of = options.shard(shard)
    storage = options.storage_options(storage_option)
    finished = shards.reduce_build(index, number, of, workers=workers, storage_options=storage)
    if finished is not None:
        tables.print_summary(finished, as_json=as_json)
    elif as_json:
        tables.print_object({"shard": shard, "committed": False})
    else:
        typer.echo(f"shard {number}/{of} is done; the last shard to finish commits")
