"""The parameters of a benchmark run, from its ``args = Namespace(...)`` line and from the tags of its file name."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache

from arrowds.errors import LogFormatError

_LONGEST_LINE = 1 << 16
_INT64_MAX = (1 << 63) - 1
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SIZE = re.compile(r"(\d{1,19})([KMG]?)")
_TAGS = {
    "folders": re.compile(r"ftd(\d{1,9})"),
    "queue_depth": re.compile(r"d(\d{1,9})"),
    "io_parallel": re.compile(r"p(\d{1,9})"),
    "processes": re.compile(r"t(\d{1,9})"),
}
_WORDS: dict[str, tuple[str, str | bool]] = {
    "read": ("operation", "read"),
    "write": ("operation", "write"),
    "single": ("single_submit", True),
    "block": ("single_submit", False),
    "overlap": ("overlap_events", True),
    "sequential": ("overlap_events", False),
}
_DEVICES = {"cpu", "gpu", "gds"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameters:
    """The parameters of one benchmark run; None: the log does not say.

    Attributes:
        operation: ``"read"`` or ``"write"``.
        block_size_bytes: bytes per I/O request.
        queue_depth: requests in flight.
        io_parallel: threads that share one operation, which the engine calls ``intra_op_parallelism``.
        processes: processes that did I/O at the same time.
        single_submit: requests were submitted one by one.
        overlap_events: requests were submitted before earlier ones had completed.
        engine: ``aio_handle``, ``aio_basic``, ``torch_io`` or ``torch_fastio``.
        gpu: the buffers were in GPU memory.
        use_gds: through GPUDirect Storage.
        loops: timed repetitions.
        io_size_bytes: bytes of one operation of one process.
        target: the folders, as ``FOLDER:DEVICE`` separated by blanks.
    """

    operation: str | None = None
    block_size_bytes: int | None = None
    queue_depth: int | None = None
    io_parallel: int | None = None
    processes: int | None = None
    single_submit: bool | None = None
    overlap_events: bool | None = None
    engine: str | None = None
    gpu: bool | None = None
    use_gds: bool | None = None
    loops: int | None = None
    io_size_bytes: int | None = None
    target: str | None = None

    def as_dict(self) -> dict[str, object]:
        """Return the parameters by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True, kw_only=True, slots=True)
class NameTags:
    """The parameters in the name of a log file, and the unknown tags."""

    parameters: Parameters
    legacy: bool
    unknown: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether the name alone has every parameter of the engine's configuration."""
        stated = self.parameters
        needed = (stated.operation, stated.block_size_bytes, stated.queue_depth, stated.io_parallel)
        return not self.unknown and None not in (*needed, stated.single_submit, stated.overlap_events)


def parse_size(value: object) -> int:
    """Return a number of bytes: an integer, or a text of digits with K, M or G (powers of 1024).

    Raises:
        LogFormatError: for anything else, and for sizes of 0 or over 2**63 - 1.

    >>> parse_size("128K"), parse_size("1G"), parse_size(4096)
    (131072, 1073741824, 4096)
    """
    size = value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        size = int(match[1]) * _UNITS[match[2]]
    if isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= _INT64_MAX:
        raise LogFormatError(f"size is {value!r:.60}, expected a number of bytes such as 4096, 128K, 1M or 1G")
    return size


@lru_cache(maxsize=1024)
def parse_namespace(text: str) -> Mapping[str, object]:
    """Return the arguments of a printed ``argparse.Namespace``; the text is read as a literal, never evaluated.

    Raises:
        LogFormatError: when it is not one call of ``Namespace`` with keyword arguments that are literals.

    >>> dict(parse_namespace("Namespace(block_size='1M', queue_depth=4, single_submit=False, folder=None)"))
    {'block_size': '1M', 'queue_depth': 4, 'single_submit': False, 'folder': None}
    """
    if len(text) > _LONGEST_LINE:
        raise LogFormatError(f"the arguments are {len(text)} characters long, expected at most {_LONGEST_LINE}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            call = ast.parse(text, mode="eval").body
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "Namespace"):
            raise LogFormatError(f"the arguments are {text!r:.60}, expected Namespace(...)")
        names = [keyword.arg for keyword in call.keywords]
        if call.args or None in names:
            raise LogFormatError("the arguments contain a value without a name")
        # Most values are constants, for which literal_eval takes several times as long.
        return {
            str(keyword.arg): node.value if isinstance(node := keyword.value, ast.Constant) else ast.literal_eval(node)
            for keyword in call.keywords
        }
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        if isinstance(error, LogFormatError):
            raise
        raise LogFormatError(f"the arguments are not literals: {type(error).__name__}: {error}") from error


def from_arguments(arguments: Mapping[str, object]) -> Parameters:
    """Translate the arguments of ``ds_io`` or of the older ``test_ds_aio.py`` into parameters.

    Raises:
        LogFormatError: for a value of the wrong type.

    >>> from_arguments({"read": True, "block_size": "1M", "queue_depth": 4, "io_parallel": None}).io_parallel
    1
    """
    overlap = _flag(arguments, "overlap_events")
    if "sequential_requests" in arguments:
        overlap = not _flag(arguments, "sequential_requests")
    folders = _folders(arguments.get("folder_to_device_mapping"))
    folder = arguments.get("folder")
    size = next((arguments[name] for name in ("io_size", "write_size") if arguments.get(name) is not None), None)
    return Parameters(
        operation=_operation(arguments),
        block_size_bytes=_named("block_size", arguments.get("block_size")),
        queue_depth=_count(arguments, "queue_depth"),
        io_parallel=_count(arguments, "io_parallel") or 1,
        processes=len(folders) or _count(arguments, "multi_process") or _count(arguments, "threads") or 1,
        single_submit=_flag(arguments, "single_submit"),
        overlap_events=overlap,
        engine=_engine(arguments),
        gpu=_flag(arguments, "gpu") or False,
        use_gds=_flag(arguments, "use_gds") or False,
        loops=_count(arguments, "loops"),
        io_size_bytes=_named("io_size", size),
        target=" ".join(folders) or (folder if isinstance(folder, str) else None),
    )


def _operation(arguments: Mapping[str, object]) -> str | None:
    if "read" in arguments:
        return "read" if _flag(arguments, "read") else "write"
    operations = [name for name in ("read", "write") if arguments.get(f"{name}_file") is not None]
    return operations[0] if len(operations) == 1 else None


def _engine(arguments: Mapping[str, object]) -> str | None:
    engine = arguments.get("engine")
    if engine is None and "handle" in arguments:
        return "aio_handle" if _flag(arguments, "handle") else "aio_basic"
    if engine is not None and not isinstance(engine, str):
        raise LogFormatError(f"engine is {engine!r:.60}, expected a name")
    return engine


def _folders(value: object) -> list[str]:
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(folder, str) for folder in value):
        raise LogFormatError(f"folder_to_device_mapping is {value!r:.60}, expected a list of FOLDER:DEVICE")
    return value


def _named(name: str, size: object) -> int | None:
    try:
        return None if size is None else parse_size(size)
    except LogFormatError as error:
        raise LogFormatError(f"{name}: {error}") from None


def _count(arguments: Mapping[str, object], name: str) -> int | None:
    value = arguments.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _INT64_MAX:
        raise LogFormatError(f"{name} is {value!r:.60}, expected a positive integer")
    return value


def _flag(arguments: Mapping[str, object], name: str) -> bool | None:
    value = arguments.get(name)
    if value is not None and not isinstance(value, bool):
        raise LogFormatError(f"{name} is {value!r:.60}, expected True or False")
    return value


@lru_cache(maxsize=1024)
def from_name(stem: str) -> NameTags:
    """Read the tags of a log's file name, as the tuner (``ftd``) or the older scripts (``t``) write them.

    The older scripts wrote the tags t and p with changing meaning; the tuner among them took t for processes and p for
    threads per operation, and so does this function.

    >>> from_name("read_block_overlap_ftd1_d4_bs128K_p1").parameters.block_size_bytes
    131072
    >>> from_name("read_single_sequential_t2_p4_d8_bs1M_x9").unknown
    ('x9',)
    """
    values: dict[str, object] = {}
    unknown = []
    for tag in stem.split("_"):
        name, value = _parse_tag(tag)
        if name is None or name in values:
            unknown.append(tag)
        else:
            values[name] = value
    legacy = "processes" in values
    if not legacy and "folders" in values:
        values["processes"] = values["folders"]
    device = values.pop("device", None)
    values.pop("folders", None)
    if device is not None:
        values |= {"gpu": device != "cpu", "use_gds": device == "gds"}
    return NameTags(parameters=replace(Parameters(), **values), legacy=legacy, unknown=tuple(unknown))  # type: ignore[arg-type]  # the names are fields, the values were parsed for them


def _parse_tag(tag: str) -> tuple[str | None, object]:
    if tag in _WORDS:
        return _WORDS[tag]
    if tag in _DEVICES:
        return "device", tag
    if tag.startswith("bs"):
        try:
            return "block_size_bytes", parse_size(tag[2:])
        except LogFormatError:
            return None, tag
    for name, pattern in _TAGS.items():
        if match := pattern.fullmatch(tag):
            return name, int(match[1])
    return None, tag


def disagreement(stated: Parameters, tags: NameTags) -> str | None:
    """Return where a file name contradicts the log's own arguments, or None.

    The tags t and p of the older scripts are not compared: those scripts changed their meaning, and one wrote a p that
    it never passed on.
    """
    compared = ["operation", "block_size_bytes", "queue_depth", "single_submit", "overlap_events"]
    if not tags.legacy:
        compared += ["io_parallel", "processes"]
    for name in compared:
        argument, tag = getattr(stated, name), getattr(tags.parameters, name)
        if None not in (argument, tag) and argument != tag:
            return f"the arguments say {name} = {argument}, the file name says {tag}"
    return None
