"""Progress: a callback, a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import arrowds
from arrowds.build import progress

TABLE = pa.table({"x": [[n % 7] for n in range(5000)]})


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("passes", [1, 2])
def test_a_callback_gets_growing_numbers_that_end_with_the_total(tmp_path, workers, passes):
    metric = arrowds.metrics.seqlen("x") if passes == 1 else arrowds.metrics.vocab_rarity("x")
    calls = []
    arrowds.analyze(TABLE, metric, tmp_path, workers=workers, progress=lambda *call: calls.append(call))
    done = [call[0] for call in calls]
    assert {total for _, total in calls} == {5000 * passes}
    assert np.all(np.diff(done) > 0)
    assert done[-1] == 5000 * passes
    assert len(done) == 5 * passes


def test_off_a_terminal_there_are_plain_log_lines(tmp_path, caplog, capfd, monkeypatch):
    with caplog.at_level(logging.INFO, logger="arrowds"):
        arrowds.analyze(TABLE, arrowds.metrics.seqlen("x"), tmp_path / "a", workers=1)
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == 1
        assert lines[0].startswith("5000 of 5000 rows, ")
        assert "rows/s, 0 s left" in lines[0]
        monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
        caplog.clear()
        arrowds.analyze(TABLE, arrowds.metrics.seqlen("x"), tmp_path / "b", workers=1)
        assert len(caplog.records) == 5
        caplog.clear()
        arrowds.analyze(TABLE, arrowds.metrics.seqlen("x"), tmp_path / "c", workers=1, progress=False)
        assert caplog.records == []
    assert capfd.readouterr() == ("", "")


def test_on_a_terminal_there_is_a_bar_with_rows_per_second(tmp_path):
    script = (
        "import sys, pyarrow as pa, arrowds\n"
        "table = pa.table({'x': [[1]] * 5000})\n"
        "arrowds.analyze(table, arrowds.metrics.seqlen('x'), sys.argv[1], workers=1)\n"
    )
    terminal, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", script, str(tmp_path / "index")]
    with subprocess.Popen(command, stderr=theirs, stdout=subprocess.PIPE, env=environment) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(terminal, 4096):
                shown += chunk
        except OSError:
            pass  # the other side has closed
        os.close(terminal)
        assert process.stdout.read() == b""
    assert process.returncode == 0
    text = shown.decode()
    assert "mapping" in text
    assert "5,000/5,000" in text
    assert "rows/s" in text


def test_true_shows_the_bar_in_any_case(tmp_path, capsys):
    arrowds.analyze(TABLE, arrowds.metrics.seqlen("x"), tmp_path, workers=1, progress=True)
    assert "5,000/5,000" in capsys.readouterr().err
