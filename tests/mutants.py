"""Put single small faults into the core packages, one at a time, and tell which of them the tests notice.

python tests/mutants.py --count 100 --seed 1                            (a sample of all packages)
python tests/mutants.py --package arrowds/store --match "sync"          (those whose line contains a text)
python tests/mutants.py --once-missed                                   (faults that tests have failed to notice before)

Works on a copy of the tree. The tests of a package run once, to see which of them call what; then, for each fault,
those that call the changed function run until one fails. `EXPLAINED` has the faults that change nothing.
"""

from __future__ import annotations

import argparse
import ast
import compileall
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
import types
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode

# Imported before the first fork, so that no run of the tests waits for it.
import hypothesis
import polars
import pyarrow.dataset
import pyarrow.parquet
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
IMPORTED = (polars, pyarrow.dataset, pyarrow.parquet, torch)
REPORT, CALLS = "report.txt", "calls.json"
OTHER_PROCESSES = "other processes"
MOST_BYTES = 8 << 30
"""What one run of the tests may take of memory, beside its maps."""

Calls = dict[str, dict[str, float]]
"""By file and function the tests that call it, and the seconds that each takes."""

TESTS = {
    "arrowds/index": (
        "tests/index/test_files.py tests/index/test_ranges.py tests/index/test_manifest.py tests/index/test_query.py "
        "tests/index/test_data.py tests/index/test_index.py tests/index/test_query_access.py "
        "tests/index/test_lookups.py",
        "tests/cloud/test_local_view.py tests/cloud/test_queries_in_place.py tests/cloud/test_index_in_a_store.py "
        "tests/build/test_build.py tests/build/test_snapshots.py tests/build/test_add_metrics.py "
        "tests/build/test_power_cuts.py tests/cli/test_index_commands.py",
    ),
    "arrowds/build/engines": (
        "tests/build/engines/test_local_engine.py",
        "tests/build/engines/test_torch_engine.py tests/build/engines/test_ray_engine.py tests/build/test_progress.py",
    ),
    "arrowds/build": (
        "tests/build/test_plan.py tests/build/test_map.py tests/build/test_reduce.py tests/build/test_progress.py "
        "tests/build/test_results.py tests/build/test_build.py tests/build/test_resume.py "
        "tests/build/test_add_metrics.py tests/build/test_snapshots.py",
        "tests/cli/test_shards.py tests/cli/test_growing.py tests/build/test_power_cuts.py tests/build/test_kills.py "
        "tests/cloud/test_index_in_a_store.py",
    ),
    "arrowds/curriculum": (
        "tests/curriculum/test_permutation.py tests/curriculum/test_apportion.py tests/curriculum/test_pools.py "
        "tests/curriculum/test_schedule.py tests/curriculum/test_mixture.py tests/curriculum/test_new_data.py "
        "tests/curriculum/test_balance.py tests/curriculum/test_sampler.py tests/curriculum/test_token_budget.py",
        "tests/loading/test_loading.py tests/integrations/test_data_sampler.py tests/cli/test_training.py",
    ),
    "arrowds/token_batches": (
        "tests/token_batches/test_token_batch_plan.py tests/token_batches/test_batch_sampler.py",
        "tests/loading/test_loading.py tests/integrations/test_dynamic_batching.py",
    ),
    "arrowds/sources": (
        "tests/sources/test_arrow_ipc.py tests/sources/test_schemas.py tests/sources/test_fingerprint.py "
        "tests/sources/test_listing.py tests/sources/test_validation.py tests/sources/test_tokenized_source.py "
        "tests/sources/test_megatron_source.py tests/sources/test_huggingface_source.py "
        "tests/sources/test_file_sources.py tests/sources/test_records.py tests/sources/test_opening.py "
        "tests/sources/test_text_values.py tests/sources/test_torch_source.py",
        "tests/index/test_data.py tests/cloud/test_remote_sources.py tests/sources/test_fuzz_readers.py "
        "tests/build/test_results.py",
    ),
    "arrowds/digests.py": ("tests/test_digests.py tests/test_metrics.py", "tests/build/test_results.py"),
    "arrowds/store": (
        "tests/test_store.py tests/cloud/test_object_store.py",
        "tests/build/test_power_cuts.py tests/cloud/test_index_in_a_store.py tests/cloud/test_remote_sources.py "
        "tests/build/test_snapshots.py tests/build/test_kills.py",
    ),
    "arrowds/loading": (
        "tests/loading/test_dataset.py tests/loading/test_loading.py tests/token_batches/test_batch_sampler.py "
        "tests/integrations/test_dynamic_batching.py",
        "tests/loading/test_frameworks.py tests/integrations/test_initialize.py",
    ),
    "arrowds/pipeline": (
        "tests/pipeline/test_pipeline_config.py tests/pipeline/test_pipeline_data.py "
        "tests/pipeline/test_sampler_settings.py tests/pipeline/test_pipeline_run.py tests/cli/test_training.py",
        "tests/pipeline/test_training_document.py tests/pipeline/test_deepspeed_engine.py",
    ),
}
"""The tests of each package: those that run first, and the slower ones that ``--fast`` leaves out."""

EXPLAINED: dict[str, str] = {
    "arrowds/curriculum/apportion.py _scaled: if not len(counts) or counts.max() < 1 << _LOW_BITS:: "
    "1 << _LOW_BITS -> (1 >> _LOW_BITS)": "small counts take the way of large ones, which is exact too",
    "arrowds/curriculum/schedule.py Root.knots: return [1]: 1 -> (0)": "steps below 1 are left out of the changes",
    "arrowds/sources/arrow_ipc.py IpcFile._open: fields = [] if (mapped := _is_uncompressed(source, stream)) else "
    "_cheapest_field(reader.schema): "
    "[] if (mapped := _is_uncompressed(source, stream)) else _cheapest_field(reader.schema) -> "
    "(_cheapest_field(reader.schema) if (mapped := _is_uncompressed(source, stream)) else [])": (
        "batches have the same lengths whatever is read of them"
    ),
    "arrowds/digests.py _pickled: pickle.Pickler(sink, protocol=5).dump(value): 5 -> (4)": (
        "any protocol tells contents apart"
    ),
    "arrowds/loading/loader.py CurriculumDataLoader.__init__: "
    "self._moved = False  # the running iteration is to start again, from the sampler's position: False -> True": (
        "an iteration sets it when it begins"
    ),
}
"""Faults that change no result, by their keys, which are printed of those that are not noticed, and why."""

ONCE_MISSED: tuple[tuple[str, str, str, str], ...] = (
    (
        "arrowds/curriculum/draws.py",
        "derive_key(self._seed, _CLUSTER, cluster, turn)",
        "derive_key(self._seed, _CLUSTER, cluster, turn * 0)",
        "tests/curriculum/test_sampler.py",
    ),
    (
        "arrowds/curriculum/mixture.py",
        'np.searchsorted(self._starts, step, side="right")))',
        'np.searchsorted(self._starts, step, side="left")))',
        "tests/curriculum/test_mixture.py",
    ),
    (
        "arrowds/sources/fingerprint.py",
        "        yield np.packbits(array.is_valid().to_numpy(zero_copy_only=False))\n",
        "        yield array.null_count.to_bytes(8, 'little')\n",
        "tests/sources/test_fingerprint.py",
    ),
    (
        "arrowds/build/map.py",
        "left if left is not None else",
        "left if left else",
        "tests/build/test_map.py",
    ),
    ("arrowds/build/map.py", "if sample is None else", "if not sample else", "tests/build/test_map.py"),
    (
        "arrowds/build/reduce.py",
        "        if report is None:\n            raise",
        "        if report is None:\n            continue\n            raise",
        "tests/build/test_reduce.py",
    ),
    (
        "arrowds/build/reduce.py",
        "return not any(digest_fault(column.store, name, file) for name, file in written.items())",
        "return True",
        "tests/build/test_power_cuts.py",
    ),
    (
        "arrowds/build/shards.py",
        "if not all(_is_reduced(column) for column in flat):",
        "if not any(_is_reduced(column) for column in flat):",
        "tests/cli/test_shards.py",
    ),
    (
        "arrowds/build/runs.py",
        "np.random.default_rng(0)",
        "np.random.default_rng()",
        "tests/build/test_reduce.py tests/index/test_lookups.py",
    ),
    (
        "arrowds/index/metric.py",
        "math.ceil(_EXACT.multiply(exact, self.num_valid))",
        "math.ceil(float(share) * self.num_valid)",
        "tests/index/test_lookups.py",
    ),
    (
        "arrowds/index/manifest.py",
        "if manifest.xxh3 != manifest.own_digest:",
        "if manifest.xxh3 and manifest.xxh3 != manifest.own_digest:",
        "tests/index/test_manifest.py",
    ),
    ("arrowds/store/base.py", "os.fsync(descriptor)", "pass", "tests/test_store.py"),
    (
        "arrowds/store/local.py",
        "                        file.flush()\n                        os.fsync(file.fileno())\n",
        "",
        "tests/test_store.py tests/build/test_power_cuts.py",
    ),
    ("arrowds/build/commit.py", "    store.sync(files)\n", "", "tests/build/test_power_cuts.py"),
    (
        "arrowds/pipeline/run.py",
        "* self.ranks.world_size + self.ranks.rank)",
        "* self.ranks.world_size)",
        "tests/pipeline/test_pipeline_run.py",
    ),
    (
        "arrowds/cli/training.py",
        "if step > sampler.num_steps:",
        "if step >= sampler.num_steps:",
        "tests/cli/test_training.py",
    ),
    ("arrowds/cli/training.py", "resume=not no_resume", "resume=True", "tests/cli/test_options.py"),
    (
        "arrowds/pipeline/run.py",
        "trainer.load(config.output / CHECKPOINTS) if resume else None",
        "trainer.load(config.output / CHECKPOINTS)",
        "tests/pipeline/test_pipeline_run.py",
    ),
)
"""Faults that tests have failed to notice: the file, a text that is in it once, its replacement, the tests."""

_SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.LShift: ast.RShift, ast.RShift: ast.LShift, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
_RENAMED = {
    "min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "floor": "ceil", "ceil": "floor",
    "any": "all", "all": "any", "sorted": "list", "bisect_left": "bisect_right", "bisect_right": "bisect_left",
}  # fmt: skip
_OTHER_TEXT = {"left": "right", "right": "left"}
_DEFAULTS = {"bool": ("True", "False"), "int": ("0",), "str": ("''",)}
_SAID_ONLY = ("logger.", "warnings.warn", "typer.echo")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One fault: ``text`` in place of the bytes [start, stop) of a file."""

    file: str
    line: int
    function: str
    code: str
    start: int
    stop: int
    text: str
    change: str

    @property
    def key(self) -> str:
        """What names it, whatever lines come before."""
        return f"{self.file} {self.function}: {self.code}: {self.change}"

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}: {self.change}"


def changed(node: ast.AST, **fields: object) -> str:
    """A node with other fields, as text."""
    return ast.unparse(type(node)(**{**dict(ast.iter_fields(node)), **fields}))  # type: ignore[arg-type]


def without(items: list, number: int) -> list:
    return items[:number] + items[number + 1 :]


def faults_of(node: ast.AST, returns: str) -> Iterator[str]:
    """What might stand in place of one expression or statement."""
    match node:
        case ast.Compare():
            for number, operator in enumerate(node.ops):
                ops = [*node.ops[:number], _SWAPPED[type(operator)](), *node.ops[number + 1 :]]
                yield f"({changed(node, ops=ops)})"
        case ast.BoolOp():
            yield f"({changed(node, op=_SWAPPED[type(node.op)]())})"
            for number in range(len(node.values)):
                left = without(node.values, number)
                yield f"({ast.unparse(left[0]) if len(left) == 1 else changed(node, values=left)})"
        case ast.BinOp() if type(node.op) in _SWAPPED and not _is_path(node):
            yield f"({changed(node, op=_SWAPPED[type(node.op)]())})"
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield f"({ast.unparse(node.operand)})"
        case ast.Constant(value=bool(value)):
            yield repr(not value)
        case ast.Constant(value=int(value)):
            yield f"({value + 1})"
            yield f"({value - 1})"
        case ast.Constant(value=str(value)) if value in _OTHER_TEXT:
            yield repr(_OTHER_TEXT[value])
        case ast.IfExp():
            yield f"({changed(node, body=node.orelse, orelse=node.body)})"
        case ast.Call():
            if isinstance(node.func, ast.Name) and node.func.id in _RENAMED:
                yield changed(node, func=ast.Name(_RENAMED[node.func.id]))
            if isinstance(node.func, ast.Attribute) and node.func.attr in _RENAMED:
                yield changed(node, func=ast.Attribute(node.func.value, _RENAMED[node.func.attr]))
            if len(node.args) > 1 and type(node.args[0]) is type(node.args[1]) is not ast.Starred:
                yield changed(node, args=[node.args[1], node.args[0], *node.args[2:]])
            of_a_class = ast.unparse(node.func).rpartition(".")[2][:1].isupper()  # there, most are required
            for number in range(0 if of_a_class else len(node.keywords)):
                yield changed(node, keywords=without(node.keywords, number))
        case ast.List() | ast.Set() if len(node.elts) > 1:
            for number in range(len(node.elts)):
                yield changed(node, elts=without(node.elts, number))
        case ast.Dict() if len(node.keys) > 1:
            for number in range(len(node.keys)):
                yield changed(node, keys=without(node.keys, number), values=without(node.values, number))
        case ast.Slice(lower=ast.expr()):
            yield changed(node, lower=None)
        case ast.Expr(value=ast.Call()):
            yield "pass"
        case ast.Return(value=ast.expr()):
            for default in _DEFAULTS.get(returns, ("None",) if returns.endswith("| None") else ()):
                yield f"return {default}"


def _is_path(node: ast.BinOp) -> bool:
    """Whether it joins the parts of a path."""
    words = ("folder", "path", "root", "output", "parent", "'")
    return isinstance(node.op, ast.Div) and any(word in ast.unparse(node) for word in words)


class Finder(ast.NodeVisitor):
    """Finds the places for faults in one module: neither in messages, annotations and decorators nor in `__repr__`."""

    def __init__(self, file: str, source: str) -> None:
        self.file, self.source = file, source.encode()
        self.starts = [0]
        for line in self.source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))
        self.functions: list[str] = []
        self.returns = ""
        self.mutants: list[Mutant] = []

    def visit(self, node: ast.AST) -> None:
        text = ast.unparse(node) if isinstance(node, ast.Expr | ast.If | ast.Assign) else ""
        if isinstance(node, ast.Raise | ast.JoinedStr) or text.startswith((*_SAID_ONLY, "if TYPE_CHECKING", "__all__")):
            return
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("cast", "isinstance", "getattr", "hasattr"):
            return
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "zip":  # `strict` guards what holds anyway
            node.keywords = []
        if isinstance(node, ast.expr | ast.stmt | ast.Slice):
            self.add(node)
        if isinstance(node, ast.If | ast.While) and not isinstance(node.test, ast.Compare | ast.BoolOp):
            self.add(node.test, f"(not {ast.unparse(node.test)})")
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                if node.name in ("__repr__", "__str__"):
                    return
                kept, self.returns = self.returns, ast.unparse(node.returns) if getattr(node, "returns", None) else ""
                self.functions.append(node.name)
                defaults = [*node.args.defaults, *node.args.kw_defaults] if isinstance(node, ast.FunctionDef) else []
                for child in (*defaults, *node.body):
                    if child is not None:
                        self.visit(child)
                self.functions.pop()
                self.returns = kept
            case ast.AnnAssign():
                if node.value is not None:
                    self.visit(node.value)
            case _:
                self.generic_visit(node)

    def add(self, node: ast.expr | ast.stmt | ast.Slice, *faults: str) -> None:
        start = self.starts[node.lineno - 1] + node.col_offset
        stop = self.starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[operator]
        before = ast.unparse(node)
        for text in faults or faults_of(node, self.returns):
            if text == before:
                continue
            change = (
                f"{before} -> {text}"
                if len(before) < 100
                else "{}[...]{} -> {}[...]{}".format(*shortened(before, text))
            )
            function = ".".join(self.functions) or "module"
            code = self.source.splitlines()[node.lineno - 1].decode().strip()
            self.mutants.append(Mutant(self.file, node.lineno, function, code, start, stop, text, change))


def shortened(before: str, after: str) -> tuple[str, str, str, str]:
    """Two long texts: their common beginning's first words, and where each differs from the other."""
    same = next(place for place, pair in enumerate(zip(before, f"{after}\0", strict=False)) if pair[0] != pair[1])
    return before[:30], before[max(same - 10, 30) : same + 50], after[:30], after[max(same - 10, 30) : same + 50]


def package_of(file: str) -> str:
    return next(package for package in TESTS if file.startswith(package))


def mutants_of(root: Path, package: str) -> list[Mutant]:
    path = root / package
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    found = []
    for file in files:
        if file.name != "__init__.py":
            finder = Finder(file.relative_to(root).as_posix(), source := file.read_text())
            finder.visit(ast.parse(source))
            found += finder.mutants
    return found


def sampled(root: Path, packages: list[str], count: int, seed: int, match: str) -> list[Mutant]:
    """Draw from each package in turn; of a package, a line before a fault, so that no long line comes up too often."""
    rng = random.Random(seed)
    queues = []
    for package in packages:
        lines: dict[tuple[str, int], list[Mutant]] = {}
        for mutant in mutants_of(root, package):
            if package == package_of(mutant.file) and match in str(mutant):
                lines.setdefault((mutant.file, mutant.line), []).append(mutant)
        drawn = rng.sample(sorted(lines), len(lines))
        queues.append(
            [rng.choice(lines[line]) for line in drawn] if not match else [m for k in drawn for m in lines[k]]
        )
    turns = [queue[turn] for turn in range(max(map(len, queues), default=0)) for queue in queues if turn < len(queue)]
    return sorted(turns[:count], key=lambda mutant: mutant.file)


class Tracer:
    """A plugin of pytest that writes down which functions of arrowds each passing test calls, and how long it takes.

    Calls in other processes are not seen, but that there are such.
    """

    def __init__(self, tree: Path) -> None:
        self.root, self.path = f"{tree}/arrowds/", tree / CALLS
        self.called: set[types.CodeType] = set()
        self.calls: Calls = {}

    def trace(self, frame: types.FrameType, event: str, argument: object) -> None:
        self.called.add(frame.f_code)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Iterator[None]:
        self.called.clear()
        threading.settrace(self.trace)
        sys.settrace(self.trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            threading.settrace(None)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            for code in list(self.called):
                if code.co_filename.startswith(self.root):
                    function = re.sub(r"\.<\w+>", "", code.co_qualname)
                    place = f"arrowds/{code.co_filename.removeprefix(self.root)} {function}"
                    self.calls.setdefault(place, {})[report.nodeid] = report.duration
            if any(code.co_qualname == "Popen.__init__" for code in list(self.called)):
                self.calls.setdefault(OTHER_PROCESSES, {})[report.nodeid] = report.duration

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(json.dumps(self.calls))


def calls_of(tree: Path, package: str, *, fast: bool) -> Calls:
    """Run all tests of a package, and its doctests, without a fault."""
    first, slow = TESTS[package]
    (tree / CALLS).unlink(missing_ok=True)
    failure(tree, [package, *first.split(), *([] if fast else slow.split())], 3600, Tracer(tree))
    return json.loads((tree / CALLS).read_text())


def tests_of(mutant: Mutant, calls: Calls) -> list[str]:
    """The tests that call the changed function, quick ones first, or all; then those that start processes."""
    called = calls.get(f"{mutant.file} {mutant.function}")
    if called is None:
        called = {test: seconds for tests in calls.values() for test, seconds in tests.items()}
    elsewhere = calls.get(OTHER_PROCESSES, {})
    return list(dict.fromkeys((*sorted(called, key=called.__getitem__), *sorted(elsewhere, key=elsewhere.__getitem__))))


def failure(tree: Path, tests: list[str], seconds: float, plugin: Tracer | None = None) -> str:
    """Run tests in a process of its own until one fails; return which one, or "" where all pass."""
    child = os.fork()
    if child == 0:
        code = int(pytest.ExitCode.INTERNAL_ERROR)
        try:
            code = run_tests(tree, tests, seconds, plugin)
        finally:
            os._exit(code)  # whatever happens: cleaning up is for the parent
    deadline = time.monotonic() + 3 * seconds
    while (ended := os.waitpid(child, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what a test has left running as well
    if ended == (0, 0):
        os.waitpid(child, 0)
        return "no end"
    if os.waitstatus_to_exitcode(ended[1]) in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        return ""
    if os.waitstatus_to_exitcode(ended[1]) == -signal.SIGXCPU:
        return "no end"
    lines = (tree / REPORT).read_text(errors="replace").splitlines()
    return next((line for line in lines if line.startswith(("FAILED", "ERROR"))), "the process ended")


def run_tests(tree: Path, tests: list[str], seconds: float, plugin: Tracer | None) -> int:
    os.setsid()
    os.chdir(tree)
    output = os.open(REPORT, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 5))  # a loop without an end
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    os.environ.update(PYTHONPATH=f"{tree}:{tree / 'tests'}", CI="1")
    # A run that is ended while DeepSpeed loads an extension leaves a lock, for which all others would wait.
    os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(tree / "extensions"))
    sys.path[:0] = [str(tree), str(tree / "tests")]
    options = [
        "-q",
        "-rfE",
        "--tb=no",
        "-p",
        "no:cacheprovider",
        "--hypothesis-profile=mutants",
        "--basetemp=temporary",
    ]
    options += ["-W", "ignore:Module already imported:pytest.PytestAssertRewriteWarning"]
    return pytest.main([*options, *([] if plugin else ["-x"]), *tests], plugins=[plugin] if plugin else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="how many faults, as many in each package")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--package", action="append", choices=list(TESTS), help="several times for several")
    parser.add_argument("--match", default="", help="only faults whose place or change contains this")
    parser.add_argument("--once-missed", action="store_true", help="the faults that were not noticed at some time")
    parser.add_argument("--fast", action="store_true", help="leave out the slow tests of each package")
    parser.add_argument("--seconds", type=float, default=200, help="of the processor, after which a fault is noticed")
    parser.add_argument("--calls", type=Path, help="keep here which tests call what, for the next run")
    parser.add_argument("--list", action="store_true", help="only print the faults")
    arguments = parser.parse_args()
    no_shrinking = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile("mutants", derandomize=True, deadline=None, phases=no_shrinking)
    kept: dict[str, Calls] = {}
    if arguments.calls is not None and arguments.calls.exists():
        kept = json.loads(arguments.calls.read_text())

    packages = arguments.package or list(TESTS)
    if arguments.once_missed:
        known = [(once_missed(*fault[:3]), fault[3]) for fault in ONCE_MISSED]
        faults = [(mutant, tests) for mutant, tests in known if arguments.match in str(mutant)]
    else:
        faults = [(mutant, "") for mutant in sampled(ROOT, packages, arguments.count, arguments.seed, arguments.match)]
    if arguments.list:
        print(*(mutant for mutant, _ in faults), sep="\n")
        return
    missed = explained = 0
    with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as folder:
        tree = Path(folder, "tree")
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "__pycache__"))
        # By content, so that a changed file is compiled again, whatever its time and size.
        compileall.compile_dir(tree, quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
        for number, (mutant, given) in enumerate(faults, 1):
            tests = given.split()
            if not given:
                package = package_of(mutant.file)
                if package not in kept:
                    kept[package] = calls_of(tree, package, fast=arguments.fast)
                    if arguments.calls is not None:
                        arguments.calls.write_text(json.dumps(kept))
                tests = tests_of(mutant, kept[package])
            began = time.monotonic()
            if mutant.key in EXPLAINED:
                explained += 1
                result = f"changes nothing: {EXPLAINED[mutant.key]}"
            else:
                original = (tree / mutant.file).read_bytes()
                fault = original[: mutant.start] + mutant.text.encode() + original[mutant.stop :]
                (tree / mutant.file).write_bytes(fault)
                result = failure(tree, tests, arguments.seconds) or f"NOT NOTICED by {len(tests)} tests: {mutant.key}"
                (tree / mutant.file).write_bytes(original)
                missed += result.startswith("NOT")
            print(f"{number} {mutant}\n    {time.monotonic() - began:.0f} s: {result}", flush=True)
    tried = len(faults) - explained
    print(f"{tried - missed} of {tried} noticed ({(tried - missed) / max(tried, 1):.0%}); {explained} change nothing")
    raise SystemExit(bool(missed))


def once_missed(file: str, before: str, after: str) -> Mutant:
    source = (ROOT / file).read_text()
    if source.count(before) != 1:
        raise SystemExit(f"{file} does not contain {before!r} once; bring ONCE_MISSED up to date")
    start = len(source[: source.index(before)].encode())
    line = source[: source.index(before)].count("\n") + 1
    return Mutant(file, line, "once missed", "", start, start + len(before.encode()), after, f"{before} -> {after}")


if __name__ == "__main__":
    main()
