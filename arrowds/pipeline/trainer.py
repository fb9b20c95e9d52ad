"""The interface of trainers, and how a model is called on a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from arrowds.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """One optimizer step on this rank: mean loss of its microbatches, learning rate, tokens."""

    loss: float
    lr: float
    tokens: int


class Trainer(Protocol):
    """A model and its optimizer."""

    @property
    def device(self) -> Any:
        """The torch device of the model."""

    def train_step(self, batches: Sequence[Any]) -> StepResult:
        """Take one step with the microbatches of this rank."""

    def save(self, folder: Path, step: int, state: Mapping[str, Any]) -> None:
        """Write a checkpoint of ``step`` and make it the latest; every rank calls this."""

    def load(self, folder: Path) -> Mapping[str, Any] | None:
        """Resume from the latest checkpoint and return the state saved with it; None: there is none."""


def forward(model: Any, batch: Any, device: Any) -> Any:
    """Call a model with its batch (as keywords, arguments, or one argument) and return the loss, a scalar tensor.

    Raises:
        ConfigError: when the model returns no loss.
    """
    if isinstance(batch, Mapping):
        output = model(**{name: _moved(value, device) for name, value in batch.items()})
    elif isinstance(batch, (tuple, list)):
        output = model(*(_moved(value, device) for value in batch))
    else:
        output = model(_moved(batch, device))
    loss = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", output)
    if getattr(loss, "ndim", None) != 0:
        shape = getattr(output, "shape", None)
        got = type(output).__name__ if shape is None else f"a tensor of shape {tuple(shape)}"
        raise ConfigError(
            f"the model returned {got}; expected the loss, a tensor without dimensions, or an object with it as 'loss'"
        )
    return loss


def _moved(value: Any, device: Any) -> Any:
    return value.to(device) if hasattr(value, "to") else value


def count_tokens(batch: Any) -> int:
    """Return the tokens of a batch: those of its attention mask, or all of its input ids; 0 if it has neither."""
    if not isinstance(batch, Mapping):
        return 0
    if "attention_mask" in batch:
        return int(batch["attention_mask"].sum())
    return int(batch["input_ids"].numel()) if "input_ids" in batch else 0
