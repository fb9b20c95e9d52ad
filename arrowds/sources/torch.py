"""Any map-style dataset (length and item access) as a source, batched as a sequential torch DataLoader does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import xxhash

from arrowds.batch import Batch
from arrowds.digests import callable_digest
from arrowds.errors import ArrowdsError, ConfigError, SourceError
from arrowds.sources import fingerprint as digests
from arrowds.sources.base import Source, check_target
from arrowds.sources.collate import collate
from arrowds.sources.sample_digest import feed

_FULLY_DIGESTED = 65_536
_DIGESTED_OF_MORE = 4_096


class TorchSource(Source):
    """A dataset with `__len__` and `__getitem__`, read in batches; its `__getitems__` is used where it has one.

    Batches begin at multiples of `batch_size` counted from where a read starts, and parts begin at such multiples, so
    that metric functions see the same batches as with a DataLoader that doesn't shuffle.

    Args:
        dataset: The data; it must give the same sample for the same number every time.
        batch_size: Samples per batch.
        collate_fn: Makes a batch of a list of samples; the default is `arrowds.sources.collate.collate`.
        fingerprint: What names the content of the data. By default it is computed: the dataset's class, its length, and
            the content of all samples up to 65,536, else of 4,096 evenly spaced ones. Give it where samples are costly,
            or where a change that falls between these 4,096 must be noticed.

    Raises ConfigError for a batch size below 1, SourceError for an object that isn't a map-style dataset.

    Example:
        >>> source = TorchSource([3, 1, 4, 1, 5], batch_size=2)
        >>> list(source.read(0, 5))
        [tensor([3, 1]), tensor([4, 1]), tensor([5])]
    """

    def __init__(
        self,
        dataset: Any,
        *,
        batch_size: int = 1024,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        fingerprint: str | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, not {batch_size}")
        try:
            self._len = len(dataset)
            dataset.__getitem__  # noqa: B018  # the question is whether it exists
        except (TypeError, AttributeError, NotImplementedError) as error:
            raise SourceError(
                f"{type(dataset).__name__} is no map-style dataset ({error}); it needs __len__ and __getitem__"
            ) from error
        self.dataset = dataset
        self.batch_size = batch_size
        self.collate_fn = collate_fn
        self._given = fingerprint

    def __len__(self) -> int:
        """The number of samples, as the dataset gave it when the source was made."""
        return self._len

    def read(self, start: int, stop: int, columns: Sequence[str] | None = None) -> Iterator[Batch]:
        """Batches of the samples [start, stop); `columns` means nothing here.

        Raises SourceError that names the sample for which the dataset raised.
        """
        self.check_read(start, stop, columns)
        return map(self._batch, self._ranges(start, stop))

    def _ranges(self, start: int, stop: int) -> Iterator[range]:
        return (range(low, min(low + self.batch_size, stop)) for low in range(start, stop, self.batch_size))

    def _batch(self, ids: range) -> Batch:
        samples = self._samples(ids)
        try:
            return (self.collate_fn or collate)(samples)
        except ArrowdsError:
            raise
        except Exception as error:
            raise SourceError(
                f"samples {ids.start} to {ids.stop - 1} can't be made into a batch: {_words(error)}"
            ) from error

    def _samples(self, ids: Sequence[int]) -> list[Any]:
        """The samples with these numbers, by the dataset's own batched access where it has one."""
        fetch = getattr(self.dataset, "__getitems__", None)
        try:
            samples = list(map(self.dataset.__getitem__, ids)) if fetch is None else fetch(list(ids))
        except Exception as error:
            raise self._blame(ids, error) from error
        if hasattr(samples, "__len__") and len(samples) != len(ids):
            raise SourceError(f"{self._name}.__getitems__ returned {len(samples)} samples for {len(ids)} numbers")
        return samples  # a list, or what else __getitems__ promises to collate_fn

    def _blame(self, ids: Sequence[int], error: Exception) -> SourceError:
        """Find the sample that failed by trying them one by one."""
        for i in ids:
            try:
                self.dataset[i]
            except Exception as found:
                end = f" (its len() is {self._len})" if isinstance(found, IndexError) else ""
                return SourceError(f"sample {i}: {self._name}[{i}] raised {_words(found)}{end}")
        return SourceError(
            f"samples {ids[0]} to {ids[-1]}: {self._name} raised {_words(error)}, but gave each of them one by one"
        )

    @property
    def _name(self) -> str:
        return type(self.dataset).__qualname__

    def part_boundaries(self, target_rows: int) -> Sequence[int]:
        """Multiples of `target_rows`, rounded up to whole batches."""
        check_target(target_rows)
        return super().part_boundaries(-(-target_rows // self.batch_size) * self.batch_size)

    def fingerprint(self) -> str:
        """The digest of the samples, or of the string given instead."""
        return self._fingerprint

    def fingerprint_of(self, start: int, stop: int) -> str | None:
        """The digest of the samples [start, stop); None where a string was given for the whole instead."""
        if (start, stop) == (0, self._len):
            return self.fingerprint()
        return None if self._given is not None else self._digest(start, stop)

    @cached_property
    def _fingerprint(self) -> str:
        return self._digest(0, self._len)

    def _digest(self, start: int, stop: int) -> str:
        # What metrics see is what the collate function makes of the samples.
        collated = [] if self.collate_fn is None else [callable_digest(self.collate_fn).digest]
        if self._given is not None:
            return digests.combine("named", [self._given, *collated])
        rows = stop - start
        count = rows if rows <= _FULLY_DIGESTED else _DIGESTED_OF_MORE
        ids = np.linspace(start, stop - 1, count, dtype=np.int64).tolist()
        state = xxhash.xxh3_128()
        for low in range(0, count, self.batch_size):
            for sample in self._samples(ids[low : low + self.batch_size]):
                feed(sample, state.update)
        return digests.combine("torch", [self._name, str(rows), state.hexdigest(), *collated])

    @property
    def description(self) -> str:
        """For instance "torch dataset TokenDataset, batches of 1024"."""
        return f"torch dataset {self._name}, batches of {self.batch_size}"


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
