from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sampler_oracle import Oracle

from arrowds.curriculum.config import CurriculumMetric, parse_curriculum
from arrowds.curriculum.schedule import make_schedule, register_schedule
from arrowds.errors import ConfigError
from arrowds.integrations.deepspeed.scheduler import CurriculumScheduler

numbers = st.integers(1, 200)


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    low, high = sorted((draw(numbers), draw(numbers)))
    kind = draw(st.sampled_from(["fixed_linear", "fixed_root", "fixed_discrete", "custom"]))
    config: dict[str, Any] = {"min_difficulty": low, "max_difficulty": high, "schedule_type": kind}
    if kind in ("fixed_linear", "fixed_root"):
        config["schedule_config"] = {
            "total_curriculum_step": draw(numbers),
            "difficulty_step": draw(st.integers(1, 64)),
        }
    if kind == "fixed_root":
        config["schedule_config"]["root_degree"] = draw(st.integers(1, 5))
    if kind == "fixed_discrete":
        levels = sorted(draw(st.lists(st.integers(low, high), min_size=2, max_size=6)))
        last = sorted(draw(st.sets(numbers, min_size=len(levels) - 1, max_size=len(levels) - 1)))
        config["schedule_config"] = {"difficulty": levels, "max_step": last}
    return config


@settings(deadline=None, max_examples=200)
@given(configs())
def test_every_step_is_deepspeeds(deepspeed: Oracle, config: dict[str, Any]) -> None:
    scheduler = CurriculumScheduler(config)
    if config["schedule_type"] == "custom":
        scheduler.set_custom_get_difficulty(lambda step: config["min_difficulty"] + step // 4)
    mine = [[scheduler.get_difficulty(step), scheduler.update_difficulty(step)] for step in range(1, 301)]
    assert mine == deepspeed.ask(what="difficulties", config=config, steps=300)
    assert scheduler.get_current_difficulty() == mine[-1][1] == scheduler.get_state()["current_difficulty"]


@settings(deadline=None)
@given(configs().filter(lambda config: config["schedule_type"] in ("fixed_linear", "fixed_root")))
def test_no_step_is_below_the_minimum(config: dict[str, Any]) -> None:
    scheduler = CurriculumScheduler(config)
    assert min(scheduler.get_difficulty(step) for step in range(1, 300)) >= config["min_difficulty"]


points = st.lists(
    st.tuples(st.integers(1, 80), st.integers(0, 50)), min_size=1, max_size=6, unique_by=lambda point: point[0]
)
piecewise = st.builds(
    lambda found, multiple, kind: {
        "schedule_type": "piecewise",
        "schedule_config": {"points": sorted(found), "difficulty_step": multiple, "interpolation": kind},
    },
    points,
    st.integers(1, 9),
    st.sampled_from(["linear", "step"]),
)


@settings(deadline=None)
@given(configs() | piecewise)
def test_changes_are_those_of_asking_every_step(config: dict[str, Any]) -> None:
    scheduler = CurriculumScheduler(config)
    if config["schedule_type"] == "custom":
        scheduler.set_custom_get_difficulty(lambda step: config["min_difficulty"] + step // 4)
    starts, levels = scheduler.changes(1000)
    followed, highest = [scheduler.get_difficulty(1)], scheduler.state["max_difficulty"]
    for step in range(2, 1001):
        level = scheduler.get_difficulty(step)
        followed.append(followed[-1] if followed[-1] >= highest and level > followed[-1] else level)
    expected = [step for step in range(1, 1001) if step == 1 or followed[step - 1] != followed[step - 2]]
    assert [start for start in starts if start <= 1000] == expected
    assert levels[: len(expected)] == [followed[step - 1] for step in expected]


def test_a_difficulty_may_fall() -> None:
    narrowing = CurriculumScheduler(
        {
            "min_difficulty": 4,
            "max_difficulty": 16,
            "schedule_type": "fixed_discrete",
            "schedule_config": {"difficulty": [8, 16, 4], "max_step": [2, 4]},
        }
    )
    assert [narrowing.update_difficulty(step) for step in range(1, 7)] == [8, 8, 16, 16, 4, 4]
    peak = CurriculumScheduler(
        {"schedule_type": "piecewise", "schedule_config": {"points": [[1, 8], [5, 24], [9, 8]], "difficulty_step": 8}}
    )
    assert [peak.get_difficulty(step) for step in range(1, 11)] == [8, 8, 16, 16, 24, 16, 16, 8, 8, 8]


def test_a_schedule_of_the_user_has_a_name() -> None:
    register_schedule("test_steps", lambda step, config: config["base"] + step)
    config = {"min_difficulty": 1, "max_difficulty": 99, "schedule_type": "test_steps"}
    scheduler = CurriculumScheduler(config | {"schedule_config": {"base": 10, "total_curriculum_step": 3}})
    assert [scheduler.get_difficulty(step) for step in (1, 2, 3, 4)] == [11, 12, 13, 13]
    with pytest.raises(ConfigError, match="built-in"):
        register_schedule("custom", lambda step, config: step)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_dificulty": 8}, "did you mean 'max_difficulty'"),
        ({"schedule_type": "fixed_linaer"}, "did you mean 'fixed_linear'"),
        (
            {"schedule_config": {"total_curriculum_steps": 8, "difficulty_step": 1}},
            "did you mean 'total_curriculum_step'",
        ),
        ({"schedule_config": {"total_curriculum_step": 8}}, "needs 'difficulty_step'"),
        ({"schedule_config": {"total_curriculum_step": 0, "difficulty_step": 1}}, "positive"),
        ({"min_difficulty": 80}, "falling"),
        ({"min_difficulty": None}, "needs 'min_difficulty'"),
        ({"min_difficulty": "8"}, "must be a number"),
        (
            {"schedule_type": "fixed_discrete", "schedule_config": {"difficulty": [1], "max_step": [1]}},
            "one element less",
        ),
        ({"schedule_type": "piecewise", "schedule_config": {"points": [[2, 1], [1, 1]]}}, "ascending step"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    good = {"min_difficulty": 8, "max_difficulty": 64, "schedule_type": "fixed_linear"}
    good["schedule_config"] = {"total_curriculum_step": 20, "difficulty_step": 8}
    with pytest.raises(ConfigError, match=message):
        parse_curriculum({"seqlen": good | change})


def test_percentiles_end_at_100() -> None:
    with pytest.raises(ConfigError, match="from 0 to 100"):
        CurriculumMetric(
            name="x",
            difficulty_type="percentile",
            min_difficulty=1,
            max_difficulty=200,
            schedule_type="fixed_linear",
            schedule_config={"total_curriculum_step": 9, "difficulty_step": 1},
        )


def test_a_custom_schedule_without_its_function_says_so() -> None:
    scheduler = CurriculumScheduler({"min_difficulty": 1, "max_difficulty": 2, "schedule_type": "custom"})
    with pytest.raises(ConfigError, match="set_custom_get_difficulty"):
        scheduler.get_difficulty(1)


@pytest.mark.parametrize("kind", ["fixed_linear", "fixed_root"])
def test_fractions_rise_in_their_own_steps_and_reach_the_maximum(kind: str) -> None:
    settings = {"total_curriculum_step": 100, "difficulty_step": 0.1}
    if kind == "fixed_root":
        settings["root_degree"] = 2
    scheduler = CurriculumScheduler(
        {"min_difficulty": 0.1, "max_difficulty": 1.0, "schedule_type": kind, "schedule_config": settings}
    )
    levels = [scheduler.get_difficulty(step) for step in range(1, 201)]
    assert levels == sorted(levels) and min(levels) >= 0.1
    assert len(set(levels)) >= 9 and levels[99:] == [1.0] * 101


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule_config": [1]}, "schedule_config must be a dictionary"),
        ({"schedule_type": {"a": 1}}, "unknown schedule_type"),
        ({"max_difficulty": float("nan")}, "max_difficulty must be a number"),
        ({"max_difficulty": 10**400}, "max_difficulty must be a number"),
        ({"schedule_config": {"total_curriculum_step": 2**70, "difficulty_step": 1}}, "at most 9007199254740992"),
        (
            {"schedule_type": "fixed_discrete", "schedule_config": {"difficulty": [1, "2"], "max_step": [3]}},
            "difficulty must be a number, got '2'",
        ),
        (
            {"schedule_type": "fixed_discrete", "schedule_config": {"difficulty": [1, 2], "max_step": 3}},
            "max_step must be a list",
        ),
        ({"schedule_type": "piecewise", "schedule_config": {"points": [[1, 2, 3]]}}, "list of .step, difficulty."),
        ({"difficulty_type": "percentile", "min_difficulty": -5}, "but percentiles from 0 to 100"),
        (
            {"max_difficulty": 1.5, "schedule_config": {"total_curriculum_step": 1 << 30, "difficulty_step": 1e-12}},
            "changes more than 1048576 times",
        ),
    ],
)
def test_absurd_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    whole = {"min_difficulty": 1, "max_difficulty": 64, "schedule_type": "fixed_linear"}
    whole |= {"schedule_config": {"total_curriculum_step": 20, "difficulty_step": 1}} | settings
    with pytest.raises(ConfigError, match=message):
        (metric,) = parse_curriculum({"m": whole})
        metric.changes(100)


def test_a_step_far_beyond_the_end_has_the_highest_difficulty() -> None:
    config = {"min_difficulty": 1, "max_difficulty": 9, "schedule_type": "fixed_root"}
    config |= {"schedule_config": {"total_curriculum_step": 10, "difficulty_step": 1, "root_degree": 1e-3}}
    assert make_schedule(config).difficulty(10**9) == 9
