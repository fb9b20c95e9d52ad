"""Near duplicates: MinHash signatures of shingles, candidates from equal bands, pairs that are similar enough.

Source: Broder, "On the resemblance and containment of documents" (1997); Leskovec, Rajaraman and Ullman, "Mining of
Massive Datasets", chapter 3. The signatures are those of the package rensa.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from arrowds.arrays import numpy_view
from arrowds.duplicates.clusters import joined
from arrowds.errors import ConfigError, MissingExtraError
from arrowds.metrics.text.measures import blocks_of
from arrowds.metrics.text.spans import Spans, hash_sums, hashes, ngrams

NUM_PERM = 128
_SEED = 42
_RECALL = 0.97
"""The share of the pairs at the threshold that have a band in common."""

_PAIRS_AT_ONCE = 1 << 17
_ROUNDS = 32
"""Where more than so many samples that are all different have a band in common, not every pair of them is compared."""


def near_roots(batches: Iterator[pa.Array], num_samples: int, threshold: float, ngram: int) -> np.ndarray:
    """Return the first sample of the cluster that each sample is in.

    Signatures and bands lie in a file of a temporary folder while they are compared, so that memory holds a band.

    Args:
        batches: the column in order, strings or lists of token ids.
        num_samples: rows of all batches.
        threshold: the smallest Jaccard similarity of the shingles of two near duplicates, above 0 and up to 1.
        ngram: words of a shingle.

    Raises:
        ConfigError: for a threshold out of range.
        MissingExtraError: where rensa is not installed.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"near must be a similarity above 0 and up to 1, got {threshold}")
    rows = rows_of_a_band(threshold)
    bands = NUM_PERM // rows
    with TemporaryDirectory(prefix="arrowds-") as folder:
        signatures = np.memmap(Path(folder, "signatures"), np.uint32, "w+", shape=(num_samples, NUM_PERM))
        keys = np.memmap(Path(folder, "bands"), np.uint64, "w+", shape=(bands, num_samples))
        start = 0
        for batch in batches:
            missing = start + np.flatnonzero(numpy_view(batch.is_null()))
            for signature in _signatures(batch, ngram):
                stop = start + len(signature)
                signatures[start:stop] = signature
                keys[:, start:stop] = _band_keys(signature, bands, rows).T
                start = stop
            keys[:, missing] = missing  # what is null is like nothing else
        roots = np.arange(num_samples)
        for number in range(bands):
            _join_similar(roots, np.asarray(keys[number]), signatures, threshold)
        return roots


def _join_similar(roots: np.ndarray, keys: np.ndarray, signatures: np.ndarray, threshold: float) -> None:
    """Join the clusters of samples that have the same key and are similar enough; changes ``roots``.

    In each round the first sample of each key is compared with all others that have it; those that are in its cluster
    then leave, as it does. So samples that one stranger came before still meet.
    """
    members = np.argsort(keys, kind="stable")
    for _ in range(_ROUNDS):
        ordered = keys[members]
        new = np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(members)]
        firsts = np.flatnonzero(new)
        leaders = members[firsts][np.cumsum(new) - 1]
        for low in range(0, len(members), _PAIRS_AT_ONCE):
            left, right = leaders[low : low + _PAIRS_AT_ONCE], members[low : low + _PAIRS_AT_ONCE]
            apart = np.flatnonzero(roots[left] != roots[right])  # what is in one cluster already needs no look
            shares = (signatures[left[apart]] == signatures[right[apart]]).mean(axis=1)
            similar = apart[shares >= threshold]
            joined(roots, left[similar], right[similar])
        left_over = roots[leaders] != roots[members]
        members = members[left_over]
        if len(members) < 2:
            return


def rows_of_a_band(threshold: float) -> int:
    """Return how many of the 128 values make a band, so that few pairs at the threshold have no band in common.

    Two samples of similarity s have one of b bands of r values in common with a probability of 1 - (1 - s^r)^b.

    >>> rows_of_a_band(0.8)
    7
    """
    possible = range(1, NUM_PERM + 1)
    return max(rows for rows in possible if 1 - (1 - threshold**rows) ** (NUM_PERM // rows) >= _RECALL or rows == 1)


def _band_keys(signatures: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """Return a number for each band of each signature: uint64 of shape (n, bands)."""
    starts = np.arange(len(signatures) * bands) * rows
    flat = np.ascontiguousarray(signatures[:, : bands * rows]).reshape(-1)
    whole = Spans(starts, starts + rows, np.array([0, len(starts)]))
    return hashes(hash_sums(flat), whole).reshape(len(signatures), bands)


def _signatures(column: pa.Array, ngram: int) -> Iterator[np.ndarray]:
    """Yield the signatures of some samples after others: uint32 of shape (m, 128)."""
    try:
        from rensa import RMinHash
    except ImportError as error:
        raise MissingExtraError("rensa", "duplicates") from error
    for shingles, bounds in _shingles(column, ngram):
        matrix = RMinHash.digest_matrix_from_flat_token_hashes(shingles, bounds.astype(np.uint64), NUM_PERM, _SEED)
        yield np.array(matrix.to_rows(), np.uint32).reshape(-1, NUM_PERM)


def _shingles(column: pa.Array, ngram: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the hashes of the shingles of some samples, and the bounds of each sample in them.

    A text without words has one of its own: its characters.
    """
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        for texts in blocks_of(column):
            found, bounds = ngrams(texts.plain_word_hashes, texts.plain_words.bounds, ngram, least=1)
            without = texts.plain_words.per_text == 0
            whole = Spans(texts.bounds[:-1], texts.bounds[1:], np.arange(len(texts) + 1))
            found[bounds[:-1][without]] = texts.hashes_of(whole)[without]
            yield found, bounds
        return
    lengths = numpy_view(pc.list_value_length(column).fill_null(0)).astype(np.int64)
    tokens = numpy_view(column.flatten()).astype(np.uint64) + np.uint64(1)
    yield ngrams(tokens, np.concatenate([[0], np.cumsum(lengths)]), ngram, least=1)
