"""The shapes of schedules: from step to difficulty, with what is known about where they change. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

Number = int | float


class Schedule(Protocol):
    """A pure function of the step, with what is known about its shape."""

    def difficulty(self, step: int) -> Number:
        """Return the difficulty of a step (the first is 1). Pure."""

    def knots(self) -> list[int] | None:
        """Return steps between which the difficulty is monotonic, the last one where it stops to change.

        None: nothing is known, every step has to be asked.
        """


@dataclass(frozen=True, slots=True)
class Root:
    """From min to max along the n-th root of the step, floored to multiples of ``difficulty_step``."""

    low: Number
    high: Number
    total: Number
    multiple: Number
    degree: Number

    def difficulty(self, step: int) -> Number:
        progress = (float(step) / self.total) ** (1.0 / self.degree)
        if not self._whole:
            return self._fractional(progress)
        raw = math.floor(progress * (self.high - self.low) + self.low)
        lowest = -(-self.low // self.multiple) * self.multiple
        level: Number = min(max(raw - raw % self.multiple, lowest), self.high)
        return level

    @property
    def _whole(self) -> bool:
        """Whether all numbers are whole, as all of DeepSpeed's are."""
        return all(float(number).is_integer() for number in (self.low, self.high, self.multiple))

    def _fractional(self, progress: float) -> Number:
        """Rise in multiples of the step and end at the maximum: DeepSpeed's floor would skip fractions."""
        if progress >= 1:
            return self.high
        steps = math.floor(progress * (self.high - self.low) / self.multiple + 1e-9)
        return min(self.low + steps * self.multiple, self.high)

    def knots(self) -> list[int]:
        if self.high <= self.low:
            return [1]
        if not self._whole:
            return [1, math.ceil(self.total) + 1]
        # A maximum that is no multiple of the step is reached only where the next multiple would be.
        progress = (math.ceil(self.high / self.multiple) * self.multiple - self.low) / (self.high - self.low)
        return [1, math.ceil(self.total * progress**self.degree) + 2]


@dataclass(frozen=True, slots=True)
class Discrete:
    """A list of difficulties with the last step of each but the last."""

    difficulties: Sequence[Number]
    last_steps: Sequence[int]

    def difficulty(self, step: int) -> Number:
        if step > self.last_steps[-1]:
            return self.difficulties[-1]
        return next(level for level, last in zip(self.difficulties, self.last_steps, strict=False) if step <= last)

    def knots(self) -> list[int]:
        return [step for last in self.last_steps for step in (last, last + 1)]


@dataclass(frozen=True, slots=True)
class Piecewise:
    """Straight lines or steps between points (step, difficulty); it may fall."""

    steps: tuple[int, ...]
    levels: tuple[Number, ...]
    multiple: Number
    straight: bool

    def difficulty(self, step: int) -> Number:
        after = next((i for i, at in enumerate(self.steps) if at > step), len(self.steps))
        if after == 0:
            return self.levels[0]
        if after == len(self.steps) or not self.straight:
            return self.levels[after - 1]
        (start, stop), (low, high) = self.steps[after - 1 : after + 1], self.levels[after - 1 : after + 1]
        exact = low + (high - low) * (step - start) / (stop - start)
        return max(math.floor(exact / self.multiple) * self.multiple, min(low, high))

    def knots(self) -> list[int]:
        return [step for at in self.steps for step in (at - 1, at, at + 1)]


@dataclass(frozen=True, slots=True)
class Function:
    """A function of the user, asked at every step up to ``total`` where there is one."""

    function: Callable[[int], Number]
    total: int | None

    def difficulty(self, step: int) -> Number:
        return self.function(step if self.total is None else min(step, self.total))

    def knots(self) -> list[int] | None:
        return None if self.total is None else list(range(1, self.total + 1))
