"""Megatron-LM's sampler by its own arguments, drawing what a sampler of arrowds draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from arrowds.curriculum.ranks import whole_number
from arrowds.curriculum.stream import BatchStream
from arrowds.errors import ConfigError


class MegatronPretrainingSampler:
    """The microbatches of one data-parallel rank, from the ``consumed_samples`` of a checkpoint on.

    Megatron-LM saves how many samples a run has consumed and makes its sampler anew with that number. So does this one:
    arguments, ``len`` and batches' places are those of Megatron's ``MegatronPretrainingSampler``, and the ids are those
    of ``sampler``. Any number of ranks continues at any position. An iteration after a complete one yields the next
    pass.

    Args:
        total_samples: of the dataset; as many as the index has.
        consumed_samples: how many samples all ranks have had.
        micro_batch_size: samples of a rank in a microbatch.
        data_parallel_rank: which data-parallel rank this is.
        data_parallel_size: how many there are.
        drop_last: leave out the last global batch if it is short.
        global_batch_size: samples of a step; the curriculum counts steps. By default one microbatch of all ranks.
        sampler: makes the sampler: ``functools.partial(arrowds.CurriculumSampler, index, curriculum)``.

    Raises:
        ConfigError: for invalid numbers, or another number of samples than the index has.

    >>> import tempfile
    >>> from functools import partial
    >>> import arrowds
    >>> import polars as pl
    >>> folder = tempfile.TemporaryDirectory()
    >>> lengths = pl.DataFrame({"seqlen": [1 + i % 64 for i in range(100)]})
    >>> seqlen = arrowds.metrics.expr("seqlen", pl.col("seqlen"))
    >>> index = arrowds.analyze(lengths, [seqlen], folder.name + "/index", workers=1, progress=False)
    >>> shuffle = partial(arrowds.CurriculumSampler, index, {})
    >>> def batches(consumed_samples):
    ...     return list(MegatronPretrainingSampler(100, consumed_samples, 4, 0, 2, sampler=shuffle))
    >>> batches(0)[3:] == batches(3 * 2 * 4)
    True
    >>> folder.cleanup()
    """

    def __init__(  # noqa: PLR0917  # Megatron passes them in this order
        self,
        total_samples: int,
        consumed_samples: int,
        micro_batch_size: int,
        data_parallel_rank: int,
        data_parallel_size: int,
        drop_last: bool = True,
        *,
        global_batch_size: int | None = None,
        sampler: Callable[..., BatchStream],
    ) -> None:
        self.total_samples = total_samples
        self.consumed_samples = whole_number("consumed_samples", consumed_samples, least=0)
        self.micro_batch_size = micro_batch_size
        self.data_parallel_rank = data_parallel_rank
        self.micro_batch_times_data_parallel_size = micro_batch_size * data_parallel_size
        self.drop_last = drop_last
        size = self.micro_batch_times_data_parallel_size if global_batch_size is None else global_batch_size
        microbatches, rest = divmod(size, max(1, self.micro_batch_times_data_parallel_size))
        if rest:
            raise ConfigError(
                f"global_batch_size={size} is not a multiple of micro_batch_size x data_parallel_size = "
                f"{self.micro_batch_times_data_parallel_size}"
            )
        self.sampler = sampler(
            micro_batch_size=micro_batch_size,
            rank=data_parallel_rank,
            world_size=data_parallel_size,
            gradient_accumulation_steps=microbatches,
            drop_last=drop_last,
        )
        samples = getattr(getattr(self.sampler, "index", self.sampler), "num_samples", total_samples)
        if samples != total_samples:
            raise ConfigError(
                f"the dataset has {total_samples} samples but the index {samples}; index the dataset that you train on"
            )
        state = self.sampler.state_at(self.consumed_samples)
        del state["epoch"]  # The sampler finds the pass of the position.
        self.sampler.load_state_dict(state)

    def __len__(self) -> int:
        return self.total_samples

    def __iter__(self) -> Iterator[list[int]]:
        self.sampler.add_epochs()
        for ids in self.sampler:
            self.consumed_samples = self.sampler.consumed_samples
            yield ids
