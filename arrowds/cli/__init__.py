"""The command line: puts the commands together, turns errors into one line and an exit status. Nothing else prints."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from typing import Annotated, TextIO

import typer

import arrowds
from arrowds.cli import build, convert, demo, index, messages, shards, training
from arrowds.errors import ArrowdsError, ArrowdsWarning

app = typer.Typer(
    name="arrowds",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Index training data by metrics, query the index, and feed training in the order that the metrics call for.",
)
_COMMANDS: dict[str, Callable[..., None]] = {
    "lint": build.lint,
    "analyze": build.analyze,
    "append": build.append,
    "add-metric": build.add_metric,
    "plan": shards.plan,
    "map": shards.map_,
    "reduce": shards.reduce,
    "compact": index.compact,
    "vacuum": index.vacuum,
    "move-data": index.move_data,
    "versions": index.versions,
    "info": index.info,
    "head": index.head,
    "sql": index.sql,
    "duplicates": index.duplicates,
    "plot": index.plot,
    "report": index.report,
    "diff": index.diff,
    "verify": index.verify,
    "export": convert.export,
    "import": convert.import_,
    "batch": training.batch,
    "simulate": training.simulate,
    "why": training.why,
    "run": training.run,
    "demo": demo.demo,
}
_RESUMED = {"analyze", "append", "add-metric", "plan", "map", "reduce", "compact", "vacuum", "import", "run"}
"""What an interrupted command has finished, the same command does not do again."""

for name, command in _COMMANDS.items():
    app.command(name)(command)
if sys.argv[1:2] not in [[name] for name in _COMMANDS]:  # groups import what no other command should wait for
    from arrowds.cli import aio, profile

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


_show_of_python = warnings.showwarning


def _show_warning(  # noqa: PLR0917  # the arguments of warnings.showwarning
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a warning of the library as one line; those of other packages as Python does."""
    if issubclass(category, ArrowdsWarning):
        print(f"arrowds: warning: {messages.one_line(messages.spelled(str(message)))}", file=sys.stderr)
    else:
        _show_of_python(message, category, filename, lineno, file, line)


def main() -> None:
    """Run the command line and exit: 0, 1 (failed, one line on stderr), 2 (wrong usage) or 130 (interrupted)."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("arrowds").setLevel(logging.INFO)
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # both are text files when a command runs
    try:
        app()
    except (ArrowdsError, OSError) as error:
        text = messages.one_line(messages.spelled(str(error)))
        print(f"arrowds: error: {text or type(error).__name__}", file=sys.stderr)
        sys.exit(1)
    except SystemExit as stop:
        if stop.code == 130:
            resumes = "; run the same command again to resume" if sys.argv[1] in _RESUMED else ""
            print(f"arrowds: interrupted{resumes}", file=sys.stderr)
        raise
