"""Learning rates scaled by the size of each batch, on top of any torch scheduler."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xxhash

from arrowds.errors import ConfigError, MissingExtraError, StateMismatchError
from arrowds.states import checked_state, count_in
from arrowds.token_batches.plan import LrScaling, TokenBatchPlan, lr_factor

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

STATE_VERSION = 1


def scale_lr_by_batch_size(
    scheduler: LRScheduler | Optimizer,
    batch_sizes: TokenBatchPlan | Sequence[int] | npt.NDArray[Any],
    *,
    base_batch_size: float,
    method: LrScaling = "linear",
) -> LRScheduler:
    """Return a torch scheduler that multiplies another one's learning rates by a factor of each step's batch size.

    The learning rate of the first step is set at once; call `step()` after each optimizer step. The scheduler below
    never sees a scaled rate. `step(n)` goes to step n, counted from 0 over all epochs, as torch's schedulers take an
    epoch: `step(0)` before a loop over the same batches starts over with the first of them. Over a `ReduceLROnPlateau`
    the argument is its metric. `state_dict()` holds both schedulers and resumes exactly.

    Args:
        scheduler: the scheduler below, or an optimizer with constant learning rates.
        batch_sizes: samples in each step; repeated after the last. A plan (see `arrowds.batch_by_tokens`) continues
            with its next epoch instead.
        base_batch_size: samples in a batch for which the learning rates were chosen.
        method: "linear", "sqrt" or "none".

    Raises:
        ConfigError: for invalid arguments.
        MissingExtraError: without torch.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    >>> scaled = scale_lr_by_batch_size(optimizer, [4, 8, 2], base_batch_size=4)
    >>> rates = []
    >>> for _ in range(3):
    ...     rates += scaled.get_last_lr()
    ...     optimizer.step()
    ...     scaled.step()
    >>> rates
    [0.5, 1.0, 0.25]
    """
    scaled: LRScheduler = scheduler_class()(scheduler, _sizes(batch_sizes), base_batch_size, method)
    return scaled


class _FixedSizes:
    """Batch sizes that repeat."""

    def __init__(self, sizes: npt.NDArray[Any]) -> None:
        self.sizes = sizes
        self.digest = xxhash.xxh3_64_hexdigest(sizes.astype("<i8").tobytes())

    def at(self, step: int) -> int:
        return int(self.sizes[step % len(self.sizes)])

    def state(self) -> dict[str, Any]:
        return {"batch_sizes": self.digest}

    def resumed(self, state: Mapping[str, Any], step: int) -> _FixedSizes:
        """Return the sizes of a saved state, if they are these."""
        if state.get("batch_sizes") != self.digest:
            raise StateMismatchError("the learning-rate state was saved with other batch sizes")
        return self


class _PlannedSizes:
    """The batch sizes of a plan, epoch after epoch; remembers the epoch of the step last asked for."""

    def __init__(self, plan: TokenBatchPlan) -> None:
        self.plan = plan
        self.sizes = plan.batch_sizes
        self.before = 0  # steps of the epochs that have passed

    def at(self, step: int) -> int:
        while step - self.before >= len(self.sizes):
            self.before += len(self.sizes)
            self._choose(self.plan.epoch + 1)
        while step < self.before:
            self._choose(self.plan.epoch - 1)
            self.before -= len(self.sizes)
        return int(self.sizes[step - self.before])

    def _choose(self, epoch: int) -> None:
        self.plan = self.plan.with_epoch(epoch)
        self.sizes = self.plan.batch_sizes

    def state(self) -> dict[str, Any]:
        return {"plan": self.plan.digest, "epoch": self.plan.epoch, "before": self.before}

    def resumed(self, state: Mapping[str, Any], step: int) -> _PlannedSizes:
        """Return the sizes of a saved state, if they are of this plan, at its step."""
        if state.get("plan") != self.plan.digest:
            raise StateMismatchError(
                "the learning-rate state was saved with another plan: its samples or lengths differ"
            )
        resumed = _PlannedSizes(self.plan.with_epoch(count_in(state, "epoch")))
        resumed.before = count_in(state, "before")
        if not 0 <= step - resumed.before < len(resumed.sizes):
            raise StateMismatchError(
                f"the saved state is damaged: step {step} is not in epoch {resumed.plan.epoch}, which begins at step "
                f"{resumed.before}"
            )
        return resumed


def _sizes(batch_sizes: TokenBatchPlan | Sequence[int] | npt.NDArray[Any]) -> _FixedSizes | _PlannedSizes:
    if isinstance(batch_sizes, TokenBatchPlan):
        return _PlannedSizes(batch_sizes)
    sizes = np.asarray(batch_sizes)
    if sizes.ndim != 1 or not len(sizes) or sizes.dtype.kind not in "iu" or int(sizes.min()) < 1:
        raise ConfigError("batch_sizes: expected at least one integer, each of at least 1, or a plan")
    return _FixedSizes(sizes)


def _target(epoch: int | None = None) -> int | None:
    """Return the step to go to, or None for the next."""
    if epoch is not None and (isinstance(epoch, bool) or not isinstance(epoch, (int, np.integer)) or epoch < 0):
        raise ConfigError(f"step({epoch!r}): expected the number of a step, from 0, or nothing for the next")
    return None if epoch is None else int(epoch)


def _is_rate(rate: object) -> bool:
    """Whether this is a learning rate: a finite number, or a tensor that holds one."""
    try:
        return not isinstance(rate, (bool, str)) and math.isfinite(float(rate))  # type: ignore[arg-type]  # it may be anything
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False


@contextmanager
def _without_advice(*, moving: bool) -> Iterator[None]:
    """Keep torch from warning of an epoch as argument, and of a step before the optimizer's, where both are meant."""
    with warnings.catch_warnings():
        if moving:
            warnings.filterwarnings("ignore", message="The epoch parameter in `scheduler.step", category=UserWarning)
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step", category=UserWarning)
        yield


@cache
def scheduler_class() -> Any:
    """Return the scheduler's class, defined when torch is first needed."""
    try:
        from torch.optim import Optimizer
        from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
    except ImportError as error:
        raise MissingExtraError("torch", "torch") from error

    class BatchSizeLR(LRScheduler):
        """Sets every group's rate to the rate of the scheduler below times a factor of the step's batch size."""

        # The base class's constructor is skipped on purpose: it would step, and wrap the optimizer a second time.
        def __init__(
            self, below: Any, sizes: _FixedSizes | _PlannedSizes, base_batch_size: float, method: LrScaling
        ) -> None:
            self.below = None if isinstance(below, Optimizer) else below
            self.optimizer = below if self.below is None else below.optimizer
            self.sizes, self.base_batch_size, self.method = sizes, base_batch_size, method
            self.last_epoch = 0
            self.base_lrs = self.unscaled_lrs = [group["lr"] for group in self.optimizer.param_groups]
            self._scale()

        def step(self, *args: Any, **kwargs: Any) -> None:
            """Move to the next step, or to the step that is named; a plateau scheduler below gets its metric."""
            target = None if isinstance(self.below, ReduceLROnPlateau) else _target(*args, **kwargs)
            unscaled = self.base_lrs if target == 0 else self.unscaled_lrs
            for group, rate in zip(self.optimizer.param_groups, unscaled, strict=True):
                group["lr"] = rate
            if self.below is not None:
                with _without_advice(moving=target is not None):
                    self.below.step(*args, **kwargs)
            self.unscaled_lrs = [group["lr"] for group in self.optimizer.param_groups]
            self.last_epoch = self.last_epoch + 1 if target is None else target
            self._scale()

        def get_last_lr(self) -> list[Any]:
            """The scaled rates that the next optimizer step uses, one per group."""
            return [group["lr"] for group in self.optimizer.param_groups]

        def get_lr(self) -> list[Any]:
            """The same as `get_last_lr`."""
            return self.get_last_lr()

        def state_dict(self) -> dict[str, Any]:
            return {
                "version": STATE_VERSION,
                "below": None if self.below is None else self.below.state_dict(),
                "unscaled_lrs": list(self.unscaled_lrs),
                "steps": self.last_epoch,
                "base_batch_size": self.base_batch_size,
                "method": self.method,
                "sizes": self.sizes.state(),
            }

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            """Resume where the state was taken, and set the optimizer's rates.

            Raises:
                StateMismatchError: for a state of other batch sizes or settings.
            """
            state = checked_state(state_dict, STATE_VERSION, of="a learning rate")
            for name in ("base_batch_size", "method"):
                if state.get(name) != getattr(self, name):
                    raise StateMismatchError(f"saved with {name}={state.get(name)!r}, now {getattr(self, name)!r}")
            below, rates, saved = state.get("below"), state.get("unscaled_lrs"), state.get("sizes")
            steps = count_in(state, "steps")
            sizes = self.sizes.resumed(saved if isinstance(saved, Mapping) else {}, steps)
            if isinstance(below, Mapping) != (self.below is not None):
                raise StateMismatchError("the state was saved over another scheduler, or is damaged")
            if not isinstance(rates, list) or len(rates) != len(self.unscaled_lrs) or not all(map(_is_rate, rates)):
                raise StateMismatchError(
                    f"the state has the learning rates {rates!r:.60}, expected {len(self.unscaled_lrs)} numbers, one "
                    "for each group of parameters"
                )
            if self.below is not None:
                self.below.load_state_dict(below)
            self.sizes = sizes
            self.unscaled_lrs = list(rates)
            self.last_epoch = steps
            self._scale()

        def _scale(self) -> None:
            factor = float(lr_factor(self.sizes.at(self.last_epoch), self.base_batch_size, self.method))
            for group, rate in zip(self.optimizer.param_groups, self.unscaled_lrs, strict=True):
                group["lr"] = rate * factor

    return BatchSizeLR
