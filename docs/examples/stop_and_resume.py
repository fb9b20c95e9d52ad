"""Train a byte-level model with a curriculum, stop it, and resume it exactly.

The corpus consists of the paragraphs of some modules of Python's standard library. The model trains from short
paragraphs to long ones, once in one go and once stopped in the middle; the losses of both runs must be the same to the
last bit.

    python docs/examples/stop_and_resume.py --steps 60
"""

from __future__ import annotations

import argparse
import sys
import sysconfig
from pathlib import Path
from typing import Any

import polars as pl
import torch

import arrowds
from arrowds.pipeline.byte_model import make_byte_model
from arrowds.pipeline.collate import PaddingCollate

MODULES = ("argparse", "ast", "csv", "datetime", "decimal", "difflib", "enum", "inspect", "pathlib", "typing")
MAX_LENGTH = 256


def write_corpus(path: Path) -> None:
    """Write a row for each paragraph: lines of code or text without an empty line between them."""
    library = Path(sysconfig.get_path("stdlib"))
    files = [library / f"{module}.py" for module in MODULES]
    texts = [part.strip("\n") for file in files if file.exists() for part in file.read_text("utf-8").split("\n\n")]
    pl.DataFrame({"text": [text for text in texts if text.strip()]}).write_parquet(path)


def make_loader(folder: Path, batch_size: int) -> arrowds.CurriculumDataLoader:
    """Index the corpus, if it is not indexed yet, and return a loader from short samples to long ones."""
    corpus = arrowds.sources.TokenizedSource(arrowds.sources.open_source(folder / "corpus.parquet"), tokenizer="bytes")
    index = arrowds.analyze(corpus, arrowds.metrics.seqlen(), folder / "index", overwrite=True, progress=False)
    curriculum = {
        "seqlen": {
            "difficulty_type": "value",
            "clustering_type": "schedule_based",
            "min_difficulty": 64,
            "max_difficulty": MAX_LENGTH,
            "schedule_type": "fixed_linear",
            "schedule_config": {"total_curriculum_step": 30, "difficulty_step": 8},
        }
    }
    sampler = arrowds.CurriculumSampler(index, curriculum, micro_batch_size=batch_size, num_epochs=10)
    dataset = arrowds.ArrowDataset(corpus, columns=["input_ids"])
    return arrowds.CurriculumDataLoader(dataset, sampler, collate_fn=PaddingCollate(max_length=MAX_LENGTH))


def train(folder: Path, *, batch_size: int, steps: int, checkpoint: Path | None = None) -> list[float]:
    """Train up to a step and return the losses of all steps; take up a checkpoint if there is one, and leave one."""
    torch.manual_seed(0)
    loader = make_loader(folder, batch_size)
    model = make_byte_model(width=32, layers=1, heads=2, max_length=MAX_LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses: list[float] = []
    if checkpoint is not None and checkpoint.exists():
        saved: dict[str, Any] = torch.load(checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        loader.load_state_dict(saved["loader"])
        losses = saved["losses"]
        print(f"resumed after step {len(losses)}")

    for step, batch in zip(range(len(losses) + 1, steps + 1), loader, strict=False):
        loss = model(**batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % 10 == 0:
            print(f"step {step}: loss {losses[-1]:.4f}, at most {loader.current_difficulties['seqlen']} bytes")

    if checkpoint is not None:
        states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "loader": loader.state_dict()}
        torch.save({**states, "losses": losses}, checkpoint)
    return losses


def main() -> None:
    """Train in one go, then in two halves, and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=Path("arrowds-examples/stop-and-resume"))
    arguments = parser.parse_args()

    arguments.folder.mkdir(parents=True, exist_ok=True)
    write_corpus(arguments.folder / "corpus.parquet")
    checkpoint = arguments.folder / "checkpoint.pt"
    checkpoint.unlink(missing_ok=True)

    print("in one go")
    whole = train(arguments.folder, batch_size=arguments.batch_size, steps=arguments.steps)
    print("stopped in the middle")
    train(arguments.folder, batch_size=arguments.batch_size, steps=arguments.steps // 2, checkpoint=checkpoint)
    parts = train(arguments.folder, batch_size=arguments.batch_size, steps=arguments.steps, checkpoint=checkpoint)
    if whole != parts:
        first = next(step for step, (a, b) in enumerate(zip(whole, parts, strict=True), start=1) if a != b)
        sys.exit(f"the losses differ from step {first} on")
    print(f"the same {len(whole)} losses, to the last bit")


if __name__ == "__main__":
    main()
