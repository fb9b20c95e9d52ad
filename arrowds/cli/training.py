"""``arrowds run`` and ``arrowds batch``: a run from a configuration, and the samples of any of its steps."""

from __future__ import annotations

import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from arrowds.cli import options, tables
from arrowds.errors import ArrowdsError, StateMismatchError

if TYPE_CHECKING:
    from arrowds.demo import Demo
    from arrowds.pipeline.results import StepRow
    from arrowds.pipeline.run import TrainingRun

_SECONDS_BETWEEN_LINES = 2.0


class TrainingFailedError(ArrowdsError, RuntimeError):
    """The model or the engine of a run raised; its traceback is in a file."""


def run(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="A .json, .yaml or .yml file; see docs/tutorial.md.")
    ],
    *,
    steps: Annotated[int | None, typer.Option(min=1, help="Train up to this step instead.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", metavar="DIR", help="Write here instead.")] = None,
    no_resume: Annotated[bool, typer.Option("--no-resume", help="Start from scratch; ignore checkpoints.")] = False,
    no_plot: Annotated[bool, typer.Option("--no-plot", help="Draw no chart.")] = False,
    as_json: options.AsJsonObject = False,
) -> None:
    """Do a whole run: index the dataset, train with its curriculum, write losses and difficulties per step.

    Run again, it resumes from its latest checkpoint. Under torchrun, several processes train together.

    Example: arrowds run run.yaml --steps 1000

    Example: torchrun --nproc_per_node 2 --no-python arrowds run run.yaml
    """
    from arrowds.pipeline import load_config, run_pipeline

    values = load_config(config)
    if steps is not None:
        values = values.model_copy(update={"training": values.training.model_copy(update={"steps": steps})})
    if output is not None:
        values = values.model_copy(update={"output": output})
    hide_deprecations()
    sys.path.insert(0, str(Path.cwd()))  # the first place to import the model's factory from
    try:
        result = run_pipeline(values, resume=not no_resume, progress=None if as_json else StepLines())
    except (ArrowdsError, OSError):
        raise
    except Exception as error:  # of the user's model or of the engine
        raise _in_one_line(error, values.output) from error
    if not options.is_first_rank():
        return
    if as_json:
        tables.print_object({"output": str(result.output), "steps": result.steps, "resumed_from": result.resumed_from})
        return
    if result.resumed_from:
        typer.echo(f"resumed from the checkpoint of step {result.resumed_from}")
    typer.echo(f"{result.steps:,} steps; losses.parquet, difficulties.parquet and checkpoints are in {result.output}")
    if not no_plot and result.steps:
        _draw(result)


def _in_one_line(error: Exception, output: Path) -> TrainingFailedError:
    """Leave the traceback of an error in the run's folder, and return one that says where it came from."""
    rank = os.environ.get("RANK")
    path = output / ("error.txt" if rank is None else f"error-rank{rank}.txt")
    frame = traceback.extract_tb(error.__traceback__)[-1]
    output.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    where = f"rank {rank} failed" if rank is not None else "the run failed"
    return TrainingFailedError(
        f"{where} in {Path(frame.filename).name}, line {frame.lineno}: {type(error).__name__}: {error}; "
        f"the traceback is in {path}. Run the same command again to resume from the latest checkpoint"
    )


def _draw(result: TrainingRun) -> None:
    from arrowds.errors import MissingExtraError
    from arrowds.pipeline.chart import CHART, plot_run

    try:
        plot_run(result.losses, result.difficulties, result.output / CHART)
    except MissingExtraError as error:
        typer.echo(f"no chart: {error}")
        return
    typer.echo(f"wrote {result.output / CHART}")


def hide_deprecations() -> None:
    """Silence torch's warnings that DeepSpeed calls deprecated functions, which would come at every step."""
    warnings.filterwarnings("ignore", message=".*is deprecated", category=FutureWarning, module="torch.distributed")


def train_demo(demo: Demo) -> None:
    """Train on the demo's index, stop, resume, and print whether the result equals that of an uninterrupted run."""
    from arrowds.training_demo import run_training_demo

    hide_deprecations()
    typer.echo("\ntraining on the bytes of the functions, short ones first, with DeepSpeed ZeRO-3: uninterrupted,")
    typer.echo("then again, stopped after half of the steps and resumed from DeepSpeed's checkpoint\n")
    result = run_training_demo(demo, progress=StepLines())
    first, last = (result.whole.losses["loss"][row].as_py() for row in (0, -1))
    typer.echo(f"\nthe loss went from {first:.3f} to {last:.3f} in {result.whole.steps} steps")
    typer.echo(f"resumed after step {result.resumed.resumed_from}:")
    same = "the same" if result.same_batches else "NOT the same"
    typer.echo(f"  {result.resumed_samples.num_rows:,} samples drawn, {same} as in the uninterrupted run")
    typer.echo(f"  largest difference of a step's loss: {result.largest_difference:g}")
    typer.echo(f"losses and difficulties per step: {result.resumed.output}")
    _draw(result.resumed)
    if not result.same_batches:
        raise StateMismatchError("the resumed run drew other samples than the uninterrupted run")


class StepLines:
    """Print a line for a step, at most every two seconds."""

    def __init__(self) -> None:
        self._printed = -_SECONDS_BETWEEN_LINES

    def __call__(self, row: StepRow) -> None:
        now = time.monotonic()
        if now - self._printed < _SECONDS_BETWEEN_LINES:
            return
        self._printed = now
        difficulties = "".join(f"  {name} {value:g}" for name, value in row.difficulties.items())
        typer.echo(f"step {row.step:>6,}  loss {row.loss:.4f}  lr {row.lr:.3g}  {row.tokens:,} tokens{difficulties}")


def why(
    run: Annotated[Path, typer.Argument(help="The output of a run, or the folder that a sampler recorded into.")],
    *,
    step: Annotated[int | None, typer.Option(min=1, help="The step.")] = None,
    steps: Annotated[
        str | None, typer.Option(metavar="FIRST:LAST", help="Several steps, the last one included.")
    ] = None,
    index: Annotated[
        str | None, typer.Option(help="The index of the run; by default the one that the run names.")
    ] = None,
    show: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="Columns of the data; by default all. Repeatable.")
    ] = None,
    csv: options.AsCsv = False,
    as_json: options.AsJson = False,
    storage_option: options.StorageOptions = None,
) -> None:
    """Show the samples that all ranks saw at a step of a run: values, percentiles, losses, and the rows of the data.

    Example: arrowds why run --step 5000 --show text

    Example: arrowds why run --steps 5000:5010 --json
    """
    from arrowds.curriculum.trace import why as samples_of

    options.check_format(csv, as_json)
    opened = None if index is None else options.open_index(index, None, storage_option)
    found = samples_of(run, options.steps(step, steps), index=opened, columns=show)
    tables.print_answer(found, csv=csv, as_json=as_json, most_characters=tables.MOST_CHARACTERS_OF_A_SAMPLE)
    if not (csv or as_json):
        typer.echo(f"to leave these samples out: exclude_ids={found['sample_id'].unique().sort().to_list()}")


def simulate(
    index: options.IndexPath,
    *,
    config: Annotated[Path, typer.Option(help="DeepSpeed's JSON, or the configuration of arrowds run.")],
    points: Annotated[int, typer.Option(min=1, help="How many steps to look at, evenly spread.")] = 20,
    world_size: Annotated[
        int | None, typer.Option(min=1, help="How many ranks train; by default from the batch sizes, or 1.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Draw a chart into this .png, .svg or .pdf file, too.")
    ] = None,
    csv: options.AsCsv = False,
    as_json: options.AsJson = False,
    version: options.Version = None,
    storage_option: options.StorageOptions = None,
) -> None:
    """Tell what a run would draw, before it is trained: difficulties, lengths, fill and shares over the steps.

    Example: arrowds simulate index --config run.yaml

    Example: arrowds simulate index --config run.yaml --points 200 -o run.svg
    """
    from arrowds.curriculum.trace import simulate as simulated
    from arrowds.pipeline.sampler_settings import sampler_from_settings

    options.check_format(csv, as_json)
    opened = options.open_index(index, version, storage_option)
    sampler = sampler_from_settings(opened, config, world_size=world_size)
    found = simulated(sampler, points)
    if output is not None:
        from arrowds.plots import plot_steps

        plot_steps(found, output)
    if not (csv or as_json):
        drawn = f"{sampler.num_steps:,} steps draw {sampler.samples_per_epoch:,} samples"
        typer.echo(f"{drawn}, {sampler.num_epochs} time{'s' if sampler.num_epochs > 1 else ''}")
        found = tables.readable(found, zeros="share_")
    tables.print_answer(found, csv=csv, as_json=as_json)


def batch(
    index: options.IndexPath,
    *,
    config: Annotated[Path, typer.Option(help="DeepSpeed's JSON, or the configuration of arrowds run.")],
    step: Annotated[int, typer.Option(min=1, help="Which step; the first is 1.")],
    rank: Annotated[int | None, typer.Option(min=0, help="Only the samples of this rank.")] = None,
    world_size: Annotated[
        int | None, typer.Option(min=1, help="How many ranks train; by default from the batch sizes, or 1.")
    ] = None,
    csv: options.AsCsv = False,
    as_json: options.AsJson = False,
    version: options.Version = None,
    storage_option: options.StorageOptions = None,
) -> None:
    """List the samples that any step of a run draws, with their metric values.

    With order "stateless" any step is computed at once; with "deepspeed" all steps before it are drawn first.

    Example: arrowds batch index --config ds_config.json --step 12345 --rank 0
    """
    import polars as pl

    from arrowds.errors import ConfigError
    from arrowds.pipeline.sampler_settings import sampler_from_settings

    options.check_format(csv, as_json)
    opened = options.open_index(index, version, storage_option)
    sampler = sampler_from_settings(opened, config, rank=rank or 0, world_size=world_size)
    if step > sampler.num_steps:
        raise ConfigError(f"step {step} does not exist: the run has {sampler.num_steps:,} steps")
    samples = pl.DataFrame(sampler.trace(step))
    if rank is not None:
        samples = samples.filter(pl.col("rank") == rank)
    tables.print_answer(samples, csv=csv, as_json=as_json)
