"""Damaged input for every reader of arrowds: each case ends with the right answer or with an error of arrowds.

python tests/fuzz_readers.py --cases 100000 --seed 0 [--reader NAME]    (all readers: a night's work)

Each reader runs in a process of its own, so that a crash or a hang is noticed, too. A case follows from its number
alone; a finding names it, and `--reader NAME --seed NUMBER --cases 1` repeats it.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import random
import resource
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

from fuzzed import builds, configurations, indexes, measurements, sources, states

from arrowds.errors import ArrowdsError

Read = Callable[[random.Random], None]
"""Damages its input as the generator says and reads it; raises AssertionError for a wrong answer."""

READERS: dict[str, Callable[[Path], Read]] = {
    **sources.READERS,
    **indexes.READERS,
    **builds.READERS,
    **measurements.READERS,
    **states.READERS,
    **configurations.READERS,
}
"""By name: what prepares a folder for the cases of a reader."""

_LONGEST_CASE = 120
_MOST_MEMORY = 16 << 30


def run(name: str, cases: int, seed: int, *, traces: bool) -> int:
    """Run the cases [seed, seed + cases) of one reader and return how many were findings."""
    warnings.simplefilter("error")
    logging.disable()
    findings = refused = 0
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        read = READERS[name](Path(folder))
        resource.setrlimit(resource.RLIMIT_AS, (_MOST_MEMORY, _MOST_MEMORY))
        faulthandler.enable()
        for case in range(seed, seed + cases):
            print(f"{name}, case {case}: the process ended", file=sys.stderr, end="\r", flush=True)
            faulthandler.dump_traceback_later(_LONGEST_CASE, exit=True)
            try:
                read(random.Random(case))
            except ArrowdsError as error:
                refused += 1
                if not str(error).strip():
                    findings += 1
                    print(f"{name}, case {case}: {type(error).__name__} without a message", flush=True)
            except Exception as error:  # this is what is looked for
                findings += 1
                print(f"{name}, case {case}: {type(error).__name__}: {str(error)[:300]}", flush=True)
                if traces:
                    traceback.print_exc(file=sys.stdout)
        faulthandler.cancel_dump_traceback_later()
    print(f"{name}: {cases} cases from {seed}, {refused} refused, {findings} findings", flush=True)
    return findings


def main() -> int:
    """Run the readers in processes of their own; the exit status is 1 where there was a finding, a crash or a hang."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", choices=READERS)
    parser.add_argument("--traces", action="store_true", help="print the traceback of each finding")
    options = parser.parse_args()
    if options.reader is not None:
        return int(run(options.reader, options.cases, options.seed, traces=options.traces) > 0)
    failed = 0
    for name in READERS:
        command = [sys.executable, __file__, "--reader", name, "--cases", str(options.cases)]
        command += ["--seed", str(options.seed), *(["--traces"] if options.traces else [])]
        child = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        failed |= child.returncode != 0
        if child.returncode not in (0, 1):
            print(f"{child.stderr[-3000:]} (exit status {child.returncode})", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
