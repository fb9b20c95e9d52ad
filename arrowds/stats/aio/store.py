"""Results of many runs in one Parquet file: append without duplicates, load."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from arrowds.errors import LogFormatError
from arrowds.index.files import read_parquet, write_parquet
from arrowds.stats.aio.logs import SCHEMA, read_logs
from arrowds.store import LocalStore, one_at_a_time

VERSION = 1
_VERSION_KEY = "arrowds.aio.version"

STORED_SCHEMA = pa.schema([("run_id", pa.string()), ("imported_at", pa.timestamp("us", tz="UTC")), *SCHEMA])


@dataclass(frozen=True, kw_only=True, slots=True)
class Appended:
    """The result of an import: its run id, the number of new rows, the number of logs already stored."""

    run_id: str
    added: int
    duplicates: int


def new_run_id(time: datetime) -> str:
    """Return an identifier that sorts by time and is never given twice.

    >>> new_run_id(datetime(2026, 11, 21, 8, 4, 31, tzinfo=UTC))[:17]
    '20261121T080431Z-'
    """
    return f"{time:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:6]}"


def append(table: pa.Table, path: str | os.PathLike[str], *, run_id: str | None = None) -> Appended:
    """Append a table of logs to a Parquet file as one run; the file is replaced atomically.

    A log whose name and content are already in the file is refused, whatever its folder.

    Args:
        table: what ``read_logs`` returned.
        path: the Parquet file; created if missing.
        run_id: a name for the run; by default the time and a random suffix.

    Raises:
        LogFormatError: when the file is not a table of logs, or was written by a newer version.
        StorageError: when it can't be written.
    """
    path = Path(path)
    time = datetime.now(UTC)
    run_id = run_id or new_run_id(time)
    path.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(path.with_name(f".{path.name}.lock")):
        stored = load(path) if path.exists() else STORED_SCHEMA.empty_table()
        new = _without_duplicates(table, stored.column("content_hash"))
        columns = [
            pa.array([value] * new.num_rows, kind)
            for value, kind in zip((run_id, time), STORED_SCHEMA.types[:2], strict=True)
        ]
        run = pa.Table.from_arrays([*columns, *new.select(SCHEMA.names).columns], schema=STORED_SCHEMA)
        if run.num_rows:
            whole = pa.concat_tables([stored, run]).replace_schema_metadata({_VERSION_KEY: str(VERSION)})
            write_parquet(LocalStore(path.parent), path.name, whole)
    return Appended(run_id=run_id, added=new.num_rows, duplicates=table.num_rows - new.num_rows)


def _without_duplicates(table: pa.Table, known: pa.ChunkedArray) -> pa.Table:
    """Drop known rows and duplicates among the rest; a log of both a read and a write is two rows."""
    table = table.filter(pc.invert(pc.is_in(table.column("content_hash"), value_set=known.combine_chunks())))
    keys = table.select(["content_hash", "operation"]).append_column("row", pa.array(range(table.num_rows), pa.int64()))
    first = keys.group_by(["content_hash", "operation"], use_threads=False).aggregate([("row", "min")])
    return table.take(first.column("row_min").sort())


def load(path: str | os.PathLike[str]) -> pa.Table:
    """Return results from a Parquet file that ``append`` wrote, or straight from a folder of logs or a log.

    Raises:
        LogFormatError: when neither exists, or the file is another table or of a newer version.
    """
    path = Path(path)
    if path.suffix != ".parquet" or path.is_dir():
        return read_logs(path)
    if not path.exists():
        raise LogFormatError(f"{path} does not exist; create it with: arrowds aio import LOGS -o {path}")
    table = read_parquet(LocalStore(path.parent), path.name)
    version = (table.schema.metadata or {}).get(_VERSION_KEY.encode(), b"").decode() or None
    if version is None:
        raise LogFormatError(f"{path} is not a table of benchmark logs; give a file written by 'arrowds aio import'")
    if not version.isdecimal() or int(version) > VERSION:
        raise LogFormatError(f"{path} has version {version}, this arrowds reads up to {VERSION}: update arrowds")
    try:
        return table.select(STORED_SCHEMA.names).cast(STORED_SCHEMA)
    except (KeyError, pa.ArrowException) as error:
        raise LogFormatError(f"{path} is damaged: {error}; restore it, or import the logs again") from error
