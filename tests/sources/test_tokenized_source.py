"""Token ids added to text: bytes without a copy, and a tokenizer of the tokenizers library."""

from __future__ import annotations

import sys
from pathlib import Path

import cloudpickle
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from source_contract import check_columnar, rows

from arrowds.errors import ConfigError, MissingColumnError, MissingExtraError, SourceError, UnreadableFileError
from arrowds.sources import TableSource, TokenizedSource, TorchSource, open_source

tokenizers = pytest.importorskip("tokenizers")


def make_tokenizer() -> tokenizers.Tokenizer:
    words = {word: i for i, word in enumerate(["[UNK]", "[BOS]", "the", "cat", "sat"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[BOS] $A", special_tokens=[("[BOS]", 1)]
    )
    return tokenizer


KINDS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.none() | st.text(max_size=8), min_size=1, max_size=10), kind=st.sampled_from(KINDS))
def test_bytes_are_those_of_the_text(texts: list[str | None], kind: pa.DataType) -> None:
    padded = pa.array(["before", *texts, "after"]).cast(kind)[1:-1]
    table = pa.table({"id": range(len(texts)), "text": padded})
    expected = [None if text is None else list(text.encode()) for text in texts]
    source = TokenizedSource(TableSource(table))
    assert [row["input_ids"] for row in rows(source, 0, len(texts))] == expected
    check_columnar(source, table.append_column("input_ids", pa.array(expected)), every_range=len(texts) < 5)


def test_bytes_share_the_memory_of_the_text() -> None:
    table = pa.table({"text": ["abc", "de"]})
    (batch,) = TokenizedSource(TableSource(table)).read(0, 2, ["input_ids"])
    assert batch["input_ids"].values.buffers()[1].address == table["text"].chunk(0).buffers()[2].address


@pytest.mark.parametrize("how", ["object", "path", "str"])
def test_tokenizer_ids_without_special_tokens_unless_asked(tmp_path: Path, how: str) -> None:
    make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    paths = {"path": tmp_path / "tokenizer.json", "str": str(tmp_path / "tokenizer.json")}
    tokenizer = make_tokenizer() if how == "object" else paths[how]
    table = pa.table({"text": ["the cat sat", None, "", "a cat"], "id": range(4)})
    source = TokenizedSource(TableSource(table), tokenizer=tokenizer, output="tokens")
    ids = [[2, 3, 4], None, [], [0, 3]]
    check_columnar(source, table.append_column("tokens", pa.array(ids, pa.list_(pa.int32()))))
    special = TokenizedSource(TableSource(table), tokenizer=tokenizer, special_tokens=True)
    assert rows(special, 0, 1, ["input_ids"]) == [{"input_ids": [1, 2, 3, 4]}]
    assert source.description == "arrow table, columns text, id, tokens from the tokenized text"


def test_text_is_not_tokenized_where_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    source = TokenizedSource(TableSource(pa.table({"text": ["a"], "id": [1]})))
    monkeypatch.setattr(TokenizedSource, "_tokenize", None)
    assert rows(source, 0, 1, ["id"]) == [{"id": 1}]


def test_fingerprint_depends_on_text_tokenizer_and_options() -> None:
    table = TableSource(pa.table({"text": ["the cat"]}))
    other = TableSource(pa.table({"text": ["the dog"]}))
    grown = make_tokenizer()
    grown.add_tokens(["dog"])
    sources = [
        TokenizedSource(table),
        TokenizedSource(other),
        TokenizedSource(table, tokenizer=make_tokenizer()),
        TokenizedSource(table, tokenizer=grown),
        TokenizedSource(table, tokenizer=make_tokenizer(), special_tokens=True),
        TokenizedSource(table, output="tokens"),
    ]
    assert len({source.fingerprint() for source in sources}) == len(sources)
    assert TokenizedSource(table, tokenizer=make_tokenizer()).fingerprint() == sources[2].fingerprint()


def test_built_tokenizer_is_not_pickled() -> None:
    source = TokenizedSource(TableSource(pa.table({"text": ["the cat"]})), tokenizer=make_tokenizer())
    before = len(cloudpickle.dumps(source))
    rows(source, 0, 1)
    assert len(cloudpickle.dumps(source)) == before


def test_parts_and_concurrency_are_those_of_the_source(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a"] * 10}), tmp_path / "a.parquet", row_group_size=4)
    source = TokenizedSource(open_source(tmp_path))
    assert source.part_boundaries(1) == [0, 4, 8, 10]
    assert source.concurrent


def test_what_can_not_be_tokenized_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = TableSource(pa.table({"text": ["a"], "n": [1]}))
    with pytest.raises(MissingColumnError, match="no column 'body'; the data has 'text', 'n'"):
        TokenizedSource(table, column="body")
    with pytest.raises(SourceError, match="column 'n' is int64; only text"):
        TokenizedSource(table, column="n")
    with pytest.raises(ConfigError, match="has a column 'n' already"):
        TokenizedSource(table, output="n")
    with pytest.raises(SourceError, match="has no columns"):
        TokenizedSource(TorchSource(["a"]))
    (tmp_path / "bad.json").write_text("{}")
    for path in (tmp_path / "bad.json", tmp_path / "gone.json"):
        with pytest.raises(UnreadableFileError, match=rf"can't read the tokenizer .*{path.name}"):
            TokenizedSource(table, tokenizer=path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r"arrowds\[huggingface\]"):
        TokenizedSource(table, tokenizer="tokenizer.json")
