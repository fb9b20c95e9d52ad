"""What an interrupted build has left: its plan, runs, values, sums, reports, and the files that are finished."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import pyarrow.parquet as pq

import arrowds
from arrowds.build.shards import map_shard, reduce_build
from fuzzed.damage import as_json, damaged, mutated
from fuzzed.indexes import METRICS, rows

_STAGES = ("plan_columns", "commit")
"""Before which step of a build it was interrupted."""


def builds(*, in_shards: bool) -> Callable[[Path], Callable[[random.Random], None]]:
    """Return what prepares to damage unfinished builds: then they are finished by one call, or shard by shard."""

    def prepare(folder: Path) -> Callable[[random.Random], None]:
        data = folder / "data.parquet"
        pq.write_table(rows(0, 2500), data, row_group_size=600)
        whole = _analyzed(data, folder / "whole")
        expected = (whole.path / "manifests" / "00000001.json").read_bytes()
        for stage in _STAGES:
            with patch(f"arrowds.build.api.{stage}", side_effect=InterruptedError), suppress(InterruptedError):
                _analyzed(data, folder / stage)
        root = folder / "index"

        def read(rng: random.Random) -> None:
            shutil.rmtree(root, ignore_errors=True)
            shutil.copytree(folder / rng.choice(_STAGES), root)
            files = sorted(path for path in root.rglob("*") if path.is_file())
            for path in rng.sample(files, rng.choice([1, 1, 3])):
                _damage(path, files, rng)
            if in_shards:
                if rng.random() < 0.5:
                    for _ in range(2):  # metrics that need totals are measured by the second round
                        map_shard(root, 1, 1, workers=1, progress=False)
                index = reduce_build(root, workers=1)
                assert index is not None, "one shard of one has not committed"
            else:
                index = _analyzed(data, root)
            assert index.verify() is None
            assert (root / "manifests" / "00000001.json").read_bytes() == expected, "another index came out"

        return read

    return prepare


def _analyzed(data: Path, path: Path) -> arrowds.Index:
    return arrowds.analyze(data, METRICS, path, workers=1, progress=False)


def _damage(path: Path, files: list[Path], rng: random.Random) -> None:
    whole = path.read_bytes()
    match rng.randrange(12):
        case 0:
            path.unlink()
        case 1:
            path.write_bytes(b"")
        case 2:
            others = [file for file in files if file.suffix == path.suffix and file.exists()]
            path.write_bytes(rng.choice(others).read_bytes())
        case _ if path.suffix == ".json" and rng.random() < 0.7:
            path.write_bytes(as_json(mutated(json.loads(whole), rng), rng))
        case _:
            path.write_bytes(damaged(whole, rng))


READERS = {"unfinished build": builds(in_shards=False), "unfinished build, in shards": builds(in_shards=True)}
