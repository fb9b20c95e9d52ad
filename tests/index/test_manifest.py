"""The manifest: what is refused, what is named, and that its bytes are the commit."""

from __future__ import annotations

import json
import os

import numpy as np
import pyarrow as pa
import pytest

import arrowds
from arrowds.errors import IndexCorruptError, IndexNotFoundError, IndexReplacedError, IndexVersionError
from arrowds.index import manifest
from arrowds.index.paths import Layout


@pytest.fixture
def built(tmp_path):
    table = pa.table({"x": [[1, 2], [3]], "y": [1.5, 2.5]})
    chosen = [arrowds.metrics.seqlen("x"), arrowds.metrics.token_counts("x")]
    return arrowds.analyze(table, chosen, tmp_path / "index", progress=False)


def test_what_is_written_is_what_is_read(built):
    found = manifest.load(built.path)
    assert found == built.manifest
    manifest.commit(built.path, found)
    assert manifest.load(built.path) == found
    assert list(found.files) == sorted(found.files)
    assert found.totals["token_counts"].shape == (4,)
    assert found.parts[0].stop == len(found.parts[0]) == 2


def test_it_tells_nothing_of_when_and_where(built, monkeypatch):
    text = Layout(built.path).manifest.read_text()
    for word in (os.uname().nodename, str(os.getpid()), "workers", str(built.path.parent), "202"):
        assert f'"{word}' not in text


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"format_version": 2}, IndexVersionError, "has index format 2; this arrowds reads up to 1: upgrade arrowds"),
        ({"format_version": 99, "unknown": {}}, IndexVersionError, "has index format 99"),
        ({"format": "something"}, IndexCorruptError, "is not the manifest of an index"),
        ({"format_version": "x"}, IndexCorruptError, "is not the manifest of an index"),
        ({"parts": None}, IndexCorruptError, "is not the manifest of an index"),
        ({"unknown": 1}, IndexCorruptError, "is not the manifest of an index"),
        ({"metrics": {"../../etc": {}}}, IndexCorruptError, "is not the manifest of an index"),
        ({"files": {"a": {"bytes": -1}}}, IndexCorruptError, "is not the manifest of an index"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(built, change, error, message):
    path = Layout(built.path).manifest
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    for use in (lambda: manifest.load(built.path), lambda: arrowds.open_index(built.path)):
        with pytest.raises(error, match=message):
            use()


@pytest.mark.parametrize("name", ["..", "../x", "a/b", ".hidden"])
def test_a_metric_name_in_a_manifest_can_not_leave_the_folder(built, name):
    path = Layout(built.path).manifest
    content = json.loads(path.read_text())
    content["metrics"][name] = content["metrics"]["seqlen"]
    path.write_text(json.dumps(content))
    with pytest.raises(IndexCorruptError, match="can't be the name of a metric"):
        manifest.load(built.path)


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "metrics/../../x", "a\\..\\b"])
def test_a_file_outside_the_folder_is_not_read(built, name):
    files = built.manifest.files | {name: manifest.FileEntry(bytes=0, xxh3="")}
    manifest.commit(built.path, built.manifest.model_copy(update={"files": files}))
    with pytest.raises(IndexCorruptError, match="lies outside the index"):
        arrowds.open_index(built.path)


@pytest.mark.parametrize("cut", [0, 1, 50, -3])
def test_a_truncated_manifest_is_corrupt(built, cut):
    path = Layout(built.path).manifest
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(IndexCorruptError, match=r"manifest\.json"):
        arrowds.open_index(built.path)


def test_where_there_is_no_index_the_message_says_what_there_is(tmp_path):
    with pytest.raises(IndexNotFoundError, match="does not exist; create an index there with"):
        arrowds.open_index(tmp_path / "nothing")
    with pytest.raises(IndexNotFoundError, match=r"is not an index: it has no manifest\.json"):
        arrowds.open_index(tmp_path)
    Layout(tmp_path).plan.write_text("")
    with pytest.raises(IndexNotFoundError, match="holds an unfinished index; run the same"):
        arrowds.open_index(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(IndexNotFoundError, match="file is not an index"):
        arrowds.open_index(tmp_path / "file")


def test_every_damaged_file_is_named_by_its_kind_of_damage(built):
    files = sorted(built.manifest.files)
    missing, short, flipped = (built.path / files[number] for number in (0, 1, 2))
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    arrowds.open_index(built.path)  # sizes alone don't tell
    with pytest.raises(IndexCorruptError, match=rf"1 file\(s\) .*damaged:\n  {files[2]}: its content has changed"):
        built.verify()
    short.write_bytes(short.read_bytes()[:-1])
    missing.unlink()
    with pytest.raises(IndexCorruptError, match="2 file") as caught:
        arrowds.open_index(built.path)
    assert f"{files[0]}: No such file" in str(caught.value)
    assert f"{files[1]}: {short.stat().st_size} bytes instead of" in str(caught.value)
    with pytest.raises(IndexCorruptError, match="3 file"):
        built.verify()


def test_every_flipped_byte_of_every_file_is_found(built):
    random = np.random.default_rng(0)
    for name in built.manifest.files:
        path = built.path / name
        content = path.read_bytes()
        for place in random.integers(0, len(content), 4):
            damaged = bytearray(content)
            damaged[place] ^= 1 << int(random.integers(8))
            path.write_bytes(damaged)
            with pytest.raises(IndexCorruptError, match="its content has changed"):
                arrowds.open_index(built.path, verify=True)
        path.write_bytes(content)
    built.verify()


def test_the_fingerprint_follows_data_and_values(tmp_path):
    def fingerprint(values, name):
        table = pa.table({"x": values})
        return arrowds.analyze(table, arrowds.metrics.seqlen("x"), tmp_path / name, progress=False).fingerprint

    assert fingerprint([[1], [2]], "a") == fingerprint([[1], [2]], "b")
    assert len({fingerprint([[1], [2]], "c"), fingerprint([[1], [3]], "d"), fingerprint([[1], [2, 3]], "e")}) == 3


def test_every_changed_character_of_a_manifest_is_noticed(built):
    path = Layout(built.path).manifest
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            assert manifest.load(built.path) == built.manifest, f"byte {place}"  # only white space may differ
        except (IndexCorruptError, IndexVersionError):
            continue


def test_an_index_that_was_replaced_says_so_and_not_that_it_is_damaged(built):
    arrowds.analyze(
        pa.table({"input_ids": [[1], [2, 3], [4]]}),
        arrowds.metrics.seqlen("input_ids"),
        built.path,
        overwrite=True,
        progress=False,
    )
    with pytest.raises(IndexReplacedError, match="was replaced by another run since it was opened; open it again"):
        built["seqlen"].order  # noqa: B018  # opening the map is what fails
