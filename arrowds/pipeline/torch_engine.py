"""Training with plain PyTorch: AdamW, gradient accumulation and clipping, DistributedDataParallel on several ranks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arrowds.errors import StateMismatchError
from arrowds.pipeline.config import TrainingConfig
from arrowds.pipeline.group import Ranks
from arrowds.pipeline.trainer import StepResult, count_tokens, forward
from arrowds.store import LocalStore, replacing

if TYPE_CHECKING:
    import torch

CHECKPOINT_VERSION = 1
_LATEST = "latest"


def make_optimizer(model: Any, config: TrainingConfig) -> torch.optim.Optimizer:
    """Return AdamW over a model's parameters."""
    import torch

    return torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)


def make_scheduler(optimizer: torch.optim.Optimizer, config: TrainingConfig) -> torch.optim.lr_scheduler.LambdaLR:
    """Return a learning rate that rises over ``warmup_steps`` and then stays constant."""
    import torch

    warmup = max(1, config.warmup_steps)
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / warmup))


def apply_settings(optimizer: Any, scheduler: Any, config: TrainingConfig) -> None:
    """Give what a checkpoint has restored the learning rate and the weight decay of the configuration."""
    scheduler.base_lrs = [config.learning_rate] * len(optimizer.param_groups)
    rates = [config.learning_rate * rise(scheduler.last_epoch) for rise in scheduler.lr_lambdas]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group.update(initial_lr=config.learning_rate, lr=rate, weight_decay=config.weight_decay)
    scheduler._last_lr = rates  # what get_last_lr tells; torch has no other way to set it


class TorchTrainer:
    """A model, AdamW and a learning rate that warms up; checkpoints are one file each, loaded without pickled code."""

    def __init__(self, model: Any, config: TrainingConfig, ranks: Ranks) -> None:
        import torch
        from torch.nn.parallel import DistributedDataParallel

        accelerator = torch.accelerator.current_accelerator() or torch.device("cpu")
        self.device = torch.device(config.device) if config.device else accelerator
        self._ranks = ranks
        self._config = config
        self._module = model.to(self.device).train()
        self._model = DistributedDataParallel(self._module) if ranks.world_size > 1 else self._module
        self._optimizer = make_optimizer(self._module, config)
        self._scheduler = make_scheduler(self._optimizer, config)

    def train_step(self, batches: Sequence[Any]) -> StepResult:
        """Take one step; all microbatches have equal weight."""
        import torch

        losses = []
        for number, batch in enumerate(batches, 1):
            last = number == len(batches)
            # Gradients are reduced over ranks once per step, not once per microbatch.
            with nullcontext() if last or self._model is self._module else self._model.no_sync():
                loss = forward(self._model, batch, self.device)
                (loss / len(batches)).backward()
            losses.append(loss.detach())
        if self._config.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._module.parameters(), self._config.max_grad_norm)
        rate = float(self._scheduler.get_last_lr()[0])
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._scheduler.step()
        return StepResult(
            loss=float(torch.stack(losses).double().mean()), lr=rate, tokens=sum(map(count_tokens, batches))
        )

    def save(self, folder: Path, step: int, state: Mapping[str, Any]) -> None:
        """Write ``step-N.pt`` from rank 0, then the file that names the latest."""
        if self._ranks.rank:
            return
        import torch

        name = f"step-{step}.pt"
        content = {
            "version": CHECKPOINT_VERSION,
            "model": self._module.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "state": dict(state),
        }
        with replacing(folder / name) as draft:
            torch.save(content, draft.path)
        store = LocalStore(folder)
        store.write(_LATEST, name.encode())
        store.sync([name, _LATEST])

    def load(self, folder: Path) -> Mapping[str, Any] | None:
        """Load the latest checkpoint.

        Raises:
            StateMismatchError: for a checkpoint of another version, or of another model.
        """
        import torch

        latest = folder / _LATEST
        if not latest.exists():
            return None
        path = folder / latest.read_text(encoding="utf-8")
        content = torch.load(path, map_location=self.device, weights_only=True)
        if content.get("version") != CHECKPOINT_VERSION:
            raise StateMismatchError(f"{path} has version {content.get('version')!r}; expected {CHECKPOINT_VERSION}")
        try:
            self._module.load_state_dict(content["model"])
            self._optimizer.load_state_dict(content["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise StateMismatchError(
                f"{path} is a checkpoint of another model: {error}; choose another output"
            ) from error
        self._scheduler.load_state_dict(content["scheduler"])
        apply_settings(self._optimizer, self._scheduler, self._config)
        state: Mapping[str, Any] = content["state"]
        return state
