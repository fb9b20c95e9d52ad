"""Digests of ordered content: Arrow data whatever its chunking and encoding, and the bytes of files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from arrowds.errors import SourceError, UnreadableFileError

_BLOCK_ROWS = 8192
_FILE_BLOCK = 8 << 20
_THREADS = 8
_LISTS = (pa.ListType, pa.LargeListType, pa.ListViewType, pa.LargeListViewType)


def combine(kind: str, parts: Iterable[str]) -> str:
    """One digest of several strings in order; `kind` keeps equal parts of different origin apart.

    >>> combine("x", ["ab", "c"]) == combine("x", ["a", "bc"])
    False
    """
    state = xxhash.xxh3_128()
    for part in (kind, *parts):
        data = part.encode()
        state.update(len(data).to_bytes(8, "little"))
        state.update(data)
    return state.hexdigest()


def of_files(paths: Iterable[Path]) -> list[str]:
    """The digests of the files' bytes, in order; several files are read at once."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(_of_file, paths))


def _of_file(path: Path) -> str:
    state, block = xxhash.xxh3_128(), bytearray(_FILE_BLOCK)
    try:
        with path.open("rb", buffering=0) as file:
            while size := file.readinto(block):
                state.update(memoryview(block)[:size])
    except OSError as error:
        raise UnreadableFileError(f"can't read {path}: {error.strerror or error}") from error
    return state.hexdigest()


def of_batches(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> str:
    """The digest of the ordered rows: column names, types and values.

    It does not depend on how the rows are cut into batches, on slicing, or on whether values are dictionary-encoded,
    large (64-bit offsets) or views.

    >>> whole = pa.record_batch({"x": [1, None, 3]})
    >>> of_batches(whole.schema, [whole]) == of_batches(whole.schema, [whole[:1], whole[1:]])
    True
    """
    states = [xxhash.xxh3_128() for _ in schema]
    rows = 0
    for block in _even_blocks(schema, batches):
        rows += block.num_rows
        for state, column in zip(states, block.columns, strict=True):
            for piece in _pieces(_one_array(column)):
                state.update(piece)
    names = [f"{field.name}: {_type_name(field.type)}" for field in schema]
    return combine("arrow", [str(rows), *names, *(state.hexdigest() for state in states)])


def _even_blocks(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in blocks of exactly `_BLOCK_ROWS`, but for the last."""
    waiting: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += batch.num_rows
        if rows >= _BLOCK_ROWS:
            table = pa.Table.from_batches(waiting, schema)
            whole = rows - rows % _BLOCK_ROWS
            yield from (table.slice(start, _BLOCK_ROWS) for start in range(0, whole, _BLOCK_ROWS))
            waiting, rows = table.slice(whole).to_batches(), rows - whole
    if rows:
        yield pa.Table.from_batches(waiting, schema)


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _pieces(array: pa.Array) -> Iterator[Any]:
    """The canonical bytes of an array: length and number of nulls, validity, lengths, then the values not null."""
    array = _plain(array)
    yield np.array([len(array), array.null_count], "<i8")  # both: one False is a byte as the validity of one null is
    if array.null_count:
        yield np.packbits(array.is_valid().to_numpy(zero_copy_only=False))
        array = array.drop_null()
    kind = array.type
    if pa.types.is_null(kind) or not len(array):
        return
    if pa.types.is_boolean(kind):
        yield np.packbits(array.to_numpy(zero_copy_only=False))
    elif pa.types.is_large_binary(kind) or pa.types.is_large_string(kind):
        offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
        yield np.diff(offsets)
        yield memoryview(array.buffers()[2] or b"")[offsets[0] : offsets[-1]]
    elif isinstance(kind, _LISTS):
        yield pc.list_value_length(array).to_numpy().astype(np.int64)
        yield from _pieces(array.flatten())
    elif pa.types.is_fixed_size_list(kind):
        yield from _pieces(array.flatten())
    elif pa.types.is_struct(kind):
        for child in array.flatten():
            yield from _pieces(child)
    else:
        width = kind.bit_width // 8
        yield memoryview(array.buffers()[1])[array.offset * width : (array.offset + len(array)) * width]


def _plain(array: pa.Array) -> pa.Array:
    """The same values in an encoding that `_pieces` knows: no dictionary, run or map, text with 64-bit offsets."""
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(array.storage)
    if pa.types.is_dictionary(kind):
        return _plain(array.dictionary_decode())
    if pa.types.is_run_end_encoded(kind):
        return _plain(pc.run_end_decode(array))
    if pa.types.is_string(kind) or pa.types.is_string_view(kind):
        return array.cast(pa.large_string())
    if pa.types.is_binary(kind) or pa.types.is_binary_view(kind):
        return array.cast(pa.large_binary())
    if pa.types.is_map(kind):
        return array.cast(pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)])))
    if pa.types.is_union(kind):
        raise SourceError(f"a column of type {kind} has no fingerprint; cast it to a struct or a string first")
    return array


def _type_name(kind: pa.DataType) -> str:
    """The type's name without its encoding. Pure."""
    if isinstance(kind, pa.BaseExtensionType):
        return f"{kind.extension_name}<{_type_name(kind.storage_type)}>"
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _type_name(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "string"
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return "binary"
    if pa.types.is_fixed_size_list(kind):
        return f"list<{_type_name(kind.value_type)}>[{kind.list_size}]"
    if pa.types.is_map(kind):
        return f"map<{_type_name(kind.key_type)}, {_type_name(kind.item_type)}>"
    if isinstance(kind, _LISTS):
        return f"list<{_type_name(kind.value_type)}>"
    if pa.types.is_struct(kind):
        return f"struct<{', '.join(f'{field.name}: {_type_name(field.type)}' for field in kind)}>"
    return str(kind)
