"""How a global batch is divided: into microbatches, and each of them among ranks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from arrowds.errors import ConfigError
from arrowds.states import LARGEST_COUNT

LARGEST_SEED = (1 << 63) - 1
Int64 = npt.NDArray[np.int64]


def whole_number(name: str, value: Any, *, least: int, most: int = LARGEST_COUNT) -> int:
    """Return an argument after checking that it is an integer within bounds.

    Raises:
        ConfigError: when it is not.

    >>> whole_number("num_epochs", 0.5, least=1)
    Traceback (most recent call last):
    arrowds.errors.ConfigError: num_epochs=0.5: expected an integer of at least 1
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ConfigError(f"{name}={value!r:.60}: expected an integer of at least {least}")
    if value > most:
        raise ConfigError(f"{name}={value!r:.60}: expected an integer of at most {most}")
    return int(value)


@dataclass(frozen=True, kw_only=True, slots=True)
class RankLayout:
    """Batch sizes and one rank's place.

    Raises:
        ConfigError: when a size is not a positive integer or the rank does not exist.

    >>> layout = RankLayout(micro_batch_size=2, rank=1, world_size=2, gradient_accumulation_steps=3)
    >>> layout.global_batch_size, layout.mine(4), layout.mine(3)
    (12, (2, 4), (2, 3))
    """

    micro_batch_size: int
    rank: int = 0
    world_size: int = 1
    gradient_accumulation_steps: int = 1

    def __post_init__(self) -> None:
        for name in ("micro_batch_size", "world_size", "gradient_accumulation_steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise ConfigError(f"{name} must be a positive integer, got {value!r}")
        if isinstance(self.rank, bool) or not isinstance(self.rank, (int, np.integer)):
            raise ConfigError(f"rank must be an integer, got {self.rank!r}")
        if not 0 <= self.rank < self.world_size:
            raise ConfigError(f"rank must lie in [0, world_size={self.world_size}), got {self.rank}")

    @property
    def micro_samples(self) -> int:
        """Samples of one microbatch over all ranks."""
        return self.micro_batch_size * self.world_size

    @property
    def global_batch_size(self) -> int:
        """Samples per global step."""
        return self.micro_samples * self.gradient_accumulation_steps

    def mine(self, count: int) -> tuple[int, int]:
        """Return which part of a microbatch of ``count`` samples this rank gets, rounded as DeepSpeed does."""
        if count == self.micro_samples:
            return self.rank * self.micro_batch_size, (self.rank + 1) * self.micro_batch_size
        return round(self.rank * count / self.world_size), round((self.rank + 1) * count / self.world_size)

    def handed_out(self, samples: int) -> int:
        """Return how many of the last samples of a run the ranks get: without a microbatch too short to serve each.

        >>> layout = RankLayout(micro_batch_size=2, world_size=4)
        >>> layout.global_batch_size, [layout.handed_out(samples) for samples in (16, 19, 20)]
        (8, [16, 16, 20])
        """
        rest = samples % self.micro_samples
        return samples - rest if rest < self.world_size else samples

    def places(self, count: int) -> tuple[Int64, Int64]:
        """Return the microbatch and the rank of each of the first ``count`` samples of a global batch."""
        micro = np.arange(count) // self.micro_samples
        rank = np.arange(count) % self.micro_samples // self.micro_batch_size
        if rest := count % self.micro_samples:
            bounds = [round(r * rest / self.world_size) for r in range(1, self.world_size)]
            rank[count - rest :] = np.searchsorted(bounds, np.arange(rest), side="right")
        return micro, rank
