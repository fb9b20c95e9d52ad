"""The second half of a run: optimizer steps over a loader, with checkpoints, exact resume and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count, islice
from os import PathLike
from pathlib import Path
from typing import Any

import pyarrow as pa

from arrowds.errors import ConfigError
from arrowds.integrations.deepspeed.ranks import together
from arrowds.loading import CurriculumDataLoader
from arrowds.pipeline.claim import claimed
from arrowds.pipeline.config import PipelineConfig, load_config
from arrowds.pipeline.data import create_data_loader, prepare_index
from arrowds.pipeline.group import Ranks, process_group
from arrowds.pipeline.models import make_model
from arrowds.pipeline.results import RunTables, StepRow
from arrowds.pipeline.trainer import StepResult, Trainer

CHECKPOINTS = "checkpoints"
Progress = Callable[[StepRow], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRun:
    """The result of a run.

    Attributes:
        output: the folder.
        steps: how many steps are done in all.
        resumed_from: the step of the checkpoint that this run resumed from; 0: it started from scratch.
        losses: ``step``, ``loss``, ``lr``, ``tokens`` of every step, including earlier parts of the run.
        difficulties: ``step``, ``metric``, ``difficulty``.
    """

    output: Path
    steps: int
    resumed_from: int
    losses: pa.Table
    difficulties: pa.Table


def run_pipeline(
    config: PipelineConfig | Mapping[str, Any] | str | PathLike[str],
    *,
    resume: bool = True,
    progress: Progress | None = None,
) -> TrainingRun:
    """Do a whole run from its configuration: create the index if missing, load, create the model, train.

    Under ``torchrun`` or DeepSpeed's launcher each process calls this; rank 0 creates the index.

    Args:
        config: see :class:`PipelineConfig`.
        resume: resume from the latest checkpoint in the output folder, if there is one.
        progress: called after every step, on rank 0.

    Raises:
        ConfigError: for an invalid configuration, or when another run is writing to the output folder.
    """
    checked = load_config(config)
    with process_group(deepspeed=checked.training.engine == "deepspeed") as ranks, _sole_run(checked, ranks):
        together(lambda: None if ranks.rank else prepare_index(None, checked))
        only_open = checked.model_copy(update={"index": checked.index.model_copy(update={"metrics": []})})
        loader = create_data_loader(None, only_open, rank=ranks.rank, world_size=ranks.world_size)
        model = make_model(checked.model)
        return _train(model, loader, checked, ranks, resume=resume, progress=progress)


def execute_data_pipeline(
    model: Any,
    loader: CurriculumDataLoader,
    config: PipelineConfig | Mapping[str, Any] | str | PathLike[str],
    *,
    resume: bool = True,
    progress: Progress | None = None,
) -> TrainingRun:
    """Train a model on the batches of a loader, as configured in ``config.training``, and write the results.

    In ``config.output``: ``losses.parquet`` (step, loss, lr, tokens), ``difficulties.parquet`` (step, metric,
    difficulty) and ``checkpoints/``. The tables are written with each checkpoint, and when an error ends the run.
    Randomness in the model is seeded by (seed, step, rank), so that a resumed run repeats the uninterrupted one.

    Args:
        model: a torch module that returns its loss, called with a batch of the loader: ``model(**batch)`` for a
            dictionary, as models of Hugging Face are.
        loader: from :func:`create_data_loader`.
        config: the sections ``batches``, ``training`` and ``output`` are used.
        resume: resume from the latest checkpoint in the output folder, if there is one.
        progress: called after every step, on rank 0.

    Raises:
        ConfigError: when the model returns no loss, the loader was made for other ranks than there are, or another run
            is writing to the output folder.
        StateMismatchError: when the checkpoints are of another model, dataset or curriculum.
        MissingExtraError: when torch or DeepSpeed is not installed.
    """
    checked = load_config(config)
    with process_group(deepspeed=checked.training.engine == "deepspeed") as ranks, _sole_run(checked, ranks):
        return _train(model, loader, checked, ranks, resume=resume, progress=progress)


@contextmanager
def _sole_run(config: PipelineConfig, ranks: Ranks) -> Iterator[None]:
    """Keep other runs out of the output folder; of several processes the first one holds it for all."""
    with ExitStack() as held:
        together(lambda: None if ranks.rank else held.enter_context(claimed(config.output)))
        yield


def _train(
    model: Any,
    loader: CurriculumDataLoader,
    config: PipelineConfig,
    ranks: Ranks,
    *,
    resume: bool,
    progress: Progress | None,
) -> TrainingRun:
    _check_ranks(loader, ranks)
    trainer = make_trainer(model, config, ranks)
    saved = trainer.load(config.output / CHECKPOINTS) if resume else None
    begun = 0 if saved is None else int(saved["step"])
    if saved is not None:
        loader.load_state_dict(saved["loader"])
    tables = RunTables(config.output, resumed_from=begun)
    run = _Run(trainer=trainer, loader=loader, config=config, ranks=ranks, tables=tables)
    done = run.train(begun, progress)
    losses, difficulties = tables.tables()
    return TrainingRun(output=config.output, steps=done, resumed_from=begun, losses=losses, difficulties=difficulties)


def _check_ranks(loader: Any, ranks: Ranks) -> None:
    layout = getattr(loader.sampler, "layout", None)
    if layout is not None and (layout.rank, layout.world_size) != (ranks.rank, ranks.world_size):
        raise ConfigError(
            f"the loader is for rank {layout.rank} of {layout.world_size}, but this process is rank {ranks.rank} of "
            f"{ranks.world_size}: pass rank and world_size to create_data_loader, and start with torchrun or deepspeed"
        )


def make_trainer(model: Any, config: PipelineConfig, ranks: Ranks) -> Trainer:
    """Return the trainer of ``config.training.engine``."""
    if config.training.engine == "deepspeed":
        from arrowds.pipeline.deepspeed_engine import DeepSpeedTrainer

        return DeepSpeedTrainer(model, config.training, config.batches, ranks)
    from arrowds.pipeline.torch_engine import TorchTrainer

    return TorchTrainer(model, config.training, ranks)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    """The state that the steps of one run share."""

    trainer: Trainer
    loader: CurriculumDataLoader
    config: PipelineConfig
    ranks: Ranks
    tables: RunTables

    def train(self, begun: int, progress: Progress | None) -> int:
        """Train from the step after ``begun`` to the end; return the last step."""
        every, done, saved = self.config.training.checkpoint_every, begun, begun
        try:
            for row in self._steps(begun):
                done = row.step
                self.tables.add(row)
                if self.ranks.rank == 0 and progress is not None:
                    progress(row)
                if every is not None and done % every == 0:
                    self._checkpoint(done)
                    saved = done
        except BaseException:
            self._write_tables()
            raise
        finally:
            if hasattr(self.loader.sampler, "close"):
                self.loader.sampler.close()  # its record
        if done > saved:
            self._checkpoint(done)
        return done

    def _steps(self, begun: int) -> Iterator[StepRow]:
        import torch

        limit, microbatches = self.config.training.steps, self.config.batches.gradient_accumulation_steps
        batches = iter(self.loader)
        for step in count(begun + 1):
            mine = list(islice(batches, microbatches)) if limit is None or step <= limit else []
            if len(mine) < microbatches:
                return
            torch.manual_seed((self.config.batches.seed * 1_000_003 + step) * self.ranks.world_size + self.ranks.rank)
            yield self._row(step, self.trainer.train_step(mine))

    def _row(self, step: int, result: StepResult) -> StepRow:
        return StepRow(
            step=step,
            loss=self.ranks.mean(result.loss, self.trainer.device),
            lr=result.lr,
            tokens=round(self.ranks.total(result.tokens, self.trainer.device)),
            difficulties=self.loader.current_difficulties,
        )

    def _checkpoint(self, step: int) -> None:
        self._write_tables()  # first, so that a checkpoint is never ahead of the tables
        state = {"step": step, "loader": self.loader.state_dict()}
        self.trainer.save(self.config.output / CHECKPOINTS, step, state)

    def _write_tables(self) -> None:
        if self.ranks.rank == 0:
            self.tables.write()
