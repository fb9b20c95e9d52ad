"""Arrow IPC files of another writer: Polars pads, aligns and types them in its own way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from source_contract import rows

from arrowds.sources import open_source
from arrowds.sources.arrow_ipc import IpcFile

FRAME = pl.DataFrame(
    {
        "tokens": [list(range(number % 7)) for number in range(3000)],
        "text": [None if number % 11 == 0 else f"sample {number}, longer than a view" for number in range(3000)],
        "x": [number / 7 for number in range(3000)],
    }
)


@pytest.mark.parametrize("compat_level", [pl.CompatLevel.newest(), pl.CompatLevel.oldest()])
@pytest.mark.parametrize("compression", ["uncompressed", "lz4", "zstd"])
@pytest.mark.parametrize("write", ["write_ipc", "write_ipc_stream"])
def test_files_of_polars_are_read(tmp_path: Path, write: str, compression: Any, compat_level: Any) -> None:
    path = tmp_path / "p.arrow"
    getattr(FRAME, write)(path, compression=compression, compat_level=compat_level)
    source = open_source(path)
    assert rows(source, 0, len(source)) == FRAME.to_dicts()
    assert rows(source, 2990, 2995, ["x"]) == FRAME[2990:2995].select("x").to_dicts()
    assert IpcFile.open(path).splittable == (compression == "uncompressed")


def test_file_of_one_small_column(tmp_path: Path) -> None:
    pl.DataFrame({"x": [1, 2, 3]}).write_ipc(tmp_path / "p.arrow")
    assert rows(open_source(tmp_path / "p.arrow"), 0, 3) == [{"x": 1}, {"x": 2}, {"x": 3}]
