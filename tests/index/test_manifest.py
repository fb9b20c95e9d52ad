"""The manifest: what is refused, what is named, and that creating it is the commit."""

from __future__ import annotations

import json
import os

import numpy as np
import pyarrow as pa
import pytest

import arrowds
from arrowds.errors import IndexCorruptError, IndexNotFoundError, IndexVersionError
from arrowds.index import manifest as manifests
from arrowds.index import paths
from arrowds.store import open_store


@pytest.fixture
def built(tmp_path):
    table = pa.table({"x": [[1, 2], [3]], "y": [1.5, 2.5]})
    chosen = [arrowds.metrics.seqlen("x"), arrowds.metrics.token_counts("x"), arrowds.metrics.vocab_rarity("x")]
    return arrowds.analyze(table, chosen, tmp_path / "index", progress=False)


def manifest_of(index, version=1):
    return index.path / paths.manifest(version)


def test_what_is_written_is_what_is_read(built):
    found = manifests.load(built.store)
    assert found == built.manifest
    assert found.to_json() == manifest_of(built).read_bytes()
    assert found.segments[0].totals["token_counts"].shape == (4,)
    assert (found.version, found.operation, found.num_samples, found.first_ids) == (1, "analyze", 2, [0])


def test_it_tells_nothing_of_when_and_where(built):
    text = manifest_of(built).read_text()
    for word in (os.uname().nodename, str(os.getpid()), "workers", str(built.path.parent), "202"):
        assert f'"{word}' not in text


def test_it_names_every_file_and_only_those(built):
    found = {path.relative_to(built.path).as_posix() for path in built.path.rglob("*") if path.is_file()}
    assert found == {*built.manifest.files, "manifests/00000001.json"}


def changed(content: dict, place: tuple, value: object) -> dict:
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return content


@pytest.mark.parametrize(
    ("place", "value", "error", "message"),
    [
        (("format_version",), 3, IndexVersionError, "has index format 3; this arrowds reads up to 2: upgrade arrowds"),
        (("format",), "something", IndexCorruptError, "is not the manifest of an index"),
        (("format_version",), "x", IndexCorruptError, "is not the manifest of an index"),
        (("segments",), None, IndexCorruptError, "is not the manifest of an index"),
        (("unknown",), 1, IndexCorruptError, "is not the manifest of an index"),
        (("version",), 2, IndexCorruptError, "it says that it is version 2"),
        (("segments", 0, "columns", "seqlen", "values", 0, "bytes"), -1, IndexCorruptError, "greater than or equal"),
        (("segments", 0, "pieces", 0, "num_samples"), 1 << 70, IndexCorruptError, "is not the manifest of an index"),
        (("segments", 0, "columns", "seqlen", "key"), "../../x", IndexCorruptError, "should match pattern"),
        (("segments", 0, "totals", "token_counts", "key"), "/etc/passwd", IndexCorruptError, "should match pattern"),
        (("segments", 0, "columns", "other"), {}, IndexCorruptError, "is not the manifest of an index"),
        (("segments", 0, "columns"), {}, IndexCorruptError, "disagree about seqlen, vocab_rarity"),
        (("segments", 0, "pieces", 0, "fingerprint"), "other", IndexCorruptError, "has changed since it was written"),
        (("xxh3",), "", IndexCorruptError, "has changed since it was written"),
        (("xxh3",), None, IndexCorruptError, "is not the manifest of an index"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(built, place, value, error, message):
    path = manifest_of(built)
    path.write_text(json.dumps(changed(json.loads(path.read_text()), place, value)))
    for use in (
        lambda: manifests.load(built.store),
        lambda: arrowds.open_index(built.path),
        lambda: arrowds.append(pa.table({"x": [[1]]}), built.path, progress=False),
    ):
        with pytest.raises(error, match=message):
            use()


@pytest.mark.parametrize("name", ["..", "../x", "a/b", ".hidden", "sample_id"])
def test_a_metric_name_in_a_manifest_can_not_leave_the_folder(built, name):
    path = manifest_of(built)
    content = json.loads(path.read_text())
    content["metrics"][name] = content["metrics"]["seqlen"]
    content["segments"][0]["columns"][name] = content["segments"][0]["columns"]["seqlen"]
    path.write_text(json.dumps(content))
    with pytest.raises(IndexCorruptError, match="can't be the name of a metric"):
        manifests.load(built.store)


@pytest.mark.parametrize("cut", [0, 1, 50, -3])
def test_a_truncated_manifest_is_corrupt(built, cut):
    path = manifest_of(built)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(IndexCorruptError, match=r"00000001\.json"):
        arrowds.open_index(built.path)


def test_where_there_is_no_index_the_message_says_what_there_is(tmp_path):
    with pytest.raises(IndexNotFoundError, match="does not exist; create an index there with"):
        arrowds.open_index(tmp_path / "nothing")
    with pytest.raises(IndexNotFoundError, match="is not an index: it has no manifest"):
        arrowds.open_index(tmp_path)
    open_store(tmp_path).write(paths.plan("abc-0"), b"{}")
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
    with pytest.raises(IndexCorruptError, match=rf"1 file\(s\) .*damaged:\n  {files[2]}: its content has changed"):
        built.verify()
    size = short.stat().st_size
    short.write_bytes(short.read_bytes()[:-1])
    missing.unlink()
    with pytest.raises(IndexCorruptError, match="2 file") as caught:
        arrowds.open_index(built.path)
    assert f"{files[0]}: is missing" in str(caught.value)
    assert f"{files[1]}: {size - 1} bytes instead of {size}" in str(caught.value)
    with pytest.raises(IndexCorruptError, match="3 file"):
        built.verify()


def test_every_flipped_byte_of_every_file_is_found(built):
    random = np.random.default_rng(0)
    for name, file in built.manifest.files.items():
        path = built.path / name
        content = path.read_bytes()
        assert manifests.digest_fault(built.store, name, file) is None
        for place in random.integers(0, len(content), 8):
            damaged = bytearray(content)
            damaged[place] ^= 1 << int(random.integers(8))
            path.write_bytes(damaged)
            assert manifests.digest_fault(built.store, name, file) == f"{name}: its content has changed"
        path.write_bytes(content)


def test_every_changed_character_of_a_manifest_is_noticed(built):
    path = manifest_of(built)
    whole = path.read_bytes()
    for place in range(0, len(whole), 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        try:
            assert manifests.load(built.store) == built.manifest, f"byte {place}"  # only white space may differ
        except (IndexCorruptError, IndexVersionError):
            continue


def test_the_fingerprint_follows_data_and_values(tmp_path):
    def fingerprint(values, folder, **options):
        table = pa.table({"x": values})
        metric = arrowds.metrics.seqlen("x", **options)
        return arrowds.analyze(table, metric, tmp_path / folder, progress=False).fingerprint

    assert fingerprint([[1], [2]], "a") == fingerprint([[1], [2]], "b")
    others = [fingerprint([[1], [3]], "d"), fingerprint([[1], [2, 3]], "e"), fingerprint([[1], [2]], "f", name="g")]
    assert len({fingerprint([[1], [2]], "c"), *others}) == 4


def test_a_copied_manifest_counts_anew(built):
    segments = built.manifest.segments
    assert (built.manifest.num_samples, built.manifest.first_ids) == (2, [0])
    more = built.manifest.model_copy(update={"segments": segments * 3})
    assert (more.num_samples, more.first_ids) == (6, [0, 2, 4])


def test_a_commit_that_loses_the_race_is_based_on_the_winner(built):
    store, tried = built.store, []

    def proposed(newest):
        tried.append(newest.version)
        if len(tried) == 1:  # another writer is faster
            assert store.create(paths.manifest(2), newest.model_copy(update={"version": 2}).to_json())
        return newest.model_copy(update={"version": newest.version + 1})

    assert manifests.commit(store, proposed).version == 3
    assert tried == [1, 2]
    assert manifests.numbers(store) == [1, 2, 3]


def test_nothing_to_commit_is_no_commit(built):
    assert manifests.commit(built.store, lambda newest: newest) == built.manifest
    assert manifests.numbers(built.store) == [1]


def test_a_newest_version_that_is_vacuumed_between_two_looks_is_looked_for_again(built, monkeypatch):
    """A listing that is older than a commit and the vacuum after it."""
    store = built.store
    store.create(paths.manifest(2), built.manifest.model_copy(update={"version": 2}).to_json())
    manifests.retire(store, 1)
    listed = [[1], [1, 2]]
    monkeypatch.setattr(manifests, "numbers", lambda store: listed.pop(0))
    assert manifests.load(store).version == 2
