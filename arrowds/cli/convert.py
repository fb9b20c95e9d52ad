"""``arrowds export`` and ``import``: to and from the files of DeepSpeed's data analyzer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from arrowds.cli import options, tables


def export(
    index: options.IndexPath,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to write.")],
    *,
    metric: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A metric or total; by default all. Repeatable.")
    ] = None,
    as_json: options.AsJsonObject = False,
    version: options.Version = None,
    storage_option: options.StorageOptions = None,
) -> None:
    """Write an index as the .bin/.idx files of DeepSpeed's data analyzer, byte for byte.

    Example: arrowds export index deepspeed-index
    """
    from arrowds.integrations.deepspeed import export_index

    export_index(options.open_index(index, version, storage_option), folder, metrics=metric or None)
    if as_json:
        tables.print_object({"folder": str(folder)})
    else:
        typer.echo(f"wrote {folder}")


def import_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What DeepSpeed's data analyzer wrote.")],
    index: Annotated[str, typer.Argument(metavar="INDEX", help="The folder or URL to write.")],
    *,
    metric: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A metric or total; by default all. Repeatable.")
    ] = None,
    num_samples: Annotated[
        int | None, typer.Option(min=1, help="How many samples there are, where the folder holds totals only.")
    ] = None,
    workers: options.Workers = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing index.")] = False,
    as_json: options.AsJsonObject = False,
) -> None:
    """Read the .bin/.idx files of DeepSpeed's data analyzer into an index.

    Example: arrowds import deepspeed-index index
    """
    from arrowds.integrations.deepspeed import import_index

    imported = import_index(
        folder, index, metrics=metric or None, num_samples=num_samples, workers=workers, overwrite=overwrite
    )
    tables.print_summary(imported, as_json=as_json)
