"""Mix groups of samples, change their shares during the run, and ask why a step was as it was.

The corpus consists of classes, functions and docstrings of Python's standard library. At first most bytes come from
docstrings; from the middle of the run on most come from functions. The run records what it consumes, with the loss of
each sample.

    python docs/examples/mixture.py --steps 40 --step 25
"""

from __future__ import annotations

import argparse
import ast
import shutil
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import torch
from torch.nn import functional

import arrowds
from arrowds.curriculum.trace import read_records, why

MODULES = ("argparse", "ast", "cmd", "csv", "difflib", "enum", "inspect", "optparse", "pathlib", "pdb", "typing")
FIRST = {"class": 1, "docstring": 8, "function": 1}
THEN = {"class": 1, "docstring": 1, "function": 8}


def parts_of(path: Path) -> Iterator[dict[str, str]]:
    """Yield the classes, functions and docstrings of a module."""
    text = path.read_text("utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old modules
        tree = ast.parse(text)
    lines = text.splitlines()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            place = f"{path.name}:{node.lineno}"
            yield {"place": place, "kind": kind, "text": "\n".join(lines[node.lineno - 1 : node.end_lineno])}
            if docstring := ast.get_docstring(node):
                yield {"place": place, "kind": "docstring", "text": docstring}


class Bigrams(torch.nn.Module):
    """A model that predicts a byte from the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = torch.nn.Embedding(256, 256)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a sample, in nats per byte."""
        return functional.cross_entropy(self.scores(ids[:-1]), ids[1:])


def main() -> None:
    """Train with weights that change in the middle, then look at the record of the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--step", type=int, default=20, help="the step to ask about")
    parser.add_argument("--folder", type=Path, default=Path("arrowds-examples/mixture"))
    arguments = parser.parse_args()

    arguments.folder.mkdir(parents=True, exist_ok=True)
    data, record = arguments.folder / "corpus.parquet", arguments.folder / "record"
    shutil.rmtree(record, ignore_errors=True)  # of the last run of this program
    library = Path(sysconfig.get_path("stdlib"))
    files = [library / f"{module}.py" for module in MODULES if (library / f"{module}.py").exists()]
    rows = pl.DataFrame([row for path in files for row in parts_of(path)])
    rows.filter(pl.col("text").str.len_bytes() > 1).write_parquet(data)

    corpus = arrowds.sources.TokenizedSource(arrowds.sources.open_source(data), tokenizer="bytes")
    measures = [arrowds.metrics.seqlen(), arrowds.metrics.column("kind")]
    index = arrowds.analyze(corpus, measures, arguments.folder / "index", overwrite=True, progress=False)
    sampler = arrowds.MixtureSampler(
        index, FIRST, groups="kind", unit="tokens", micro_batch_size=16, num_epochs=10, record=record
    )
    dataset = arrowds.ArrowDataset(corpus, columns=["input_ids"])
    loader = arrowds.CurriculumDataLoader(dataset, sampler, collate_fn=list)

    torch.manual_seed(0)
    model = Bigrams()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    middle = arguments.steps // 2
    for step, batch in zip(range(1, arguments.steps + 1), loader, strict=False):
        losses = torch.stack([model(sample["input_ids"].long()) for sample in batch])
        losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        loader.record_losses(losses)
        if step == middle:
            loader.set_weights(step + 1, THEN)  # from a step that the loop has not had yet
    loader.state_dict()  # writes the record up to here, as every checkpoint does

    half = pl.when(pl.col("step") <= middle).then(pl.lit("first")).otherwise(pl.lit("second"))
    seen = pl.DataFrame(read_records(record)).with_columns(pl.col("sample_id").cast(pl.Int64), half=half)
    measured = index.scan().with_columns(pl.col("sample_id").cast(pl.Int64), pl.col("kind").cast(pl.String)).collect()
    shares = (
        seen.join(measured, on="sample_id")
        .group_by("half", "kind")
        .agg(pl.col("seqlen").sum(), pl.col("loss").mean())
        .with_columns(share=pl.col("seqlen") / pl.col("seqlen").sum().over("half"))
        .sort("half", "kind")
    )
    for name, kind, share, loss in shares.select("half", "kind", "share", "loss").iter_rows():
        print(f"{name:6} half, {kind:9}: {share:6.1%} of the bytes, mean loss {loss:.3f}")

    print(f"\nwhy step {arguments.step} was as it was: the samples with the largest losses")
    found = why(record, [arguments.step], columns=["place", "text"]).sort("loss", descending=True)
    for row in found.head(5).iter_rows(named=True):
        text = " ".join(row["text"].split())[:70]
        print(f"loss {row['loss']:.3f}, {row['kind']}, {row['seqlen']} bytes, {row['place']}: {text}")


if __name__ == "__main__":
    main()
