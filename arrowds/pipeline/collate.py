"""From samples to padded tensors, in the form that language models of torch and Hugging Face expect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from arrowds.errors import ConfigError, MissingExtraError

IGNORED_LABEL = -100


@dataclass(frozen=True, kw_only=True, slots=True)
class PaddingCollate:
    """Pad token ids on the right to the longest of the batch.

    A batch has ``input_ids`` and ``labels`` (int64, (rows, longest); labels are -100 where padded) and
    ``attention_mask`` (int64; 1 for a token, 0 for padding).

    Args:
        token_column: the key of the token ids in a dictionary; any other sample is the ids themselves.
        max_length: longer samples are cut to this many tokens.
        pad_id: the token id for padding.

    >>> batch = PaddingCollate(max_length=2)([{"input_ids": [5, 6, 7]}, {"input_ids": [8]}])
    >>> batch["input_ids"].tolist(), batch["labels"].tolist()
    ([[5, 6], [8, 0]], [[5, 6], [8, -100]])
    """

    token_column: str = "input_ids"
    max_length: int | None = None
    pad_id: int = 0

    def __call__(self, samples: Sequence[Any]) -> dict[str, Any]:
        try:
            import torch
            from torch.nn.utils.rnn import pad_sequence
        except ImportError as error:
            raise MissingExtraError("torch", "torch") from error
        rows = [torch.as_tensor(self._tokens(sample))[: self.max_length].long() for sample in samples]
        padded = {
            name: pad_sequence(rows, batch_first=True, padding_value=value)
            for name, value in (("input_ids", self.pad_id), ("labels", IGNORED_LABEL))
        }
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(padded["labels"].shape[1]) < lengths[:, None]).long()
        return {**padded, "attention_mask": mask}

    def _tokens(self, sample: Any) -> Any:
        if not isinstance(sample, Mapping):
            return sample
        if self.token_column not in sample:
            raise ConfigError(
                f"a sample has no {self.token_column!r}; it has {', '.join(map(str, sample))}: set data.token_column"
            )
        return sample[self.token_column]
