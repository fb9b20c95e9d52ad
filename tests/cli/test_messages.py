"""Messages name options and commands: every hint of the library has a spelling for the command line, and it is used."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import arrowds
from arrowds.cli.messages import SPELLINGS, one_line, spelled

PACKAGE = Path(arrowds.__file__).parent

PYTHON = re.compile(
    r"\b[a-z_]+=(?:True|False|None|\[|\(|\.\.\.|'|\"|\{\}| |$)|\barrowds\.[a-z_.]+|\bindex\.[a-z_]+[(\[]"
)
"""A hint in the words of Python: an argument with a value, a function of arrowds, a method of an index."""

UNREACHABLE = {
    # Not imported by any command: drop-ins, loaders and plans of token batches are Python only.
    "integrations/deepspeed/dynamic_batching.py",
    "integrations/deepspeed/dynamic_batching_engine.py",
    "integrations/deepspeed/data_analyzer.py",
    "integrations/deepspeed/distributed_analyzer.py",
    "integrations/deepspeed/data_loader.py",
    "integrations/grain.py",
    "integrations/megatron.py",
    "integrations/transformers.py",
    "loading/loader.py",
    "loading/dataset.py",
    "loading/lr_scaling.py",
    "token_batches/balance.py",
    "token_batches/packing.py",
    "token_batches/plan.py",
    "token_batches/rules.py",
    "token_batches/sampler.py",
    "curriculum/mixture.py",
    "indexed_dataset.py",
    # Metrics by a model are made in Python.
    "metrics/models/checkpoints.py",
    "metrics/models/encoding.py",
    "metrics/models/measures.py",
    "metrics/models/scoring.py",
    # Of data that are Python objects; the command line opens files.
    "batch.py",
    "sources/sample_digest.py",
    "sources/torch.py",
    "sources/huggingface.py",
}
SAID_OTHERWISE = (
    "expected an open index: ",  # the command line opens it
    "expected a Metric, got a ",  # the command line makes the metrics
    "Index(",  # representations
    "MetricIndex(",
    ", totals=",
    "function(",
    "expr(",
    "column(",
    "text.{}(",
    "({}, {}, nulls=",
    "text.ngram_overlap({}, ",
    "read_parquet(",
    "import serve; serve()",
    "percentiles must be 0 <= lo <= hi",  # of a lookup that no command does
    "CREATE ",
    ". What only yields one sample after the other",  # of Python objects
    # Names of the files that run and batch read, which are those of the Python arguments.
    "where={} is true for no sample",
    "nothing to draw: ",
    "use drop_last=False, or a smaller batch",
    "schedule_type 'custom' needs a function",
    "contains no record of a run",
    "num_epochs={}: at least one epoch",
    "heads={}",
)


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Every text of a module that may be a message, with ``{}`` for what is filled in; no docstrings."""
    tree = ast.parse(path.read_text())
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            skipped.update(id(part) for part in ast.walk(node) if part is not node)
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def hints() -> list[tuple[str, str]]:
    """Every message with a hint in the words of Python that a command may show."""
    return [
        (f"{path.relative_to(PACKAGE)}:{line}", text)
        for path in sorted(PACKAGE.rglob("*.py"))
        if path.relative_to(PACKAGE).parts[0] != "cli" and str(path.relative_to(PACKAGE)) not in UNREACHABLE
        for line, text in texts(path)
        if " " in text and PYTHON.search(text) and not any(known in text for known in SAID_OTHERWISE)
    ]


def test_the_library_has_hints_at_all():
    assert len(hints()) > 10


@pytest.mark.parametrize(("place", "text"), hints(), ids=[place for place, _ in hints()])
def test_every_hint_has_a_spelling_for_the_command_line(place, text):
    # What is filled in is a path, a name or a list; its form decides whether the spelling finds it.
    for filled in (
        text.replace("{}", "'x'"),
        text.replace("={}", "=['x']").replace("{}", "'x'"),
        text.replace("{}", "7"),
    ):
        said = spelled(filled)
        if said != filled and not PYTHON.search(
            said.replace("arrowds.append in Python", "").replace("index.scan()", "")
        ):
            return
    pytest.fail(f"{place}: {spelled(text)!r} names Python's arguments; add its spelling to arrowds.cli.messages")


def test_every_spelling_is_of_a_message_that_there_is():
    """A hint that was reworded must not leave a spelling that finds nothing."""
    messages = [text for path in PACKAGE.rglob("*.py") if path.parent.name != "cli" for _, text in texts(path)]
    filled = [text.replace("{}", value) for text in messages for value in ("'x'", "7", "['x']")]
    unused = [hint for hint in SPELLINGS if not any(re.search(hint, text) for text in filled)]
    assert unused == []


def test_the_unreachable_modules_are_there():
    assert [name for name in UNREACHABLE if not (PACKAGE / name).exists()] == []


def test_a_path_that_looks_like_a_hint_stays():
    path = "/data/overwrite=True/x holds an index"
    assert spelled(path) == path


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            "two files are damaged:\n  a: gone\n  b: short\nrestore them",
            "two files are damaged: a: gone; b: short; restore them",
        ),
        ("syntax error\n\nselect x\n       ^^^", "syntax error; select x"),
        ("", ""),
    ],
)
def test_a_message_becomes_one_line(message, line):
    assert one_line(message) == line
