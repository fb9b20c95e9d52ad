"""Index a corpus and read its ten hardest samples.

The corpus consists of docstrings of Python's standard library. A sample with rare words is hard: its words carry much
information, in nats per word, by how often each occurs in the corpus.

    python docs/examples/hardest.py --modules json email http
"""

from __future__ import annotations

import argparse
import ast
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

import polars as pl

import arrowds


def python_files(modules: list[str]) -> Iterator[Path]:
    """Yield the source files of modules and packages of the standard library."""
    library = Path(sysconfig.get_path("stdlib"))
    for module in modules:
        yield from sorted((library / module).rglob("*.py")) or [library / f"{module}.py"]


def docstrings(path: Path) -> Iterator[dict[str, str]]:
    """Yield the docstrings of a file and where they are."""
    with tokenize.open(path) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old modules
        tree = ast.parse(file.read())
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                line = getattr(node, "lineno", 1)
                yield {"place": f"{path.parent.name}/{path.name}:{line}", "text": text}


def with_words(data: pl.DataFrame) -> pl.DataFrame:
    """Add ``input_ids``: the words of a text as numbers, each the place of its first occurrence in the corpus."""
    words = data["text"].str.to_lowercase().str.extract_all(r"\w+")
    ids = words.explode().unique(maintain_order=True).drop_nulls()
    numbers = pl.DataFrame({"word": ids, "id": range(len(ids))})
    tokens = pl.DataFrame({"row": range(len(words)), "word": words}).explode("word").join(numbers, on="word")
    lists = tokens.group_by("row").agg(input_ids=pl.col("id")).sort("row")
    rows = data.with_row_index("row").with_columns(pl.col("row").cast(pl.Int64))
    return rows.join(lists, on="row", how="inner", maintain_order="left").drop("row")


def main() -> None:
    """Write the corpus, index it, and print its hardest samples."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", nargs="+", default=["argparse", "asyncio", "email", "http", "json", "unittest"])
    parser.add_argument("--least-words", type=int, default=20, help="leave out shorter samples")
    parser.add_argument("--folder", type=Path, default=Path("arrowds-examples/hardest"))
    arguments = parser.parse_args()

    arguments.folder.mkdir(parents=True, exist_ok=True)
    data = arguments.folder / "docstrings.parquet"
    rows = [row for path in python_files(arguments.modules) for row in docstrings(path)]
    with_words(pl.DataFrame(rows)).write_parquet(data)

    index = arrowds.analyze(
        data,
        [
            arrowds.metrics.seqlen("input_ids", name="words"),
            arrowds.metrics.vocab_rarity("input_ids"),
            arrowds.metrics.text.compression_ratio(),
        ],
        arguments.folder / "index",
        overwrite=True,  # of another corpus, when the modules change
        progress=False,
    )
    print(f"{index.num_samples} samples; median of {index['words'].quantile(0.5)} words")

    hardest = index.sql(
        f"""
        select place, words, round(vocab_rarity / words, 2) as nats_per_word,
               round(compression_ratio, 2) as compression_ratio, text
        from samples join data using (sample_id)
        where words >= {arguments.least_words}
        order by vocab_rarity / words desc, sample_id
        limit 10
        """
    )
    for number, row in enumerate(hardest.iter_rows(named=True), start=1):
        text = " ".join(row["text"].split())
        print(f"{number:2}. {row['nats_per_word']:5.2f} nats per word, {row['words']} words, {row['place']}")
        print(f"    {text[:110]}{'...' if len(text) > 110 else ''}")


if __name__ == "__main__":
    main()
