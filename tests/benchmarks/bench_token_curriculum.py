"""Steps of a token-budget curriculum: how fast they are filled, how full, and what a single step costs.

python tests/benchmarks/bench_token_curriculum.py [--samples 1000000] [--large 1000000000]

Lengths are lognormal(6.5, 1), cut at the budget of 16,384 tokens; 8 microbatches a step. The peer is one NumPy pass
over the same lengths in a random order, which is the least that any batching reads. --large takes 6 bytes of disk a
sample; 0 leaves it out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "curriculum"))

from memory_index import MemoryIndex, discrete

from arrowds.curriculum.sampler import CurriculumSampler

BUDGET = 16_384
CURRICULA = {"no curriculum": {}, "three phases": {"seqlen": discrete([512, 2048, BUDGET], [100, 400])}}


class MappedMetric:
    """Values and order in files, as those of an index are; the order is that of the ids, as if it were sorted."""

    def __init__(self, folder: str, samples: int) -> None:
        self.values = np.memmap(f"{folder}/values", np.uint16, "w+", shape=(samples,))
        self.order = np.memmap(f"{folder}/order", np.uint32, "w+", shape=(samples,))
        random = np.random.default_rng(0)
        for start in range(0, samples, 1 << 22):
            block = self.values[start : start + (1 << 22)]
            block[:] = np.minimum(random.lognormal(6.5, 1, len(block)) + 1, BUDGET)
            self.order[start : start + len(block)] = np.arange(start, start + len(block))


class MappedIndex:
    fingerprint = "mapped"
    metrics = ("seqlen",)

    def __init__(self, folder: str, samples: int) -> None:
        self.num_samples = samples
        self._metric = MappedMetric(folder, samples)

    def __getitem__(self, name: str) -> MappedMetric:
        return self._metric


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def fill_all(samples: int) -> None:
    random = np.random.default_rng(0)
    lengths = np.minimum(random.lognormal(6.5, 1, samples).astype(np.int64) + 1, BUDGET)
    shuffled = random.permutation(samples)
    plain = min(seconds(lambda: np.cumsum(lengths[shuffled])) for _ in range(3))
    index = MemoryIndex(seqlen=lengths)
    for name, curriculum in CURRICULA.items():
        sampler = CurriculumSampler(index, curriculum, max_tokens=BUDGET, gradient_accumulation_steps=8)
        taken = seconds(lambda sampler=sampler: sampler.num_steps)
        again = CurriculumSampler(index, curriculum, max_tokens=BUDGET, gradient_accumulation_steps=8)
        iterated = seconds(lambda again=again: [len(ids) for ids in again])
        fill = np.mean([sampler.tokens_at(step).mean() for step in range(1, sampler.num_steps + 1)]) / BUDGET
        print(
            f"{samples:,} samples, {name}: {samples / taken / 1e6:.2f} M samples/s to fill all steps, "
            f"{taken / plain:.0f} times the NumPy pass; "
            f"{samples / iterated / 1e6:.2f} M samples/s iterated; fill {fill:.4f}"
        )


def one_step(samples: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        index = MappedIndex(folder, samples)

        def sampler() -> CurriculumSampler:
            return CurriculumSampler(index, {}, max_tokens=BUDGET, gradient_accumulation_steps=8)

        first = seconds(lambda: next(iter(sampler())))
        used = sampler()
        for step in range(1, 2001):
            used.global_batch_at(step)
        anywhere = np.random.default_rng(1).integers(1, 2001, 200)
        costs = [seconds(lambda step=step: used.global_batch_at(step)) for step in anywhere.tolist()]
        state = used.state_at(1900 * 8)
        resumed = sampler()
        resume = seconds(lambda: (resumed.load_state_dict(state), next(iter(resumed))))
        print(
            f"{samples:,} samples: first batch {first * 1e3:.0f} ms, any step with marks {np.median(costs) * 1e3:.1f} "
            f"ms (at most {max(costs) * 1e3:.1f}), resume with its first batch {resume * 1e3:.0f} ms"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--large", type=int, default=1_000_000_000)
    given = parser.parse_args()
    fill_all(given.samples)
    if given.large:
        one_step(given.large)


if __name__ == "__main__":
    main()
