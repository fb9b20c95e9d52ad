"""Data that have moved: rows are read at the new place, and only there, if they are what was indexed."""

from __future__ import annotations

import shutil

import polars as pl
import pytest
from typer.testing import CliRunner

import arrowds
from arrowds.cli import app
from arrowds.errors import ConfigError, UnreadableFileError

TEXTS = ["to be", "or", "not to be"]


@pytest.fixture
def indexed(tmp_path):
    """Two files in a folder, the second one appended."""
    old = tmp_path / "old"
    old.mkdir()
    for number in range(2):
        pl.DataFrame({"text": [f"{number} {text}" for text in TEXTS]}).write_parquet(old / f"{number}.parquet")
        build = arrowds.append if number else arrowds.analyze
        more = () if number else (arrowds.metrics.text.n_words(),)
        build(old, *more, tmp_path / "index", progress=False)
    return tmp_path


def texts(path, ids=range(6)):
    return arrowds.open_index(path).samples(list(ids))["text"].to_list()


EXPECTED = [f"{number} {text}" for number in range(2) for text in TEXTS]


def test_rows_are_read_where_they_lie_now(indexed):
    (indexed / "old").rename(indexed / "new")
    with pytest.raises(UnreadableFileError, match=r"If the data have moved, .* arrowds\.move_data\("):
        texts(indexed / "index")
    before = arrowds.open_index(indexed / "index")
    after = arrowds.move_data(indexed / "index", indexed / "old", indexed / "new")
    assert texts(indexed / "index") == EXPECTED
    assert after.fingerprint == before.fingerprint and after.version == before.version + 1
    assert after["n_words"].values.tolist() == before["n_words"].values.tolist()
    after.verify()


def test_an_append_knows_the_files_at_their_new_place(indexed):
    (indexed / "old").rename(indexed / "new")
    moved = arrowds.move_data(indexed / "index", indexed / "old", indexed / "new")
    pl.DataFrame({"text": ["third"]}).write_parquet(indexed / "new" / "2.parquet")
    grown = arrowds.append(indexed / "new", indexed / "index", progress=False)
    assert grown.num_samples == 7 and grown.version == moved.version + 1
    (indexed / "new").rename(indexed / "elsewhere")
    arrowds.move_data(indexed / "index", indexed / "new", indexed / "elsewhere")
    arrowds.compact(indexed / "index")
    arrowds.vacuum(indexed / "index")
    arrowds.open_index(indexed / "index", verify=True)
    assert texts(indexed / "index", range(7)) == [*EXPECTED, "third"]


def test_one_file_may_move_alone_and_copies_keep_their_time_or_not(indexed):
    shutil.copyfile(indexed / "old" / "1.parquet", indexed / "alone.parquet")  # with a new modification time
    (indexed / "old" / "1.parquet").unlink()
    arrowds.move_data(indexed / "index", indexed / "old" / "1.parquet", indexed / "alone.parquet")
    assert texts(indexed / "index") == EXPECTED


def test_other_content_is_refused_and_changes_nothing(indexed):
    (indexed / "old").rename(indexed / "new")
    pl.DataFrame({"text": ["x", "y", "z"]}).write_parquet(indexed / "new" / "1.parquet")
    version = arrowds.open_index(indexed / "index").version
    with pytest.raises(UnreadableFileError, match="changed since it was recorded"):
        arrowds.move_data(indexed / "index", indexed / "old", indexed / "new")
    with pytest.raises(UnreadableFileError, match="can't read"):
        arrowds.move_data(indexed / "index", indexed / "old", indexed / "nowhere")
    assert arrowds.open_index(indexed / "index").version == version


def test_a_place_where_nothing_lay(indexed):
    with pytest.raises(ConfigError, match=r"lies below .*ol; they are .*0\.parquet"):
        arrowds.move_data(indexed / "index", indexed / "ol", indexed / "new")
    arrowds.analyze(pl.DataFrame({"text": TEXTS}), arrowds.metrics.text.n_words(), indexed / "b", progress=False)
    with pytest.raises(ConfigError, match="it was not made from files"):
        arrowds.move_data(indexed / "b", indexed / "old", indexed / "new")


def test_tokenized_text_moves_too(indexed):
    source = arrowds.sources.TokenizedSource(arrowds.sources.open_source(indexed / "old"), tokenizer="bytes")
    arrowds.analyze(source, arrowds.metrics.seqlen(), indexed / "tokens", progress=False)
    (indexed / "old").rename(indexed / "new")
    arrowds.move_data(indexed / "tokens", indexed / "old", indexed / "new")
    assert texts(indexed / "tokens") == EXPECTED


def test_the_command(indexed):
    (indexed / "old").rename(indexed / "new")
    arguments = ["move-data", str(indexed / "index"), str(indexed / "old"), str(indexed / "new")]
    assert "version 3 reads its rows below" in CliRunner().invoke(app, arguments).output
    assert texts(indexed / "index") == EXPECTED
