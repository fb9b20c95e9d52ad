"""The command line: puts the commands together, turns errors into one line and an exit status. Nothing else prints."""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

import arrowds
from arrowds.cli import aio, convert, demo, index, profile, training
from arrowds.errors import ArrowdsError

app = typer.Typer(
    name="arrowds",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Index training data by metrics, query the index, and feed training in the order that the metrics call for.",
)
for command in (index.analyze, index.info, index.sql, index.plot, index.verify, convert.export, demo.demo):
    app.command()(command)
app.command("import")(convert.import_)
app.command()(training.batch)
app.command()(training.run)
app.add_typer(profile.app, name="profile")
app.add_typer(aio.app, name="aio")


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"arrowds {arrowds.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""


def main() -> None:
    """Run the command line and exit: 0, 1 (failed, one line on stderr), 2 (wrong usage) or 130 (interrupted)."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("arrowds").setLevel(logging.INFO)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # both are text files when a command runs
    try:
        app()
    except (ArrowdsError, OSError) as error:
        sys.exit(_failed(error))


def _failed(error: Exception) -> int:
    """Print an error as one line and return the exit status."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" ^")]
    message = "; ".join(lines).replace(":; ", ": ")
    print(f"arrowds: error: {message or type(error).__name__}", file=sys.stderr)
    return 1
