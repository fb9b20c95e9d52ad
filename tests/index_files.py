"""What lies in the folder of an index, to compare one with another byte by byte."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def data_of(folder: Path, generation: int = 1) -> dict[str, bytes]:
    """Every file of one generation but the manifest, whose paths tell the generation."""
    data = folder if generation == 1 else folder / f"generation-{generation:05d}"
    return {name: content for name, content in contents(data).items() if name != "manifest.json"}


def assert_same(folder: Path, expected: Path) -> None:
    """Two indexes are the same, byte by byte, and nothing else lies beside them."""
    left, right = contents(folder), contents(expected)
    assert sorted(left) == sorted(right)
    assert [name for name in left if left[name] != right[name]] == []


def addresses(array: pa.Array) -> set[int]:
    return {buffer.address for buffer in array.buffers() if buffer is not None}
