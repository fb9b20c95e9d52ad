"""A run with DeepSpeed: ZeRO-3 learns what plain PyTorch learns, and resumes exactly from its checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from arrowds.errors import ConfigError
from arrowds.pipeline import load_config, run_pipeline
from arrowds.pipeline.deepspeed_engine import deepspeed_settings

SCRIPT = Path(__file__).with_name("deepspeed_runs.py")


@pytest.fixture
def library(tmp_path):
    """Sixty functions of 30 to 180 bytes, as the demo reads them."""
    folder = tmp_path / "library"
    folder.mkdir()
    lines = [f"def f{number}(x):\n    return x{' + 1' * number}\n" for number in range(1, 33)]
    (folder / "short.py").write_text("".join(lines * 4))
    return folder


def test_zero3_trains_like_pytorch_and_resumes_exactly(configuration, tmp_path, library):
    plain = run_pipeline(configuration(training={"warmup_steps": 3}))
    zero3 = {"zero_optimization": {"stage": 3}}
    values = configuration(training={"engine": "deepspeed", "warmup_steps": 3, "deepspeed": zero3})
    (tmp_path / "c.json").write_text(json.dumps(values))
    environment = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "MASTER_ADDR")
    }
    process = subprocess.run(
        [sys.executable, SCRIPT, tmp_path / "c.json", library, tmp_path],
        capture_output=True, text=True, timeout=180, cwd=tmp_path,
        env={**environment, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-3000:]
    result = json.loads(process.stdout.split("RESULT ")[-1])
    assert result["losses"] == pytest.approx(plain.losses["loss"].to_pylist(), rel=1e-3)
    assert result["rates"] == pytest.approx(plain.losses["lr"].to_pylist())
    assert result["resumed_from"] == 5 and result["same"]
    assert "seed" in result["refused"]
    assert result["demo"] == [2, True, 0.0, 4 * 16]


def test_batch_sizes_go_into_the_configuration(configuration):
    config = load_config(configuration(training={"deepspeed": {"train_batch_size": "auto", "bf16": {"enabled": True}}}))
    settings = deepspeed_settings(config.training, config.batches, 3)
    assert (settings["train_batch_size"], settings["train_micro_batch_size_per_gpu"]) == (12, 2)
    assert settings["gradient_accumulation_steps"] == 2 and settings["bf16"] == {"enabled": True}
    assert settings["gradient_clipping"] == 1.0


def test_configuration_may_be_a_file(configuration, tmp_path):
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2}, "gradient_clipping": 5}')
    config = load_config(configuration(training={"deepspeed": str(tmp_path / "ds.json")}))
    settings = deepspeed_settings(config.training, config.batches, 1)
    assert settings["zero_optimization"] == {"stage": 2} and settings["gradient_clipping"] == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train_batch_size": 5}, "train_batch_size=5, but 'batches' with 1 ranks gives 4"),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps=1, but"),
        ({"data_efficiency": {}}, "has 'data_efficiency'; leave it out: the section 'curriculum'"),
    ],
)
def test_contradictions_are_refused(configuration, given, message):
    config = load_config(configuration(training={"deepspeed": given}))
    with pytest.raises(ConfigError, match=message):
        deepspeed_settings(config.training, config.batches, 1)
