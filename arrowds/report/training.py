"""What a report says of a run: its losses and difficulties by step, and what its record says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from arrowds.curriculum.trace import CONSUMED, INDEX_FILE, read_records
from arrowds.errors import UnreadableFileError
from arrowds.index import Index
from arrowds.index.files import read_parquet
from arrowds.pipeline.config import PipelineConfig
from arrowds.pipeline.results import DIFFICULTIES, LOSSES
from arrowds.report.record import RecordFacts, record_facts, together
from arrowds.store import LocalStore


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """A run as a report shows it.

    Attributes:
        folder: of the run.
        notes: what is missing, and what is to be known of the figures.
        losses: ``step``, ``loss`` (the mean where steps are drawn as one point), ``low``, ``high``, and where they are
            known ``lr`` and ``tokens``; None without losses.
        difficulties: ``step``, ``metric``, ``difficulty``, where one changes; None without any.
        record: what the record of the samples says; None where there is none.
    """

    folder: str
    notes: list[str]
    losses: pl.DataFrame | None
    difficulties: pl.DataFrame | None
    record: RecordFacts | None


def run_facts(
    folder: Path, index: Index, names: Sequence[str], *, config: PipelineConfig | None, extremes: int
) -> RunFacts:
    """Return the facts of a run.

    Args:
        folder: the output of ``arrowds run``, or where a sampler recorded.
        index: the index that it drew from.
        names: the metrics that the report shows.
        config: the configuration of the run, for its groups and its budget of tokens.
        extremes: how many of the samples with the largest losses.

    Raises:
        UnreadableFileError: when the folder has neither losses nor a record, or one that is damaged.
    """
    losses, difficulties = _table(folder / LOSSES), _table(folder / DIFFICULTIES)
    place = folder / CONSUMED if (folder / CONSUMED).is_dir() else folder
    record, notes = None, []
    try:
        records = pl.DataFrame(read_records(place))
    except UnreadableFileError:
        if losses is None or any(place.glob("rank-*.arrows")):
            raise
        notes.append("The samples were not recorded: the section batches of a configuration needs record: true.")
    else:
        notes += _of_another_index(place, index)
        record = record_facts(records, index, names, config=config, extremes=extremes)
        notes += record.notes
        if losses is None and records["loss"].count():
            losses = records.group_by("step").agg(pl.col("loss").cast(pl.Float64).mean()).sort("step")
    return RunFacts(
        folder=str(folder),
        notes=notes,
        losses=None if losses is None or losses.is_empty() else _by_point(losses),
        difficulties=None if difficulties is None or difficulties.is_empty() else _changes(difficulties),
        record=record,
    )


def _table(path: Path) -> pl.DataFrame | None:
    return pl.DataFrame(read_parquet(LocalStore(path.parent), path.name)) if path.exists() else None


def _of_another_index(place: Path, index: Index) -> list[str]:
    """Say where a record is of another index than the report, or of another version of it."""
    path = place / INDEX_FILE
    if not path.exists():
        return []
    named = json.loads(path.read_text(encoding="utf-8"))
    drawn = f"The run drew from version {named['version']} of {named['path']}"
    if not _is_same(str(index.path), named["path"]):
        return [f"{drawn}; what is said of its samples is from the index of this report."]
    return [] if named["version"] == index.version else [f"{drawn}; this report is on version {index.version}."]


def _is_same(path: str, other: str) -> bool:
    return path == other or (Path(path).exists() and Path(other).exists() and Path(path).samefile(other))


def _by_point(losses: pl.DataFrame) -> pl.DataFrame:
    told = [pl.col("loss").mean(), pl.col("loss").min().alias("low"), pl.col("loss").max().alias("high")]
    told += [pl.col(name).mean() for name in ("lr", "tokens") if name in losses.columns]
    return losses.group_by(together(losses)).agg(told).sort("step")


def _changes(difficulties: pl.DataFrame) -> pl.DataFrame:
    """The steps at which a difficulty changes, and the last one."""
    changed = pl.col("difficulty").ne_missing(pl.col("difficulty").shift()) | (pl.col("step") == pl.col("step").max())
    found = difficulties.sort("metric", "step").filter(changed.over("metric"))
    by_point = found.group_by("metric", together(found)).agg(pl.col("difficulty").last())
    return by_point.sort("metric", "step")
