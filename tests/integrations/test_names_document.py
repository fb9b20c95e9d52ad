"""docs/deepspeed-names.md names everything public of the replaced modules, and what it calls the same is there."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import arrowds
from arrowds.integrations import deepspeed as ads

pytest.importorskip("deepspeed", reason="deepspeed is an extra")

DOCUMENT = Path(__file__).parents[2] / "docs" / "deepspeed-names.md"
SAMPLING = "runtime/data_pipeline/data_sampling/"
MODULES = {
    "data_analyzer": f"{SAMPLING}data_analyzer.py",
    "data_sampler": f"{SAMPLING}data_sampler.py",
    "dataloader": "runtime/dataloader.py",
    "variable_batch_size_and_lr": f"{SAMPLING}variable_batch_size_and_lr.py",
    "curriculum_scheduler": "runtime/data_pipeline/curriculum_scheduler.py",
}


def tree_of(module: str) -> ast.Module:
    """The source of an installed module; importing it would load all of DeepSpeed."""
    package = importlib.util.find_spec("deepspeed")
    return ast.parse(Path(package.submodule_search_locations[0], MODULES[module]).read_text(encoding="utf-8"))


def public_names(node: ast.ClassDef) -> set[str]:
    """Methods of a class, and attributes that its methods set."""
    methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
    stored = [item for item in ast.walk(node) if isinstance(item, ast.Attribute) and isinstance(item.ctx, ast.Store)]
    attributes = {item.attr for item in stored if isinstance(item.value, ast.Name) and item.value.id == "self"}
    return {name for name in methods | attributes if not name.startswith("_")}


def rows(heading: str) -> Iterator[tuple[list[str], str]]:
    """The names and the counterpart in each row of the table below a heading."""
    found = re.search(rf"\n##+ {heading}\n\n((?:\|.*\n)+)", DOCUMENT.read_text(encoding="utf-8"))
    assert found, f"no table for {heading}"
    for line in found.group(1).splitlines()[2:]:
        left, right = line.strip("|").split("|")
        yield re.findall(r"`(\w+)`", left), right.strip()


@pytest.mark.parametrize("module", MODULES)
def test_every_class_and_function_is_named_and_its_counterpart_is_there(module: str) -> None:
    nodes = [node for node in tree_of(module).body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
    listed = {name: counterpart for names, counterpart in rows(module) for name in names}
    assert {node.name for node in nodes if not node.name.startswith("_")} == set(listed)
    for counterpart in listed.values():
        for owner, name in re.findall(r"`(ads|arrowds)\.(\w+)`", counterpart):
            assert hasattr({"ads": ads, "arrowds": arrowds}[owner], name), counterpart


CLASSES = [
    (module, node.name)
    for module in MODULES
    for node in tree_of(module).body
    if isinstance(node, ast.ClassDef) and node.name != "Dist"
]


@pytest.mark.parametrize(("module", "name"), CLASSES)
def test_every_method_and_attribute_is_named(module: str, name: str) -> None:
    (node,) = (item for item in tree_of(module).body if isinstance(item, ast.ClassDef) and item.name == name)
    listed = {each for names, _ in rows(name) for each in names}
    assert public_names(node) <= listed


def examples() -> dict[str, object]:
    described = {"metric_names": ["m"], "metric_functions": [len], "metric_types": ["single_value_per_sample"]}
    learning = {"enabled": False, "curriculum_metrics": {}}
    config = {"seed": 1, "data_sampling": {"num_epochs": 1, "curriculum_learning": learning}}
    schedule = {"min_difficulty": 1, "max_difficulty": 9, "schedule_type": "fixed_linear"}
    schedule["schedule_config"] = {"total_curriculum_step": 9, "difficulty_step": 1}
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    return {
        "DataAnalyzer": ads.DataAnalyzer([1], **described),
        "DistributedDataAnalyzer": ads.DistributedDataAnalyzer([1], **described),
        "DeepSpeedDataSampler": ads.DeepSpeedDataSampler(config, 4, 1, 0, 1, None, 1, 0),
        "DeepSpeedDataLoader": ads.DeepSpeedDataLoader([1], 1, False, 0, None),
        "RepeatingLoader": arrowds.RepeatingLoader([1]),
        "VariableBatchSizeLR": ads.lr_scheduler_for_variable_batch_size(4, [4], None, optimizer),
        "CurriculumScheduler": arrowds.CurriculumScheduler(schedule),
    }


@pytest.mark.parametrize("name", [name for _, name in CLASSES])
def test_what_is_called_the_same_is_there(name: str) -> None:
    example = examples()[name]
    for names, counterpart in rows(name):
        for each in names:
            assert hasattr(example, each) == (not counterpart.startswith(("no counterpart", "`"))), each
        if counterpart.startswith("`") and len(names) == 1:
            assert hasattr(example, counterpart.strip("`")), counterpart
