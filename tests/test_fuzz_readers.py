"""A small share of `fuzz_readers.py` in every run: damaged files raise arrowds errors alone, and nothing crashes."""

from __future__ import annotations

import subprocess
import sys

import fuzz_readers
import pytest


@pytest.mark.parametrize("name", fuzz_readers.FORMATS)
def test_damaged_files_raise_arrowds_errors_alone(name: str) -> None:
    command = [sys.executable, fuzz_readers.__file__, name, "100", "0"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "100 cases" in run.stdout
