"""Which source serves the object, path or pattern that a user passes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa

from arrowds.errors import ArrowdsError, ConfigError, SourceError
from arrowds.indexed_dataset import strip_suffix
from arrowds.parallel import ordered_map
from arrowds.sources.base import Source
from arrowds.sources.files import FileSource, Quoting, ReadOptions
from arrowds.sources.huggingface import HuggingFaceSource
from arrowds.sources.listing import FORMATS, format_of, is_pair, known_format, listed
from arrowds.sources.megatron import MegatronSource, pair_of
from arrowds.sources.objects import ObjectPath
from arrowds.sources.records import SourceFile, new_files
from arrowds.sources.schemas import SchemaLike, schema_difference, schema_of
from arrowds.sources.tables import TableSource, open_dataset, open_polars
from arrowds.sources.text import CsvFile
from arrowds.sources.tokenized import TokenizedSource
from arrowds.sources.torch import TorchSource
from arrowds.store import is_url
from arrowds.store.objects import REQUESTS_AT_ONCE

# Said of generators, streams and torch's IterableDataset.
_HOW_TO_STORE = (
    ". What only yields one sample after the other can't be indexed, since training asks for samples by their number. "
    "Pass list(data) where it fits in memory; else store it once, as in datasets.Dataset.from_generator(lambda: (yield "
    "from data)), and pass that; load a Hugging Face dataset without streaming=True"
)
_ACCEPTED = (
    "accepted are: a path, glob pattern, folder or list of Parquet, Arrow IPC, JSON Lines or CSV files; the prefix of "
    "a .bin/.idx pair; a pyarrow Table or Dataset; a Polars DataFrame or LazyFrame; a Hugging Face Dataset; any object "
    "with __len__ and __getitem__ (torch map-style dataset); an arrowds Source"
)


def open_source(
    data: Any,
    *,
    schema: SchemaLike | None = None,
    quoting: Quoting = "standard",
    storage_options: Mapping[str, Any] | None = None,
) -> Source:
    """The source for whatever holds the data.

    Accepts a Source (returned as it is); a path, URL, glob pattern, folder or a list of these, of files of one format
    (Parquet, Arrow IPC, JSON Lines, CSV; those of a pattern and a folder sorted by name, without those of an index
    that lies there); the prefix of a `.bin`/`.idx` pair; a `pyarrow.Table`, `RecordBatch` or `Dataset`; a Polars
    `DataFrame` or `LazyFrame` (collected at once); a `datasets.Dataset`; and any object with `__len__` and
    `__getitem__`, read as a torch map-style dataset.

    Args:
        data: What holds the data.
        schema: The types of some columns: a `pyarrow.Schema`, or a mapping of names to types or their names, such as
            `{"id": "uint64", "tokens": "list<int32>"}`. Text files are read with them instead of inferred types,
            Parquet and Arrow files where nothing is lost; other data must have them.
        quoting: "none" reads double quotes in CSV files as characters like any other.
        storage_options: For URLs, keys such as `aws_endpoint_url`; see `arrowds.store.open_store`.

    Raises SourceError for anything else and for files that don't fit together, UnreadableFileError for a file that is
    missing or damaged, UnsupportedError for a URL of no object store, StorageError where a store can't be reached,
    ConfigError for an unknown type or quoting, or for `storage_options` without a URL. Data without rows gives a source
    of length 0.

    Example:
        >>> open_source([1, 2, 3]).description
        'torch dataset list, batches of 1024'
    """
    if quoting not in get_args(Quoting):
        raise ConfigError(f"unknown quoting {quoting!r}; expected one of {', '.join(get_args(Quoting))}")
    types = schema_of(schema)
    if (patterns := _patterns(data)) is not None:
        if storage_options and not any(map(is_url, patterns)):
            raise ConfigError("storage_options belong to URLs, but the data are local files")
        return _open_files(listed(patterns, storage_options), ReadOptions(schema=types, quoting=quoting))
    if storage_options:
        raise ConfigError(f"storage_options belong to URLs, not to a {type(data).__name__}")
    if quoting != "standard":
        raise ConfigError(f"quoting is an option of CSV files, not of a {type(data).__name__}")
    return _checked(_open_object(data), types)


def _open_object(data: Any) -> Source:
    if isinstance(data, Source):
        return data
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
    data: Any,
    known: Sequence[SourceFile],
    *,
    compare_content: bool = False,
    schema: SchemaLike | None = None,
    quoting: Quoting = "standard",
    storage_options: Mapping[str, Any] | None = None,
) -> Source | None:
    """The source of what is new in `data`; None where nothing is.

    Known files are recognised by path, size and modification time, and are not read. Where size or time differ, content
    is compared, and with `compare_content` the content of all files, so that moved files are recognised as well. Data
    that lie in no files are new as a whole.

    Args:
        data: Whatever `open_source` takes.
        known: The files that are indexed already.
        compare_content: Whether to compare the content of files that seem unchanged, and of files at other paths.
        schema: Columns that the new files must have, of these types, as for `open_source`.
        quoting: As for `open_source`.
        storage_options: As for `open_source`.

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
        return open_source(data, schema=schema, quoting=quoting).without(known, compare_content=compare_content)
    # A pair is known or new by both of its files.
    paths = [
        file
        for path in listed(patterns, storage_options)
        for file in (pair_of(path) if isinstance(path, Path) and is_pair(path) else [path])
    ]
    new = new_files(list(dict.fromkeys(paths)), known, compare_content=compare_content)
    if not new:
        return None
    return _open_files(new, ReadOptions(schema=schema_of(schema), quoting=quoting), known)


def _checked(source: Source, schema: pa.Schema) -> Source:
    """The source itself; raises SourceError unless it has the columns of `schema`."""
    there = [] if source.schema is None else [field for field in source.schema if field.name in schema.names]
    if difference := schema_difference(schema, pa.schema(there)):
        raise SourceError(f"{source.description} does not fit the expected columns: {difference}")
    return source


def source_from_spec(spec: Mapping[str, Any], *, storage_options: Mapping[str, Any] | None = None) -> Source:
    """The source that `Source.to_spec` described: the same files, read in the same way, without digesting them again.

    Raises UnreadableFileError for a file that is missing or has other content than described (recognised by size and
    modification time, or ETag), SourceError for what is no such description.

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
                file_class = {file.format: file for file in FORMATS.values()}[spec["format"]]
                return FileSource.from_spec(spec, file_class, storage_options)
            case "indexed dataset":
                return MegatronSource.from_spec(spec)
            case "tokenized":
                return TokenizedSource.from_spec(
                    spec, source_from_spec(spec["source"], storage_options=storage_options)
                )
            case "given":
                raise SourceError(
                    f"the rows can't be read again from here: they were given as {spec['description']}, not as files"
                )
            case kind:
                raise SourceError(f"can't open a source of the kind {kind!r}; was it described by a newer version?")
    except ArrowdsError:
        raise
    except Exception as error:  # whatever a damaged description leads to
        raise SourceError(f"this is not the description of a source, or it is damaged ({error!r})") from error


def record_of(source: Source) -> dict[str, Any]:
    """What an index keeps of the data: `to_spec` of the stored rows, or no more than what their files are.

    Example:
        >>> record_of(open_source([1, 2, 3]))
        {'kind': 'given', 'description': 'torch dataset list, batches of 1024', 'files': []}
    """
    rows = source.stored
    spec = rows.to_spec()
    if spec is not None:
        return dict(spec)
    return {"kind": "given", "description": rows.description, "files": [asdict(file) for file in rows.files]}


def files_of_record(record: Mapping[str, Any]) -> list[SourceFile]:
    """The files that a record by `record_of` names, in order; raises SourceError where it is damaged."""
    try:
        files = record["files"]
        return [SourceFile.from_json(file["record"] if record["kind"] == "files" else file) for file in files]
    except (LookupError, TypeError) as error:
        raise SourceError(f"this is not the record of a source, or it is damaged ({error!r})") from error


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
    # torch gives an IterableDataset a __getitem__ that raises.
    iterable = _is_a(data, "torch.utils.data", "IterableDataset") or not hasattr(data, "__getitem__")
    if isinstance(data, str | bytes | pa.Array | pa.ChunkedArray) or iterable or not hasattr(data, "__len__"):
        name = f"{type(data).__module__}.{type(data).__qualname__}"
        hint = _HOW_TO_STORE if iterable and hasattr(data, "__iter__") else ""
        raise SourceError(f"can't read a {name} as a dataset; {_ACCEPTED}{hint}")
    return TorchSource(data)


def _patterns(data: Any) -> list[str | os.PathLike[str]] | None:
    """The paths and patterns that are to be opened, or None for other data."""
    if isinstance(data, str | os.PathLike):
        return [data]
    if isinstance(data, list | tuple) and data and all(isinstance(item, str | os.PathLike) for item in data):
        return list(data)
    return None


def _open_files(paths: Sequence[Path | ObjectPath], options: ReadOptions, known: Sequence[SourceFile] = ()) -> Source:
    """Files of one format, that of `known`, or one `.bin`/`.idx` pair."""
    pairs = sorted({strip_suffix(path) for path in paths if isinstance(path, Path) and is_pair(path)})
    if pairs and (len(pairs) > 1 or not all(map(is_pair, paths))):
        names = ", ".join(path.name for path in paths[:5])
        raise SourceError(f"expected one .bin/.idx pair and nothing else, got {names}; pass the prefix of one pair")
    for path in [Path(file.path) for file in known[:1]]:
        expected = format_of(path)
        if bool(pairs) != is_pair(path) or (expected is not None and expected is not known_format(paths[0])):
            raise SourceError(f"{paths[0]} is not of the format of {path}, which is indexed already")
    if pairs:
        return _checked(MegatronSource(pairs[0]), options.schema)
    examples = {known_format(path): path for path in paths}
    if len(examples) > 1:
        suffixes = ", ".join(sorted({path.suffix for path in paths}))
        names = " and ".join(path.name for path in examples.values())
        raise SourceError(
            f"files of several formats ({suffixes}) can't be one dataset: {names}; pass those of one format"
        )
    (file_class,) = examples
    if options.quoting != "standard" and not issubclass(file_class, CsvFile):
        raise ConfigError(f"quoting is an option of CSV files, and {paths[0]} is {file_class.format}")
    threads = REQUESTS_AT_ONCE if isinstance(paths[0], ObjectPath) else 1
    files = ordered_map(lambda path: file_class.open(path, options), paths, threads=threads)
    return FileSource(list(files), options.schema)
