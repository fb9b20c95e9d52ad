"""Every option of every command reaches the library, with the value that was typed."""

from __future__ import annotations

import inspect
import json
import shlex
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from arrowds.cli import app

FIXTURES = Path(__file__).parents[1] / "stats" / "aio" / "fixtures"
S3 = {"aws_region": "eu", "aws_secret_access_key": "a=b"}
S3_OPTIONS = "--storage-option aws_region=eu --storage-option aws_secret_access_key=a=b"


class Reached(OSError):  # noqa: N818  # passes through where other errors are explained
    """The library was called; nothing after it is run."""


BUILD = [
    ("a", {"source": "a", "path": "out"}),
    ("a 'b/*'", {"source": ["a", "b/*"]}),
    ("a --workers 3", {"workers": 3}),
    ("a --engine ray", {"engine": "ray"}),
    ("a --no-resume", {"resume": False}),
    (f"a {S3_OPTIONS}", {"storage_options": S3}),
    ("a --expr 'n=x + 1'", {"metrics": [("seqlen", "seqlen"), ("n", "expr")]}),
    ("a --keep-nulls", {"metrics": [("seqlen", "keep")]}),
    ("a.jsonl --schema words=large_string", {"source": ("words", "large_string")}),
    ("a.csv --quoting none", {"source": ("x", "string")}),
    ("a.jsonl --tokenizer bytes --text-column words", {"source": "words"}),
]
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *((f"analyze {line} -o out --metric seqlen", "arrowds.analyze", expected) for line, expected in BUILD),
    ("lint a.jsonl --schema words=large_string", "arrowds.sources.lint.lint", {"source": ("words", "large_string")}),
    ("lint a.csv --quoting none", "arrowds.sources.lint.lint", {"source": ("x", "string")}),
    (f"lint a {S3_OPTIONS}", "arrowds.sources.open_source", {"storage_options": S3}),
    ("analyze a -o out --metric x=seqlen:ids", "arrowds.analyze", {"metrics": [("x", "ids")]}),
    ("analyze a -o out --metric x=column:ids", "arrowds.analyze", {"metrics": [("x", "ids")]}),
    ("analyze a -o out --metric x=text.top_ngram_char_share:body", "arrowds.analyze", {"metrics": [("x", "body")]}),
    ("analyze a -o out --metric x=text.compression_ratio:body", "arrowds.analyze", {"metrics": [("x", "body")]}),
    ("analyze a -o out --metric seqlen", "arrowds.analyze", {"workers": None, "overwrite": False, "resume": True}),
    ("analyze a -o out --metric seqlen --overwrite", "arrowds.analyze", {"overwrite": True}),
    ("analyze a --output s3://b/i --metric seqlen", "arrowds.analyze", {"path": "s3://b/i", "storage_options": None}),
    *((f"append {line} -o out --metric seqlen", "arrowds.append", expected) for line, expected in BUILD),
    ("append a -o out", "arrowds.append", {"metrics": None, "compare_content": False, "engine": "local"}),
    ("append a -o out --compare-content", "arrowds.append", {"compare_content": True}),
    *((f"add-metric {line} -o out --metric seqlen", "arrowds.add_metrics", expected) for line, expected in BUILD),
    ("add-metric a -o out --metric seqlen --refresh", "arrowds.add_metrics", {"refresh": True}),
    ("add-metric a -o out --metric seqlen", "arrowds.add_metrics", {"refresh": False}),
    *(
        (f"plan {line} -o out --metric seqlen", "arrowds.build.shards.plan_build", expected)
        for line, expected in BUILD
        if not {"workers", "engine", "resume"} & expected.keys()
    ),
    (
        "plan a -o out --append",
        "arrowds.build.shards.plan_build",
        {"append": True, "metrics": None, "overwrite": False},
    ),
    (
        "plan a -o out --metric seqlen --overwrite",
        "arrowds.build.shards.plan_build",
        {"overwrite": True, "append": False},
    ),
    ("map i --shard 3/40", "arrowds.build.shards.map_shard", {"path": "i", "shard": 3, "of": 40, "workers": None}),
    (
        f"map i --shard 1/1 --workers 2 {S3_OPTIONS}",
        "arrowds.build.shards.map_shard",
        {"workers": 2, "storage_options": S3},
    ),
    ("reduce i", "arrowds.build.shards.reduce_build", {"path": "i", "shard": 1, "of": 1, "storage_options": None}),
    (
        f"reduce i --shard 2/8 --workers 5 {S3_OPTIONS}",
        "arrowds.build.shards.reduce_build",
        {"shard": 2, "of": 8, "workers": 5, "storage_options": S3},
    ),
    (
        f"compact i --workers 2 --engine torch {S3_OPTIONS}",
        "arrowds.compact",
        {"path": "i", "workers": 2, "engine": "torch", "storage_options": S3},
    ),
    ("vacuum i", "arrowds.vacuum", {"path": "i", "keep": 1, "unfinished": False}),
    ("vacuum i --keep 3 --unfinished", "arrowds.vacuum", {"keep": 3, "unfinished": True}),
    (f"vacuum s3://b/i {S3_OPTIONS}", "arrowds.vacuum", {"path": "s3://b/i", "storage_options": S3}),
    (f"versions i {S3_OPTIONS}", "arrowds.versions", {"path": "i", "storage_options": S3}),
    *(
        (
            f"{command} --version 4 {S3_OPTIONS}",
            "arrowds.index.open_index",
            {"path": "i", "version": 4, "storage_options": S3},
        )
        for command in (
            "info i",
            "head i",
            "sql i q",
            "plot i m",
            "report i",
            "verify i",
            "export i f",
            "batch i --config c --step 1",
            "simulate i --config c",
        )
    ),
    ("info i", "arrowds.index.open_index", {"path": "i", "version": None, "storage_options": None}),
    (
        "head i",
        "FakeIndex.head",
        {"n": 20, "metric": None, "between": None, "largest": False, "where": None, "columns": None},
    ),
    ("move-data i a b", "arrowds.move_data", {"path": "i", "old": "a", "new": "b"}),
    (f"move-data s3://b/i a b {S3_OPTIONS}", "arrowds.move_data", {"storage_options": S3}),
    ("duplicates i --find", "arrowds.duplicates.find_duplicates", {"path": "i", "column": "text", "near": None}),
    (
        "duplicates i --find --near 0.8 --column ids",
        "arrowds.duplicates.find_duplicates",
        {"near": 0.8, "column": "ids"},
    ),
    (f"duplicates s3://b/i --find {S3_OPTIONS}", "arrowds.duplicates.find_duplicates", {"storage_options": S3}),
    ("duplicates i -n 3 --show a", "arrowds.duplicates.largest_clusters", {"n": 3, "columns": ["a"]}),
    ("head i --metric m -n 3 --largest", "FakeIndex.head", {"n": 3, "metric": "m", "largest": True}),
    ("head i --metric m --between 1 2.5", "FakeIndex.head", {"metric": "m", "between": (1.0, 2.5)}),
    ("head i --where 'x > 3' --show a --show b", "FakeIndex.head", {"where": "x > 3", "columns": ["a", "b"]}),
    ("sql i 'select 1'", "FakeIndex.sql", {"statement": "select 1", "allow_files": False}),
    ("sql i 'select 1' --allow-files", "FakeIndex.sql", {"allow_files": True}),
    ("plot i m", "arrowds.plots.text_histogram", {"metric": "m", "bins": 20, "log": None, "between": None}),
    ("plot i m --bins 7 --log", "arrowds.plots.text_histogram", {"bins": 7, "log": True}),
    ("plot i m --no-log --between 1 99.5", "arrowds.plots.text_histogram", {"log": False, "between": (1.0, 99.5)}),
    ("plot i m -o x.png", "arrowds.plots.plot", {"path": Path("x.png"), "bins": 50, "log": None, "between": None}),
    (
        "plot i m -o x.svg --bins 7 --log --between 0 50",
        "arrowds.plots.plot",
        {"bins": 7, "log": True, "between": (0.0, 50.0)},
    ),
    (
        "report i",
        "arrowds.report.write_report",
        {"path": Path("report.html"), "metrics": None, "columns": None, "sample": 50_000, "run": None, "config": None},
    ),
    (
        "report i -o x.html --run out --config run.yaml --sample 7",
        "arrowds.report.write_report",
        {"path": Path("x.html"), "run": Path("out"), "config": Path("run.yaml"), "sample": 7},
    ),
    (
        "report i --metric a --metric b --show text --show url",
        "arrowds.report.write_report",
        {"metrics": ["a", "b"], "columns": ["text", "url"]},
    ),
    ("report i --no-data", "arrowds.report.write_report", {"columns": []}),
    (
        f"diff i j --versions 3 5 {S3_OPTIONS}",
        "arrowds.index.open_index",
        {"path": "i", "version": 3, "storage_options": S3},
    ),
    (
        f"why r --step 3 --index s3://b/i {S3_OPTIONS}",
        "arrowds.index.open_index",
        {"path": "s3://b/i", "storage_options": S3},
    ),
    ("verify i", "FakeIndex.verify", {}),
    ("export i f", "arrowds.integrations.deepspeed.export_index", {"folder": Path("f"), "metrics": None}),
    ("export i f --metric a --metric b", "arrowds.integrations.deepspeed.export_index", {"metrics": ["a", "b"]}),
    (
        "import f i",
        "arrowds.integrations.deepspeed.import_index",
        {"folder": Path("f"), "path": "i", "metrics": None, "overwrite": False, "num_samples": None, "workers": None},
    ),
    (
        "import f i --metric a --num-samples 9 --workers 2 --overwrite",
        "arrowds.integrations.deepspeed.import_index",
        {"metrics": ["a"], "num_samples": 9, "workers": 2, "overwrite": True},
    ),
    (
        "batch i --config c.json --step 1",
        "arrowds.pipeline.sampler_settings.sampler_from_settings",
        {"settings": Path("c.json"), "rank": 0, "world_size": None},
    ),
    (
        "batch i --config c.json --step 1 --rank 3 --world-size 4",
        "arrowds.pipeline.sampler_settings.sampler_from_settings",
        {"rank": 3, "world_size": 4},
    ),
    ("run run.json", "arrowds.pipeline.run_pipeline", {"resume": True, "config": {"steps": 9, "output": "out"}}),
    ("run run.json --steps 5 -o o", "arrowds.pipeline.run_pipeline", {"config": {"steps": 5, "output": "o"}}),
    ("run run.json --no-resume", "arrowds.pipeline.run_pipeline", {"resume": False}),
    ("demo", "arrowds.demo.run_demo", {"folder": Path("arrowds-demo")}),
    ("demo --keep d", "arrowds.demo.run_demo", {"folder": Path("d")}),
    ("demo --train", "arrowds.training_demo.require_packages", {}),
    ("profile show f --by-rank", "arrowds.stats.profiler.summarize", {"by_rank": True}),
    ("profile show f", "arrowds.stats.profiler.summarize", {"by_rank": False}),
    ("profile show f --tolerance 0.3", "arrowds.stats.profiler.stragglers", {"tolerance": 0.3}),
    ("profile show f --difficulties d", "arrowds.stats.profiler.read_difficulties", {"path": Path("d")}),
    (
        "profile plot f --step 3 --last 7",
        "arrowds.stats.profiler.draw_profile",
        {"step": 3, "last": 7, "difficulties": None},
    ),
    ("profile plot f --difficulties d", "arrowds.stats.profiler.read_difficulties", {"path": Path("d")}),
    (
        "aio import LOGS -o o.parquet --run monday",
        "arrowds.stats.aio.append",
        {"path": Path("o.parquet"), "run_id": "monday"},
    ),
    ("aio best LOGS --by sum", "arrowds.stats.aio.rank", {"by": "sum", "rows": 8}),
    ("aio best LOGS --target nowhere", "arrowds.cli.aio.ConfigError", {}),
    ("aio best LOGS --run monday", "arrowds.cli.aio.ConfigError", {}),
    ("aio config LOGS --by read_speed", "arrowds.stats.aio.deepspeed_config", {"by": "read_speed"}),
    ("aio config LOGS --check", "arrowds.stats.aio.check_config", {}),
    ("aio config LOGS --target nowhere", "arrowds.cli.aio.ConfigError", {}),
    ("aio config LOGS --run monday", "arrowds.cli.aio.ConfigError", {}),
    ("aio plot LOGS -o x.svg", "arrowds.stats.aio.plot", {"path": Path("x.svg")}),
    ("aio plot LOGS --target nowhere", "arrowds.cli.aio.ConfigError", {}),
    ("aio plot LOGS --run monday", "arrowds.cli.aio.ConfigError", {}),
    (
        "aio sweep d --block-size 2M --queue-depth 3 --io-parallel 5 --single-submit yes --sequential no --io-size 7M "
        "--loops 2 --timeout 9 --no-write --gpu --gds --logs l",
        "arrowds.cli.aio.check_sweep",
        {
            "folders": (Path("d"),),
            "io_size": "7M",
            "loops": 2,
            "timeout_s": 9.0,
            "gpu": True,
            "gds": True,
            "logs": Path("l"),
            "operations": {"read"},
            "settings": {
                "block_size": "2M",
                "queue_depth": 3,
                "io_parallel": 5,
                "single_submit": True,
                "sequential_requests": False,
            },
        },
    ),
    (
        "aio sweep d --no-read --sweep-config space.json",
        "arrowds.cli.aio.check_sweep",
        {"operations": {"write"}, "gpu": False, "gds": False, "queue_depths": {11}},
    ),
]

ELSEWHERE = {
    # What changes the printed form only, or is applied after the library's answer, is tested by what is printed.
    "test_index_commands.py": {"info --json", "sql --csv", "sql --json", "versions --json"},
    "../index/test_looking.py": {"head --csv", "head --json"},
    "../duplicates/test_duplicates.py": {"duplicates --csv", "duplicates --json"},
    "../index/test_compare.py": {"diff --versions", "diff --csv", "diff --json"},
    "../curriculum/test_simulate.py": {
        "simulate --config", "simulate --points", "simulate --world-size", "simulate -o", "simulate --csv",
        "simulate --json",
    },
    "../sources/test_lint.py": {"lint --vocab-size", "lint --id", "lint --csv", "lint --json"},
    "../curriculum/test_why.py": {"why --step", "why --steps", "why --show", "why --csv", "why --json", "why --index"},
    "test_training.py": {"batch --csv", "batch --json", "batch --step", "run --no-plot", "run --json"},
    "test_shards.py": {"plan --json"},
    "test_json.py": {
        "analyze --json", "append --json", "add-metric --json", "map --json", "reduce --json", "compact --json",
        "vacuum --json", "move-data --json", "plot --json", "verify --json", "export --json", "import --json",
    },
    "test_profile.py": {"profile show --step", "profile show --last", "profile show --csv",
                        "profile plot -o"},
    "test_aio.py": {"aio show --operation", "aio show --status", "aio show --limit", "aio show --run",
                    "aio show --target",
                    "aio best --top", "aio sweep -o", "aio sweep --yes"},
}  # fmt: skip


class FakeIndex:
    """An index that tells what is asked of it."""

    path = "i"
    version = 1

    def __getitem__(self, name: str) -> str:
        return name

    def sql(self, statement: str, *, allow_files: bool) -> None:
        """Answer nothing."""

    def head(self, n: int, *, metric: Any, between: Any, largest: Any, where: Any, columns: Any) -> None:
        """Show nothing."""

    def verify(self) -> None:
        """Verify nothing."""


def assert_is(name: str, value: Any, expected: Any) -> None:
    """Compare one argument of a call with what was typed: metrics by name and definition, other objects by a field."""
    if name == "metrics" and value and hasattr(value[0], "definition"):
        assert [metric.name for metric in value] == [metric_name for metric_name, _ in expected]
        assert all(part in metric.definition() for metric, (_, part) in zip(value, expected, strict=True))
    elif name == "source" and isinstance(expected, tuple):
        column, kind = expected
        assert str(value.schema.field(column).type) == kind
    elif name == "source" and hasattr(value, "to_spec"):
        assert value.to_spec()["column"] == expected
    elif name == "config" and hasattr(value, "training"):
        shown = {"steps": value.training.steps, "output": str(value.output)}
        assert shown | expected == shown
    else:
        assert value == expected, name


@pytest.fixture
def reach(monkeypatch, tmp_path):
    """Run a command line up to the call of a library function; give the arguments of the call."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text('{"words": "to be"}\n')
    (tmp_path / "a.csv").write_text('x,y\n"1",2\n')
    (tmp_path / "space.json").write_text(json.dumps({"queue_depth": [11]}))
    values = {"data": {"source": "a"}, "index": {"path": "i"}, "training": {"steps": 9}, "output": "out"}
    (tmp_path / "run.json").write_text(json.dumps(values | {"batches": {"micro_batch_size": 1}}))

    def run(line: str, target: str) -> dict[str, Any]:
        owner, _, name = target.rpartition(".")
        holder: Any = FakeIndex if owner == "FakeIndex" else import_module(owner)
        original = getattr(holder, name)

        def stop(*args: Any, **kwargs: Any) -> None:
            if inspect.isclass(original):
                raise Reached({})
            raise Reached(dict(inspect.signature(original).bind(*args, **kwargs).arguments))

        fakes = {
            "arrowds.index.open_index": lambda *_, **__: FakeIndex(),
            "arrowds.stats.profiler.read_events": lambda *_: None,
            "arrowds.stats.profiler.summarize": lambda *_, **__: __import__("polars").DataFrame({"step": [1]}),
            "arrowds.training_demo.require_packages": lambda: None,
            "arrowds.cli.build.newest_version": lambda *_: 0,
            "arrowds.store.open_store": lambda *_: type(
                "Store", (), {"entries": lambda *_: [], "names": lambda *_: []}
            )(),
        }
        for path, fake in fakes.items():
            monkeypatch.setattr(path, fake)
        monkeypatch.setattr(holder, name, stop)
        words = [str(FIXTURES / "sweep") if word == "LOGS" else word for word in shlex.split(line)]
        result = CliRunner().invoke(app, words)
        assert isinstance(result.exception, Reached), f"{line}: {result.output} {result.exception!r}"
        arguments = result.exception.args[0]
        if "table" in arguments:
            arguments["rows"] = arguments["table"].num_rows
        if name == "check_sweep":
            plan = arguments[next(iter(arguments))]
            fields = ("block_size", "queue_depth", "io_parallel", "single_submit", "sequential_requests")
            settings = [{field: getattr(job, field) for field in fields} for job in plan.jobs]
            arguments = {
                field: getattr(plan, field) for field in ("folders", "io_size", "loops", "timeout_s", "gpu", "gds")
            }
            arguments |= {"logs": plan.log_folder.parent, "operations": {job.operation for job in plan.jobs}}
            arguments |= {"settings": settings[0], "queue_depths": {one["queue_depth"] for one in settings}}
        return arguments

    return run


@pytest.mark.parametrize(("line", "target", "expected"), CASES, ids=[line for line, _, _ in CASES])
def test_what_is_typed_reaches_the_library(reach, line, target, expected):
    arguments = reach(line, target)
    for name, value in expected.items():
        assert_is(name, arguments.get(name), value)


def options_of(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, set[str]]]:
    """Every option of every command below one, with all its spellings; those of a switch that has two are two."""
    if hasattr(command, "commands"):
        for name, below in command.commands.items():
            yield from options_of(below, (*path, name))
        return
    for option in command.params:
        if option.param_type_name == "option":
            for spellings in filter(None, (option.opts, option.secondary_opts)):
                yield " ".join(path), set(spellings)


def test_every_option_of_every_command_is_tested():
    """Here, or in the file that is named, where it occurs by this name."""
    typed: dict[str, set[str]] = {}
    for line, _, _ in CASES:
        words = line.split()
        command = " ".join(words[:2] if words[0] in ("profile", "aio") else words[:1])
        typed.setdefault(command, set()).update(word for word in words if word.startswith("-"))
    for file, listed in ELSEWHERE.items():
        text = (Path(__file__).parent / file).read_text()
        for entry in listed:
            command, _, option = entry.rpartition(" ")
            assert f'"{option}"' in text, entry
            typed.setdefault(command, set()).add(option)
    on_by_default = {("aio sweep", "--read"), ("aio sweep", "--write")}
    untested = [
        (command, sorted(spellings))
        for command, spellings in options_of(typer.main.get_command(app))
        if not spellings & typed.get(command, set()) and not {(command, one) for one in spellings} & on_by_default
    ]
    assert untested == []


@pytest.mark.parametrize(
    "line",
    [
        "analyze a -o i",
        "add-metric a -o i",
        "plan a -o i",
        "analyze a -o i --metric length:ids",
        "analyze a -o i --expr 'length(text)'",
        "analyze a -o i --metric seqlen --engine spark",
        "analyze a -o i --metric seqlen --workers 0",
        "analyze a -o i --metric seqlen --storage-option aws_region",
        "info i --storage-option =x",
        "analyze a -o i --metric seqlen --schema words",
        "analyze a -o i --metric seqlen --quoting some",
        "info i --version 0",
        "plan a -o i --append --overwrite",
        "map i",
        "map i --shard 3",
        "map i --shard 0/4",
        "map i --shard 5/4",
        "map i --shard a/b",
        "map i --shard -1/4",
        "reduce i --shard 9/8",
        "vacuum i --keep 0",
        "sql i 'select 1' --csv --json",
        "plot i m --between 5",
        "report i --no-data --show text",
    ],
)
def test_wrong_usage_is_status_2_and_does_nothing(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, shlex.split(line)).exit_code == 2
    assert list(tmp_path.iterdir()) == []
