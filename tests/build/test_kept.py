"""Text is tokenized once, also where a metric needs two passes, and what is kept in between changes no byte."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from index_files import contents

import arrowds
from arrowds.build import shards
from arrowds.build.kept import kept_batches
from arrowds.build.map import map_part
from arrowds.errors import IndexCorruptError
from arrowds.metrics import VocabRarity
from arrowds.sources import TableSource, TokenizedSource

tokenizers = pytest.importorskip("tokenizers")

TEXTS = [f"t{n % 50} t{n % 7} {n}" if n % 11 else None for n in range(2600)]
SEEN: Counter[str | None] = Counter()
METRICS = [arrowds.metrics.seqlen(nulls="keep"), arrowds.metrics.vocab_rarity(nulls="keep")]


def source(*, kept: bool = True) -> TokenizedSource:
    """Three parts, the first two of two batches."""
    words = {"[UNK]": 0} | {f"t{n}": n + 1 for n in range(50)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    table = pa.Table.from_batches(pa.table({"text": TEXTS}).to_batches(max_chunksize=700))
    made = TokenizedSource(TableSource(table), tokenizer=tokenizer)
    if not kept:
        made.computed = ()
    return made


@pytest.fixture(autouse=True)
def _counted(monkeypatch):
    """Count how often each row is tokenized."""
    tokenize = TokenizedSource._tokenize

    def counting(self, text):
        SEEN.update(text.to_pylist())
        return tokenize(self, text)

    monkeypatch.setattr(TokenizedSource, "_tokenize", counting)
    SEEN.clear()


def analyze(path, *, metrics=METRICS, kept: bool = True) -> dict[str, bytes]:
    arrowds.analyze(source(kept=kept), metrics, path, workers=1, progress=False)
    return contents(path)


def test_every_row_is_tokenized_once_and_the_index_is_that_of_two_reads(tmp_path):
    once = analyze(tmp_path / "once")
    assert Counter(TEXTS) == SEEN
    SEEN.clear()
    assert analyze(tmp_path / "twice", kept=False) == once
    assert Counter(TEXTS + TEXTS) == SEEN
    assert not list((tmp_path / "once").glob("builds/*"))


def interrupted(path: Path, monkeypatch) -> list[Path]:
    """Leave a build whose second pass was interrupted at its second part; return what it has kept, in order."""
    compute, calls = VocabRarity.compute, iter(range(9))

    def stopping(self, batch, totals):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return compute(self, batch, totals)

    with monkeypatch.context() as patched:
        patched.setattr(VocabRarity, "compute", stopping)
        with pytest.raises(KeyboardInterrupt):
            analyze(path)
    SEEN.clear()
    (folder,) = path.glob("builds/*/kept")
    kept = sorted((file for file in folder.rglob("*.*")), key=str)
    assert [str(file.relative_to(folder)) for file in kept] == [
        f"0000{part}{name}" for part in range(3) for name in (".json", "/00000.arrow", "/00001.arrow")
    ]
    return kept


def test_an_interrupted_second_pass_resumes_without_the_tokenizer(tmp_path, monkeypatch):
    expected = analyze(tmp_path / "whole")
    interrupted(tmp_path / "ix", monkeypatch)
    assert analyze(tmp_path / "ix") == expected
    assert not SEEN


def test_a_killed_first_pass_tokenizes_only_the_parts_that_are_not_finished(tmp_path):
    expected = analyze(tmp_path / "whole")
    child = os.fork()
    if child == 0:
        tokenize = TokenizedSource._tokenize

        def kill(self, text):
            if text[0].as_py() == TEXTS[1400]:  # of the second part, its second batch
                while not all(list(tmp_path.glob(f"ix/builds/*/{kind}/*/00000.*")) for kind in ("runs", "sums")):
                    time.sleep(0.01)  # the first part is written in a thread
                os.kill(os.getpid(), signal.SIGKILL)
            return tokenize(self, text)

        TokenizedSource._tokenize = kill
        analyze(tmp_path / "ix")
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    SEEN.clear()
    assert analyze(tmp_path / "ix") == expected
    assert Counter(TEXTS[1024:]) == SEEN


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
@pytest.mark.parametrize("number", [3, 4, 5])  # the record of the second part, and its batches
def test_what_is_damaged_is_tokenized_again(tmp_path, monkeypatch, damage, number):
    expected = analyze(tmp_path / "whole")
    file = interrupted(tmp_path / "ix", monkeypatch)[number]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()
    if damage != "missing":
        file.write_bytes(content if damage == "flipped" else content[: len(content) // 2])
    assert analyze(tmp_path / "ix") == expected
    assert set(SEEN) == set(TEXTS[1024:2048])


def test_what_is_kept_of_other_data_rows_or_columns_is_not_taken(tmp_path):
    plan = shards.plan_build(source(), METRICS, tmp_path / "ix")
    task, part = plan.task(plan.passes[0], {}), plan.parts[1]
    map_part(task, part)
    assert sum(batch.num_rows for batch in kept_batches(task, part)) == len(part)
    others = [(replace(task, fingerprint="other"), part), (replace(task, columns=["text", "input_ids"]), part)]
    for other in [*others, (task, replace(part, stop=part.stop - 1))]:
        with pytest.raises(IndexCorruptError, match="of other data"):
            next(kept_batches(*other))


def test_shards_of_the_second_round_use_what_those_of_the_first_have_kept(tmp_path):
    expected = analyze(tmp_path / "whole")
    SEEN.clear()
    shards.plan_build(source(), METRICS, tmp_path / "ix")
    for of in (2, 3):
        for shard in range(1, of + 1):
            shards.map_shard(tmp_path / "ix", shard, of, source=source(), workers=1, progress=False)
    shards.reduce_build(tmp_path / "ix", source=source(), workers=1)
    assert Counter(TEXTS) == SEEN
    assert contents(tmp_path / "ix") == expected


def test_nothing_is_kept_for_one_pass_or_of_columns_that_cost_nothing(tmp_path):
    def kept(metrics, data):
        return shards.plan_build(data, metrics, tmp_path / f"ix{len(list(tmp_path.iterdir()))}").kept

    assert kept(METRICS, source()) == ("input_ids",)
    assert kept(METRICS[:1], source()) == ()
    assert kept(METRICS, TokenizedSource(TableSource(pa.table({"text": TEXTS})), tokenizer="bytes")) == ()
    assert kept(METRICS, pa.table({"input_ids": [[1], [2, 3]]})) == ()
