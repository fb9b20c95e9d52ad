"""``arrowds demo`` as a stranger runs it: on the real standard library, in an empty folder."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import arrowds


def test_demo_prints_summary_histogram_answer_paths_and_commands_that_can_be_typed(tmp_path):
    program = tmp_path / "my tools" / "arrowds"
    program.parent.mkdir()
    program.write_text(f"#!{sys.executable}\nfrom arrowds.cli import main\nmain()\n")
    program.chmod(0o755)
    environment = os.environ | {"PATH": "/usr/bin:/bin"}
    run = subprocess.run(
        ["my tools/arrowds", "demo", "--keep", "arrowds-demo"], executable=program, env=environment,
        cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", timeout=300, check=True,
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
    hints = out[out.index("try: ") + 5 :].splitlines()
    assert len(hints) == 3
    for line in hints:
        assert shlex.split(line)[0] == str(program) and shlex.split(line)[1] in ("info", "plot", "sql")
        typed = subprocess.run(
            ["sh", "-c", line], cwd=tmp_path, env=environment, capture_output=True, timeout=300, check=False
        )
        assert typed.returncode == 0, typed.stderr
