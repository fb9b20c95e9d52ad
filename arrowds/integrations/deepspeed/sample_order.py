"""Which sample each row of a dataset is, where that is not the row's number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from arrowds.batch import Batch, as_numpy
from arrowds.errors import ConfigError, SourceError
from arrowds.index import Index
from arrowds.metrics import Metric, function
from arrowds.sources.base import Source

FIELD = "index"
_IDS = "__sample_ids"


@dataclass(frozen=True)
class SampleOrder:
    """The sample ids of the rows: given beforehand, or collected by a metric while the rows are read.

    Attributes:
        given: (rows,) the sample id of each row; None where the batches say it.
    """

    given: npt.NDArray[np.int64] | None

    @property
    def metrics(self) -> list[Metric]:
        """What must be measured besides, to know the order."""
        return [] if self.given is not None else [function(_IDS, ids_of_batch, dtype="int64")]

    def reordered(self, by_row: Index) -> tuple[dict[str, pa.Array], dict[str, npt.NDArray[Any]]]:
        """Return the values of all metrics by sample id, and the totals.

        Raises:
            SourceError: when the collected ids are not the numbers from 0 on, each once.
        """
        ids = _checked(by_row[_IDS].values) if self.given is None else self.given
        row_of_sample = np.empty(len(ids), np.int64)
        row_of_sample[ids] = np.arange(len(ids))
        names = [name for name in by_row.metrics if name != _IDS]
        values = {name: pa.array(by_row[name].values[row_of_sample]).cast(by_row[name].arrow_type) for name in names}
        return values, dict(by_row.totals)


def find(source: Source, sample_indices: Any) -> SampleOrder | None:
    """Return the order of the samples, or None where every row is the sample of its own number.

    Args:
        source: its batches may have a field ``index``, as those of Megatron-DeepSpeed's datasets do; that counts first.
        sample_indices: the sample id of each row, or None.

    Raises:
        ConfigError: when ``sample_indices`` are not the numbers from 0 on, each once.
    """
    if len(source) and all(isinstance(batch, Mapping) and FIELD in batch for batch in source.read(0, 1)):
        return SampleOrder(None)
    if sample_indices is None:
        return None
    array = as_numpy(sample_indices)
    ids = np.asarray(sample_indices) if array is None else array
    if ids.shape != (len(source),) or ids.dtype.kind not in "iu":
        raise ConfigError(
            f"sample_indices has the shape {ids.shape} and the dtype {ids.dtype}; "
            f"expected the sample id, an integer, of each of the {len(source)} rows of the dataset"
        )
    if fault := _fault(ids):
        raise ConfigError(f"sample_indices {fault}; give the id of each row, so that every sample has one value")
    return None if np.array_equal(ids, np.arange(len(source))) else SampleOrder(ids.astype(np.int64))


def ids_of_batch(batch: Batch) -> npt.NDArray[Any]:
    """Return the first item of each row of the field ``index``: int, (rows,)."""
    field = as_numpy(batch[FIELD])
    ids = np.stack([np.asarray(as_numpy(row)) for row in batch[FIELD]]) if field is None else field
    return ids.reshape(len(ids), -1)[:, 0]


def _checked(ids: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if fault := _fault(ids):
        raise SourceError(
            f"the field {FIELD!r} of the batches {fault}; it must give each sample of the dataset its own number, "
            "or be left out"
        )
    return ids


def _fault(ids: npt.NDArray[Any]) -> str | None:
    if ids.size and (ids.min() < 0 or ids.max() >= len(ids)):
        bad = ids.min() if ids.min() < 0 else ids.max()
        return f"holds the sample id {bad}, but the {len(ids)} samples are numbered from 0 to {len(ids) - 1}"
    counts = np.bincount(ids.astype(np.intp), minlength=len(ids))
    if ids.size and counts.max() > 1:
        return f"holds the sample id {int(counts.argmax())} {counts.max()} times and lacks {int(counts.argmin())}"
    return None
