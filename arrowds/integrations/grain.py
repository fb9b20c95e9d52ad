"""The microbatches of a sampler as a random-access source, for Grain's datasets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from arrowds.curriculum.stream import BatchStream
from arrowds.errors import ConfigError


class MicrobatchSource:
    """Element i is the i-th microbatch of the sampler's rank: the samples themselves, collated.

    Any step of a sampler is one computation, so Grain's own position is enough to resume exactly, in any number of
    worker processes: ``grain.MapDataset.source(MicrobatchSource(dataset, sampler))``.

    Args:
        dataset: a map-style dataset whose row i is sample i of the index.
        sampler: with its rank and world size; of ``order="stateless"``. Its own position is not used, and it keeps no
            record.
        collate_fn: turns a list of samples into a batch; by default the list is the batch.

    Raises:
        ConfigError: for a sampler that keeps a record.

    >>> import tempfile
    >>> import arrowds
    >>> import polars as pl
    >>> folder = tempfile.TemporaryDirectory()
    >>> lengths = pl.DataFrame({"seqlen": [1 + i % 64 for i in range(100)]})
    >>> index = arrowds.analyze(lengths, arrowds.metrics.column("seqlen"), folder.name, progress=False)
    >>> sampler = arrowds.CurriculumSampler(index, {}, micro_batch_size=4, gradient_accumulation_steps=2)
    >>> source = MicrobatchSource(range(100), sampler)
    >>> len(source), [source[i] for i in range(len(source))] == list(sampler)
    (24, True)
    >>> folder.cleanup()
    """

    def __init__(
        self, dataset: Any, sampler: BatchStream, *, collate_fn: Callable[[Sequence[Any]], Any] | None = None
    ) -> None:
        if sampler.recorder is not None:
            raise ConfigError("elements are read in any order and more than once: make the sampler without record=")
        self._dataset = dataset
        self._sampler = sampler
        self._collate = collate_fn or list

    def __len__(self) -> int:
        return self._sampler.num_steps * self._sampler.layout.gradient_accumulation_steps

    def __getitem__(self, number: int) -> Any:
        layout = self._sampler.layout
        step, micro = divmod(int(number), layout.gradient_accumulation_steps)
        ids = self._sampler.microbatches_at(step + 1)[micro][layout.rank].tolist()
        many = getattr(self._dataset, "__getitems__", None)
        return self._collate(many(ids) if many else [self._dataset[sample] for sample in ids])
