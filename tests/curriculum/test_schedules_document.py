"""The schedules of docs/schedules.md draw what the page says, and each has its picture."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import arrowds
from arrowds.curriculum import schedule
from arrowds.curriculum.config import CurriculumMetric
from arrowds.errors import ConfigError, EmptyPoolError

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = runpy.run_path(str(DOCS / "schedules.py"))


def test_steps_draw_within_both_bounds_in_any_sequence_and_have_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "_REGISTERED", {})
    index = SCRIPT["make_index"](tmp_path)
    text = (DOCS / "schedules.md").read_text(encoding="utf-8")
    distinct = {}
    for picture, curriculum in SCRIPT["curricula"]():
        assert f"(images/{picture})" in text
        assert (DOCS / "images" / picture).stat().st_size > 1000
        sampler = arrowds.CurriculumSampler(index, curriculum, micro_batch_size=64)
        ((name, config),) = curriculum.items()
        values = index[name].values
        place = np.empty(len(values), np.int64)
        place[index[name].order] = np.arange(len(values))
        batches = list(sampler)
        distinct[picture] = len(np.unique(batches)) / len(values)
        for step, ids in enumerate(batches, start=1):
            levels = sampler.difficulties_at(step)
            lower = levels.get(f"{name}_lower")
            if config["difficulty_type"] == "percentile":
                assert (place[ids] < len(values) * levels[name] / 100).all()
                assert lower is None or (place[ids] >= np.floor(len(values) * lower / 100)).all()
            else:
                assert (values[ids] <= levels[name]).all()
                assert lower is None or (values[ids] >= lower).all()
        for step in (399, 7, 250):
            assert sampler.global_batch_at(step).tolist() == batches[step - 1]
    assert len(distinct) == 6
    assert distinct["schedule-folding.png"] > 0.8


@pytest.mark.parametrize(
    ("lower", "message"),
    [
        ({"schedule_type": "custom"}, "register_schedule"),
        ({"schedule_type": "piecewise"}, "points"),
        (
            {"schedule_type": "piecewise", "schedule_config": {"points": [[1, 0]]}, "difficulty_type": "value"},
            "unknown",
        ),
        ({"schedule_type": "piecewise", "schedule_config": {"points": [[1, 101]]}}, "percentiles from 0 to 100"),
    ],
)
def test_invalid_lower_bounds_are_refused(tmp_path: Path, lower: dict[str, Any], message: str) -> None:
    index = SCRIPT["make_index"](tmp_path)
    with pytest.raises(ConfigError, match=message):
        metric = {"difficulty_type": "percentile", "schedule_type": "piecewise"}
        metric |= {"schedule_config": {"points": [[1, 100]]}, "lower": lower}
        arrowds.CurriculumSampler(index, {"quality": metric}, micro_batch_size=8)


def test_a_window_without_samples_and_the_order_of_deepspeed_are_refused(tmp_path: Path) -> None:
    index = SCRIPT["make_index"](tmp_path)
    window = {
        "difficulty_type": "percentile",
        "clustering_type": "schedule_based",
        "schedule_type": "piecewise",
        "schedule_config": {"points": [[1, 100], [10, 20]]},
        "lower": {"schedule_type": "piecewise", "schedule_config": {"points": [[1, 0], [10, 30]]}},
    }
    with pytest.raises(EmptyPoolError, match=r"'quality' is bound from 30 to 20; lower the lower bound"):
        arrowds.CurriculumSampler(index, {"quality": window}, micro_batch_size=8)
    with pytest.raises(ConfigError, match="a lower bound needs the order 'stateless'"):
        arrowds.CurriculumSampler(index, {"quality": window}, micro_batch_size=8, order="deepspeed")
    with pytest.raises(ConfigError, match="can have no lower bound"):
        CurriculumMetric(name="quality", **(window | {"clustering_type": "single_cluster"}))
