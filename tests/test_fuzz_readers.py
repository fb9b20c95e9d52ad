"""A small share of `fuzz_readers.py` in every run: damaged input raises arrowds errors alone, and nothing crashes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fuzz_readers
import pytest

CASES = {"unfinished build": 12, "unfinished build, in shards": 12, "manifest, signed": 30}
"""Where a case takes long; else 60."""


@pytest.mark.parametrize("name", fuzz_readers.READERS)
def test_damaged_input_raises_arrowds_errors_alone(name: str) -> None:
    cases = CASES.get(name, 60)
    command = [sys.executable, fuzz_readers.__file__, "--reader", name, "--cases", str(cases), "--traces"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr[-3000:]
    assert f"{cases} cases" in run.stdout


def test_a_finding_is_reported_with_its_case() -> None:
    code = f"""
import sys; sys.path.insert(0, {str(Path(fuzz_readers.__file__).parent)!r})
import fuzz_readers
fuzz_readers.READERS["broken"] = lambda folder: lambda rng: {{}}["key"]
sys.exit(fuzz_readers.run("broken", 2, 7, traces=False))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 2
    assert run.stdout == "broken, case 7: KeyError: 'key'\nbroken, case 8: KeyError: 'key'\n" + (
        "broken: 2 cases from 7, 0 refused, 2 findings\n"
    )
