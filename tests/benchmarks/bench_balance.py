"""Work of ranks under a token budget: dealt by tokens alone, and divided by cost; and what the division takes.

python tests/benchmarks/bench_balance.py [--steps 40]

Lengths are 97 % lognormal(6.5, 1) and 3 % lognormal(9.8, 0.9), cut at 131,072 tokens, which is the budget; 4
microbatches for each rank; cost L + 1.85e-5 L^2. The bound is the larger of the mean cost of a rank and of the
costliest sample. Milliseconds are those of dividing one step. Medians and largest values over the steps.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "curriculum"))

from memory_index import MemoryIndex

from arrowds.curriculum.sampler import CurriculumSampler
from arrowds.curriculum.token_budget import balanced

BUDGET = 131_072
COST = (1.0, 1.85e-5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    steps = parser.parse_args().steps
    print("ranks   by tokens: max/mean    fill   by cost: max/mean         max/bound    fill  ms")
    for ranks in (8, 16, 32, 64):
        random = np.random.default_rng(ranks)
        samples = ranks * 4 * BUDGET * (steps + 2) // 1500
        heavy = random.random(samples) < 0.03
        lengths = np.where(heavy, random.lognormal(9.8, 0.9, samples), random.lognormal(6.5, 1, samples))
        lengths = np.clip(lengths, 1, BUDGET).astype(np.int64)
        index = MemoryIndex(seqlen=lengths)
        options = {"max_tokens": BUDGET, "world_size": ranks, "gradient_accumulation_steps": 4}
        plain, priced = CurriculumSampler(index, {}, **options), CurriculumSampler(index, {}, cost=COST, **options)
        ratios, bounds, fills, taken = {"tokens": [], "cost": []}, [], {"tokens": [], "cost": []}, []
        for step in range(1, steps + 1):
            for name, sampler in (("tokens", plain), ("cost", priced)):
                ids = sampler.global_batch_at(step)
                costs = COST[0] * lengths[ids] + COST[1] * lengths[ids].astype(float) ** 2
                _, rank = sampler._places_at(step)
                work = np.bincount(rank, costs, minlength=ranks)
                ratios[name].append(work.max() / work.mean())
                fills[name].append(sampler.tokens_at(step).mean() / BUDGET)
            bounds.append(work.max() / max(work.mean(), costs.max()))
            start = time.perf_counter()
            balanced(lengths[ids], costs, ranks=ranks, microbatches=4, capacity=BUDGET)
            taken.append(time.perf_counter() - start)
        by_tokens, by_cost = ratios["tokens"], ratios["cost"]
        print(
            f"{ranks:>5}  {np.median(by_tokens):>12.3f} ({max(by_tokens):.3f})  {np.mean(fills['tokens']):.4f}  "
            f"{np.median(by_cost):>10.4f} ({max(by_cost):.4f})  {np.median(bounds):.4f} ({max(bounds):.4f})  "
            f"{np.mean(fills['cost']):.4f}  {np.median(taken) * 1e3:.1f}"
        )


if __name__ == "__main__":
    main()
