"""Train on two ranks with batches of tokens that are equal work.

Attention costs more per token in long samples, so ranks with the same tokens need not have the same work, and all wait
for the slowest. The program starts itself on some ranks (torchrun, gloo), trains a small model there, and prints how
unequal their work is: the costliest rank over the mean, of the steps that it trains and of the same data divided by
tokens alone.

    python docs/examples/equal_work.py --ranks 2 --max-tokens 4096
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.distributed as dist

import arrowds
from arrowds.pipeline.byte_model import make_byte_model

WIDTH = 32
COST = arrowds.cost.transformer(layers=1, hidden=WIDTH, vocab=256)


def write_corpus(path: Path) -> None:
    """Write a row for each top-level part of some packages of the standard library, from a line to a long class."""
    library = Path(sysconfig.get_path("stdlib"))
    packages = [library / name for name in ("asyncio", "email", "http", "json", "multiprocessing")]
    files = [file for package in packages for file in sorted(package.glob("*.py"))]
    texts = [part.strip("\n") for file in files for part in file.read_text("utf-8").split("\n\n\n")]
    pl.DataFrame({"text": [text for text in texts if text.strip()]}).write_parquet(path)


def open_corpus(folder: Path) -> arrowds.sources.TokenizedSource:
    """Return the corpus with the bytes of each text as token ids."""
    return arrowds.sources.TokenizedSource(arrowds.sources.open_source(folder / "corpus.parquet"), tokenizer="bytes")


def largest_share(sampler: arrowds.CurriculumSampler, step: int) -> float:
    """Return the work of the costliest rank over the mean, whatever the sampler divides a step by."""
    drawn = sampler.trace(step)
    costs = COST(drawn["seqlen"].to_numpy())
    work = np.bincount(drawn["rank"].to_numpy(), weights=costs, minlength=dist.get_world_size())
    return float(work.max() / work.mean())


def unpadded(samples: list[dict[str, Any]]) -> list[torch.Tensor]:
    """Return the token ids of each sample: documents that are packed together attend to themselves alone."""
    return [sample["input_ids"].long() for sample in samples]


def train(arguments: argparse.Namespace) -> None:
    """Train on this rank."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    index = arrowds.open_index(arguments.folder / "index")
    make_sampler = partial(
        arrowds.CurriculumSampler,
        index,
        {},
        max_tokens=arguments.max_tokens,
        where=pl.col("seqlen") <= arguments.max_tokens // 2,
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        gradient_accumulation_steps=arguments.accumulation,
        num_epochs=10,
    )
    sampler, by_tokens = make_sampler(cost=COST), make_sampler()
    dataset = arrowds.ArrowDataset(open_corpus(arguments.folder), columns=["input_ids"])
    loader = iter(arrowds.CurriculumDataLoader(dataset, sampler, collate_fn=unpadded))
    model = make_byte_model(width=WIDTH, layers=1, heads=2, max_length=arguments.max_tokens)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    unequal = []
    for step in range(1, arguments.steps + 1):
        total = torch.zeros(2)  # the sum of the losses of all predicted tokens, and their number
        for _ in range(arguments.accumulation):
            for ids in (ids for ids in next(loader) if len(ids) > 1):
                loss = model(input_ids=ids[None], labels=ids[None]) * (len(ids) - 1)
                loss.backward()
                total += torch.tensor([loss.item(), len(ids) - 1])
        dist.all_reduce(total)
        for parameter in model.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= total[1]
        optimizer.step()
        optimizer.zero_grad()

        if dist.get_rank() == 0:
            unequal.append((largest_share(sampler, step), largest_share(by_tokens, step)))
            shown = "costliest rank / mean {:.4f}, by tokens {:.4f}".format(*unequal[-1])
            print(f"step {step}: loss {float(total[0] / total[1]):.3f}, {shown}")
    if dist.get_rank() == 0:
        print("mean of all steps: by cost {:.4f}, by tokens {:.4f}".format(*np.mean(unequal, axis=0)))
    dist.destroy_process_group()


def main() -> None:
    """Write and index the corpus, then start the ranks; on a rank, train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--accumulation", type=int, default=4, help="microbatches of a rank in a step")
    parser.add_argument("--max-tokens", type=int, default=4096)
    parser.add_argument("--folder", type=Path, default=Path("arrowds-examples/equal-work"))
    arguments = parser.parse_args()

    if "RANK" in os.environ:
        train(arguments)
        return
    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_corpus(arguments.folder / "corpus.parquet")
    corpus, folder = open_corpus(arguments.folder), arguments.folder / "index"
    arrowds.analyze(corpus, arrowds.metrics.seqlen(), folder, overwrite=True, progress=False)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={arguments.ranks}"]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    sys.exit(subprocess.run([*torchrun, *sys.argv], env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
