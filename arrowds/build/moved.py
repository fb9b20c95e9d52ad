"""Tell an index where its data lie now."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from os import PathLike
from typing import Any

import xxhash

from arrowds.errors import ConfigError, IndexNotFoundError
from arrowds.index import Index, open_index, paths
from arrowds.index import manifest as manifests
from arrowds.index.data import read_record
from arrowds.index.manifest import File, Manifest, Segment, SourceRecord
from arrowds.sources.opening import files_of_record, source_from_spec
from arrowds.store import Store, is_url, open_store


def move_data(
    path: str | PathLike[str],
    old: str | PathLike[str],
    new: str | PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> Index:
    """Tell an index that its data lie elsewhere now, and commit a snapshot that knows.

    The files must have the content that was indexed. Values, ids and lookups stay as they are; what changes is where
    :meth:`Index.samples` and the view ``data`` read rows, and which files an append knows.

    Args:
        path: the folder or URL of the index.
        old: the folder or URL below which files lay, or one file.
        new: where they lie now.
        storage_options: as for :func:`arrowds.open_index`; for data at a URL as well.

    Returns:
        The open index.

    Raises:
        ConfigError: when no file of the index lay there.
        UnreadableFileError: when a file is not at the new place, or has other content.

    >>> import arrowds, polars as pl, tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     before, after = pathlib.Path(folder, "a"), pathlib.Path(folder, "b")
    ...     before.mkdir()
    ...     pl.DataFrame({"text": ["to be", "or"]}).write_parquet(before / "data.parquet")
    ...     _ = arrowds.analyze(before, arrowds.metrics.text.n_words(), f"{folder}/index")
    ...     _ = before.rename(after)
    ...     arrowds.move_data(f"{folder}/index", before, after).samples([1])["text"].to_list()
    ['or']
    """
    store = open_store(path, storage_options)
    places = _place(old), _place(new)
    written: dict[str, bytes] = {}

    def based_on(newest: Manifest | None) -> Manifest:
        if newest is None:
            raise IndexNotFoundError(f"{store.url} has no snapshot")
        records = {piece.source.key: piece.source for segment in newest.segments for piece in segment.pieces}
        moved = {key: _moved(store, record, places, storage_options, written) for key, record in records.items()}
        if all(moved[key] == record for key, record in records.items()):
            raise ConfigError(
                f"no file that {store.url} was made from lies below {places[0]}; {_where(store, records)}"
            )
        segments = tuple(_with_records(segment, moved) for segment in newest.segments)
        update = {"version": newest.version + 1, "operation": "move_data", "segments": segments}
        return newest.model_copy(update=update)

    manifests.commit(store, based_on)
    for name, content in written.items():  # once more, as a vacuum may have taken them for leftovers meanwhile
        store.write(name, content, durable=True)
    return open_index(path, storage_options=storage_options)


def _place(path: str | PathLike[str]) -> str:
    given = os.fspath(path)
    return given.rstrip("/") if is_url(given) else os.path.abspath(given)  # noqa: PTH100  # links stay as they are


def _moved(
    store: Store,
    record: SourceRecord,
    places: tuple[str, str],
    storage_options: Mapping[str, Any] | None,
    written: dict[str, bytes],
) -> SourceRecord:
    """Write what is recorded of some data with its new paths, if any of them changes; check the files there."""
    before = read_record(store, record)
    after = _renamed(before, *places)
    if after == before:
        return record
    if after["kind"] != "given":
        source_from_spec(after, storage_options=storage_options)
    content = json.dumps(after).encode()
    key = f"{record.key.partition('.')[0]}.{xxhash.xxh3_64_hexdigest(content)[:8]}"
    written[paths.source(key)] = content
    return SourceRecord(key=key, file=File.of(store.write(paths.source(key), content, durable=True)))


def _renamed(value: Any, old: str, new: str) -> Any:
    """Return a record with the paths of its files below ``old`` moved; pure."""
    if isinstance(value, list):
        return [_renamed(item, old, new) for item in value]
    if not isinstance(value, dict):
        return value
    found = {name: _renamed(item, old, new) for name, item in value.items()}
    path = found.get("path")
    if isinstance(path, str) and "digest" in found and (path == old or path.startswith(f"{old}/")):
        found["path"] = new + path[len(old) :]
    return found


def _with_records(segment: Segment, moved: Mapping[str, SourceRecord]) -> Segment:
    pieces = tuple(piece.model_copy(update={"source": moved[piece.source.key]}) for piece in segment.pieces)
    return segment.model_copy(update={"pieces": pieces})


def _where(store: Store, records: Mapping[str, SourceRecord]) -> str:
    files = [file.path for record in records.values() for file in files_of_record(read_record(store, record))]
    return (
        f"they are {', '.join(files[:3])}{', ...' if len(files) > 3 else ''}" if files else "it was not made from files"
    )
