"""The digest of a callable: other for other code, equal in every process."""

from __future__ import annotations

import collections
import copy
import datetime
import decimal
import functools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from arrowds.digests import callable_digest

SCRIPT = """
import functools, sys
import numpy as np
from arrowds.digests import callable_digest

FACTOR = 3
TABLE = {"a": [1, 2], "b": np.arange(4)}

def helper(x):
    return x * FACTOR

def uses_all(batch):
    return [helper(x) + TABLE["a"][0] for x in sorted({1, 2, 3} & set(batch))]

class Scorer:
    def __init__(self, by):
        self.by = by
    def scale(self, x):
        return x * self.by
    def __call__(self, batch):
        return self.scale(batch)

def decorated(function):
    @functools.wraps(function)
    def inner(batch):
        return function(batch)
    return inner

@decorated
def wrapped(batch, *, scale=(1, 2.5, "x", b"y", None, ...)):
    return batch in {"p", "q", "r"}

def closure():
    state = {"k": [np.float32(2), frozenset({"u", "v"})]}
    return lambda batch: state["k"]

callables = [uses_all, Scorer(2), Scorer(2).scale, wrapped, closure(), functools.partial(helper, 4), np.sum, len]
print(*(callable_digest(each).digest for each in callables))
"""


def digests_of(script: str, tmp_path: Path, seed: int) -> list[str]:
    path = tmp_path / "script.py"
    path.write_text(script)
    environment = {"PYTHONHASHSEED": str(seed), "PATH": "", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, path], capture_output=True, text=True, env=environment, check=True)
    return done.stdout.split()


def test_every_process_finds_the_same_digests(tmp_path):
    found = [digests_of(SCRIPT, tmp_path, seed) for seed in (1, 2)]
    assert found[0] == found[1]
    assert len(set(found[0])) == len(found[0]) == 8


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("FACTOR = 3", "FACTOR = 4", {0, 5}),
        ("return x * FACTOR", "return x + FACTOR", {0, 5}),
        ('"a": [1, 2]', '"a": [2, 2]', {0}),
        ("np.arange(4)", "np.arange(5)", {0}),
        ("{1, 2, 3}", "{1, 2, 4}", {0}),
        ("return x * self.by", "return x + self.by", {1, 2}),
        ("self.scale(batch)", "-self.scale(batch)", {1, 2}),
        ("Scorer(2)", "Scorer(3)", {1, 2}),
        ("None, ...)", "None, 1)", {3}),
        ('"p", "q"', '"p", "s"', {3}),
        ("np.float32(2)", "np.float32(3)", {4}),
        ("(helper, 4)", "(helper, 5)", {5}),
        ("# comment", "", set()),
    ],
)
def test_what_decides_the_result_decides_the_digest(old, new, changed):
    def digests(script):
        space = {"__name__": "script"}
        exec(script, space)  # the script above, compiled anew
        return [callable_digest(each) for each in space["callables"]]

    before, after = digests(SCRIPT), digests(SCRIPT.replace(old, new))
    assert {number for number in range(8) if before[number] != after[number]} == changed


def test_equal_functions_are_equal_wherever_they_are_written():
    def make(by):
        return lambda batch: batch * by

    assert callable_digest(make(2)) == callable_digest(make(2))
    assert callable_digest(make(2)) != callable_digest(make(2.0))
    assert callable_digest(make(np.arange(3))) != callable_digest(make(np.arange(3.0)))
    assert callable_digest(make(torch.ones(2))) != callable_digest(make(torch.zeros(2)))
    assert callable_digest(make([1, [2]])) != callable_digest(make([[1], 2]))
    assert callable_digest(make({"a": 1})) != callable_digest(make({"b": 1}))
    assert callable_digest(functools.partial(max, 1)) != callable_digest(functools.partial(min, 1))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (decimal.Decimal(1), decimal.Decimal(2)),
        (datetime.timedelta(1), datetime.timedelta(2)),
        (re.compile("a"), re.compile("b")),
        (collections.Counter("ab"), collections.Counter("aa")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_objects_of_installed_classes_count_by_their_content(monkeypatch, one, other):
    def make(value):
        return lambda batch: (batch, value)

    assert callable_digest(make(one)) == callable_digest(make(copy.deepcopy(one)))
    assert callable_digest(make(one)) != callable_digest(make(other))
    assert callable_digest(make(one)).unknown == ""
    before = callable_digest(make(one))
    monkeypatch.delitem(sys.modules, "torch")  # as where it was not imported
    assert callable_digest(make(one)) == before


def test_a_function_that_is_not_defined_yet_may_be_named():
    def metric(batch):
        return helper(batch)

    before = callable_digest(metric)

    def helper(batch):
        return batch

    assert callable_digest(metric) != before


def test_a_model_counts_by_its_weights():
    def scorer(model):
        return lambda batch: model(batch) + 0

    torch.manual_seed(0)
    model = torch.nn.Linear(2, 2)
    before = callable_digest(scorer(model))
    assert callable_digest(scorer(model)) == before
    with torch.no_grad():
        model.weight += 1
    assert callable_digest(scorer(model)) != before


def test_a_callable_that_contains_itself_has_a_digest():
    def recursive(n):
        return n and recursive(n - 1)

    loop: list[object] = [recursive]
    loop.append(loop)
    assert callable_digest(lambda batch: loop) == callable_digest(lambda batch: loop)


def test_temporary_objects_that_share_an_address_are_not_taken_for_one():
    """Lists made while digesting used to be freed, and the next one at their address skipped."""
    cells = [[number] for number in range(50)]

    def make(items):
        first, second = [list(item) for item in items], [tuple(item) for item in items]
        return lambda batch: (first, second)

    reference = callable_digest(make(cells))
    for round_ in range(20):
        other = [*cells[:round_], [99], *cells[round_ + 1 :]]
        assert callable_digest(make(other)) != reference
        assert callable_digest(make(cells)) == reference


OTHER = """
STEP = {step}
def helper(x):
    return x + STEP
class Model:
    def __init__(self): self.by = {by}
    def score(self, x): return x * self.by
"""


@pytest.mark.parametrize(("step", "by", "changed"), [(1, 2, False), (2, 2, True), (1, 3, True)])
def test_functions_and_objects_of_other_modules_of_the_user_count(tmp_path, monkeypatch, step, by, changed):
    monkeypatch.syspath_prepend(tmp_path)

    def digest(step, by):
        (tmp_path / "users_other_module.py").write_text(OTHER.format(step=step, by=by))
        sys.modules.pop("users_other_module", None)
        (tmp_path / "__pycache__").exists() and __import__("shutil").rmtree(tmp_path / "__pycache__")
        space = {"__name__": "users_script"}
        exec("import users_other_module\nfrom users_other_module import Model\nmodel = Model()\n", space)
        exec("def metric(batch):\n    return users_other_module.helper(model.score(batch))\n", space)
        return callable_digest(space["metric"]).digest

    assert (digest(1, 2) != digest(step, by)) == changed


GLOBAL_MODEL = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Dropout(0.5))


def uses_global_model(batch):
    return GLOBAL_MODEL(batch)


def test_the_weights_and_the_mode_of_a_global_model_count():
    before = callable_digest(uses_global_model)
    assert not before.unknown
    assert callable_digest(uses_global_model) == before
    with torch.no_grad():
        GLOBAL_MODEL[0].bias[1] += 1e-3
    changed = callable_digest(uses_global_model)
    assert changed != before
    GLOBAL_MODEL.eval()
    assert callable_digest(uses_global_model) != changed
    GLOBAL_MODEL[1].p = 0.25
    assert callable_digest(uses_global_model).digest not in (before.digest, changed.digest)


def test_what_has_no_content_is_named(tmp_path):
    file = (tmp_path / "x").open("w")
    lock = __import__("threading").Lock()
    assert "TextIOWrapper" in callable_digest(lambda batch: file.write(batch)).unknown
    assert "lock" in callable_digest(lambda batch: lock.acquire()).unknown
    assert callable_digest(lambda batch: batch).unknown == ""
    file.close()


def test_installed_packages_count_by_their_version(monkeypatch):
    before = callable_digest(lambda batch: np.percentile(batch, 5))
    monkeypatch.setattr(np, "__version__", "0.0")
    assert callable_digest(lambda batch: np.percentile(batch, 5)) != before
