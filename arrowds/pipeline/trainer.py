"""What a run needs of whatever trains the model, and how a model is called and its loss found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from arrowds.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """What one step of the optimizer was on this rank: mean loss of its microbatches, learning rate, tokens."""

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
        """Go on from the latest checkpoint and return the state saved with it; None where there is none."""


def forward(model: Any, batch: Any, device: Any) -> Any:
    """Call a model as its batch suggests (keywords, arguments, or one argument) and return the loss, a scalar tensor.

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
        raise ConfigError(
            f"the model returned {_described(output)}; expected the loss, a tensor without dimensions, or something "
            "with it as 'loss'"
        )
    return loss


def _moved(value: Any, device: Any) -> Any:
    return value.to(device) if hasattr(value, "to") else value


def _described(output: Any) -> str:
    shape = getattr(output, "shape", None)
    return type(output).__name__ if shape is None else f"a tensor of shape {tuple(shape)}"


def count_tokens(batch: Any) -> int:
    """Return the tokens of a batch: those of its attention mask, or all of its input ids; 0 where it has neither."""
    if not isinstance(batch, Mapping):
        return 0
    if "attention_mask" in batch:
        return int(batch["attention_mask"].sum())
    return int(batch["input_ids"].numel()) if "input_ids" in batch else 0
