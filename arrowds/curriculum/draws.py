"""Draws: the sequence of global batches of a run, by the name that ``CurriculumSampler(order=...)`` gives it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from arrowds.curriculum.config import CurriculumMetric
from arrowds.curriculum.metric_values import DerivedMetric, MetricSource
from arrowds.curriculum.pools import Phases
from arrowds.errors import ConfigError

Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawSettings:
    """Everything that the global batches of a run follow from; ranks and microbatches do not matter.

    Attributes:
        index: where the metrics come from.
        metrics: the curriculum.
        derived: the metrics that are expressions.
        allowed: which samples the filter leaves, bool ``[num_samples]``; None for all.
        exclude_ids: samples that are never drawn, int64, sorted and distinct.
        phases: when difficulties change.
        seed: of all that is random.
        batch_size: samples per global batch.
        end: after how many draws the run ends.
    """

    index: MetricSource
    metrics: Sequence[CurriculumMetric]
    derived: Mapping[str, DerivedMetric]
    allowed: npt.NDArray[np.bool_] | None
    exclude_ids: Int64
    phases: Phases
    seed: int
    batch_size: int
    end: int


class Draws(ABC):
    """The global batches of a run, step by step. Subclasses are registered by :func:`register_draws`."""

    partial_steps: ClassVar[bool] = False
    """Whether ``drop_last=True`` still draws the whole microbatches of a last step that is not full."""

    keeps_state: ClassVar[bool] = False
    """Whether a saved state needs more than the position: then :meth:`state_at` and :meth:`check_state` are called."""

    @classmethod
    @abstractmethod
    def of(cls, settings: DrawSettings) -> Self:
        """Return the draws of a run.

        Raises:
            ConfigError: for settings that these draws can't follow.
            EmptyPoolError: when a difficulty admits no sample.
        """

    @abstractmethod
    def batches_from(self, step: int) -> Int64:
        """Return the global batches of a step (the first is 1) and perhaps some after it: ``[steps, batch_size]``."""

    def state_at(self, step: int) -> dict[str, Any]:
        """Return what a saved state needs after a step besides its position, as JSON-serialisable values."""
        return {}

    def check_state(self, step: int, state: Mapping[str, Any]) -> None:  # noqa: B027 - draws without state accept any
        """Compare a saved state with ``state_at(step)``.

        Raises:
            StateMismatchError: when these draws would not continue the run that saved the state.
        """


def register_draws(name: str, path: str) -> None:
    """Make a class of draws available as ``CurriculumSampler(order=name)``.

    The class is named, not passed, and imported when a sampler first asks for it. So a package above this one can
    contribute draws that ``curriculum`` never imports; ``"deepspeed"`` is such a name from the beginning.

    Args:
        name: the value of ``order``.
        path: ``"module:Class"``.

    >>> register_draws("mine", "arrowds.curriculum.stateless:StatelessDraws")
    >>> find_draws("mine").__name__
    'StatelessDraws'
    >>> del _REGISTERED["mine"]
    """
    _REGISTERED[name] = path


_REGISTERED = {
    "stateless": "arrowds.curriculum.stateless:StatelessDraws",
    "deepspeed": "arrowds.integrations.deepspeed.draws:DeepSpeedDraws",
}


def find_draws(name: str) -> type[Draws]:
    """Return the class of draws that is registered under a name.

    Raises:
        ConfigError: for an unknown name.
    """
    if not isinstance(name, str) or name not in _REGISTERED:
        raise ConfigError(f"order must be {' or '.join(map(repr, _REGISTERED))}, got {name!r}")
    draws: type[Draws] = resolve_name(_REGISTERED[name])
    return draws
