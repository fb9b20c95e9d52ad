"""Commands on a finished index: ``info``, ``head``, ``sql``, ``plot``, ``report``, ``verify``, and to tidy it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.filesize import decimal

from arrowds.cli import options, tables
from arrowds.errors import ConfigError


def info(
    index: options.IndexPath,
    *,
    as_json: options.AsJsonObject = False,
    version: options.Version = None,
    storage_option: options.StorageOptions = None,
) -> None:
    """Show the metrics of an index: types, ranges, percentiles and sizes, and what it was made of.

    Example: arrowds info index
    """
    tables.print_summary(options.open_index(index, version, storage_option), as_json=as_json)


def sql(
    index: options.IndexPath,
    query: Annotated[str, typer.Argument(help="A DuckDB query; the index is the table samples.")],
    *,
    csv: options.AsCsv = False,
    as_json: options.AsJson = False,
    allow_files: Annotated[
        bool, typer.Option("--allow-files", help="Let the statement read and write any file, and be any statement.")
    ] = False,
    version: options.Version = None,
    storage_option: options.StorageOptions = None,
) -> None:
    """Query an index with SQL: the table samples has sample_id and a column per metric.

    The query reads the index and the files of its data, and nothing else.

    Example: arrowds sql index 'select sample_id, seqlen from samples order by vocab_rarity desc limit 10'
    """
    import polars as pl

    options.check_format(csv, as_json)
    try:
        answer = options.open_index(index, version, storage_option).sql(query, allow_files=allow_files)
    except pl.exceptions.PolarsError as error:
        raise ConfigError(f"a column of the answer has a type that can't be shown; cast it to text: {error}") from error
    tables.print_answer(answer, csv=csv, as_json=as_json)


def head(
    index: options.IndexPath,
    *,
    metric: Annotated[
        str | None, typer.Option("--metric", help="Order the samples by this metric; by default by their ids.")
    ] = None,
    between: Annotated[
        tuple[float, float] | None, typer.Option(metavar="LO HI", help="Between two percentiles of it (0 to 100).")
    ] = None,
    largest: Annotated[bool, typer.Option("--largest", help="The largest values first.")] = False,
    where: Annotated[str | None, typer.Option(help="A condition in SQL over the metrics, such as 'loss > 8'.")] = None,
    show: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Columns of the data; by default all. Repeatable.")
    ] = None,
    number: Annotated[int, typer.Option("-n", min=1, help="How many samples.")] = 20,
    csv: options.AsCsv = False,
    as_json: options.AsJson = False,
    version: options.Version = None,
    storage_option: options.StorageOptions = None,
) -> None:
    """Show samples: their values, where these lie among all, and the rows of the data that they are.

    Example: arrowds head index --metric loss --largest -n 10 --show text

    Example: arrowds head index --metric loss --between 95 100 --show text --json
    """
    options.check_format(csv, as_json)
    opened = options.open_index(index, version, storage_option)
    found = opened.head(number, metric=metric, between=between, largest=largest, where=where, columns=show)
    tables.print_answer(found, csv=csv, as_json=as_json, most_characters=tables.MOST_CHARACTERS_OF_A_SAMPLE)


def duplicates(
    index: options.IndexPath,
    *,
    find: Annotated[bool, typer.Option("--find", help="Find them first; without it, those found before.")] = False,
    column: Annotated[str, typer.Option(help="With --find: the column of text or token ids to compare.")] = "text",
    near: Annotated[
        float | None, typer.Option(help="With --find: near duplicates of this similarity, such as 0.8.")
    ] = None,
    number: Annotated[int, typer.Option("-n", min=1, help="How many clusters.")] = 20,
    show: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Columns of the data; by default all. Repeatable.")
    ] = None,
    csv: options.AsCsv = False,
    as_json: options.AsJson = False,
    storage_option: options.StorageOptions = None,
) -> None:
    """Show the largest clusters of equal or nearly equal samples: the sample that stays, and the ids of others.

    Example: arrowds duplicates index --find --near 0.8 --show text

    Example: arrowds duplicates index -n 5 --json
    """
    from arrowds.duplicates import find_duplicates, largest_clusters

    options.check_format(csv, as_json)
    if near is not None and not find:
        raise typer.BadParameter("it needs --find", param_hint="--near")
    if find:
        storage = options.storage_options(storage_option)
        opened = find_duplicates(index, column, near=near, storage_options=storage)
    else:
        opened = options.open_index(index, None, storage_option)
    found = largest_clusters(opened, number, show)
    if not (csv or as_json):
        later = opened["duplicate_of"].num_valid
        typer.echo(f"{later:,} of {opened.num_samples:,} samples are duplicates of earlier ones")
    tables.print_answer(found, csv=csv, as_json=as_json, most_characters=tables.MOST_CHARACTERS_OF_A_SAMPLE)


def plot(
    index: options.IndexPath,
    metric: Annotated[str, typer.Argument(help="The metric to draw.")],
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A .png, .svg or .pdf file; without it, the terminal.")
    ] = None,
    bins: Annotated[int | None, typer.Option(min=1, help="Number of bins; by default 50, 20 in the terminal.")] = None,
    log: Annotated[
        bool | None,
        typer.Option("--log/--no-log", help="Bins that grow with the value; by default where a few are far out."),
    ] = None,
    between: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LO HI", help="Draw the samples between two percentiles (0 to 100), count the others."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the bars as JSON, an object per bar.")] = False,
    version: options.Version = None,
    storage_option: options.StorageOptions = None,
) -> None:
    """Draw the histogram and the cumulative curve of a metric.

    Example: arrowds plot index seqlen -o seqlen.svg

    Example: arrowds plot index seqlen --no-log --between 0 99
    """
    from arrowds import plots

    chosen = options.open_index(index, version, storage_option)[metric]
    if as_json:
        typer.echo(tables.json_lines(plots.bars_table(chosen, bins or 50, log=log, between=between)), nl=False)
    elif output is None:
        text = plots.text_histogram(chosen, bins=bins or 20, log=log, between=between, width=tables.width())
        typer.echo(text)
    else:
        plots.plot(chosen, output, bins=bins or 50, log=log, between=between)
        typer.echo(f"wrote {output}")


def report(
    index: options.IndexPath,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page.")] = Path("report.html"),
    run: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="A run: the output of arrowds run, or where a sampler recorded."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The configuration of the run: its groups and token budget.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", metavar="NAME", help="A metric to show; by default all, up to 40. Repeatable."),
    ] = None,
    show: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="Columns of the data; by default those of text. Repeatable."),
    ] = None,
    no_data: Annotated[bool, typer.Option("--no-data", help="Show no rows of the data, and read none.")] = False,
    sample: Annotated[int, typer.Option(min=1, help="Samples drawn for correlations and medians.")] = 50_000,
    version: options.Version = None,
    storage_option: options.StorageOptions = None,
) -> None:
    """Write a report on an index, and on a run that trained with it: one HTML page that needs no network.

    Histograms, quantiles, the lowest and the highest samples with their text, correlations, categories, duplicates and
    totals; of a run losses, difficulties, batches, and what was drawn of each group.

    Example: arrowds report index -o report.html

    Example: arrowds report index -o run.html --run out --config run.yaml
    """
    from arrowds.report import write_report

    if no_data and show:
        raise typer.BadParameter("choose one of --show and --no-data", param_hint="--no-data")
    opened = options.open_index(index, version, storage_option)
    columns = [] if no_data else show
    write_report(opened, output, metrics=metric, columns=columns, sample=sample, run=run, config=config)
    typer.echo(f"wrote {output}, {decimal(output.stat().st_size)}")


def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="The folder or URL of an index.")],
    b: Annotated[str | None, typer.Argument(metavar="[B]", help="Another one; without it, two versions of A.")] = None,
    *,
    versions: Annotated[
        tuple[int, int] | None, typer.Option(metavar="OLD NEW", help="Which versions, of A and of B.")
    ] = None,
    csv: options.AsCsv = False,
    as_json: options.AsJson = False,
    storage_option: options.StorageOptions = None,
) -> None:
    """Compare two indexes, or two versions of one: samples, metrics, and how far their distributions are apart.

    The distance is 0 where two distributions are the same and 1 where they share nothing: the Kolmogorov-Smirnov
    statistic, for categories the total variation.

    Example: arrowds diff last-week-index index

    Example: arrowds diff index --versions 3 5
    """
    from arrowds.index import compare

    options.check_format(csv, as_json)
    if b is None and versions is None:
        raise typer.BadParameter("name a second index, or two --versions of the first", param_hint="B")
    old, new = versions or (None, None)
    first = options.open_index(a, old, storage_option)
    second = options.open_index(a if b is None else b, new, storage_option)
    if not (csv or as_json):
        common = compare.common_samples(first, second)
        typer.echo(f"A: {first.num_samples:,} samples in {first.path}, version {first.version}")
        typer.echo(f"B: {second.num_samples:,} samples in {second.path}, version {second.version}")
        typer.echo(f"{common:,} samples of B were added from data that A has, too")
    found = compare.diff(first, second)
    tables.print_answer(found if csv or as_json else tables.readable(found), csv=csv, as_json=as_json)


def verify(
    index: options.IndexPath,
    *,
    as_json: options.AsJsonObject = False,
    version: options.Version = None,
    storage_option: options.StorageOptions = None,
) -> None:
    """Read every file of an index and compare it with the checksums; name every file that is damaged.

    Example: arrowds verify index
    """
    opened = options.open_index(index, version, storage_option)
    opened.verify()
    num_files = len(opened.manifest.files)
    if as_json:
        tables.print_object({"path": str(opened.path), "version": opened.version, "files": num_files})
    else:
        typer.echo(f"{opened.path}: {num_files} files of version {opened.version} verified")


def versions(
    index: options.IndexPath, *, as_json: options.AsJson = False, storage_option: options.StorageOptions = None
) -> None:
    """List the versions of an index that can be opened, newest first.

    Example: arrowds versions index
    """
    import arrowds

    listed = arrowds.versions(index, storage_options=options.storage_options(storage_option))
    if as_json:
        typer.echo(tables.json_lines(listed), nl=False)
    else:
        tables.print_versions(listed)


def move_data(
    index: options.IndexPath,
    old: Annotated[str, typer.Argument(metavar="OLD", help="The folder or URL below which the data lay, or one file.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Where they lie now.")],
    *,
    as_json: options.AsJsonObject = False,
    storage_option: options.StorageOptions = None,
) -> None:
    """Tell an index where its data lie now; they must have the content that was indexed.

    Example: arrowds move-data index /old/disk/corpus /new/disk/corpus
    """
    import arrowds

    moved = arrowds.move_data(index, old, new, storage_options=options.storage_options(storage_option))
    if as_json:
        tables.print_object({"path": str(moved.path), "version": moved.version})
    else:
        typer.echo(f"{moved.path}: version {moved.version} reads its rows below {new}")


def compact(
    index: options.IndexPath,
    *,
    workers: options.Workers = None,
    engine: options.Engine = "local",
    as_json: options.AsJsonObject = False,
    storage_option: options.StorageOptions = None,
) -> None:
    """Merge the segments that appends have made into one; answers stay the same, the data is not read.

    Example: arrowds compact index
    """
    import arrowds

    before = options.open_index(index, None, storage_option)
    storage = options.storage_options(storage_option)
    merged = arrowds.compact(index, workers=workers, engine=engine, storage_options=storage)
    if not options.is_first_rank():
        return
    counts = {"segments_before": len(before.manifest.segments), "segments": len(merged.manifest.segments)}
    if as_json:
        tables.print_object({"path": str(merged.path), "version": merged.version, **counts})
    elif merged.version == before.version:
        typer.echo(f"{merged.path} is up to date: version {merged.version} has one segment")
    else:
        became = f"{counts['segments_before']} segments became {counts['segments']}"
        typer.echo(f"{merged.path}: {became}, in version {merged.version}")


def vacuum(
    index: options.IndexPath,
    *,
    keep: Annotated[int, typer.Option(min=1, help="How many versions stay.")] = 1,
    unfinished: Annotated[
        bool, typer.Option("--unfinished", help="Remove what unfinished builds left, too; only where none is running.")
    ] = False,
    as_json: options.AsJsonObject = False,
    storage_option: options.StorageOptions = None,
) -> None:
    """Remove old versions of an index, and every file that none of the remaining ones needs.

    Example: arrowds vacuum index --keep 2
    """
    import arrowds
    from arrowds.store import open_store

    storage = options.storage_options(storage_option)
    store = open_store(index, storage)
    before = {entry.name: entry.size for entry in store.entries("")}
    removed = arrowds.vacuum(index, keep=keep, unfinished=unfinished, storage_options=storage)
    after = set(store.names(""))
    gone = {name: size for name, size in before.items() if name not in after}
    builds = sorted({name.split("/")[1] for name in gone if name.startswith("builds/")})
    if as_json:
        sizes = {"files": len(gone), "bytes": sum(gone.values())}
        tables.print_object({"path": str(index), "versions": list(removed), **sizes, "unfinished_builds": builds})
        return
    listed = ", ".join(map(str, removed)) or "none"
    typer.echo(f"versions removed: {listed}; files removed: {len(gone)}, {decimal(sum(gone.values()))}")
    for build in builds:
        typer.echo(f"unfinished build removed: {build}")
