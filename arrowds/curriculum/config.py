"""What a curriculum is: one frozen object per metric, read from DeepSpeed's dictionaries or built in Python."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from arrowds.curriculum.schedule import (
    METRIC_KEYS,
    SCHEDULE_KEYS,
    Number,
    changes,
    check_keys,
    difficulty_bounds,
    make_schedule,
)
from arrowds.errors import ConfigError

if TYPE_CHECKING:
    import polars as pl

Curriculum = Mapping[str, Mapping[str, Any]] | Sequence["CurriculumMetric"]


@dataclass(frozen=True, kw_only=True)
class CurriculumMetric:
    """The schedule of one metric: DeepSpeed's settings, and what its dictionaries can't express.

    Args:
        name: a metric of the index; with ``difficulty``, any name.
        lower: the schedule of a lower bound, a dictionary as that of the difficulty: samples below it are not admitted.
            Its difficulty is reported as ``NAME_lower``.
        difficulty: a Polars expression over metrics of the index, used instead of the metric's values.
        difficulty_type: "value" (samples up to a value) or "percentile" (0 to 100: the share of the samples).
        clustering_type: "schedule_based", or "single_cluster": the metric admits every sample from the start, and its
            difficulty is only reported.
        function: the function of the step for ``schedule_type`` "custom".

    Raises:
        ConfigError: for invalid settings.

    >>> CurriculumMetric(name="seqlen", min_difficulty=8, max_difficulty=64, schedule_type="fixed_linear",
    ...                  schedule_config={"total_curriculum_step": 20, "difficulty_step": 8}).clustering_type
    'schedule_based'
    """

    name: str
    schedule_type: str
    schedule_config: Mapping[str, Any] = field(default_factory=dict)
    min_difficulty: Number | None = None
    max_difficulty: Number | None = None
    difficulty_type: str = "value"
    clustering_type: str = "schedule_based"
    lower: Mapping[str, Any] | None = None
    difficulty: pl.Expr | None = None
    function: Callable[[int], Number] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            raise ConfigError(f"the name of a metric must be a string, got {self.name!r:.60}")
        _check_choice(self, "difficulty_type", ("value", "percentile"))
        _check_choice(self, "clustering_type", ("schedule_based", "single_cluster"))
        make_schedule(self.settings(), self.function)  # raises for missing, unknown and invalid settings
        if self.lower is not None:
            if not self.clustered:
                raise ConfigError(f"{self.name!r} admits every sample (single_cluster), so it can have no lower bound")
            check_keys(self.lower, SCHEDULE_KEYS, where=f"the lower bound of {self.name!r}")
            if self.lower.get("schedule_type") == "custom":
                raise ConfigError(
                    f"the lower bound of {self.name!r} can't be custom: register its function by register_schedule"
                )
            make_schedule(self.lower)
        _, highest = self.bounds
        if self.percentile and not 0 < highest <= 100:
            raise ConfigError(
                f"max_difficulty of {self.name!r} is {highest}, but percentiles go from 0 to 100; "
                "50 means half of the samples"
            )

    @property
    def percentile(self) -> bool:
        """Whether difficulties are percentiles."""
        return self.difficulty_type == "percentile"

    @property
    def clustered(self) -> bool:
        """Whether the difficulty decides which samples are admitted."""
        return self.clustering_type == "schedule_based"

    def settings(self) -> dict[str, Any]:
        """Return the dictionary of the schedule."""
        settings = {"schedule_type": self.schedule_type, "schedule_config": self.schedule_config}
        bounds = {"min_difficulty": self.min_difficulty, "max_difficulty": self.max_difficulty}
        return settings | {key: value for key, value in bounds.items() if value is not None}

    @property
    def bounds(self) -> tuple[Number, Number]:
        """The lowest and the highest difficulty."""
        return difficulty_bounds(self.settings())

    def changes(self, limit: int) -> tuple[list[int], list[Number]]:
        """Return the steps at which the difficulty changes, and the difficulty from each on. Pure.

        Args:
            limit: the last step at which to evaluate a custom schedule.

        Raises:
            ConfigError: for a percentile below 0 or above 100, and more changes than a curriculum has.
        """
        return self._changes(self.settings(), self.function, limit)

    def lower_changes(self, limit: int) -> tuple[list[int], list[Number]] | None:
        """Return the same of the lower bound; None where there is none. Pure."""
        return None if self.lower is None else self._changes(self.lower, None, limit)

    def _changes(
        self, settings: Mapping[str, Any], function: Callable[[int], Number] | None, limit: int
    ) -> tuple[list[int], list[Number]]:
        highest = difficulty_bounds(settings)[1]
        starts, levels = changes(make_schedule(settings, function), highest=highest, limit=limit)
        if self.percentile and not all(0 <= level <= 100 for level in levels):
            raise ConfigError(
                f"the difficulties of {self.name!r} go from {min(levels)} to {max(levels)}, but percentiles from 0 to "
                "100"
            )
        return starts, levels

    def identity(self) -> dict[str, Any]:
        """Return what decides which samples are drawn, as JSON-serialisable values; functions have no identity."""
        difficulty = None if self.difficulty is None else str(self.difficulty)
        kinds = {"difficulty_type": self.difficulty_type, "clustering_type": self.clustering_type}
        lower = {} if self.lower is None else {"lower": dict(self.lower)}
        return self.settings() | kinds | {"difficulty": difficulty} | lower


def _check_choice(metric: CurriculumMetric, key: str, choices: tuple[str, str]) -> None:
    if getattr(metric, key) not in choices:
        raise ConfigError(
            f"{key} of {metric.name!r} must be {choices[0]!r} or {choices[1]!r}, got {getattr(metric, key)!r}"
        )


def parse_curriculum(curriculum: Curriculum) -> tuple[CurriculumMetric, ...]:
    """Return one object per metric from DeepSpeed's ``curriculum_metrics`` dictionary or from a list of the objects.

    Keys that say where DeepSpeed keeps its index files are accepted and not used.

    Raises:
        ConfigError: for unknown keys (with the nearest known one), missing or invalid settings.

    >>> parse_curriculum({"seqlen": {"min_dificulty": 8}})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    arrowds.errors.ConfigError: unknown key 'min_dificulty' in the curriculum of 'seqlen'...
    """
    if not isinstance(curriculum, Iterable) or isinstance(curriculum, str):
        raise ConfigError(f"a curriculum is a dictionary or a list of CurriculumMetric, got {curriculum!r:.60}")
    metrics = tuple(_from_dictionaries(curriculum) if isinstance(curriculum, Mapping) else curriculum)
    for metric in metrics:
        if not isinstance(metric, CurriculumMetric):
            raise ConfigError(f"a curriculum is a dictionary or a list of CurriculumMetric, got a list with {metric!r}")
    names = [metric.name for metric in metrics]
    if len(set(names)) < len(names):
        raise ConfigError(f"each metric may occur once in a curriculum, got {names}")
    return metrics


def _from_dictionaries(curriculum: Mapping[str, Mapping[str, Any]]) -> Iterator[CurriculumMetric]:
    for name, config in curriculum.items():
        check_keys(config, (*METRIC_KEYS, "lower"), where=f"the curriculum of {name!r}")
        if "schedule_type" not in config:
            raise ConfigError(f"the curriculum of {name!r} needs 'schedule_type'")
        known = CurriculumMetric.__dataclass_fields__
        yield CurriculumMetric(name=name, **{key: value for key, value in config.items() if key in known})


def curriculum_digest(metrics: Sequence[CurriculumMetric], where: pl.Expr | None) -> str:
    """Return 16 hexadecimal digits that identify a curriculum; the sequence of its metrics counts."""
    content = [[[metric.name, metric.identity()] for metric in metrics], None if where is None else str(where)]
    return hashlib.blake2b(json.dumps(content, sort_keys=True, default=str).encode(), digest_size=8).hexdigest()
