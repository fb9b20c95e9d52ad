"""``arrowds demo``: the main job on real text, in some seconds."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from arrowds.cli import options, tables
from arrowds.cli.training import train_demo


def demo(
    *,
    keep: Annotated[Path, typer.Option(metavar="DIR", help="Where to write; an earlier demo is replaced.")] = Path(
        "arrowds-demo"
    ),
    train: Annotated[
        bool, typer.Option("--train", help="Train a small model as well, and resume it exactly; needs DeepSpeed.")
    ] = False,
) -> None:
    """Index every function and class of this Python's standard library, and query the index.

    Example: arrowds demo --keep /tmp/arrowds-demo
    """
    from arrowds.demo import run_demo
    from arrowds.plots import text_histogram
    from arrowds.training_demo import require_packages

    if train:
        require_packages()
    began = time.perf_counter()
    typer.echo("reading the functions and classes of this Python's standard library ...")
    result = run_demo(keep)
    index = result.index
    typer.echo(f"\n{index.num_samples:,} functions and classes indexed in {time.perf_counter() - began:.1f} s\n")
    tables.print_summary(index)
    typer.echo("\ncompression_ratio: how many times smaller zlib makes the text (samples, cumulative share)\n")
    typer.echo(text_histogram(index["compression_ratio"], bins=15, width=min(tables.width(), 100)))
    longest = index["tokens"].quantile(0.99)
    typer.echo(f"\nindex['tokens'].count(above={longest}): {index['tokens'].count(above=longest):,} samples are longer")
    typer.echo(f"\nthe ten functions with the rarest words, by SQL:\n\n{result.query}\n")
    tables.print_frame(index.sql(result.query))
    folder = keep / "index"
    typer.echo(f"\nthe data:  {result.data}\nthe index: {folder}\n")
    longest_first = "select sample_id, tokens, compression_ratio from samples order by tokens desc limit 10"
    typer.echo(f"try: {options.typed('info', folder)}")
    typer.echo(f"     {options.typed('plot', folder, 'tokens')}")
    typer.echo(f"     {options.typed('sql', folder, longest_first)}")
    if train:
        train_demo(result)
