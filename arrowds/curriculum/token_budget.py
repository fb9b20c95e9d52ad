"""What bounds a microbatch by tokens, and what of an index it is told by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from arrowds.cost import LengthCost
from arrowds.curriculum.metric_values import MetricSource, find_metric
from arrowds.errors import ConfigError, TokenBudgetError

Int64 = npt.NDArray[np.int64]
Cost = Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], npt.NDArray[np.float64]]
"""From the ids and the lengths of samples to what each of them costs."""


@dataclass(frozen=True, slots=True)
class TokenBudget:
    """What bounds a microbatch.

    Attributes:
        max_tokens: the most tokens that it has.
        lengths: the metric that counts those of a sample.
        padded: whether padding counts, up to the longest sample.
        overlong: what becomes of longer samples: "raise" or "truncate".
        cost: what samples cost: a function of their length, or a metric; None to count tokens.
    """

    max_tokens: int
    lengths: str
    padded: bool
    overlong: str
    cost: LengthCost | str | None

    def cost_of(self, index: MetricSource) -> Cost | None:
        """Return what gives the cost of samples by their ids and lengths.

        Raises:
            ConfigError: when a metric has no number, or one below zero, for a sample.
        """
        if not isinstance(self.cost, str):
            of_length = self.cost
            return None if of_length is None else lambda ids, lengths: of_length(lengths)
        metric = find_metric(index, self.cost)
        if metric.values.dtype.kind not in "iuf":
            raise ConfigError(f"costs must be numbers, but {self.cost!r} has {metric.values.dtype}")
        if len(metric.order) < index.num_samples:
            missing = index.num_samples - len(metric.order)
            raise ConfigError(f"costs must be known, but {missing} samples have no value of {self.cost!r}")
        least = int(metric.order[0])
        if metric.values[least] < 0:
            raise ConfigError(
                f"costs can't be negative, but sample {least} has {metric.values[least]} of {self.cost!r}"
            )
        return lambda ids, lengths: metric.values[ids].astype(np.float64)

    def lengths_of(
        self, index: MetricSource, allowed: npt.NDArray[np.bool_] | None, exclude_ids: Int64
    ) -> npt.NDArray[Any]:
        """Return the tokens of every sample.

        Args:
            index: where the metric is.
            allowed: which samples may be drawn; None for all.
            exclude_ids: samples that are never drawn.

        Raises:
            ConfigError: when the metric has no integers, or no length for a sample that may be drawn.
            TokenBudgetError: when such a sample is longer than the budget.
        """
        metric = find_metric(index, self.lengths)
        values = metric.values
        if values.dtype.kind not in "iu":
            raise ConfigError(f"lengths must be integers, but {self.lengths!r} has {values.dtype}")
        lengths: npt.NDArray[Any] = np.ma.getdata(values)
        longest = int(lengths[metric.order[-1]]) if len(metric.order) else 0
        if len(metric.order) == len(values) and (longest <= self.max_tokens or self.overlong == "truncate"):
            return lengths  # without a look at any other
        drawn = np.ones(len(values), np.bool_) if allowed is None else allowed.copy()
        drawn[exclude_ids] = False
        missing = np.ma.getmaskarray(values) & drawn
        if missing.any():
            raise ConfigError(
                f"{int(missing.sum())} samples have no {self.lengths}, the first is sample {int(missing.argmax())}; "
                "leave them out with where, a condition on metrics"
            )
        over = (lengths > self.max_tokens) & drawn
        if self.overlong == "raise" and over.any():
            first = int(np.where(over, lengths, 0).argmax())
            raise TokenBudgetError(
                f"{int(over.sum())} samples are longer than max_tokens, {self.max_tokens}; the longest, sample "
                f"{first}, has {lengths[first]} tokens. Raise max_tokens, leave them out with where, a condition on "
                f"{self.lengths}, or cut them when they are loaded: overlong 'truncate', or max_length of a run"
            )
        return lengths


def check_options(max_tokens: object, micro_batch_size: object, order: str, **options: object) -> None:
    """Raise ConfigError unless a batch is bounded in one way, and its options belong to that."""
    if (max_tokens is None) == (micro_batch_size is None):
        raise ConfigError(
            "pass micro_batch_size, the samples of a microbatch, or max_tokens, its tokens"
            + ("" if max_tokens is None else "; not both")
        )
    if max_tokens is not None and order != "stateless":
        raise ConfigError(f"max_tokens needs the order 'stateless', got {order!r}")
    if max_tokens is not None and (isinstance(max_tokens, bool) or not isinstance(max_tokens, int) or max_tokens < 1):
        raise ConfigError(f"max_tokens must be a positive integer, got {max_tokens!r}")
    if options.get("overlong") not in (None, "raise", "truncate"):
        raise ConfigError(f"overlong must be 'raise' or 'truncate', got {options['overlong']!r}")
    if options.get("cost") is not None and options.get("padded"):
        raise ConfigError("cost does not go with padded: samples of one length then go together, whatever they cost")
    if not isinstance(options.get("cost"), LengthCost | tuple | list | str | None):
        raise ConfigError(f"cost must be a pair of factors, a metric or a LengthCost, got {options['cost']!r}")
    given = [name for name, value in options.items() if value is not None]
    if max_tokens is None and given:
        raise ConfigError(
            f"{', '.join(given)} belong{'s' if len(given) == 1 else ''} to max_tokens, which is not given"
        )
