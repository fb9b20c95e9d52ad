"""The results in a benchmark log, or why there are none."""

from __future__ import annotations

import math
import re

STOPPED = "arrowds: stopped"
CUT = "; the log ends within this line"

_RESULT = re.compile(r"^(Task|E2E) (Read|Write) (Latency|Speed) =[ \t]*(\S*)[ \t]*(\S*)[^\n]*(\n|\Z)", re.MULTILINE)
_NUMBER = re.compile(r"\d+(\.\d*)?([eE][+-]?\d+)?")
_UNITS = {
    "Latency": {"sec": 1.0, "s": 1.0, "ms": 1e-3, "msec": 1e-3, "us": 1e-6, "usec": 1e-6},
    "Speed": {
        unit + suffix: scale
        for suffix in ("/sec", "/s")
        for unit, scale in (("GB", 1.0), ("GiB", 1.0), ("MB", 1 / 1024), ("MiB", 1 / 1024), ("KB", 1 / 1024**2))
    },
}
_COLUMNS = {
    ("Task", "Latency"): "task_latency_s",
    ("Task", "Speed"): "task_speed_gib_s",
    ("E2E", "Latency"): "e2e_latency_s",
    ("E2E", "Speed"): "e2e_speed_gib_s",
}
_TRACEBACK = "Traceback (most recent call last):"
_EXCEPTION = re.compile(r"^[A-Za-z_][\w.]*(?:: .*)?$", re.MULTILINE)
_SOURCE_LINE = re.compile(r"^    (?=[^\s^~])(.+)$", re.MULTILINE)
_COMPLAINT = re.compile(
    r"^(?:\d+: (.+)|\S+: (error: .+)|(Failure in one of .+)|\s*(Failing because .+))$", re.MULTILINE
)
_STOPPED = re.compile(rf"^{STOPPED}[^\n]*", re.MULTILINE)


def parse_results(text: str) -> tuple[dict[str, dict[str, float]], str | None]:
    """Return the results by operation and column, in seconds and GiB/s, and what is wrong with the first bad line."""
    results: dict[str, dict[str, float]] = {}
    damage = None
    for scope, operation, quantity, number, unit, end in _RESULT.findall(text):
        scale = _UNITS[quantity].get(unit)
        value = float(number) if _NUMBER.fullmatch(number) else math.nan
        values = results.setdefault(operation.lower(), {})
        column = _COLUMNS[scope, quantity]
        what = f"{scope} {operation} {quantity}"
        if scale is None or not math.isfinite(value):
            expected = "a number and " + " or ".join(sorted(_UNITS[quantity]))
            cut = "" if end else CUT
            damage = damage or f"{what} is {f'{number} {unit}'.strip()!r:.60}, expected {expected}{cut}"
        elif value == 0:
            damage = damage or f"{what} is 0: nothing was measured"
        elif column in values:
            damage = damage or f"{what} occurs twice: the log contains several runs"
        else:
            values[column] = value * scale
    return results, damage


def parse_failure(text: str, *, known: bool) -> tuple[str, str] | None:
    """Return the status and the message of a failed run, or None.

    Args:
        text: the log.
        known: whether it is a benchmark's log; a traceback in another text is ignored.
    """
    if stopped := _STOPPED.search(text):
        return "timeout", stopped[0]
    if not known:
        return None
    if _TRACEBACK in text:
        return "failed", _exception(text)
    complaints = ["".join(parts) for parts in _COMPLAINT.findall(text)]
    return ("failed", "; ".join(complaints)[:500]) if complaints else None


def _exception(text: str) -> str:
    """Return the message of the last traceback; if it is empty, with the statement that raised it."""
    last = _EXCEPTION.search(text, text.rindex(_TRACEBACK) + len(_TRACEBACK))
    message = last[0] if last else "a truncated traceback"
    if last and ":" not in message:
        first = text.index(_TRACEBACK)
        end = text.find(f"\n{message}", first)
        if statements := _SOURCE_LINE.findall(text, first, end if end > 0 else len(text)):
            message = f"{message} at: {statements[-1].strip()}"
    return message[:500]
