"""The code of every page runs from top to bottom, on real text: functions of Python's standard library."""

from __future__ import annotations

import email
import itertools
import re
import shlex
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import duckdb
import numpy as np
import polars as pl
import pytest
import torch
import typer
from documents import DOCS, ROOT, Ran, blocks_of, run

import arrowds
from arrowds import demo, metrics
from arrowds.cli import app
from arrowds.curriculum import schedule

pytestmark = [
    pytest.mark.filterwarnings("ignore:The given NumPy array is not writable"),  # torch's, of mapped files
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # torch's, where there are fewer than 4 cores
]

RUN_ELSEWHERE = {
    "deepspeed.md": "tests/pipeline/test_training_document.py",
    "examples.md": "tests/test_examples.py",
    "launchers.md": "tests/cli/test_launchers_document.py",
    "metrics.md": "tests/test_metrics_document.py",
    "object-stores.md": "tests/cloud/test_object_stores_document.py",
    "profiler.md": "tests/pipeline/test_training_document.py",
    "training.md": "tests/pipeline/test_training_document.py",
}
RUN_HERE = {
    "README.md", "aio.md", "curriculum.md", "index.md", "migration.md", "query.md", "scale.md", "schedules.md",
    "sources.md", "token-budget.md", "tutorial.md",
}  # fmt: skip


@pytest.fixture(scope="module")
def text() -> pl.DataFrame:
    """Functions and classes of the package ``email``: hundreds of texts, their tokens and where they are from."""
    frame = demo.read_functions(Path(email.__file__).parent)
    return frame.with_columns(source=pl.col("module").str.split(".").list.first(), n=pl.col("input_ids").list.len())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder while a page runs."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def index(folder: Path, text: pl.DataFrame) -> arrowds.Index:
    """``index``, of ``data.parquet``, as the pages have it."""
    return make_index(text)


def make_index(text: pl.DataFrame) -> arrowds.Index:
    text.write_parquet("data.parquet")
    measures = [
        metrics.seqlen("input_ids"),
        metrics.vocab_rarity("input_ids"),
        metrics.expr("loss", pl.col("n").log1p()),
        metrics.expr("language", pl.col("kind").replace_strict({"function": 1, "class": 2}, return_dtype=pl.Int8)),
    ]
    return arrowds.analyze("data.parquet", measures, "index", workers=1, progress=False)


def names_of_training(index: arrowds.Index) -> dict[str, Any]:
    """What a training script has beside an index."""
    dataset = arrowds.ArrowDataset(arrowds.sources.open_source("data.parquet"), columns=["input_ids"])
    return {"index": index, "dataset": dataset, "collate": list, "rank": 0, "world_size": 1}


def run_page(name: str, names: dict[str, Any] | None = None) -> list[Ran]:
    page = ROOT / name if name == "README.md" else DOCS / name
    return run(blocks_of(page, "python", "bash", "yaml"), names)


def test_every_page_with_code_is_run() -> None:
    pages = {str(page.relative_to(DOCS)): page for page in DOCS.rglob("*.md")} | {"README.md": ROOT / "README.md"}
    assert set(RUN_ELSEWHERE).isdisjoint(RUN_HERE)
    run_languages = ("python", "bash", "sql", "console", "py", "sh", "yaml", "json", "pycon")
    blocks = {name: blocks_of(page, *run_languages) for name, page in pages.items()}
    with_code = {
        name for name in pages if any(block.not_run is None for block in blocks[name]) or name in RUN_ELSEWHERE
    }
    assert with_code == RUN_HERE | set(RUN_ELSEWHERE)
    for name, path in RUN_ELSEWHERE.items():
        assert name in (ROOT / path).read_text(encoding="utf-8")


def commands_on_pages() -> Iterator[tuple[str, str]]:
    """Every command of arrowds that stands on a line of its own in code: of fenced and of indented blocks."""
    for page in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        fenced = "\n".join(re.findall(r"^```(?!python)\w*\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE))
        indented = "\n".join(re.findall(r"^    (arrowds .*)$", text, flags=re.MULTILINE))
        for line in re.findall(r"^(?:\$ )?(arrowds .*)$", f"{fenced}\n{indented}", flags=re.MULTILINE):
            yield page.name, line


@pytest.mark.parametrize(("page", "line"), sorted(set(commands_on_pages())))
def test_commands_have_the_options_that_pages_give_them(page: str, line: str) -> None:
    lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
    lexer.whitespace_split = True
    _, *words = itertools.takewhile(lambda word: not set(word) <= set("&|;<>"), lexer)
    command, name = typer.main.get_command(app), "arrowds"
    while isinstance(command, click.Group):
        name, *words = words
        command = command.commands[name]
    assert command.make_context(name, words) is not None


def test_readme(folder: Path, text: pl.DataFrame) -> None:
    (folder / "corpus").mkdir()
    text.head(500).write_parquet(folder / "corpus" / "0.parquet")
    text.tail(-500).write_parquet(folder / "corpus" / "1.parquet")
    text.write_parquet("data.parquet")
    ran = run_page("README.md", names_of_training(None))
    assert sum(one.block.not_run is None for one in ran) >= 6
    index = ran[-1].names["index"]
    assert index["seqlen"].values.tolist() == text["n"].to_list()
    assert arrowds.open_index("big-index")["seqlen"].order.tolist() == index["seqlen"].order.tolist()


def test_front_page(folder: Path) -> None:
    (ran,) = run_page("index.md")
    assert ran.output.startswith("[1 0]\n")


def test_query(index: arrowds.Index) -> None:
    ran = run_page("query.md")
    lengths = index["seqlen"].values
    assert ran[0].output.startswith(np.array2string(index["seqlen"].sample_ids(above=16, up_to=32)))
    assert ran[3].output.startswith(f"shape: ({(lengths < 32).sum()}, ")
    with duckdb.connect() as connection:
        for block in blocks_of(DOCS / "query.md", "sql"):
            assert connection.sql(block.code).fetchall(), block.code


def test_curriculum(index: arrowds.Index) -> None:
    recorded = arrowds.CurriculumSampler(index, {}, micro_batch_size=1, num_epochs=10, record="folder")
    for step, _ in enumerate(recorded, start=1):
        if step == 5000:
            break
    recorded.close()
    ran = run_page("curriculum.md", {"index_a": index, "index_b": index})
    assert ran[0].names["sampler"].difficulties_at(1) == {"seqlen": 8}
    assert ran[2].names["sampler"].difficulties_at(500) == {"hardness": 55}
    assert ran[-1].block.code.startswith("arrowds.curriculum.trace.why")


def test_token_budget(folder: Path, text: pl.DataFrame) -> None:
    index = make_index(pl.concat([text] * 60))  # enough for steps of 32 microbatches of 131,072 tokens
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    names = names_of_training(index) | {
        "cosine": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100),
        "lengths": index["seqlen"].values,
        "curriculum": {},
    }
    ran = run_page("token-budget.md", names)
    assert ran[0].names["plan"].fill > 0.9
    costs = ran[4].names["work"]
    assert costs.shape == (8,) and costs.max() / costs.mean() < 1.05
    pool = ran[5].names["plan"]
    assert set(np.concatenate(pool.batches)) <= set(index["seqlen"].sample_ids(up_to=512))


def test_sources(folder: Path, text: pl.DataFrame) -> None:
    import gzip

    (folder / "data").mkdir()
    text.select("text").write_parquet("data/0.parquet")
    for name in ("a.jsonl", "b.jsonl"):
        text.select("text", "n").write_ndjson(name)
    Path("ids.jsonl.gz").write_bytes(gzip.compress(b'{"id": 18446744073709551615, "when": "2026-01-01T00:00:00"}\n'))
    Path("table.tsv").write_text('a\tb\n"\t2\n')
    text.select("text").write_csv("text.csv")
    arrowds.indexed_dataset.write_indexed_dataset("tokens", np.arange(100), np.full(10, 10), dtype="int32")
    run_page("sources.md", {"dataset": list(range(10))})


def test_nvme_results(folder: Path) -> None:
    pytest.importorskip("deepspeed", reason="the commands check a configuration with DeepSpeed")
    shutil.copytree(ROOT / "tests" / "stats" / "aio" / "fixtures" / "sweep", folder / "_aio_bench_logs")
    run_page("aio.md")
    assert '"aio"' in (folder / "aio.json").read_text() and (folder / "aio.png").stat().st_size > 1000


def test_migration(folder: Path) -> None:
    ran = run_page("migration.md")
    assert "seqlen_vocab_rarity" in ran[-1].output and ran[2].names["index"]["seqlen"].max() == 64


def test_schedules(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_REGISTERED", {})
    assert len(run_page("schedules.md")) == 7  # tests/curriculum/test_schedules_document.py has what they draw


def test_metric_function_of_scale(folder: Path) -> None:
    names = run_page("scale.md")[0].names
    table = pl.DataFrame({"n_tokens": [3, 1, 2]})
    index = arrowds.analyze(table, names["metric"], "index", workers=1, progress=False)
    weight = names["model"]().weight.item()
    assert index["loss"].values.tolist() == [np.float32(weight) * n for n in (3, 1, 2)]


def test_tutorial(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = folder / "library"  # 300 functions of 30 to 230 bytes
    library.mkdir()
    functions = [f"def f{number}(x):\n    return x{' + 1' * (number % 50)}\n" for number in range(300)]
    (library / "module.py").write_text("".join(functions))
    monkeypatch.setattr(demo, "run_demo", partial(demo.run_demo, library=library))
    ran = run_page("tutorial.md")
    outputs, names = [one.output for one in ran], SimpleNamespace(**ran[-1].names)
    by_hand = next(output for output in outputs if "{'bytes': 64}" in output or "{'bytes': 72}" in output)
    assert len(by_hand.splitlines()) == 15
    assert "True\n" in outputs, "the resumed loader gives step 16"
    commands = next(output for output in outputs if "resumed from the checkpoint of step 15" in output)
    assert "wrote my-run/run.svg" in commands
    assert names.losses.height == 30 and names.losses["loss"][-1] < names.losses["loss"][0]
    assert names.difficulties["difficulty"].max() == 192
