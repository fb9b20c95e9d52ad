"""``arrowds demo`` as a stranger runs it: on the real standard library, in an empty folder."""

from __future__ import annotations

import subprocess
import sys

import arrowds


def test_demo_prints_summary_histogram_answer_and_paths(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", "from arrowds.cli import main; main()", "demo"],
        cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", timeout=120, check=True,
    )  # fmt: skip
    index = arrowds.open_index(tmp_path / "arrowds-demo" / "index", verify=True)
    assert index.num_samples > 5000
    out = run.stdout
    assert f"{index.num_samples:,} functions and classes" in out
    assert all(name in out for name in index)
    assert "█" in out and "100.0%" in out
    answer = out[out.index("nats_per_token ┃") :].splitlines()
    assert sum(line.startswith("│") for line in answer) == 10
    assert "arrowds-demo/functions.parquet" in out and "arrowds-demo/index" in out
