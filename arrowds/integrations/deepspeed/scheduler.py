"""CurriculumScheduler: DeepSpeed's scheduler class, with its state, around a pure schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from arrowds.curriculum.schedule import Number, changes, difficulty_bounds, make_schedule
from arrowds.errors import ConfigError, StateMismatchError

_LEVELS = ("min_difficulty", "max_difficulty", "current_difficulty")


class CurriculumScheduler:
    """DeepSpeed's scheduler: the same dictionary, the same ``state``, the same difficulty at every step.

    ``get_difficulty`` is pure. ``update_difficulty`` also keeps the difficulty in ``state``; at ``max_difficulty`` it
    no longer rises, but unlike DeepSpeed's it follows a schedule that falls.

    Raises:
        ConfigError: for missing, unknown or impossible settings.

    >>> scheduler = CurriculumScheduler({"min_difficulty": 8, "max_difficulty": 64, "schedule_type": "fixed_linear",
    ...                                  "schedule_config": {"total_curriculum_step": 20, "difficulty_step": 8}})
    >>> [scheduler.get_difficulty(step) for step in (1, 10, 20, 1000)]
    [8, 32, 64, 64]
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        if not isinstance(config, Mapping):
            raise ConfigError(f"the configuration of a curriculum must be a dictionary, got {config!r:.60}")
        self._config = dict(config)
        self._schedule = make_schedule(self._config)
        lowest, highest = difficulty_bounds(self._config)
        self.state: dict[str, Any] = {
            "min_difficulty": lowest,
            "max_difficulty": highest,
            "current_difficulty": lowest,
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
            limit: the last step at which to evaluate a custom schedule.
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
        """Replace the state by one of ``get_state``, or of DeepSpeed's scheduler.

        Raises:
            StateMismatchError: for anything else.
        """
        numbers = [state.get(name) for name in _LEVELS] if isinstance(state, dict) else [None]
        if not all(isinstance(number, (int, float)) for number in numbers):
            raise StateMismatchError(
                f"expected the state of a CurriculumScheduler, with {', '.join(_LEVELS)}; got {state!r:.200}"
            )
        self.state = state
