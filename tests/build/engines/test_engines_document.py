"""docs/scale.md names every option of the engines, and its metric function runs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import numpy as np
import pyarrow as pa

import arrowds
from arrowds.build.engines import RayEngine, TorchEngine

TEXT = (Path(__file__).parents[3] / "docs" / "scale.md").read_text(encoding="utf-8")


def test_every_option_of_an_engine_is_named_with_its_default():
    table = re.search(r"\| engine \| option \|.*?\n\n", TEXT, re.DOTALL)[0]
    named: dict[str, list[tuple[str, str]]] = {}
    for row in table.strip().splitlines()[2:]:
        engine, options = (cell.strip() for cell in row.split("|")[1:3])
        current = named.setdefault(engine.strip("`"), []) if engine else named[list(named)[-1]]
        current += re.findall(r"`(\w+)`(?: \((\d+)\))?", options)
    for engine in (RayEngine, TorchEngine):
        parameters = inspect.signature(engine).parameters.values()
        expected = [(one.name, f"{one.default:g}" if one.default is not None else "") for one in parameters]
        assert named[engine.__name__] == expected


def test_the_metric_function_of_the_page_runs(tmp_path):
    names: dict[str, object] = {}
    (block,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    exec(compile(block, "scale.md", "exec"), names)
    index = arrowds.analyze(pa.table({"n_tokens": [3, 1, 2]}), names["metric"], tmp_path, workers=1, progress=False)
    weight = names["model"]().weight.item()
    assert index["loss"].values.tolist() == [np.float32(weight) * n for n in (3, 1, 2)]
