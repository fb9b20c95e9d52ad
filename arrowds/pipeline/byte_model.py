"""A small transformer over bytes, for demos and for trying a configuration: trains on a laptop's CPU in seconds."""

from __future__ import annotations

from functools import cache
from typing import Any

from arrowds.errors import ConfigError, MissingExtraError

VOCABULARY = 256
IGNORED = -100


def make_byte_model(*, width: int = 64, layers: int = 2, heads: int = 4, max_length: int = 512) -> Any:
    """Return a causal transformer over bytes; ``model(input_ids=..., labels=...)`` is the mean cross entropy in nats.

    ``input_ids`` and ``labels`` are int64 tensors of (rows, length up to ``max_length``); labels of -100 are ignored.
    Rows are padded on the right, so a causal model needs no mask.

    Raises:
        ConfigError: when ``heads`` does not divide ``width``.
        MissingExtraError: when torch is not installed.

    >>> import torch
    >>> ids = torch.randint(256, (2, 9))
    >>> make_byte_model(width=8, layers=1, heads=2)(input_ids=ids, labels=ids).shape
    torch.Size([])
    """
    if width % heads:
        raise ConfigError(f"heads={heads} does not divide width={width}; choose a width that is a multiple")
    return _model_class()(width, layers, heads, max_length)


@cache
def _model_class() -> Any:
    """Return the model's class, defined when torch is first needed."""
    try:
        import torch
        from torch import nn
        from torch.nn import functional
    except ImportError as error:
        raise MissingExtraError("torch", "torch") from error

    class Block(nn.Module):
        """Attention to what came before, then a feed-forward layer."""

        def __init__(self, width: int, heads: int) -> None:
            super().__init__()
            self.heads = heads
            self.before_attention, self.before_feed_forward = nn.LayerNorm(width), nn.LayerNorm(width)
            self.queries_keys_values, self.attended = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.feed_forward = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            rows, length, width = x.shape
            split = self.queries_keys_values(self.before_attention(x)).view(rows, length, 3, self.heads, -1)
            query, key, value = split.permute(2, 0, 3, 1, 4)
            seen = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            x = x + self.attended(seen.transpose(1, 2).reshape(rows, length, width))
            fed: torch.Tensor = self.feed_forward(self.before_feed_forward(x))
            return x + fed

    class ByteModel(nn.Module):
        """Embedding, blocks, and a prediction of the next byte."""

        def __init__(self, width: int, layers: int, heads: int, max_length: int) -> None:
            super().__init__()
            self.max_length = max_length
            self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(max_length, width)
            self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
            self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

        def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, **_: Any) -> torch.Tensor:
            length = input_ids.shape[1]
            if length > self.max_length:
                raise ConfigError(
                    f"a sample has {length} tokens but the model supports {self.max_length}: set batches.max_length, "
                    "or the model's max_length"
                )
            places = torch.arange(length, device=input_ids.device)
            x = self.blocks(self.tokens(input_ids) + self.positions(places))
            predicted = self.head(self.norm(x))[:, :-1].flatten(0, 1)
            return functional.cross_entropy(predicted, labels[:, 1:].flatten(), ignore_index=IGNORED)

    return ByteModel
