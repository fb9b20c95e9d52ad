"""What a sample costs to train on: a polynomial of its length, to balance the work of ranks by."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from arrowds.errors import ConfigError


@dataclass(frozen=True, slots=True)
class LengthCost:
    """A cost of ``linear * length + quadratic * length ** 2``, in any unit.

    Raises:
        ConfigError: when a factor is below zero or not a number, or both are zero.

    >>> LengthCost(1, 0.5)(np.array([2, 4])).tolist()
    [4.0, 12.0]
    """

    linear: float
    quadratic: float

    def __post_init__(self) -> None:
        factors = (self.linear, self.quadratic)
        if not all(math.isfinite(factor) and factor >= 0 for factor in factors) or not any(factors):
            raise ConfigError(f"a cost needs two factors >= 0 that are not both zero, got {factors}")

    def __call__(self, lengths: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """Return the cost of samples of these lengths."""
        exact = lengths.astype(np.float64)
        return self.linear * exact + self.quadratic * exact**2


def transformer(
    *,
    layers: int,
    hidden: int,
    ffn: int | None = None,
    ffn_matrices: int = 2,
    kv_hidden: int | None = None,
    vocab: int = 0,
    causal: bool = True,
) -> LengthCost:
    """The floating-point operations of a forward and a backward pass of a decoder over one document.

    A matrix of p parameters takes 2 p operations a token forward and 4 p backward. Attention takes, for each layer, 4
    ``hidden`` operations for each pair of tokens forward and twice that backward; half of the pairs with a causal mask.
    Norms, softmax and activations are left out. Documents that are packed together attend to themselves alone, so each
    is a sample with a cost of its own.

    Args:
        layers: number of layers.
        hidden: width of the model.
        ffn: width of the feed-forward layer; by default 4 ``hidden``.
        ffn_matrices: 2, or 3 for gated feed-forward layers such as SwiGLU.
        kv_hidden: width of keys and of values, heads times their size; by default ``hidden``.
        vocab: size of the vocabulary, for the output layer.
        causal: whether a token attends to those before it only.

    Source: Kaplan et al., "Scaling laws for neural language models", 2020, table 1; Chowdhery et al., "PaLM", 2022,
    appendix B.

    >>> cost = transformer(layers=32, hidden=4096, ffn=14336, ffn_matrices=3, kv_hidden=1024, vocab=128256)
    >>> round(cost.linear / 6e9, 2), round(cost.quadratic / cost.linear * 1e6, 2)
    (7.5, 17.47)
    """
    for name, value in (("layers", layers), ("hidden", hidden), ("ffn_matrices", ffn_matrices)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")
    attention = 2 * hidden**2 + 2 * hidden * (hidden if kv_hidden is None else kv_hidden)
    feed_forward = ffn_matrices * hidden * (4 * hidden if ffn is None else ffn)
    parameters = layers * (attention + feed_forward) + hidden * vocab
    return LengthCost(6.0 * parameters, 12.0 * layers * hidden * (0.5 if causal else 1.0))
