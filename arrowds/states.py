"""What a saved state must look like before anything of it is used: a dictionary of a version, and numbers in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arrowds.errors import StateMismatchError

LARGEST_COUNT = 1 << 53
"""More samples, steps or epochs than any run has; every float64 and int64 computation with it is exact."""


def checked_state(state: object, version: int, *, of: str) -> Mapping[str, Any]:
    """Return a saved state after checking that it is a dictionary of a version.

    Raises:
        StateMismatchError: when it is not.

    >>> checked_state([1], 1, of="a sampler")
    Traceback (most recent call last):
    arrowds.errors.StateMismatchError: expected the state of a sampler, version 1, got a list
    """
    if not isinstance(state, Mapping):
        raise StateMismatchError(f"expected the state of {of}, version {version}, got a {type(state).__name__}")
    if state.get("version") != version:
        raise StateMismatchError(f"expected the state of {of}, version {version}, got version {state.get('version')!r}")
    return state


def refuse_other_samplers(state: Mapping[str, Any], name: str) -> None:
    """Refuse the state of another kind of sampler by its name.

    Raises:
        StateMismatchError: when it is one.

    >>> refuse_other_samplers({"order": "mixture"}, "CurriculumSampler")
    Traceback (most recent call last):
    arrowds.errors.StateMismatchError: expected the state of a CurriculumSampler, got that of a MixtureSampler
    """
    kinds = {"MixtureSampler": state.get("order") == "mixture", "TokenBudgetBatchSampler": "rules" in state}
    saved = next(
        (kind for kind, is_it in kinds.items() if is_it), "CurriculumSampler" if "curriculum" in state else name
    )
    if saved != name:
        raise StateMismatchError(f"expected the state of a {name}, got that of a {saved}")


def count_in(state: Mapping[str, Any], name: str) -> int:
    """Return a number of a saved state: an integer from 0 on.

    Raises:
        StateMismatchError: for anything else, and for more than any run has.

    >>> count_in({"epoch": -1}, "epoch")
    Traceback (most recent call last):
    arrowds.errors.StateMismatchError: the saved state is damaged: epoch is -1, expected an integer from 0 on
    """
    count = state.get(name)
    if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= LARGEST_COUNT:
        raise StateMismatchError(f"the saved state is damaged: {name} is {count!r:.60}, expected an integer from 0 on")
    return count
