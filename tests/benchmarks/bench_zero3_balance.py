"""Tokens per second of a small decoder under DeepSpeed ZeRO-3 on two ranks: steps divided by tokens, and by cost.

python tests/benchmarks/bench_zero3_balance.py [--steps 12]

The model is trained on packed documents, each of which attends to itself alone, on the CPU with gloo. Lengths are 97 %
lognormal(4.4, 1) and 3 % lognormal(7.7, 0.9), those of bench_balance.py an eighth as long, cut at 16,384 tokens, which
is the budget of a microbatch; two microbatches for each rank and step.
Both divisions are of one sampler each, over the same lengths, and take turns in one run: a step
of one, a step of the other. A step ends when the slower rank has ended it. Each rank computes in one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "curriculum"))

BUDGET, VOCAB, HIDDEN, LAYERS, HEADS = 16_384, 256, 64, 2, 4
ACCUMULATION = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.folder:
        train(given.steps, Path(given.folder))
        return
    with tempfile.TemporaryDirectory() as folder:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        run = subprocess.run(
            [*launcher, __file__, "--steps", str(given.steps), "--folder", folder],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        if run.returncode:
            raise SystemExit(run.stderr[-3000:])
        report(json.loads((Path(folder) / "found.json").read_text()))


def report(found: dict[str, list[dict[str, float]]]) -> None:
    print(f"{'divided by':12} {'tokens/s':>9} {'step [s]':>9} {'tokens a step':>14} {'cost, max/mean':>15}")
    speed = {}
    for name, steps in found.items():
        speed[name] = sum(step["tokens"] for step in steps) / sum(step["seconds"] for step in steps)
        row = [statistics.median(step[key] for step in steps) for key in ("seconds", "tokens", "balance")]
        print(f"{name:12} {speed[name]:9.0f} {row[0]:9.2f} {row[1]:14.0f} {row[2]:15.3f}")
    pairs = zip(found["tokens"], found["cost"], strict=True)
    gains = [(cost["tokens"] / cost["seconds"]) / (tokens["tokens"] / tokens["seconds"]) for tokens, cost in pairs]
    print(
        f"by cost, {speed['cost'] / speed['tokens']:.2f} times the tokens per second; of neighbouring steps, in the "
        f"median {statistics.median(gains):.2f}"
    )


def train(steps: int, folder: Path) -> None:
    """One rank."""
    import deepspeed
    import torch
    from deepspeed.utils import logger
    from memory_index import MemoryIndex

    import arrowds

    logger.setLevel("ERROR")
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    rank = torch.distributed.get_rank()
    random = np.random.default_rng(0)
    samples = 100 * 2 * ACCUMULATION * (steps + 4)
    long = random.random(samples) < 0.03
    lengths = np.where(long, random.lognormal(7.7, 0.9, samples), random.lognormal(4.4, 1, samples))
    lengths = np.clip(lengths, 2, BUDGET).astype(np.int64)
    texts = [random.integers(0, VOCAB, length) for length in lengths]
    options = {"max_tokens": BUDGET, "rank": rank, "world_size": 2, "gradient_accumulation_steps": ACCUMULATION}
    cost = arrowds.cost.transformer(layers=LAYERS, hidden=HIDDEN, vocab=VOCAB)
    index = MemoryIndex(seqlen=lengths)
    samplers = {
        "tokens": arrowds.CurriculumSampler(index, {}, **options),
        "cost": arrowds.CurriculumSampler(index, {}, cost=cost, **options),
    }
    torch.manual_seed(0)
    engine = new_engine()
    found: dict[str, list[dict[str, float]]] = {name: [] for name in samplers}
    streams = {name: iter(sampler) for name, sampler in samplers.items()}
    for step in range(1, steps + 2):
        for name, sampler in samplers.items():
            torch.distributed.barrier()
            began = time.perf_counter()
            for _ in range(ACCUMULATION):
                ids = next(streams[name])
                tokens = torch.from_numpy(np.concatenate([texts[sample] for sample in ids]))
                engine.backward(engine(tokens, lengths[ids].tolist()))
                engine.step()
            torch.distributed.barrier()
            everyone = sampler.global_batch_at(step)
            _, place = sampler._places_at(step)
            work = np.bincount(place, cost(lengths[everyone]), minlength=2)
            if step > 1:  # the first one warms up
                found[name].append(
                    {
                        "seconds": time.perf_counter() - began,
                        "tokens": float(lengths[everyone].sum()),
                        "balance": float(work.max() / work.mean()),
                    }
                )
    if rank == 0:
        (folder / "found.json").write_text(json.dumps(found))


def new_engine():  # an engine of DeepSpeed, which has no types
    """A decoder under ZeRO-3."""
    import deepspeed
    import torch
    from torch import nn
    from torch.nn import functional

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)])
            self.qkv, self.out = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
            self.feed_forward = nn.Sequential(nn.Linear(HIDDEN, 4 * HIDDEN), nn.GELU(), nn.Linear(4 * HIDDEN, HIDDEN))

        def forward(self, hidden: torch.Tensor, lengths: list[int]) -> torch.Tensor:
            projected = self.qkv(self.norms[0](hidden)).view(-1, 3, HEADS, HIDDEN // HEADS)
            attended = []
            for document in projected.split(lengths):  # packed documents attend to themselves alone
                query, key, value = document.permute(1, 2, 0, 3).unsqueeze(1)
                mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
                attended.append(mixed[0].transpose(0, 1).reshape(-1, HIDDEN))
            hidden = hidden + self.out(torch.cat(attended))
            return hidden + self.feed_forward(self.norms[1](hidden))

    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(VOCAB, HIDDEN), nn.Linear(HIDDEN, VOCAB)
            self.blocks = nn.ModuleList([Block() for _ in range(LAYERS)])

        def forward(self, tokens: torch.Tensor, lengths: list[int]) -> torch.Tensor:
            hidden = self.embedding(tokens)
            for block in self.blocks:
                hidden = block(hidden, lengths)
            return functional.cross_entropy(self.head(hidden)[:-1], tokens[1:])

    model = Decoder()
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": ACCUMULATION,
        "zero_optimization": {"stage": 3},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": False},
    }
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3), config=config, dist_init_required=False
    )
    return engine


if __name__ == "__main__":
    main()
