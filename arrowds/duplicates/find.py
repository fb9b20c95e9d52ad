"""Find duplicates of an index's samples and keep them as metrics; list the largest clusters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import xxhash

from arrowds.arrays import numpy_view
from arrowds.batch import plain
from arrowds.build.api import Progress, add_values
from arrowds.build.progress import ProgressCallback, reporting
from arrowds.duplicates.clusters import equal_rows, sizes_of
from arrowds.duplicates.near import near_roots
from arrowds.errors import ConfigError, MetricValueError
from arrowds.index import Index, open_index
from arrowds.index.looking import beside
from arrowds.metrics.expressions import checked_text

if TYPE_CHECKING:
    import polars as pl

DUPLICATE_OF, CLUSTER_SIZE = "duplicate_of", "cluster_size"
_SHOWN_DUPLICATES = 5


def find_duplicates(
    path: str | PathLike[str],
    column: str = "text",
    *,
    near: float | None = None,
    ngram: int = 5,
    progress: Progress = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Index:
    r"""Find the samples that are equal, or nearly so, and commit two metrics that say which.

    ``duplicate_of`` is the id of the sample that stays, the smallest of its cluster: no value for that one and for
    samples without duplicates, so that ``pl.col("duplicate_of").is_null()`` keeps one of each. ``cluster_size`` is 1
    for a sample without duplicates. They tell of all samples together: an append leaves them out; find them again then.

    Equal samples have the same XXH3 digest of 128 bits. Near duplicates have a Jaccard similarity of their shingles,
    estimated from 128 MinHash values, of at least ``near``; a cluster holds what is connected by such pairs. A shingle
    is ``ngram`` words in lower case without punctuation (``\w+``), or token ids; a text with fewer is one shingle.
    Meanwhile signatures take some 700 bytes of each sample in the folder for temporary files (``TMPDIR``).

    Args:
        path: the folder or URL of an index, whose data are files that it can read again.
        column: the column to compare: strings, or lists of token ids.
        near: None for equal samples alone, or the smallest similarity of near duplicates, such as 0.8.
        ngram: words of a shingle.
        progress: as for :func:`arrowds.analyze`.
        storage_options: as for :func:`arrowds.open_index`.

    Returns:
        The open index with the metrics.

    Raises:
        MissingColumnError: when the data has no such column.
        SourceError: when the data can't be read.
        MissingExtraError: for near duplicates where rensa is not installed.

    >>> import arrowds, polars as pl, tempfile, pathlib
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "data.parquet")
    ...     pl.DataFrame({"text": ["to be", "or", "to be"]}).write_parquet(path)
    ...     _ = arrowds.analyze(path, arrowds.metrics.text.n_words(), f"{folder}/index")
    ...     index = arrowds.find_duplicates(f"{folder}/index")
    ...     index["cluster_size"].values.tolist(), index["duplicate_of"].values.tolist()
    ([2, 1, 2], [None, None, 0])
    """
    index = open_index(path, storage_options=storage_options)
    if ngram < 1:
        raise ConfigError(f"ngram must be at least 1, got {ngram}")
    with reporting(index.num_samples, progress) as report:
        batches = _read(index, column, report)
        if near is None:
            roots = equal_rows(_all_digests(batches, index.num_samples))
        else:
            roots = near_roots(batches, index.num_samples, near, ngram)
    stays = roots == np.arange(len(roots))
    values = {
        DUPLICATE_OF: np.ma.masked_array(roots.astype(np.uint64), mask=stays),
        CLUSTER_SIZE: sizes_of(roots),
    }
    return add_values(values, index, refresh=True, progress=False)


def _read(index: Index, column: str, report: ProgressCallback) -> Iterator[pa.Array]:
    """Yield a column of the data batch by batch, and report how many rows were handed out."""
    done = 0
    for batch in index.data_rows.batches([column]):
        yield _checked(batch.column(1), column)
        done += batch.num_rows
        report(done, index.num_samples)


def _checked(values: pa.Array, column: str) -> pa.Array:
    values = plain(values)
    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    if is_text:
        checked_text(pa.record_batch({column: values}))
    is_list = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
    if not (is_text or (is_list and pa.types.is_integer(values.type.value_type))):
        raise MetricValueError(f"column {column!r} has type {values.type}; expected text or lists of token ids")
    return values


def _all_digests(batches: Iterator[pa.Array], num_samples: int) -> np.ndarray:
    """Return the digest of each sample, its number where it is null: uint64 of shape (n, 2)."""
    found, start = np.empty((num_samples, 2), np.uint64), 0
    for values in batches:
        content = b"".join(xxhash.xxh3_128_digest(each) for each in _contents(values))
        stop = start + len(values)
        found[start:stop] = np.frombuffer(content, np.uint64).reshape(-1, 2)
        missing = start + np.flatnonzero(numpy_view(values.is_null()))
        found[missing] = np.stack([missing, missing], axis=1)
        start = stop
    return found


def _contents(values: pa.Array) -> Iterator[memoryview]:
    """Yield the bytes of each sample, without a copy."""
    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    wide = pa.types.is_large_string(values.type) or pa.types.is_large_list(values.type)
    width = np.dtype(np.int64 if wide else np.int32)
    offsets = np.frombuffer(values.buffers()[1], width, len(values) + 1, values.offset * width.itemsize)
    if is_text:
        data, size = values.buffers()[2], 1
    else:
        data, size = values.values.buffers()[1], values.type.value_type.bit_width // 8
        offsets = offsets.astype(np.int64) + values.values.offset
    view = memoryview(b"" if data is None else data).cast("B")
    for start, stop in pairwise((offsets.astype(np.int64) * size).tolist()):
        yield view[start:stop]


def largest_clusters(index: Index, n: int = 20, columns: Sequence[str] | None = None) -> pl.DataFrame:
    """Return the largest clusters of duplicates, a row for each: the sample that stays, and its row of the data.

    Columns: ``sample_id``, ``cluster_size``, ``duplicates`` (the ids of up to five others), then those of the data, of
    which those with the name of an earlier column are ``data_NAME``.

    Args:
        index: an open index that :func:`find_duplicates` has been called for.
        n: how many clusters at most.
        columns: which columns of the data; by default all, none for an empty list.

    Raises:
        ConfigError: when the index has no metric ``duplicate_of``.
        SourceError: when the data can't be read.
    """
    import polars as pl

    if DUPLICATE_OF not in index:
        raise ConfigError(f"{index.path} does not know its duplicates; call arrowds.find_duplicates(path) first")
    duplicate_of = index[DUPLICATE_OF]
    groups = duplicate_of.distribution().sort(["count", "value"], descending=[True, False]).head(n)
    stays = groups["value"].cast(pl.UInt64)
    others = [duplicate_of.sample_ids(value - 1, value)[:_SHOWN_DUPLICATES].tolist() for value in stays.to_list()]
    found = pl.DataFrame(
        {
            "sample_id": stays,
            CLUSTER_SIZE: groups["count"].cast(pl.UInt32) + 1,
            "duplicates": pl.Series(others, dtype=pl.List(pl.UInt64)),
        }
    )
    return (
        found
        if columns is not None and not columns
        else beside(found, index.samples(stays.to_numpy(), columns), "data_")
    )
