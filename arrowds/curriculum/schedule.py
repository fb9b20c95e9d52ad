"""Schedules: which difficulty a step has, with what is known about where it changes. Pure functions of the step."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from arrowds.errors import ConfigError
from arrowds.states import LARGEST_COUNT

SCHEDULE_KEYS = ("min_difficulty", "max_difficulty", "schedule_type", "schedule_config")
PATH_KEYS = ("index_path", "index_to_sample_path", "index_to_metric_path")
METRIC_KEYS = (*SCHEDULE_KEYS, "difficulty_type", "clustering_type", *PATH_KEYS, "curriculum_type")

Number = int | float

_LARGEST_NUMBER = 1e300
_MOST_CHANGES = 1 << 20
_LONGEST_FUNCTION = 1 << 24
"""Steps at which a function of the user is evaluated beforehand."""


class Schedule(Protocol):
    """A pure function of the step, with what is known about its shape."""

    def difficulty(self, step: int) -> Number:
        """Return the difficulty of a step (the first is 1). Pure."""

    def knots(self) -> list[int] | None:
        """Return steps between which the difficulty is monotonic; after the last one it is constant.

        None: unknown, so that every step has to be evaluated.
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
        try:
            progress = (float(step) / self.total) ** (1.0 / self.degree)
            if not self._whole:
                return self._fractional(progress)
            raw = math.floor(progress * (self.high - self.low) + self.low)
        except (OverflowError, ValueError):  # infinite, or infinity times zero: far beyond the end
            return self.high
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
        # A maximum that is not a multiple of the step is reached only where the next multiple would be.
        try:
            progress = (math.ceil(self.high / self.multiple) * self.multiple - self.low) / (self.high - self.low)
            return [1, min(math.ceil(self.total * progress**self.degree) + 2, LARGEST_COUNT)]
        except OverflowError:
            return [1, LARGEST_COUNT]


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
    """A function of the user, evaluated at every step up to ``total`` if that is given."""

    function: Callable[[int], Number]
    total: int | None

    def difficulty(self, step: int) -> Number:
        return self.function(step if self.total is None else min(step, self.total))

    def knots(self) -> list[int] | None:
        return None if self.total is None else list(range(1, self.total + 1))


def register_schedule(name: str, function: Callable[[int, Mapping[str, Any]], Number]) -> None:
    """Make ``function(step, schedule_config)`` available as ``"schedule_type": name``.

    If ``schedule_config`` has a ``total_curriculum_step``, the difficulty is constant after it, and the function is
    not called for later steps.

    Raises:
        ConfigError: when the name is taken by a built-in schedule.

    >>> register_schedule("sawtooth", lambda step, config: 8 + step % config["period"])
    >>> schedule = make_schedule({"min_difficulty": 8, "max_difficulty": 12, "schedule_type": "sawtooth",
    ...                           "schedule_config": {"period": 3}})
    >>> [schedule.difficulty(step) for step in range(1, 7)]
    [9, 10, 8, 9, 10, 8]
    """
    if name in _BUILT_IN:
        raise ConfigError(f"{name!r} is a built-in schedule; register yours under another name")
    _REGISTERED[name] = function


_REGISTERED: dict[str, Callable[[int, Mapping[str, Any]], Number]] = {}


def make_schedule(config: Mapping[str, Any], function: Callable[[int], Number] | None = None) -> Schedule:
    """Return the schedule that a metric's dictionary describes; ``function`` serves ``schedule_type`` "custom".

    Raises:
        ConfigError: for missing, unknown or impossible settings.
    """
    check_keys(config, METRIC_KEYS, where="the curriculum")
    kind, settings = config.get("schedule_type"), config.get("schedule_config") or {}
    if not isinstance(settings, Mapping):
        raise ConfigError(f"schedule_config must be a dictionary, got {settings!r:.60}")
    if kind is None:
        raise ConfigError("the curriculum has no 'schedule_type'; known: " + ", ".join([*_BUILT_IN, *_REGISTERED]))
    if not isinstance(kind, str) or (kind not in _BUILT_IN and kind not in _REGISTERED):
        raise ConfigError(f"unknown schedule_type {kind!r:.60}{_nearest(str(kind), [*_BUILT_IN, *_REGISTERED])}")
    for key in ("min_difficulty", "max_difficulty"):
        if kind != "piecewise" or key in config:
            _number(config, key, of="the curriculum")
    if kind == "custom":
        return Function(function or _not_set, _total(settings))
    if kind in _REGISTERED:
        registered = _REGISTERED[kind]
        return Function(lambda step: registered(step, settings), _total(settings))
    return _BUILT_IN[kind](config, settings)


def _not_set(step: int) -> Number:
    raise ConfigError(
        "schedule_type 'custom' needs a function of the step; set it with set_custom_get_difficulty, "
        "sampler.set_custom_curriculum_learning_schedule or CurriculumMetric(function=...)"
    )


def _root(config: Mapping[str, Any], settings: Mapping[str, Any]) -> Schedule:
    linear = config["schedule_type"] == "fixed_linear"
    keys = ["total_curriculum_step", "difficulty_step"] + ([] if linear else ["root_degree"])
    check_keys(settings, (*keys, "root_degree"), where="schedule_config")
    total, multiple, *degree = (_number(settings, key, of="schedule_config", positive=True) for key in keys)
    if total > LARGEST_COUNT:
        raise ConfigError(f"total_curriculum_step must be at most {LARGEST_COUNT}, got {total!r:.60}")
    if config["min_difficulty"] > config["max_difficulty"]:
        raise ConfigError(
            f"min_difficulty {config['min_difficulty']} is above max_difficulty {config['max_difficulty']}; "
            "a curriculum that narrows is a 'fixed_discrete' or 'piecewise' schedule with falling difficulties"
        )
    return Root(config["min_difficulty"], config["max_difficulty"], total, multiple, degree[0] if degree else 1)


def _discrete(config: Mapping[str, Any], settings: Mapping[str, Any]) -> Schedule:
    check_keys(settings, ("difficulty", "max_step"), where="schedule_config")
    levels, last_steps = (_list(settings, key) for key in ("difficulty", "max_step"))
    if not levels or not last_steps or len(levels) != len(last_steps) + 1:
        raise ConfigError(
            "schedule_config of fixed_discrete needs 'difficulty' and 'max_step', the last step of each difficulty "
            f"but the last (one element less); got {len(levels)} and {len(last_steps)}"
        )
    for level in levels:
        _check_number("difficulty", level)
    for last in last_steps:
        _check_step("max_step", last)
    return Discrete(tuple(levels), tuple(last_steps))


def _piecewise(config: Mapping[str, Any], settings: Mapping[str, Any]) -> Schedule:
    check_keys(settings, ("points", "difficulty_step", "interpolation"), where="schedule_config")
    points, interpolation = _list(settings, "points"), settings.get("interpolation", "linear")
    pairs = bool(points) and all(isinstance(point, list | tuple) and len(point) == 2 for point in points)
    steps = [at for at, _ in points] if pairs else []
    for at in steps:
        _check_step("a step of points", at)
    if not pairs or any(later <= step for step, later in itertools.pairwise(steps)):
        raise ConfigError(
            "schedule_config of piecewise needs 'points', a list of [step, difficulty] by ascending step, got "
            f"{settings.get('points')!r:.200}"
        )
    for _, level in points:
        _check_number("a difficulty of points", level)
    if interpolation not in ("linear", "step"):
        raise ConfigError(f"interpolation must be 'linear' or 'step', got {interpolation!r}")
    multiple = _number({"difficulty_step": 1, **settings}, "difficulty_step", of="schedule_config", positive=True)
    return Piecewise(tuple(steps), tuple(level for _, level in points), multiple, interpolation == "linear")


_BUILT_IN: dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Schedule]] = {
    "fixed_linear": _root,
    "fixed_root": _root,
    "fixed_discrete": _discrete,
    "piecewise": _piecewise,
    "custom": _root,
}


def difficulty_bounds(config: Mapping[str, Any]) -> tuple[Number, Number]:
    """Return ``min_difficulty`` and ``max_difficulty``; a piecewise schedule may leave them to its points.

    >>> difficulty_bounds({"schedule_type": "piecewise", "schedule_config": {"points": [(1, 8), (9, 64), (20, 16)]}})
    (8, 64)
    """
    levels = [0]
    if config["schedule_type"] == "piecewise":
        levels = [level for _, level in config["schedule_config"]["points"]]
    return config.get("min_difficulty", min(levels)), config.get("max_difficulty", max(levels))


def changes(schedule: Schedule, *, highest: Number, limit: int) -> tuple[list[int], list[Number]]:
    """Return the steps at which the difficulty changes, the first of them 1, and the difficulty from each on.

    As in DeepSpeed, a difficulty that has reached ``highest`` no longer rises; it may fall.

    Args:
        schedule: the schedule.
        highest: the maximum.
        limit: the last step to evaluate if the schedule has no known knots.

    >>> changes(Discrete((8, 16, 4), (2, 9)), highest=16, limit=100)
    ([1, 3, 10], [8, 16, 4])
    """
    starts: list[int] = []
    levels: list[Number] = []
    for step in _steps_of_change(schedule, limit):
        level = schedule.difficulty(step)
        if levels and (level == levels[-1] or (levels[-1] >= highest and level > levels[-1])):
            continue
        starts.append(step)
        levels.append(level)
        if len(starts) > _MOST_CHANGES:
            raise ConfigError(f"the difficulty changes more than {_MOST_CHANGES} times; raise difficulty_step")
    return starts, levels


def _steps_of_change(schedule: Schedule, limit: int) -> Iterable[int]:
    """Yield step 1 and, ascending, every step whose difficulty differs from that of the step before."""
    knots = schedule.knots()
    if knots is None:
        yield from range(1, limit + 1)
        return
    yield 1
    for start, stop in itertools.pairwise(sorted({1, *(step for step in knots if step > 1)})):
        yield from _changes_between(schedule, start, stop)


def _changes_between(schedule: Schedule, start: int, stop: int) -> Iterable[int]:
    pending = [(start, stop, schedule.difficulty(start), schedule.difficulty(stop))]
    while pending:
        start, stop, first, last = pending.pop()
        if first == last:
            continue
        if stop - start == 1:
            yield stop
            continue
        middle = (start + stop) // 2
        level = schedule.difficulty(middle)
        pending += [(middle, stop, level, last), (start, middle, first, level)]


def check_keys(config: Mapping[str, Any], known: Sequence[str], *, where: str) -> None:
    """Raise ConfigError for a key that is not known, naming the nearest one that is."""
    if not isinstance(config, Mapping):
        raise ConfigError(f"{where} must be a dictionary, got {type(config).__name__}")
    for key in config:
        if key not in known:
            raise ConfigError(f"unknown key {key!r} in {where}{_nearest(str(key), known)}")


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _number(config: Mapping[str, Any], key: str, *, of: str, positive: bool = False) -> Number:
    if key not in config:
        raise ConfigError(f"{of} needs {key!r}")
    return _check_number(key, config[key], positive=positive)


def _check_number(key: str, value: Any, *, positive: bool = False) -> Number:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST_NUMBER
    if not number or (positive and value <= 0):  # NaN is not <= anything
        raise ConfigError(f"{key} must be a {'positive ' if positive else ''}number, got {value!r:.60}")
    checked: Number = value
    return checked


def _check_step(key: str, value: Any, most: int = LARGEST_COUNT) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise ConfigError(f"{key} must be an integer from 0 to {most}, got {value!r:.60}")
    return value


def _list(settings: Mapping[str, Any], key: str) -> Sequence[Any]:
    value = settings.get(key) or ()
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence):
        raise ConfigError(f"{key} must be a list, got {value!r:.60}")
    return value


def _total(settings: Mapping[str, Any]) -> int | None:
    total = settings.get("total_curriculum_step")
    return None if total is None else _check_step("total_curriculum_step", total, _LONGEST_FUNCTION)
