"""DeepSpeed's script of the same name: its functions and its output, without its crashes.

``python -m arrowds.stats.aio.parse_aio_stats --log_dir LOGS --metric read_speed`` prints what the script prints.
It reads file names and one line per log; everything else is in ``arrowds.stats.aio``.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from arrowds.errors import ConfigError, LogFormatError

logger = logging.getLogger(__name__)

READ_SPEED = "read_speed"
WRITE_SPEED = "write_speed"
PERF_METRICS = [READ_SPEED, WRITE_SPEED]
METRIC_SEARCH = {READ_SPEED: "E2E Read Speed", WRITE_SPEED: "E2E Write Speed"}

Tag = int | str | None
FileKey = tuple[Tag, ...]

_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def extract_value(key: str, file: str | os.PathLike[str]) -> Tag:
    """Return the number in a tag of a log's name, the tag itself if it has none, None if it is malformed.

    >>> extract_value("d32", "log.txt"), extract_value("bs128K", "log.txt"), extract_value("ftd1", "log.txt")
    (32, 131072, 'ftd1')
    >>> extract_value("bs1G", "log.txt")
    1073741824
    """
    if key.startswith("ds"):
        return key
    number, unit = None, 1
    if key[:1] in {"t", "d", "p"}:
        number = key[1:]
    elif key.startswith("bs"):
        number, unit = (key[2:-1], _UNITS[key[-1]]) if key[-1] in _UNITS else (key[2:], 1)
    elif key:
        return key
    try:
        return int(number or "") * unit
    except ValueError:
        logger.warning("%s: extract_value fails on %s", file, key)
        return None


def get_file_key(file: str | os.PathLike[str]) -> FileKey:
    """Return the values of the tags in a log's name.

    >>> get_file_key("logs/read_block_overlap_ftd1_d4_bs1M_p1.txt")
    ('read', 'block', 'overlap', 'ftd1', 4, 1048576, 1)
    """
    return tuple(extract_value(tag, file) for tag in _stem(file).split("_"))


def get_thread_count(file: str | os.PathLike[str]) -> int:
    """Return the number of the first ``t`` tag in a log's name, or 1.

    >>> get_thread_count("read_single_overlap_t8_p1_d4_bs1M.txt"), get_thread_count("tuned__x.txt")
    (8, 1)
    """
    counts = (tag[1:] for tag in _stem(file).split("_") if tag.startswith("t"))
    return next((int(count) for count in counts if count.isdecimal()), 1)


def _stem(file: str | os.PathLike[str]) -> str:
    return os.path.splitext(os.path.basename(file))[0]  # noqa: PTH119, PTH122  # Path splits "a/" and ".txt" otherwise


def get_metric(file: str | os.PathLike[str], metric: str) -> float | None:
    """Return the first end-to-end speed of a log in GB/s (1024**3 bytes), or None.

    Raises:
        ConfigError: for an unknown metric.
    """
    if metric not in METRIC_SEARCH:
        raise ConfigError(f"metric is {metric!r}, expected one of {', '.join(PERF_METRICS)}")
    try:
        text = Path(file).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        logger.warning("%s can't be read: %s", file, error)
        return None
    for line in text.split("\n"):
        if line.startswith(METRIC_SEARCH[metric]):
            try:
                return float(line.split()[-2])
            except ValueError:
                logger.warning("%s: no speed in %r", file, line[:80])
                return None
    return None


def get_results(log_files: Iterable[str | os.PathLike[str]], metric: str) -> dict[FileKey, float | None]:
    """Return the speed of each log by the key of its name; of equal keys the last one's."""
    return {get_file_key(file): get_metric(file, metric) for file in log_files}


def get_sorted_results(
    log_dir: str | os.PathLike[str], metric: str
) -> tuple[list[FileKey], dict[FileKey, float | None]]:
    """Return the sorted keys of the logs directly in a folder, and the speed by key.

    Raises:
        ConfigError: for an unknown metric.
        LogFormatError: when the folder does not exist.
    """
    if not Path(log_dir).is_dir():
        raise LogFormatError(f"{log_dir} folder is not existent")
    files = [os.path.join(log_dir, name) for name in sorted(os.listdir(log_dir))]  # noqa: PTH118, PTH208  # texts as DeepSpeed's
    results = get_results([file for file in files if Path(file).is_file()], metric)
    return sorted(results, key=_comparable), results


def _comparable(key: FileKey) -> tuple[tuple[int, int, str], ...]:
    """Return a sort key for tags of different kinds: None before numbers before words."""
    return tuple((0, 0, "") if tag is None else (1, tag, "") if isinstance(tag, int) else (2, 0, tag) for tag in key)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line, and write the parsed arguments to stdout."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--log_dir", type=str, required=True, help="Folder of statistics logs")
    parser.add_argument(
        "--metric", type=str, required=True, help=f"Performance metric to report: [{'|'.join(PERF_METRICS)}]"
    )
    parsed = parser.parse_args(arguments)
    sys.stdout.write(f"args = {parsed}\n")
    return parsed


def validate_args(args: argparse.Namespace) -> bool:
    """Return whether metric and folder exist; write what is wrong to stdout."""
    if args.metric not in PERF_METRICS:
        sys.stdout.write(f"{args.metric} is not a valid performance metrics\n")
        return False
    if not Path(args.log_dir).is_dir():
        sys.stdout.write(f"{args.log_dir} folder is not existent\n")
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line per log, as DeepSpeed's script does; return 1 where that script only complains and returns 0."""
    handler = logging.StreamHandler(sys.stdout)
    logger.addHandler(handler)
    try:
        sys.stdout.write("Parsing aio statistics\n")
        parsed = parse_arguments(arguments)
        if not validate_args(parsed):
            return 1
        keys, results = get_sorted_results(parsed.log_dir, parsed.metric)
        sys.stdout.writelines(f"{key} = {results[key]}\n" for key in keys)
        return 0
    finally:
        logger.removeHandler(handler)


if __name__ == "__main__":
    sys.exit(main())
