"""The `.bin`/`.idx` file pairs of Megatron and DeepSpeed, read and written in every dialect; NumPy only.

The `.idx` file holds a 34-byte header (magic, version, dtype code, row count, document count), then the row sizes as
int32, the byte position of every row as int64 and the document index as int64. The `.bin` file holds the rows, back to
back. Writers agree on everything but the meaning of the dtype code: that is what a dialect says.
"""

from __future__ import annotations

import mmap
import operator
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal, SupportsIndex

import numpy as np
import numpy.typing as npt

from arrowds.errors import ConfigError, SourceError, StorageError, UnreadableFileError, UnsupportedError

Dialect = Literal["deepspeed", "deepspeed-legacy", "megatron"]
Array = npt.NDArray[Any]

_MAGIC = b"MMIDIDX\x00\x00"
_OLD_MAGIC = b"TNTIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_MAX_ROW_SIZE = 2**31 - 1

_COMMON = ("uint8", "int8", "int16", "int32", "int64")
_CODES: dict[Dialect, tuple[str, ...]] = {
    "deepspeed": (*_COMMON, "uint16", "uint32", "uint64"),
    "deepspeed-legacy": (*_COMMON, "float64", "float64", "uint16", "uint32", "uint64"),
    "megatron": (*_COMMON, "float64", "float32", "uint16"),
}


class IndexedDataset:
    """One memory-mapped `.bin`/`.idx` pair: rows of one dtype and any length.

    Open it with `IndexedDataset.open`. It can be pickled (the files are mapped again where it is unpickled), and
    opening checks both files' sizes, so that a truncated file is an error and never a crash.

    Example:
        >>> import tempfile, numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_indexed_dataset(f"{folder}/tokens", np.arange(5), np.array([2, 3]), dtype="uint16")
        ...     rows = IndexedDataset.open(f"{folder}/tokens")
        ...     rows.row(1), rows.sizes
        (array([2, 3, 4], dtype=uint16), array([2, 3], dtype=int32))
    """

    __slots__ = ("_bin_buffer", "dialect", "document_index", "dtype", "pointers", "prefix", "sizes", "tokens")

    prefix: Path
    """The path without `.bin` and `.idx`."""
    dialect: Dialect
    """The dialect under which the dtype code was read (the first of several that agree)."""
    dtype: np.dtype[Any]
    """The dtype of every row, little-endian."""
    sizes: npt.NDArray[np.int32]
    """(rows,) number of items of each row: a read-only view of the `.idx` file."""
    pointers: npt.NDArray[np.int64]
    """(rows,) byte position of each row in the `.bin` file: a read-only view of the `.idx` file."""
    document_index: npt.NDArray[np.int64]
    """(documents + 1,) number of rows before each document, as the writer gave it."""
    _bin_buffer: memoryview
    tokens: Array
    """(items,) all rows, back to back: a read-only view of the `.bin` file."""

    @classmethod
    def open(cls, prefix: str | os.PathLike[str], dialect: Dialect | None = None) -> IndexedDataset:
        """Map the pair at `prefix`; `prefix` may also name one of the two files.

        `dialect` is told by the size of the `.bin` file, which must be sum(sizes) x itemsize; where several dialects
        fit and mean different dtypes, it must be given. Raises UnreadableFileError for files that are missing,
        truncated or of another kind, SourceError where the dialect can't be told, ConfigError for an unknown dialect.
        """
        if dialect is not None and dialect not in _CODES:
            raise ConfigError(f"unknown dialect {dialect!r}; expected one of {', '.join(_CODES)}")
        self = cls()
        self.prefix = strip_suffix(prefix)
        self.sizes, self.pointers, self.document_index, code = _read_index(_with_suffix(self.prefix, ".idx"))
        bin_path = _with_suffix(self.prefix, ".bin")
        self._bin_buffer = _map_file(bin_path)
        items = int(self.sizes.sum(dtype=np.int64))
        self.dialect, self.dtype = _choose_dialect(bin_path, code, items, len(self._bin_buffer), dialect)
        self.tokens = np.frombuffer(self._bin_buffer, self.dtype)
        return self

    def __len__(self) -> int:
        """The number of rows."""
        return len(self.sizes)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path alone: the files are mapped again where the object arrives."""
        return IndexedDataset.open, (self.prefix, self.dialect)

    def __getitem__(self, i: SupportsIndex) -> Array:
        """The same as `row(i)`."""
        return self.row(i)

    def __iter__(self) -> Iterator[Array]:
        """The rows in order."""
        return map(self.row, range(len(self)))

    def row(self, i: SupportsIndex) -> Array:
        """Row `i` (any integer type; negative counts from the end) as a read-only view of the file, shape (sizes[i],).

        Raises TypeError for a slice and IndexError past the end.
        """
        try:
            number = operator.index(i)
        except TypeError:
            raise TypeError(
                f"a row number must be an integer, not {type(i).__name__}; slice .sizes and .tokens"
            ) from None
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {number} is out of range: {self.prefix} has {len(self)} rows")
        start, size = int(self.pointers[number]), int(self.sizes[number])
        if size and not 0 <= start <= len(self._bin_buffer) - size * self.dtype.itemsize:
            raise UnreadableFileError(f"row {number} of {self.prefix}.idx points outside {self.prefix}.bin")
        return np.frombuffer(self._bin_buffer, self.dtype, size, start) if size else self.tokens[:0]


def strip_suffix(path: str | os.PathLike[str]) -> Path:
    """The prefix of a pair from the prefix itself or from one of its two files; any other dot in the name stays.

    >>> strip_suffix("data/train.v1.idx").name
    'train.v1'
    """
    text = os.fspath(path)
    return Path(text[:-4] if text.endswith((".bin", ".idx")) else text)


def is_indexed_dataset(path: str | os.PathLike[str]) -> bool:
    """Whether both files of the pair that `path` names exist.

    >>> is_indexed_dataset("/nowhere/tokens")
    False
    """
    prefix = strip_suffix(path)
    return _with_suffix(prefix, ".idx").is_file() and _with_suffix(prefix, ".bin").is_file()


def write_indexed_dataset(
    prefix: str | os.PathLike[str],
    values: Array | Iterable[Array],
    sizes: Array,
    *,
    dtype: npt.DTypeLike,
    document_index: npt.ArrayLike | None = None,
    dialect: Dialect = "deepspeed",
) -> None:
    """Write `prefix`.bin and `prefix`.idx, byte for byte as DeepSpeed's MMapIndexedDatasetBuilder does.

    Args:
        prefix: The path of both files without their suffix; their folder must exist. Existing files are replaced.
        values: All rows, back to back: one flat array, or chunks of it in order (cut anywhere).
        sizes: (rows,) the number of items of each row, at most 2^31 - 1.
        dtype: What the items are stored as; values that it can't hold are refused.
        document_index: Number of rows before each document, starting with 0. Default: one document of all rows.
        dialect: Which writer's dtype codes to use.

    Raises ConfigError where the arguments contradict each other, UnsupportedError for a dtype or a row size that the
    format can't hold, StorageError where writing fails (the old files then stay as they were).

    Example:
        >>> import tempfile, numpy as np
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_indexed_dataset(f"{folder}/x", [np.array([1, 2]), np.array([3])], np.array([1, 2]), dtype="int8")
        ...     [row.tolist() for row in IndexedDataset.open(f"{folder}/x")]
        [[1], [2, 3]]
    """
    item = np.dtype(dtype).newbyteorder("<")
    index = _index_bytes(np.asarray(sizes), item, document_index, dialect)
    paths = [_with_suffix(Path(prefix), suffix) for suffix in (".bin", ".idx")]
    partial = [path.with_name(f".{path.name}.{os.getpid()}.partial") for path in paths]
    try:
        with partial[0].open("wb") as file:
            written = sum(
                _write_chunk(file, chunk, item) for chunk in ([values] if isinstance(values, np.ndarray) else values)
            )
        if written != (expected := int(np.sum(sizes, dtype=np.int64))):
            raise ConfigError(f"the sizes add up to {expected} items, but {written} values were given")
        with partial[1].open("wb") as file:
            file.writelines(index)
        for source, target in zip(partial, paths, strict=True):
            source.replace(target)
    except OSError as error:
        raise StorageError(f"could not write {prefix}.bin and .idx: {error}") from error
    finally:
        for path in partial:
            path.unlink(missing_ok=True)


def _write_chunk(file: IO[bytes], chunk: Array, dtype: np.dtype[Any]) -> int:
    """Append one chunk of values, converted, and return how many they are."""
    array = np.asarray(chunk).ravel()
    with np.errstate(invalid="ignore"):
        converted = np.ascontiguousarray(array.astype(dtype, copy=False))
    if not np.can_cast(array.dtype, dtype) and not np.array_equal(array, converted):
        bad = array[array != converted][0]
        raise ConfigError(f"{dtype} can't hold the value {bad}; choose a wider dtype")
    file.write(converted.data if converted.size else b"")
    return array.size


def _index_bytes(
    sizes: Array, dtype: np.dtype[Any], document_index: npt.ArrayLike | None, dialect: Dialect
) -> tuple[bytes, ...]:
    """The four pieces of an `.idx` file. Pure."""
    if dialect not in _CODES:
        raise ConfigError(f"unknown dialect {dialect!r}; expected one of {', '.join(_CODES)}")
    if dtype.name not in _CODES[dialect]:
        raise UnsupportedError(f"{dialect} files can't hold {dtype.name}; they hold {', '.join(_CODES[dialect])}")
    if sizes.ndim != 1 or (sizes.size and sizes.dtype.kind not in "iu"):
        raise ConfigError(f"sizes must be a flat array of integers, not {sizes.ndim}-dimensional {sizes.dtype}")
    if sizes.size and sizes.max() > _MAX_ROW_SIZE:
        row = int(sizes.argmax())
        raise UnsupportedError(
            f"row {row} has {sizes[row]} items; the format stores row sizes as int32, at most {_MAX_ROW_SIZE}"
        )
    if sizes.size and sizes.min() < 0:
        raise ConfigError(f"row {int(sizes.argmin())} has the negative size {sizes.min()}")
    lengths = sizes.astype("<i8")
    pointers = np.zeros(len(lengths), "<i8")
    np.cumsum(lengths[:-1] * dtype.itemsize, out=pointers[1:])
    documents = np.asarray([0, len(sizes)] if document_index is None else document_index, "<i8")
    code = _CODES[dialect].index(dtype.name) + 1
    header = _HEADER.pack(_MAGIC, 1, code, len(sizes), len(documents))
    return header, lengths.astype("<i4").tobytes(), pointers.tobytes(), documents.tobytes()


def _read_index(path: Path) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
    """Sizes, pointers, document index and dtype code of an `.idx` file, the arrays being views of the mapped file."""
    buffer = _map_file(path)
    if bytes(buffer[: len(_OLD_MAGIC)]) == _OLD_MAGIC:
        raise UnreadableFileError(
            f"{path} is of the old 'lazy'/'cached' kind; only memory-mappable pairs ('mmap') are read"
        )
    if bytes(buffer[: len(_MAGIC)]) != _MAGIC:
        raise UnreadableFileError(
            f"{path} is not the .idx file of an indexed dataset: it does not start with {_MAGIC!r}"
        )
    if len(buffer) < _HEADER.size:
        raise UnreadableFileError(f"{path} is truncated: {len(buffer)} bytes, less than its header of {_HEADER.size}")
    _, version, code, rows, documents = _HEADER.unpack_from(buffer)
    if version != 1:
        raise UnreadableFileError(f"{path} has version {version} of the format; version 1 is what this reads")
    expected = _HEADER.size + 12 * rows + 8 * documents
    # Megatron-LM may add one int8 "mode" per row at the end (multimodal data).
    if len(buffer) not in {expected, expected + rows}:
        raise UnreadableFileError(
            f"{path} has {len(buffer)} bytes, but its header (rows: {rows}, document marks: {documents}) calls for "
            f"{expected}: it is truncated or damaged"
        )
    sizes = np.frombuffer(buffer, "<i4", rows, _HEADER.size)
    if rows and sizes.min() < 0:
        raise UnreadableFileError(f"{path} is damaged: row {int(sizes.argmin())} has the negative size {sizes.min()}")
    pointers = np.frombuffer(buffer, "<i8", rows, _HEADER.size + 4 * rows)
    return sizes, pointers, np.frombuffer(buffer, "<i8", documents, _HEADER.size + 12 * rows), code


def _choose_dialect(
    path: Path, code: int, items: int, num_bytes: int, dialect: Dialect | None
) -> tuple[Dialect, np.dtype[Any]]:
    """The dialect under which `items` items of dtype code `code` fill `num_bytes` bytes. Pure."""
    known = {
        name: np.dtype(codes[code - 1]).newbyteorder("<") for name, codes in _CODES.items() if 0 < code <= len(codes)
    }
    if dialect is not None:
        known = {name: dtype for name, dtype in known.items() if name == dialect}
    if not known:
        where = "any dialect" if dialect is None else f"the dialect {dialect!r}"
        raise UnreadableFileError(f"{path.with_suffix('.idx')}: dtype code {code} means nothing in {where}")
    fitting = {name: dtype for name, dtype in known.items() if items * dtype.itemsize == num_bytes}
    tried = ", ".join(f"{name}: {dtype} ({items * dtype.itemsize} bytes)" for name, dtype in known.items())
    if not fitting:
        raise UnreadableFileError(
            f"{path} has {num_bytes} bytes, but its .idx calls for {items} items of {tried}: "
            "one of the two files is truncated, or they do not belong together"
        )
    if len(set(fitting.values())) > 1:
        choices = " or ".join(f"dialect={name!r} ({dtype})" for name, dtype in fitting.items())
        raise SourceError(f"{path}: dtype code {code} fits several dialects; say {choices}")
    return next(iter(fitting.items()))


def _map_file(path: Path) -> memoryview:
    """A read-only memory map of a whole file; empty files give an empty view."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b"")
    except OSError as error:
        raise UnreadableFileError(f"can't read {path}: {error.strerror or error}") from error


def _with_suffix(prefix: Path, suffix: str) -> Path:
    """`Path.with_suffix` would eat a dot that belongs to the name."""
    return prefix.with_name(prefix.name + suffix)
