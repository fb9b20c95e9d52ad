"""Mixtures of many groups: the first batch, the size of the state, and what a batch costs beside a plain shuffle's.

python tests/benchmarks/bench_mixture.py [--samples 1000000] [--groups 10000] [--batch 256]

Groups are the values of a metric; lengths are lognormal(6, 1), cut at 8192. The peer is a CurriculumSampler without a
curriculum, and a loader that pads each batch of it into one array of token ids.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "curriculum"))

from memory_index import MemoryIndex

import arrowds

LONGEST = 8192


def seconds_a_batch(batches: Any, count: int) -> float:
    """Seconds of a batch, over some after the first ones."""
    stream = iter(batches)
    for _ in islice(stream, 5):
        pass
    start = time.perf_counter()
    drawn = sum(1 for _ in islice(stream, count))
    return (time.perf_counter() - start) / drawn


class Tokens(torch.utils.data.Dataset):
    """Samples of given lengths."""

    def __init__(self, lengths: np.ndarray) -> None:
        self.lengths, self.tokens = lengths, torch.arange(LONGEST)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, sample: int) -> torch.Tensor:
        return self.tokens[: self.lengths[sample]]


def padded(samples: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence(samples, batch_first=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--groups", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=256)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    lengths = np.minimum(random.lognormal(6, 1, arguments.samples) + 1, LONGEST).astype(np.int64)
    site = random.permutation(np.arange(arguments.samples) % arguments.groups)
    index = MemoryIndex(seqlen=lengths, site=site)
    weights = dict(zip(map(str, range(arguments.groups)), random.dirichlet(np.ones(arguments.groups)), strict=True))
    dataset = Tokens(lengths)

    def plain() -> arrowds.CurriculumSampler:
        return arrowds.CurriculumSampler(index, {}, micro_batch_size=arguments.batch)

    batches = min(500, arguments.samples // arguments.batch - 10)
    shuffle = seconds_a_batch(plain(), batches)
    loading = seconds_a_batch(arrowds.CurriculumDataLoader(dataset, plain(), collate_fn=padded), 50)
    print(f"plain shuffle: {shuffle * 1e6:.0f} us a batch, a loader's batch {loading * 1e3:.2f} ms")
    for unit in ("samples", "tokens"):

        def mixture(unit: Any = unit) -> arrowds.MixtureSampler:
            return arrowds.MixtureSampler(index, weights, groups="site", unit=unit, micro_batch_size=arguments.batch)

        start = time.perf_counter()
        sampler = mixture()
        made = time.perf_counter()
        next(iter(sampler))
        first = time.perf_counter() - made
        state = len(json.dumps(sampler.state_dict()))
        each = seconds_a_batch(mixture(), batches)
        start_of_last = time.perf_counter()
        sampler.global_batch_at(batches)
        last = time.perf_counter() - start_of_last
        changed = time.perf_counter()
        sampler.set_weights(sampler.step + 1, dict.fromkeys(weights, 1.0))
        next(iter(sampler))
        changed = time.perf_counter() - changed
        print(
            f"{arguments.groups} groups, shares of {unit}: made in {(made - start) * 1e3:.0f} ms, first batch "
            f"{first * 1e3:.0f} ms, state {state} bytes, {each * 1e6:.0f} us a batch "
            f"({(each - shuffle) / loading:+.1%} of a loader's batch), step {batches} at once "
            f"{last * 1e3:.0f} ms, new weights and a batch {changed * 1e3:.0f} ms"
        )


if __name__ == "__main__":
    main()
