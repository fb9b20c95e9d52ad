"""What lies in the folder of an index, to compare one with another byte by byte."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

import arrowds
from arrowds.index.manifest import Column


@contextmanager
def memory_folder() -> Iterator[Path]:
    """A new folder in memory, where there is such a place: syncing to disk takes no time there."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same(folder: Path, expected: Path) -> None:
    """Two indexes are the same, byte by byte, and nothing else lies beside them."""
    left, right = contents(folder), contents(expected)
    assert sorted(left) == sorted(right)
    assert [name for name in left if left[name] != right[name]] == []


def digests(index: arrowds.Index) -> list[dict[str, Any]]:
    """The digests of all files of each segment, by column; equal for equal bytes whatever the files are called."""
    return [
        {
            "rows": segment.num_samples,
            "columns": {name: _digests_of(column) for name, column in segment.columns.items()},
            "totals": {name: (total.type, total.shape, total.file) for name, total in segment.totals.items()},
        }
        for segment in index.manifest.segments
    ]


def _digests_of(column: Column) -> dict[str, Any]:
    content: dict[str, Any] = column.model_dump(exclude={"key"})
    return content


def leftovers(folder: Path) -> list[str]:
    """What an index of one snapshot has beside the files that it names, the marks of old versions and its views."""
    index = arrowds.open_index(folder)
    expected = {*index.manifest.files, f"manifests/{index.version:08d}.json"}
    marks = {f"manifests/{version:08d}.json" for version in range(1, index.version)}
    views = {f"{index[name].spec.metric}-{index[name].spec.key}" for name in index}
    return [
        name
        for name in sorted(contents(folder))
        if name not in expected
        and not (name in marks and b'"vacuumed":true' in (folder / name).read_bytes())
        and not (name.startswith("views/") and name.split("/")[1] in views)
    ]


def addresses(array: pa.Array) -> set[int]:
    return {buffer.address for buffer in array.buffers() if buffer is not None}
