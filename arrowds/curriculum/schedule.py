"""Schedules: which difficulty a step has. Pure functions of the step, and DeepSpeed's scheduler class around them."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from arrowds.curriculum.schedule_shapes import Discrete, Function, Number, Piecewise, Root, Schedule
from arrowds.errors import ConfigError

SCHEDULE_KEYS = ("min_difficulty", "max_difficulty", "schedule_type", "schedule_config")
PATH_KEYS = ("index_path", "index_to_sample_path", "index_to_metric_path")
METRIC_KEYS = (*SCHEDULE_KEYS, "difficulty_type", "clustering_type", *PATH_KEYS, "curriculum_type")


def register_schedule(name: str, function: Callable[[int, Mapping[str, Any]], Number]) -> None:
    """Make ``function(step, schedule_config)`` available as ``"schedule_type": name``.

    Where ``schedule_config`` has a ``total_curriculum_step``, the difficulty is taken as constant after it, and no
    later step is asked for.

    Raises:
        ConfigError: when the name is taken by a built-in schedule.

    >>> register_schedule("sawtooth", lambda step, config: 8 + step % config["period"])
    >>> scheduler = CurriculumScheduler({"min_difficulty": 8, "max_difficulty": 12, "schedule_type": "sawtooth",
    ...                                  "schedule_config": {"period": 3}})
    >>> [scheduler.get_difficulty(step) for step in range(1, 7)]
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
    if kind is None:
        raise ConfigError("the curriculum has no 'schedule_type'; known: " + ", ".join([*_BUILT_IN, *_REGISTERED]))
    if kind not in _BUILT_IN and kind not in _REGISTERED:
        raise ConfigError(f"unknown schedule_type {kind!r}{_nearest(str(kind), [*_BUILT_IN, *_REGISTERED])}")
    if kind != "piecewise":
        for key in ("min_difficulty", "max_difficulty"):
            _number(config, key, of="the curriculum")
    if kind == "custom":
        return Function(function or _not_set, _total(settings))
    if kind in _REGISTERED:
        registered = _REGISTERED[kind]
        return Function(lambda step: registered(step, settings), _total(settings))
    return _BUILT_IN[kind](config, settings)


def _not_set(step: int) -> Number:
    raise ConfigError(
        "schedule_type 'custom' needs a function of the step; pass it with set_custom_get_difficulty, "
        "sampler.set_custom_curriculum_learning_schedule or CurriculumMetric(function=...)"
    )


def _root(config: Mapping[str, Any], settings: Mapping[str, Any]) -> Schedule:
    linear = config["schedule_type"] == "fixed_linear"
    keys = ["total_curriculum_step", "difficulty_step"] + ([] if linear else ["root_degree"])
    check_keys(settings, (*keys, "root_degree"), where="schedule_config")
    total, multiple, *degree = (_number(settings, key, of="schedule_config", positive=True) for key in keys)
    if config["min_difficulty"] > config["max_difficulty"]:
        raise ConfigError(
            f"min_difficulty {config['min_difficulty']} is above max_difficulty {config['max_difficulty']}; "
            "a curriculum that narrows is a 'fixed_discrete' or 'piecewise' schedule with falling difficulties"
        )
    return Root(config["min_difficulty"], config["max_difficulty"], total, multiple, degree[0] if degree else 1)


def _discrete(config: Mapping[str, Any], settings: Mapping[str, Any]) -> Schedule:
    check_keys(settings, ("difficulty", "max_step"), where="schedule_config")
    levels, last_steps = settings.get("difficulty"), settings.get("max_step")
    if not levels or not last_steps or len(levels) != len(last_steps) + 1:
        raise ConfigError(
            "schedule_config of fixed_discrete needs 'difficulty' and 'max_step', the last step of each difficulty "
            f"but the last: one element less; got {len(levels or ())} and {len(last_steps or ())}"
        )
    return Discrete(tuple(levels), tuple(last_steps))


def _piecewise(config: Mapping[str, Any], settings: Mapping[str, Any]) -> Schedule:
    check_keys(settings, ("points", "difficulty_step", "interpolation"), where="schedule_config")
    points, interpolation = settings.get("points") or (), settings.get("interpolation", "linear")
    steps = [at for at, _ in points]
    if not points or any(later <= step for step, later in itertools.pairwise(steps)):
        raise ConfigError(
            f"schedule_config of piecewise needs 'points', [step, difficulty] by rising step; got {points}"
        )
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


def changes(schedule: Schedule, *, highest: Number, limit: int) -> tuple[list[int], list[Number]]:
    """Return the steps at which the difficulty changes, the first of them 1, and the difficulty from each on.

    As in DeepSpeed, a difficulty that has reached ``highest`` rises no more; it may fall.

    Args:
        schedule: what to ask.
        highest: the maximum.
        limit: the last step to ask a schedule of which nothing is known.

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
    return starts, levels


def _steps_of_change(schedule: Schedule, limit: int) -> Iterable[int]:
    """Yield step 1 and, in order, all steps that begin with another difficulty."""
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
    value = config[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or (positive and value <= 0):
        raise ConfigError(f"{key} must be a {'positive ' if positive else ''}number, got {value!r}")
    return value


def _total(settings: Mapping[str, Any]) -> int | None:
    return settings.get("total_curriculum_step")


class CurriculumScheduler:
    """DeepSpeed's scheduler: the same dictionary, the same ``state``, the same difficulty at every step.

    ``get_difficulty`` is pure. ``update_difficulty`` also keeps the difficulty in ``state``; at ``max_difficulty`` it
    rises no more, but unlike DeepSpeed's it follows a schedule that falls.

    Raises:
        ConfigError: for missing, unknown or impossible settings.

    >>> scheduler = CurriculumScheduler({"min_difficulty": 8, "max_difficulty": 64, "schedule_type": "fixed_linear",
    ...                                  "schedule_config": {"total_curriculum_step": 20, "difficulty_step": 8}})
    >>> [scheduler.get_difficulty(step) for step in (1, 10, 20, 1000)]
    [8, 32, 64, 64]
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = dict(config)
        self._schedule = make_schedule(self._config)
        if self._config["schedule_type"] == "piecewise":
            levels = [level for _, level in self._config["schedule_config"]["points"]]
            self._config = {"min_difficulty": min(levels), "max_difficulty": max(levels), **self._config}
        self.state: dict[str, Any] = {
            "min_difficulty": self._config["min_difficulty"],
            "max_difficulty": self._config["max_difficulty"],
            "current_difficulty": self._config["min_difficulty"],
            "schedule_type": self._config["schedule_type"],
        }
        if "schedule_config" in self._config:
            self.state["schedule_config"] = self._config["schedule_config"]

    def get_difficulty(self, step: int) -> Number:
        """Return the difficulty of a step (the first is 1). Pure."""
        return self._schedule.difficulty(step)

    def update_difficulty(self, step: int) -> Number:
        """Set the current difficulty to that of ``step`` and return it."""
        level, current = self.get_difficulty(step), self.state["current_difficulty"]
        if current < self.state["max_difficulty"] or level < current:
            self.state["current_difficulty"] = level
        return self.get_current_difficulty()

    def changes(self, limit: int) -> tuple[list[int], list[Number]]:
        """Return the steps at which the difficulty changes, and the difficulty from each on. Pure.

        Args:
            limit: the last step to ask a custom schedule.
        """
        return changes(self._schedule, highest=self.state["max_difficulty"], limit=limit)

    def set_custom_get_difficulty(self, schedule_function: Callable[[int], Number]) -> None:
        """Set the function of the step that serves ``schedule_type`` "custom"."""
        self._schedule = make_schedule(self._config, schedule_function)

    def get_current_difficulty(self) -> Number:
        """Return the difficulty of the last update, or ``min_difficulty``."""
        current: Number = self.state["current_difficulty"]
        return current

    def set_current_difficulty(self, difficulty: Number) -> None:
        """Set the difficulty that ``get_current_difficulty`` returns until the next update."""
        self.state["current_difficulty"] = difficulty

    def get_state(self) -> dict[str, Any]:
        """Return the state: DeepSpeed's keys."""
        return self.state

    def set_state(self, state: dict[str, Any]) -> None:
        """Replace the state by one of ``get_state``."""
        self.state = state
