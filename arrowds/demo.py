"""A whole run on real text: every function and class of the Python standard library on this machine, indexed."""

from __future__ import annotations

import ast
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa

from arrowds import metrics
from arrowds.build.api import analyze
from arrowds.errors import IndexExistsError, SourceError
from arrowds.index import Index

_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
_TOKEN = r"\w+|[^\w\s]"
_SCHEMA = {"module": pl.String, "name": pl.String, "kind": pl.String, "line": pl.UInt32, "text": pl.String}


@dataclass(frozen=True, kw_only=True, slots=True)
class Demo:
    """What a run left: the data, one row per function or class, and the index of it."""

    data: Path
    index: Index

    @property
    def query(self) -> str:
        """SQL for the ten functions with the rarest words; it joins the index with the rows of the data."""
        return """\
select module, name, line, tokens, round(vocab_rarity / tokens, 2) as nats_per_token
from samples join data using (sample_id)
where kind = 'function' and tokens >= 100
order by vocab_rarity / tokens desc, sample_id
limit 10"""


def run_demo(folder: Path, *, library: Path | None = None) -> Demo:
    """Write ``functions.parquet`` and the index of it into ``folder``; an earlier demo there is replaced.

    Args:
        folder: created if missing.
        library: the folder of Python files to read; by default the standard library of this Python.

    Raises:
        IndexExistsError: when the folder holds something else.
        SourceError: when there is no Python file to read.
    """
    data = folder / "functions.parquet"
    if folder.exists() and not data.exists() and (folder.is_file() or any(folder.iterdir())):
        raise IndexExistsError(f"{folder} is not empty and is not a demo; choose a new folder with --keep DIR")
    frame = read_functions(library or Path(sysconfig.get_path("stdlib")))
    folder.mkdir(parents=True, exist_ok=True)
    frame.write_parquet(data)
    wanted = [
        metrics.expr("bytes", pl.col("text").str.len_bytes()),
        metrics.seqlen("input_ids", name="tokens"),
        metrics.vocab_rarity("input_ids"),
        metrics.text.compression_ratio(codec="zlib"),
        metrics.token_counts("input_ids"),
    ]
    return Demo(data=data, index=analyze(data, wanted, folder / "index", overwrite=True))


def read_functions(library: Path) -> pl.DataFrame:
    """Return a row per function and class below ``library``: module, name, kind, line, text, input_ids.

    A token is a word or a punctuation mark; its id is the place of its first occurrence.

    Raises:
        SourceError: when there is none.
    """
    rows = [row for path in sorted(library.rglob("*.py")) for row in _functions_of(library, path)]
    if not rows:
        raise SourceError(f"there are no Python source files in {library}; run the demo with another Python")
    frame = pl.DataFrame(rows, schema=_SCHEMA, orient="row")
    return frame.with_columns(pl.Series("input_ids", _token_ids(frame["text"])))


def _functions_of(library: Path, path: Path) -> Iterator[tuple[str, str, str, int, str]]:
    """Yield the functions and classes of one file; nothing for a file that this Python can't parse."""
    relative = path.relative_to(library)
    if _SKIPPED.intersection(relative.parts):
        return
    try:
        with tokenize.open(path) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old files may have invalid escapes, which is nobody's concern here
            text = file.read()
            tree = ast.parse(text)
    except (SyntaxError, UnicodeDecodeError, OSError):
        return
    module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
    lines = text.splitlines(keepends=True)
    for name, node in _definitions(tree, ""):
        kind = "class" if isinstance(node, ast.ClassDef) else "function"
        yield module, name, kind, node.lineno, "".join(lines[node.lineno - 1 : node.end_lineno])


_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def _definitions(tree: ast.AST, prefix: str) -> Iterator[tuple[str, _Definition]]:
    """Yield every definition in a tree with its qualified name, from the top down."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, _Definition):
            yield prefix + node.name, node
            yield from _definitions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.stmt | ast.excepthandler):
            yield from _definitions(node, prefix)


def _token_ids(texts: pl.Series) -> pa.Array:
    words = texts.str.extract_all(_TOKEN).to_arrow()
    ids = words.flatten().dictionary_encode().indices
    return pa.LargeListArray.from_arrays(words.offsets, ids)
