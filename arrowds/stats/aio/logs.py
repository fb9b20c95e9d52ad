"""Log files of DeepSpeed's NVMe benchmarks as one Arrow table: a row per log, however damaged."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import xxhash

from arrowds.errors import LogFormatError
from arrowds.stats.aio.parameters import (
    NameTags,
    Parameters,
    disagreement,
    from_arguments,
    from_name,
    parse_namespace,
)
from arrowds.stats.aio.results import CUT, parse_failure, parse_results

LONGEST_LOG = 1 << 24
STATUSES = (
    "ok",
    "failed",
    "timeout",
    "incomplete",
    "inconsistent",
    "bad_arguments",
    "bad_result",
    "not_a_log",
    "empty",
    "unreadable",
)
"""What may have become of the run of a log, see the page on NVMe benchmarks."""

SCHEMA = pa.schema(
    [
        ("operation", pa.string()),
        ("block_size_bytes", pa.int64()),
        ("queue_depth", pa.int64()),
        ("io_parallel", pa.int64()),
        ("processes", pa.int64()),
        ("single_submit", pa.bool_()),
        ("overlap_events", pa.bool_()),
        ("engine", pa.string()),
        ("gpu", pa.bool_()),
        ("use_gds", pa.bool_()),
        ("loops", pa.int64()),
        ("io_size_bytes", pa.int64()),
        ("target", pa.string()),
        ("task_latency_s", pa.float64()),
        ("task_speed_gib_s", pa.float64()),
        ("e2e_latency_s", pa.float64()),
        ("e2e_speed_gib_s", pa.float64()),
        ("file", pa.string()),
        ("status", pa.string()),
        ("error", pa.string()),
        ("arguments", pa.string()),
        ("content_hash", pa.string()),
    ]
)
"""The columns of the table of logs; the page on NVMe benchmarks says what each means."""

_ARGUMENTS = re.compile(r"^args = (Namespace\(.*)$", re.MULTILINE)
_BANNER = re.compile(r"^Testing (?:DeepNVMe|deepspeed_aio) ", re.MULTILINE)


def read_logs(folder: str | os.PathLike[str]) -> pa.Table:
    """Parse every file below a folder of ``ds_nvme_tune``, ``ds_io`` or older benchmark logs.

    The parameters come from the log's own ``args = Namespace(...)`` line, read as a literal; without it they come from
    the file name, if it has them all. Every other file gets a row too: its ``status`` is one of ``STATUSES`` and
    its ``error`` says why.

    Args:
        folder: a folder, read to any depth, or one file.

    Returns:
        A table with the columns of ``SCHEMA``, sorted by file: a row per log, two for one of both a read and a
        write. Sizes are bytes, latencies seconds, speeds GiB/s (DeepSpeed writes GB and means 1024**3 bytes).

    Raises:
        LogFormatError: when there are no files.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = Path(folder, "read_block_overlap_ftd1_d4_bs1M_p1.txt")
    ...     _ = log.write_text("E2E Read Latency = 0.5 sec\\nE2E Read Speed = 2.0 GB/sec\\n")
    ...     table = read_logs(folder)
    >>> table.select(["operation", "queue_depth", "e2e_speed_gib_s", "status"]).to_pylist()
    [{'operation': 'read', 'queue_depth': 4, 'e2e_speed_gib_s': 2.0, 'status': 'ok'}]
    """
    root = Path(folder)
    rows = [row for path, relative in _files(root) for row in parse_log(path, name=relative)]
    if not rows:
        state = "is empty" if root.is_dir() else "does not exist"
        raise LogFormatError(f"{root} {state}, expected a folder of benchmark logs; give the --log_dir of ds_nvme_tune")
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _files(root: Path) -> Iterator[tuple[Path, str]]:
    if not root.is_dir():
        if root.exists():
            yield root, root.name
        return
    unreadable: list[OSError] = []
    for parent, folders, names in os.walk(root, onerror=unreadable.append):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            yield path, path.relative_to(root).as_posix()
    for error in unreadable:
        yield Path(error.filename), Path(error.filename).relative_to(root).as_posix()


def parse_log(path: Path, *, name: str) -> list[dict[str, object]]:
    """Parse one log into a row, or two for both a read and a write; never raises because of its content.

    Args:
        path: the file.
        name: the value of the column ``file``.
    """
    tags = from_name(path.stem)
    try:
        problem, content = _read(path)
    except OSError as error:
        problem, content = ("unreadable", f"{type(error).__name__}: {error.strerror or error}"), b""
    if problem:
        status, reason = problem
        return [_row(tags.parameters, name, status, reason, content)]
    return _parse_text(content.decode("utf-8", errors="replace"), tags, name, content)


def _read(path: Path) -> tuple[tuple[str, str] | None, bytes]:
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        return ("unreadable", "not a regular file"), b""
    if about.st_size > LONGEST_LOG:
        return ("not_a_log", f"{about.st_size} bytes long, expected at most {LONGEST_LOG}"), str(about.st_size).encode()
    content = path.read_bytes()
    if not content.strip():
        return ("empty", "the file is empty: the run ended before it wrote anything"), content
    if b"\0" in content:
        return ("not_a_log", "the file is binary"), content
    return None, content


def _row(
    stated: Parameters, name: str, status: str, error: str | None, content: bytes, **values: object
) -> dict[str, object]:
    digest = xxhash.xxh3_128(os.fsencode(Path(name).name) + b"\0" + content).hexdigest()
    row = {**stated.as_dict(), "file": name, "status": status, "error": error, "content_hash": digest, **values}
    return {column: _printable(value) if isinstance(value, str) else value for column, value in row.items()}


def _printable(text: str) -> str:
    """Return a text that UTF-8 can hold: names of files and escapes in the arguments may have lone surrogates."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Evidence:
    """The evidence for the status of a log: its text, its parameters, and errors in either."""

    text: str
    tags: NameTags
    stated: Parameters
    arguments: str | None
    has_arguments: bool
    malformed: str | None
    damage: str | None

    @property
    def from_benchmark(self) -> bool:
        return self.has_arguments or self.tags.parameters.operation is not None


def _parse_text(text: str, tags: NameTags, name: str, content: bytes) -> list[dict[str, object]]:
    stated, arguments, malformed = tags.parameters, None, None
    line = _ARGUMENTS.search(text)
    if line:
        try:
            parsed = parse_namespace(line[1].rstrip())
            arguments = json.dumps(dict(parsed), default=repr, skipkeys=True)
            stated = from_arguments(parsed)
        except LogFormatError as error:
            malformed = str(error)
    results, damage = parse_results(text)
    evidence = _Evidence(
        text=text,
        tags=tags,
        stated=stated,
        arguments=arguments,
        has_arguments=line is not None,
        malformed=malformed,
        damage=damage,
    )
    operations: list[str | None] = [*sorted(results)] or [stated.operation]
    return [
        _result_row(evidence, operation, results.get(operation or "", {}), name, content) for operation in operations
    ]


def _result_row(
    evidence: _Evidence, operation: str | None, values: Mapping[str, float], name: str, content: bytes
) -> dict[str, object]:
    status, reason = _judge_failure(evidence, values) or _judge_result(evidence, operation) or ("ok", None)
    row = _row(evidence.stated, name, status, reason, content, arguments=evidence.arguments, **values)
    return row | {"operation": operation}


def _judge_failure(evidence: _Evidence, values: Mapping[str, float]) -> tuple[str, str] | None:
    """Return status and reason of a log without a usable result: the run's own failure before anything else."""
    complete = "e2e_speed_gib_s" in values
    if not complete and (failure := parse_failure(evidence.text, known=evidence.from_benchmark)):
        return failure
    if evidence.malformed:
        return "bad_arguments", evidence.malformed
    if evidence.damage:
        return ("incomplete" if evidence.damage.endswith(CUT) else "bad_result"), evidence.damage
    if complete:
        return None
    if not (evidence.has_arguments or values or _BANNER.search(evidence.text)):
        return "not_a_log", "contains neither arguments nor results of a benchmark"
    return "incomplete", "no E2E speed line: the run was stopped, or the log was cut"


def _judge_result(evidence: _Evidence, operation: str | None) -> tuple[str, str] | None:
    """Return status and reason of a log whose result can't be tied to its parameters."""
    tags, stated = evidence.tags, evidence.stated
    if not evidence.has_arguments and not tags.complete:
        unknown = f"; unknown tags: {', '.join(tags.unknown)}" if tags.unknown else ""
        return "bad_arguments", f"no 'args = Namespace(...)' line, and the file name lacks parameters{unknown}"
    if stated.operation not in (None, operation):
        return "inconsistent", f"the parameters say {stated.operation}, but the results are of a {operation}"
    if evidence.has_arguments and (contradiction := disagreement(stated, tags)):
        return "inconsistent", contradiction
    return None
