"""``arrowds export`` and ``import``: to and from the files of DeepSpeed's data analyzer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="The folder of an index.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder to write.")],
    *,
    metric: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A metric or total; by default all. Repeatable.")
    ] = None,
) -> None:
    """Write an index as the .bin/.idx files of DeepSpeed's data analyzer, byte for byte.

    Example: arrowds export index deepspeed-index
    """
    from arrowds.index import open_index
    from arrowds.integrations.deepspeed import export_index

    export_index(open_index(index), folder, metrics=metric or None)
    typer.echo(f"wrote {folder}")


def import_(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What DeepSpeed's data analyzer wrote.")],
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="The folder to write.")],
    *,
    metric: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A metric or total; by default all. Repeatable.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing index.")] = False,
) -> None:
    """Read the .bin/.idx files of DeepSpeed's data analyzer into an index.

    Example: arrowds import deepspeed-index index
    """
    from arrowds.cli.tables import print_summary
    from arrowds.integrations.deepspeed import import_index

    print_summary(import_index(folder, index, metrics=metric or None, overwrite=overwrite))
