"""Which files a path, a folder or a glob pattern stands for, and of which format they are."""

from __future__ import annotations

import glob
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from arrowds.errors import SourceError, UnreadableFileError, UnsupportedError
from arrowds.indexed_dataset import is_indexed_dataset
from arrowds.sources.arrow_ipc import IpcFile
from arrowds.sources.files import DataFile
from arrowds.sources.objects import ObjectPath, objects_of
from arrowds.sources.parquet import ParquetFile
from arrowds.sources.text import CsvFile, JsonLinesFile, TextFile
from arrowds.sources.text_rows import COMPRESSIONS
from arrowds.store import is_url

logger = logging.getLogger(__name__)

FORMATS: dict[str, type[DataFile]] = {
    **dict.fromkeys((".parquet", ".pq"), ParquetFile),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), IpcFile),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), JsonLinesFile),
    **dict.fromkeys((".csv", ".tsv"), CsvFile),
}
"""The formats by the endings of their files' names."""

_PAIR = (".bin", ".idx")
_OBJECT_ENDINGS = (
    *FORMATS,
    *(f"{ending}{packed}" for ending, kind in FORMATS.items() if issubclass(kind, TextFile) for packed in COMPRESSIONS),
)
# Endings of data that can't be read; a folder that holds such a file is not read without it.
_FOREIGN = (
    *(*COMPRESSIONS, ".xz", ".lz4", ".zip", ".7z", ".br", ".snappy", ".tar", ".tgz"),
    *(".mds", ".tfrecord", ".tfrecords", ".avro", ".orc", ".npy", ".npz", ".pkl", ".pickle", ".pt", ".h5", ".hdf5"),
    *(".lance", ".xlsx", ".msgpack"),
)
# What people put beside data.
_ABOUT = re.compile(r"(README|LICENSE|NOTICE|CITATION)|.*\.md$|dataset_infos?\.json$", re.IGNORECASE)
# How a manifest of an index starts, whatever its version.
_INDEX_MANIFEST = re.compile(rb'\s*\{\s*"format"\s*:\s*"arrowds-index"')
_MOST_NAMES = 5


def listed(
    patterns: Sequence[str | os.PathLike[str]], storage_options: Mapping[str, Any] | None = None
) -> list[Path | ObjectPath]:
    """The files and objects that the paths, URLs, folders and patterns stand for, in order.

    Raises UnreadableFileError where one stands for none, UnsupportedError for a URL of no object store, and SourceError
    for a folder that can't be read as a whole, such as one of several splits, formats or versions of its rows.
    """
    return [path for pattern in patterns for path in _expanded(os.fspath(pattern), storage_options)]


def is_pair(path: Path | ObjectPath) -> bool:
    """Whether a path names a `.bin`/`.idx` pair: one of the files, or the prefix of both.

    >>> is_pair(Path("tokens.idx"))
    True
    """
    if isinstance(path, ObjectPath):
        return False
    return path.suffix in _PAIR or (format_of(path) is None and is_indexed_dataset(path))


def format_of(path: Path | ObjectPath) -> type[DataFile] | None:
    """The format by a file's name, or None where its ending is unknown.

    >>> format_of(Path("a.jsonl.gz")).format, format_of(Path("a.md"))
    ('json lines', None)
    """
    compressed = path.suffix.lower() in COMPRESSIONS
    found = FORMATS.get(Path(path.stem if compressed else path.name).suffix.lower())
    return found if found is None or not compressed or issubclass(found, TextFile) else None


def known_format(path: Path | ObjectPath) -> type[DataFile]:
    """The format by a file's name; raises SourceError, or UnsupportedError for compressed files that can't be read."""
    found = format_of(path)
    if found is not None:
        return found
    if path.suffix in _PAIR:
        raise UnsupportedError(f"can't read {path}: .bin/.idx pairs are memory-mapped; copy both files to a disk first")
    if path.suffix.lower() in _FOREIGN:
        endings = ", ".join(COMPRESSIONS)
        raise UnsupportedError(
            f"can't read {path}: of compressed files, only JSON Lines and CSV are read ({endings} behind .jsonl, "
            ".json, .ndjson, .csv or .tsv); unpack or convert it first"
        )
    raise SourceError(
        f"can't tell the format of {path} by its name; known endings are {', '.join([*FORMATS, *_PAIR])}, and "
        f"{', '.join(COMPRESSIONS)} behind those of text"
    )


def _expanded(pattern: str, storage_options: Mapping[str, Any] | None) -> Sequence[Path | ObjectPath]:
    if is_url(pattern):
        if re.match(r"(s3a?|gs|az|azure|abfss?):", pattern) is None:
            raise UnsupportedError(
                f"can't read {pattern}: expected a path, or s3://, gs:// or az://; copy the data first"
            )
        return objects_of(pattern, storage_options, _OBJECT_ENDINGS)
    try:
        return _on_disk(pattern)
    except OSError as error:
        raise UnreadableFileError(f"can't read {error.filename or pattern}: {error.strerror or error}") from error


def _on_disk(pattern: str) -> Sequence[Path]:
    path = Path(pattern).expanduser()
    if is_pair(path):
        return [path]
    if path.is_dir():
        return _files_of_folder(path)
    if path.exists():
        return [path]
    if glob.has_magic(pattern):
        # Path.glob takes no absolute pattern.
        names = glob.glob(str(path), recursive=True)  # noqa: PTH207
        found = _that_count(sorted(filter(Path.is_file, map(Path, names))), _fixed_part(path))
        if found:
            return found
        raise UnreadableFileError(f"no file matches {pattern}")
    raise UnreadableFileError(f"no such file or folder: {pattern}")


def _files_of_folder(folder: Path) -> list[Path]:
    """All data files below a folder, sorted, without hidden ones and Spark's marks, which start with an underscore."""
    files = [path for path in _that_count(sorted(_visible(folder)), folder) if not _ABOUT.match(path.name)]
    found = [path for path in files if format_of(path) is not None or path.suffix in _PAIR]
    taken = set(found)
    others = [path for path in files if path not in taken]
    if not found:
        raise UnreadableFileError(f"no data file in {folder}; looked for {', '.join([*FORMATS, *_PAIR])}")
    if foreign := [path for path in others if path.suffix.lower() in _FOREIGN]:
        raise SourceError(
            f"{folder} also holds {_names(foreign)}, which can't be read; pass a pattern such as "
            f"'{folder}/**/*{found[0].suffix}' to leave that out"
        )
    if others:
        logger.warning("not read as data in %s: %s", folder, _names(others))
    _check_one_kind(folder, found)
    return found


def _check_one_kind(folder: Path, paths: Sequence[Path]) -> None:
    """Refuse a `.json` file beside JSON Lines: it is as likely to describe the data as to be data."""
    by_ending = {
        Path(path.name.removesuffix(path.suffix) if path.suffix in COMPRESSIONS else path.name).suffix: path
        for path in paths
    }
    lines = [by_ending[ending] for ending in (".jsonl", ".ndjson") if ending in by_ending]
    if lines and ".json" in by_ending:
        raise SourceError(
            f"{folder} holds {lines[0].name} and {by_ending['.json'].name}: are both data? Pass a pattern such as "
            f"'{folder}/**/*{lines[0].suffix}', or a list of files"
        )


def _visible(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise error  # pathlib would leave out a folder that it may not list

    for parent, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith((".", "_"))]
        yield from (
            path for name in names if not name.startswith((".", "_")) and (path := Path(parent, name)).is_file()
        )


def _fixed_part(pattern: Path) -> Path:
    """The folder below which a glob pattern looks."""
    return next(folder for folder in pattern.parents if not glob.has_magic(str(folder)))


def _names(paths: Sequence[Path]) -> str:
    more = f" and {len(paths) - _MOST_NAMES} more" if len(paths) > _MOST_NAMES else ""
    return ", ".join(path.name for path in paths[:_MOST_NAMES]) + more


def _that_count(paths: list[Path], root: Path) -> list[Path]:
    """The files that are rows of the data, as the folders from `root` on say.

    Files of an index are not, so that one may be written into the folder of its data. Raises SourceError for folders
    whose rows only their own manifest tells.
    """
    is_index, rows_of = cache(_is_index), cache(_rows_of)
    above = set(root.parents)
    rows_of(root)
    left = []
    splits: dict[Path, dict[str, Path]] = {}
    for path in paths:
        folders = [folder for folder in path.parents if folder not in above]
        if any(map(is_index, folders)):
            continue
        for folder in folders[1:]:
            rows_of(folder)
        names = rows_of(path.parent)
        if names is None or path.name in names:
            left.append(path)
            splits.setdefault(path.parent, {})["" if names is None else names[path.name]] = path
    for folder, paths_of in splits.items():
        if len(paths_of) > 1:
            raise SourceError(
                f"{folder} holds the splits {', '.join(map(repr, sorted(paths_of)))}; pass the files of one, such as "
                f"'{next(iter(paths_of.values()))}'"
            )
    return left


def _is_index(folder: Path) -> bool:
    """Whether a folder is an index, or one that is being written or was left unfinished."""
    for manifest in (folder / "manifests").glob("*.json"):
        with manifest.open("rb") as file:
            if _INDEX_MANIFEST.match(file.read(100)):
                return True
    return any((folder / "builds").glob("*/plan.json"))


def _rows_of(folder: Path) -> dict[str, str] | None:
    """The split of each file that holds rows of a folder, by its own manifest; None where it has none.

    Raises SourceError for folders that must be opened in another way.
    """
    splits = _read_json(folder / "dataset_dict.json").get("splits")
    if isinstance(splits, list):
        raise SourceError(
            f"{folder} holds the splits {', '.join(map(repr, splits))}; pass the folder of one, such as "
            f"'{folder / str(splits[0]) if splits else folder}'"
        )
    for mark, kind, how in (
        ("_delta_log", "a Delta table", "deltalake.DeltaTable(path).to_pyarrow_dataset()"),
        (".hoodie", "a Hudi table", "a query engine that knows Hudi, as a pyarrow table"),
    ):
        if (folder / mark).is_dir():
            raise SourceError(f"{folder} is {kind}, whose files include deleted rows; pass {how} instead")
    if any((folder / "metadata").glob("*.metadata.json")):
        raise SourceError(
            f"{folder} is an Iceberg table, whose files include deleted rows; pass the pyarrow table that "
            "pyiceberg's table.scan().to_arrow() returns"
        )
    index = _read_json(folder / "index.json")
    if "shards" in index or "chunks" in index:
        raise SourceError(f"{folder} is a streaming dataset of shards; pass the dataset object of its own library")
    return _rows_of_saved(folder)


def _rows_of_saved(folder: Path) -> dict[str, str] | None:
    """The data files of a folder that Hugging Face `datasets` wrote, which may hold files of its cache as well."""
    state = _read_json(folder / "state.json")
    if isinstance(state.get("_data_files"), list):
        names = [str(file.get("filename")) for file in state["_data_files"] if isinstance(file, dict)]
        if state.get("_indices_data_files"):
            raise SourceError(f"{folder} selects its rows by an indices mapping; pass datasets.load_from_disk of it")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise UnreadableFileError(f"{folder / missing[0]} is missing, though {folder / 'state.json'} names it")
        return dict.fromkeys(names, "")
    splits = _read_json(folder / "dataset_info.json").get("splits")
    if not isinstance(splits, dict):
        return None
    stems = {path.name: re.sub(r"-\d+-of-\d+$", "", path.stem) for path in folder.iterdir() if format_of(path)}
    found = {name: split for name, stem in stems.items() for split in splits if stem.endswith(f"-{split}")}
    return found or None


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file, or it holds something else."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
