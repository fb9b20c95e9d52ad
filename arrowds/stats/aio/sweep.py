"""Run DeepSpeed's NVMe tuner over many settings, each as its own job, so that a failure costs one result."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arrowds.errors import ConfigError, LogFormatError, MissingExtraError
from arrowds.stats.aio.logs import parse_log
from arrowds.stats.aio.parameters import parse_size
from arrowds.stats.aio.results import STOPPED

Scalar = str | int | bool

# The default search space of ds_nvme_tune.
DEFAULT_SPACE: Mapping[str, Sequence[Scalar]] = {
    "block_size": ("1M", "8M"),
    "queue_depth": (32, 128),
    "sequential_requests": (True, False),
    "single_submit": (False, True),
    "io_parallel": (1, 2, 4, 8),
}
_WARMUP_LOOPS = 1
_GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One run of the tuner: an operation and one value of each parameter."""

    operation: str
    block_size: str | int
    queue_depth: int
    io_parallel: int
    single_submit: bool
    sequential_requests: bool

    def config(self) -> dict[str, list[Scalar]]:
        """Return the job as a search space of the tuner, with one point."""
        return {
            "block_size": [self.block_size],
            "queue_depth": [self.queue_depth],
            "io_parallel": [self.io_parallel],
            "single_submit": [self.single_submit],
            "sequential_requests": [self.sequential_requests],
        }

    def log_name(self, folders: int) -> str:
        """Return the path at which the tuner writes the job's log, below its log folder."""
        submit = "single" if self.single_submit else "block"
        order = "sequential" if self.sequential_requests else "overlap"
        tags = f"ftd{folders}_d{self.queue_depth}_bs{self.block_size}_p{self.io_parallel}"
        return f"_aio_bench_{self.operation}_logs/{self.operation}_{submit}_{order}_{tags}.txt"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """A planned sweep: the folders, the jobs, and their cost.

    Attributes:
        folders: folders on the devices to measure, used at the same time.
        log_folder: the folder for the logs; a new one for each sweep, so that old and new logs never mix.
        jobs: what to run, in order.
        io_size: bytes per operation and folder, as the tuner takes them (``400M``).
        loops: timed repetitions of each operation, after one that warms up.
        timeout_s: seconds after which a job is stopped.
        gpu: transfer to GPU memory.
        gds: through GPUDirect Storage.
    """

    folders: tuple[Path, ...]
    log_folder: Path
    jobs: tuple[Job, ...]
    io_size: str = "400M"
    loops: int = 1
    timeout_s: float = 120.0
    gpu: bool = False
    gds: bool = False

    @property
    def io_size_bytes(self) -> int:
        """Bytes per operation and folder."""
        return parse_size(self.io_size)

    @property
    def disk_bytes(self) -> int:
        """The most bytes that the sweep's files occupy in each folder: one file per operation."""
        return self.io_size_bytes * len({job.operation for job in self.jobs})

    @property
    def written_bytes(self) -> int:
        """Bytes written to all folders together: every write with its warm-up, and the file that is read."""
        writes = sum(job.operation == "write" for job in self.jobs) * (self.loops + _WARMUP_LOOPS)
        reads = any(job.operation == "read" for job in self.jobs)
        return (writes + reads) * self.io_size_bytes * len(self.folders)

    @property
    def longest_s(self) -> float:
        """Seconds that the sweep takes if every job reaches its limit."""
        return self.timeout_s * len(self.jobs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """A finished job: its log, its status as in ``read_logs``, and the error if it failed."""

    job: Job
    log: Path
    status: str
    error: str | None
    speed_gib_s: float | None


def plan_jobs(
    space: Mapping[str, Sequence[Scalar]] = DEFAULT_SPACE, *, operations: Iterable[str] = ("read", "write")
) -> tuple[Job, ...]:
    """Return every combination of a search space, for each operation. Pure.

    Args:
        space: parameter to values, as in the file that ``ds_nvme_tune --sweep_config`` takes; what is left out has the
            value that ``ds_io`` takes by default.
        operations: ``"read"``, ``"write"`` or both.

    Raises:
        ConfigError: for an unknown parameter, an empty list or a value of the wrong kind.

    >>> jobs = plan_jobs({"block_size": ["1M"], "queue_depth": [4, 8]}, operations=["read"])
    >>> [job.queue_depth for job in jobs]
    [4, 8]
    >>> jobs[0].log_name(folders=1)
    '_aio_bench_read_logs/read_block_overlap_ftd1_d4_bs1M_p1.txt'
    """
    defaults: dict[str, Sequence[Scalar]] = {
        "block_size": ("1M",),
        "queue_depth": (32,),
        "io_parallel": (1,),
        "single_submit": (False,),
        "sequential_requests": (False,),
    }
    if unknown := sorted(set(space) - set(defaults)):
        raise ConfigError(f"the sweep varies {', '.join(unknown)}, expected some of {', '.join(defaults)}")
    values = {**defaults, **space}
    for name, choices in values.items():
        _check_choices(name, choices)
    combinations: list[dict[str, Any]] = [
        dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())
    ]
    jobs = [Job(operation=operation, **point) for operation in operations for point in combinations]
    return tuple(dict.fromkeys(jobs))


def _check_choices(name: str, choices: object) -> None:
    if not isinstance(choices, list | tuple) or not choices:
        raise ConfigError(f"{name} is {choices!r:.60} in the sweep, expected a list with at least one value")
    for value in choices:
        if name == "block_size":
            valid = _is_size(value)
        elif name in {"single_submit", "sequential_requests"}:
            valid = isinstance(value, bool)
        else:
            valid = isinstance(value, int) and not isinstance(value, bool) and value > 0
        if not valid:
            raise ConfigError(f"{name} has the value {value!r:.60} in the sweep, which is invalid")


def _is_size(value: object) -> bool:
    try:
        return parse_size(value) > 0
    except LogFormatError:
        return False


def check_sweep(sweep: Sweep) -> None:
    """Raise if a sweep can't run: no jobs, a missing folder, too little space, a log folder that is not empty.

    Raises:
        ConfigError: naming the problem and its remedy.
    """
    if not sweep.jobs:
        raise ConfigError("the sweep has no jobs; measure at least one of read and write")
    if sweep.loops < 1 or sweep.timeout_s <= 0:
        raise ConfigError(f"loops is {sweep.loops} and timeout {sweep.timeout_s} s; both must be positive")
    if sweep.io_size_bytes % 1024:
        raise ConfigError(f"the I/O size is {sweep.io_size}, expected a multiple of 1K")
    if sweep.log_folder.exists() and any(sweep.log_folder.iterdir()):
        raise ConfigError(
            f"the log folder {sweep.log_folder} is not empty; choose a new one, so that old and new logs do not mix"
        )
    for folder in sweep.folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not a folder; give a writable folder on the device to measure")
        if any(character in str(folder) for character in ": \t\n'\"\\"):
            raise ConfigError(
                f"{folder} contains a character at which DeepSpeed's tuner splits paths; choose a simpler path"
            )
        free = shutil.disk_usage(folder).free
        if free < sweep.disk_bytes:
            raise ConfigError(
                f"{folder} has {free / _GIB:.2f} GiB free, the sweep needs {sweep.disk_bytes / _GIB:.2f} GiB; "
                "free space or choose a smaller I/O size"
            )


def run_sweep(sweep: Sweep, *, tuner: Sequence[str] | None = None) -> Iterator[Finished]:
    """Run the jobs one after another and yield each as it ends, including those that fail.

    DeepSpeed's operator is built first, which takes minutes the first time and has no limit: an interrupted build
    leaves a lock behind, for which all later jobs would wait. A job that exceeds its limit is stopped with all its
    processes, and its log says so. The benchmark's files in the folders are removed at the end, also when the caller
    stops early.

    Args:
        sweep: the plan.
        tuner: the command line of ``ds_nvme_tune``; by default the one beside this interpreter, or on the path.

    Raises:
        ConfigError: as ``check_sweep`` does, and when the operator can't be built.
        MissingExtraError: when the tuner is not installed.
    """
    check_sweep(sweep)
    if tuner is None:
        tuner = [_find_tuner()]
        _build_operator(Path(tuner[0]), gds=sweep.gds)
    present = set(_benchmark_files(sweep))
    try:
        for job in sweep.jobs:
            yield _run_job(job, sweep, tuner)
    finally:
        for path in set(_benchmark_files(sweep)) - present:
            path.unlink(missing_ok=True)


def _find_tuner() -> str:
    beside = Path(sys.executable).with_name("ds_nvme_tune")
    tuner = str(beside) if beside.exists() else shutil.which("ds_nvme_tune")
    if tuner is None:
        raise MissingExtraError("deepspeed", "deepspeed")
    return tuner


def _build_operator(tuner: Path, *, gds: bool) -> None:
    """Build the operator with the interpreter of the tuner; quick if it is built already."""
    builder = "GDSBuilder" if gds else "AsyncIOBuilder"
    interpreter = tuner.with_name(Path(sys.executable).name)
    program = f"from deepspeed.ops.op_builder import {builder}; {builder}().load()"
    command = [str(interpreter) if interpreter.exists() else sys.executable, "-c", program]
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL, check=False
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no error message"]
        raise ConfigError(
            f"DeepSpeed's operator can't be built here: {lines[-1].strip()[:300]}; "
            "it needs a C++ compiler and libaio (apt-get install libaio-dev)"
        )


def _benchmark_files(sweep: Sweep) -> Iterator[Path]:
    for folder in sweep.folders:
        for operation in ("read", "write"):
            yield from folder.glob(f"_aio_{operation}_{sweep.io_size_bytes}.pt.*")


def _run_job(job: Job, sweep: Sweep, command: Sequence[str]) -> Finished:
    log = sweep.log_folder / job.log_name(len(sweep.folders))
    log.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        space = Path(scratch, "sweep.json")
        space.write_text(json.dumps(job.config()), encoding="utf-8")
        output = Path(scratch, "tuner.txt")
        in_time = _run_limited([*command, *_options(job, sweep, space)], output, sweep.timeout_s)
        if not log.exists():
            shutil.copyfile(output, log)
    if not in_time:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"\n{STOPPED} after {sweep.timeout_s:g} s, the time limit of a job\n")
    row = parse_log(log, name=log.name)[0]
    speed = row.get("e2e_speed_gib_s")
    return Finished(
        job=job,
        log=log,
        status=str(row["status"]),
        error=None if row["error"] is None else str(row["error"]),
        speed_gib_s=speed if isinstance(speed, float) else None,
    )


def _options(job: Job, sweep: Sweep, space: Path) -> list[str]:
    options = ["--nvme_dir", *map(str, sweep.folders), "--sweep_config", str(space), "--io_size", sweep.io_size]
    options += ["--loops", str(sweep.loops), "--log_dir", str(sweep.log_folder)]
    options.append("--no_write" if job.operation == "read" else "--no_read")
    return options + ["--gpu"] * sweep.gpu + ["--gds"] * sweep.gds


def _run_limited(command: Sequence[str], output: Path, timeout_s: float) -> bool:
    """Run a command in its own session and return whether it ended in time; all its processes are stopped by then.

    The exit status is no evidence: the tuner's summary fails unless both reads and writes were measured. The log is.
    """
    with output.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            process.wait(timeout_s)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                return False
            raise
    return True
