"""The tables of a run: losses and difficulties, a row per step, kept across interruptions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from arrowds.index.files import read_parquet, write_parquet
from arrowds.store import LocalStore

LOSSES = "losses.parquet"
DIFFICULTIES = "difficulties.parquet"
LOSS_SCHEMA = pa.schema({"step": pa.int64(), "loss": pa.float64(), "lr": pa.float64(), "tokens": pa.int64()})
DIFFICULTY_SCHEMA = pa.schema({"step": pa.int64(), "metric": pa.string(), "difficulty": pa.float64()})


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRow:
    """A step over all ranks: mean loss, learning rate, tokens, and the difficulty of each metric."""

    step: int
    loss: float
    lr: float
    tokens: int
    difficulties: Mapping[str, float]


class RunTables:
    """The tables of a run so far; rows after the checkpoint that it resumes from are dropped, as they are repeated."""

    def __init__(self, folder: Path, *, resumed_from: int) -> None:
        self._folder = folder
        self._losses = [_kept(folder / LOSSES, LOSS_SCHEMA, resumed_from)]
        self._difficulties = [_kept(folder / DIFFICULTIES, DIFFICULTY_SCHEMA, resumed_from)]
        self._rows: list[StepRow] = []

    def add(self, row: StepRow) -> None:
        """Add a step."""
        self._rows.append(row)

    def tables(self) -> tuple[pa.Table, pa.Table]:
        """Return losses and difficulties."""
        if self._rows:
            rows = [
                {name: value for name, value in asdict(row).items() if name in LOSS_SCHEMA.names} for row in self._rows
            ]
            difficulties = [
                {"step": row.step, "metric": metric, "difficulty": float(value)}
                for row in self._rows
                for metric, value in row.difficulties.items()
            ]
            self._losses.append(pa.Table.from_pylist(rows, LOSS_SCHEMA))
            self._difficulties.append(pa.Table.from_pylist(difficulties, DIFFICULTY_SCHEMA))
            self._rows = []
        return pa.concat_tables(self._losses), pa.concat_tables(self._difficulties)

    def write(self) -> None:
        """Write both tables, atomically each."""
        losses, difficulties = self.tables()
        write_parquet(LocalStore(self._folder), LOSSES, losses)
        write_parquet(LocalStore(self._folder), DIFFICULTIES, difficulties)


def _kept(path: Path, schema: pa.Schema, last_step: int) -> pa.Table:
    if not last_step or not path.exists():
        return schema.empty_table()
    table = read_parquet(LocalStore(path.parent), path.name)
    return table.filter(pc.field("step") <= last_step)
