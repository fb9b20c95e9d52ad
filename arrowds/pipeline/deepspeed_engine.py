"""Training with DeepSpeed under its own JSON configuration; the engine's checkpoints contain the loader's state."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arrowds.errors import ConfigError, StateMismatchError
from arrowds.integrations import deepspeed as ads
from arrowds.pipeline.config import BatchConfig, TrainingConfig, read_settings
from arrowds.pipeline.group import Ranks
from arrowds.pipeline.torch_engine import apply_settings, make_optimizer, make_scheduler
from arrowds.pipeline.trainer import StepResult, count_tokens, forward

_CLIENT_STATE = "arrowds"


def deepspeed_settings(config: TrainingConfig, batches: BatchConfig, world_size: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration with the batch sizes of ``batches``. Pure, except for reading its file.

    Raises:
        ConfigError: when it has other batch sizes, or its own curriculum.
    """
    given = dict(config.deepspeed) if isinstance(config.deepspeed, dict) else read_settings(config.deepspeed)
    for key in ("data_efficiency", "curriculum_learning"):
        if key in given:
            raise ConfigError(f"training.deepspeed has {key!r}; leave it out: the section 'curriculum' replaces it")
    # Under a token budget, DeepSpeed counts microbatches: their samples vary.
    micro, accumulation = batches.micro_batch_size or 1, batches.gradient_accumulation_steps
    sizes = {
        "train_batch_size": micro * accumulation * world_size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
    }
    for key, size in sizes.items():
        if given.get(key, "auto") not in ("auto", size):
            raise ConfigError(
                f"training.deepspeed has {key}={given[key]!r}, but 'batches' with {world_size} ranks gives {size}; "
                'leave it out, or write "auto"'
            )
    clipping = {} if config.max_grad_norm is None else {"gradient_clipping": config.max_grad_norm}
    return {**clipping, "steps_per_print": 2**31, **given, **sizes}


class DeepSpeedTrainer:
    """A DeepSpeed engine; without an optimizer in its configuration, AdamW with the learning rate of ``training``."""

    def __init__(self, model: Any, config: TrainingConfig, batches: BatchConfig, ranks: Ranks) -> None:
        os.environ.setdefault("LOCAL_RANK", "0")  # a launcher sets it; without one DeepSpeed refuses to start
        settings = deepspeed_settings(config, batches, ranks.world_size)
        optimizer = None if "optimizer" in settings else make_optimizer(model, config)
        scheduler = None if "scheduler" in settings else lambda made: make_scheduler(made, config)
        self._own_rates = None if optimizer is None or scheduler is None else config
        self._engine = ads.initialize(model=model, optimizer=optimizer, lr_scheduler=scheduler, config=settings)[0]
        self.device = self._engine.device

    def train_step(self, batches: Sequence[Any]) -> StepResult:
        """Take one step; the engine accumulates the microbatches."""
        rate = float(self._engine.get_lr()[0])
        losses = []
        for batch in batches:
            loss = forward(self._engine, batch, self.device)
            self._engine.backward(loss)
            self._engine.step()
            losses.append(float(loss.detach()))
        return StepResult(loss=sum(losses) / len(losses), lr=rate, tokens=sum(map(count_tokens, batches)))

    def save(self, folder: Path, step: int, state: Mapping[str, Any]) -> None:
        """Write the engine's checkpoint ``step-N``, with the run's state as client state."""
        self._engine.save_checkpoint(str(folder), tag=f"step-{step}", client_state={_CLIENT_STATE: dict(state)})

    def load(self, folder: Path) -> Mapping[str, Any] | None:
        """Load the engine's latest checkpoint.

        Raises:
            StateMismatchError: when another program wrote it.
        """
        if not (folder / "latest").exists():
            return None
        path, client_state = self._engine.load_checkpoint(str(folder))
        if path is None or _CLIENT_STATE not in client_state:
            raise StateMismatchError(f"the checkpoints in {folder} are from another program; choose another output")
        if self._own_rates is not None:
            apply_settings(self._engine.optimizer, self._engine.lr_scheduler, self._own_rates)
        state: Mapping[str, Any] = client_state[_CLIENT_STATE]
        return state
