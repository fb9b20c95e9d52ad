"""Which source serves the object, path or pattern that a user passes."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from arrowds.errors import SourceError, UnreadableFileError, UnsupportedError
from arrowds.indexed_dataset import is_indexed_dataset, strip_suffix
from arrowds.sources.arrow_ipc import IpcFile
from arrowds.sources.base import Source
from arrowds.sources.files import DataFile, FileSource, schema_difference
from arrowds.sources.huggingface import HuggingFaceSource
from arrowds.sources.megatron import MegatronSource, pair_of
from arrowds.sources.parquet import ParquetFile
from arrowds.sources.records import SourceFile, new_files
from arrowds.sources.tables import TableSource, open_dataset, open_polars
from arrowds.sources.text import CsvFile, JsonLinesFile
from arrowds.sources.tokenized import TokenizedSource
from arrowds.sources.torch import TorchSource

_FORMATS: dict[str, type[DataFile]] = {
    **dict.fromkeys((".parquet", ".pq"), ParquetFile),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), IpcFile),
    **dict.fromkeys((".jsonl", ".ndjson", ".json"), JsonLinesFile),
    **dict.fromkeys((".csv", ".tsv"), CsvFile),
}
_PAIR = (".bin", ".idx")
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".lz4", ".zip")
# What `datasets.Dataset.save_to_disk` writes beside the data.
_NOT_DATA = {"state.json", "dataset_info.json"}
# How a manifest starts, whatever its version.
_MANIFEST_START = re.compile(rb'\s*\{\s*"format"\s*:\s*"arrowds-index"')

_ACCEPTED = (
    "accepted are: a path, glob pattern, folder or list of Parquet, Arrow IPC, JSON Lines or CSV files; the prefix of "
    "a .bin/.idx pair; a pyarrow Table or Dataset; a Polars DataFrame or LazyFrame; a Hugging Face Dataset; any object "
    "with __len__ and __getitem__ (torch map-style dataset); an arrowds Source"
)


def open_source(data: Any) -> Source:
    """The source for whatever holds the data.

    Accepts a Source (returned as it is); a path, a glob pattern, a folder or a list of these, of files of one format
    (Parquet, Arrow IPC, JSON Lines, CSV; those of a pattern and a folder sorted by name,
    without those of an index that lies there); the prefix of a `.bin`/`.idx`
    pair; a `pyarrow.Table`, `RecordBatch` or `Dataset`; a Polars `DataFrame` or `LazyFrame` (collected at once); a
    `datasets.Dataset`; and any object with `__len__` and `__getitem__`, read as a torch map-style dataset.

    Raises SourceError for anything else and for files that don't fit together, UnreadableFileError for a file that is
    missing or damaged, UnsupportedError for a URL. Data without rows gives a source of length 0.

    Example:
        >>> open_source([1, 2, 3]).description
        'torch dataset list, batches of 1024'
    """
    if isinstance(data, Source):
        return data
    if (patterns := _patterns(data)) is not None:
        return _open_files(_listed(patterns))
    if isinstance(data, pa.Table):
        return TableSource(data)
    if isinstance(data, pa.RecordBatch):
        return TableSource(pa.Table.from_batches([data]))
    if _is_a(data, "pyarrow.dataset", "Dataset"):
        return open_dataset(data)
    if _is_a(data, "polars", "DataFrame", "LazyFrame"):
        return open_polars(data)
    if _is_a(data, "pandas", "DataFrame"):
        return TableSource(pa.Table.from_pandas(data, preserve_index=False))
    if _is_a(data, "datasets", "Dataset"):
        return HuggingFaceSource(data)
    return _open_map_style(data)


def open_new_files(
    data: Any, known: Sequence[SourceFile], *, compare_content: bool = False, schema: pa.Schema | None = None
) -> Source | None:
    """The source of what is new in `data`; None where nothing is.

    Known files are recognised by path, size and modification time, and are not read. Where size or time differ, content
    is compared, and with `compare_content` the content of all files, so that moved files are recognised as well. Data
    that lie in no files are new as a whole.

    Args:
        data: Whatever `open_source` takes.
        known: The files that are indexed already.
        compare_content: Whether to compare the content of files that seem unchanged, and of files at other paths.
        schema: The columns that the new files must have, of these types.

    Raises SourceError where a known file has other content now; where a known file is missing, if any of the known
    ones is among `data`; and where a new file is of another format, or doesn't fit `schema`. Raises as `open_source`.

    Example:
        >>> import tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first = pathlib.Path(folder, "a.jsonl").write_text('{"x": 1}')
        ...     known = open_source(folder).files
        ...     second = pathlib.Path(folder, "b.jsonl").write_text('{"x": 2}')
        ...     new = open_new_files(folder, known)
        ...     [batch.to_pydict() for batch in new.read(0, len(new))]
        [{'x': [2]}]
    """
    if (patterns := _patterns(data)) is None:
        source = open_source(data).without(known, compare_content=compare_content)
        return source if source is None or schema is None else _checked(source, schema)
    # A pair is known or new by both of its files.
    listed = [file for path in _listed(patterns) for file in (pair_of(path) if _is_pair(path) else [path])]
    new = new_files(list(dict.fromkeys(listed)), known, compare_content=compare_content)
    if not new:
        return None
    return _open_files(new, schema, known)


def _checked(source: Source, schema: pa.Schema) -> Source:
    """The source itself; raises SourceError unless it has the columns of `schema`."""
    there = [] if source.schema is None else [field for field in source.schema if field.name in schema.names]
    if difference := schema_difference(schema, pa.schema(there)):
        raise SourceError(f"{source.description} does not fit the expected columns: {difference}")
    return source


def source_from_spec(spec: Mapping[str, Any]) -> Source:
    """The source that `Source.to_spec` described: the same files, read in the same way, without digesting them again.

    Raises UnreadableFileError for a file that is missing or has other content than described (recognised by size and
    modification time), SourceError for what is no such description.

    Example:
        >>> import json, tempfile, pathlib
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     written = pathlib.Path(folder, "a.csv").write_text("x,text\\n1,abc\\n")
        ...     spec = json.dumps(open_source(folder).to_spec())
        ...     [batch.to_pydict() for batch in source_from_spec(json.loads(spec)).read(0, 1)]
        [{'x': [1], 'text': ['abc']}]
    """
    try:
        match spec["kind"]:
            case "files":
                return FileSource.from_spec(spec, {file.format: file for file in _FORMATS.values()}[spec["format"]])
            case "indexed dataset":
                return MegatronSource.from_spec(spec)
            case "tokenized":
                return TokenizedSource.from_spec(spec, source_from_spec(spec["source"]))
            case kind:
                raise SourceError(f"can't open a source of the kind {kind!r}; was it described by a newer version?")
    except (KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise SourceError(f"this is not the description of a source, or it is damaged ({error!r})") from error


def _is_a(data: Any, module: str, *names: str) -> bool:
    """Whether `data` is an instance of a class of a package that is optional or slow to import.

    If the package isn't loaded, it can't be.
    """
    package = sys.modules.get(module)
    classes = tuple(getattr(package, name) for name in names if hasattr(package, name))
    return isinstance(data, classes)


def _open_map_style(data: Any) -> TorchSource:
    """Data that can be indexed by a sample's number; refuse what only looks like it."""
    if isinstance(data, Mapping):
        splits = ", ".join(map(repr, list(data)[:5]))
        hint = (
            "choose one split" if _is_a(data, "datasets", "DatasetDict") else "make columns a table with pyarrow.table"
        )
        raise SourceError(f"a {type(data).__name__} with the keys {splits} is not a dataset; {hint}")
    if isinstance(data, str | bytes | pa.Array | pa.ChunkedArray) or not (
        hasattr(data, "__len__") and hasattr(data, "__getitem__")
    ):
        raise SourceError(f"can't read a {type(data).__module__}.{type(data).__qualname__} as a dataset; {_ACCEPTED}")
    return TorchSource(data)


def _patterns(data: Any) -> list[str | os.PathLike[str]] | None:
    """The paths and patterns that are to be opened, or None for other data."""
    if isinstance(data, str | os.PathLike):
        return [data]
    if isinstance(data, list | tuple) and data and all(isinstance(item, str | os.PathLike) for item in data):
        return list(data)
    return None


def _listed(patterns: Sequence[str | os.PathLike[str]]) -> list[Path]:
    return [path for pattern in patterns for path in _expand(os.fspath(pattern))]


def _open_files(paths: list[Path], schema: pa.Schema | None = None, known: Sequence[SourceFile] = ()) -> Source:
    """Files of one format, that of `known`, or one `.bin`/`.idx` pair; `schema` has types that are settled."""
    pairs = sorted({strip_suffix(path) for path in paths if _is_pair(path)})
    if pairs and (len(pairs) > 1 or not all(map(_is_pair, paths))):
        names = ", ".join(path.name for path in paths[:5])
        raise SourceError(f"expected one .bin/.idx pair and nothing else, got {names}; pass the prefix of one pair")
    for path in [Path(file.path) for file in known[:1]]:
        expected = _FORMATS.get(path.suffix.lower())
        if bool(pairs) != (path.suffix in _PAIR) or (expected is not None and expected is not _format(paths[0])):
            raise SourceError(f"{paths[0]} is not of the format of {path}, which is indexed already")
    if pairs:
        source = MegatronSource(pairs[0])
        return source if schema is None else _checked(source, schema)
    formats = {_format(path) for path in paths}
    if len(formats) > 1:
        suffixes = ", ".join(sorted({path.suffix for path in paths}))
        raise SourceError(f"files of several formats ({suffixes}) can't be one dataset; pass those of one format")
    file_class = formats.pop()
    return FileSource([file_class.open(path) for path in paths], schema)


def _is_pair(path: Path) -> bool:
    return path.suffix in _PAIR or (path.suffix not in _FORMATS and is_indexed_dataset(path))


def _expand(pattern: str) -> list[Path]:
    """The files that a path, a folder or a glob pattern stands for."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", pattern):
        raise UnsupportedError(f"can't read {pattern}: only local files for now; copy the data here first")
    path = Path(pattern).expanduser()
    if _is_pair(path):
        return [path]
    if path.is_dir():
        return _files_of_folder(path)
    if path.exists():
        return [path]
    if glob.has_magic(pattern):
        # Path.glob takes no absolute pattern.
        names = glob.glob(str(path), recursive=True)  # noqa: PTH207
        found = _outside_indexes(sorted(filter(Path.is_file, map(Path, names))), _fixed_part(path))
        if found:
            return found
        raise UnreadableFileError(f"no file matches {pattern}")
    raise UnreadableFileError(f"no such file or folder: {pattern}")


def _files_of_folder(folder: Path) -> list[Path]:
    """All data files below a folder, sorted, without hidden ones and Spark's marks, which start with an underscore."""
    found = sorted(path for path in _visible(folder) if path.suffix in _FORMATS or path.suffix in _PAIR)
    found = _outside_indexes(found, folder)
    if found:
        return found
    raise UnreadableFileError(f"no data file in {folder}; looked for {', '.join([*_FORMATS, *_PAIR])}")


def _visible(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith((".", "_")) for part in path.relative_to(folder).parts)
        if not hidden and path.is_file() and path.name not in _NOT_DATA:
            yield path


def _fixed_part(pattern: Path) -> Path:
    """The folder below which a glob pattern looks."""
    return next(folder for folder in pattern.parents if not glob.has_magic(str(folder)))


def _outside_indexes(paths: list[Path], root: Path) -> list[Path]:
    """The files that lie in no index from `root` on, so that an index may be written into the folder of its data."""
    is_index = cache(_is_index)
    above = set(root.parents)
    return [path for path in paths if not any(is_index(folder) for folder in path.parents if folder not in above)]


def _is_index(folder: Path) -> bool:
    """Whether a folder is an index, or one that is being written or was left unfinished."""
    try:
        with (folder / "manifest.json").open("rb") as file:
            if _MANIFEST_START.match(file.read(100)):
                return True
    except OSError:
        pass  # there is none
    there = [name for name in ("plan.json", "writer.lock", "metrics", "totals") if (folder / name).exists()]
    return len(there) > 1 and there[0] in ("plan.json", "writer.lock")


def _format(path: Path) -> type[DataFile]:
    file_class = _FORMATS.get(path.suffix.lower())
    if file_class is not None:
        return file_class
    if path.suffix in _COMPRESSED:
        raise UnsupportedError(f"can't read {path} compressed; decompress it first")
    raise SourceError(
        f"can't tell the format of {path} by its name; known endings are {', '.join([*_FORMATS, *_PAIR])}"
    )
