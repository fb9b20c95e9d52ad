"""Trainers of others are killed in the middle, and resume with the losses of an uninterrupted run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import arrowds
from arrowds.errors import ConfigError, StateMismatchError

SCRIPT = Path(__file__).with_name("trainer_run.py")
# Without a GPU, Accelerate runs DeepSpeed in one process only.
RUNS = [
    ("trainer", "transformers", 2),
    ("tokens", "transformers", 1),
    ("trl", "trl", 1),
    ("accelerate", "accelerate", 2),
    ("accelerate-zero2", "deepspeed", 1),
    ("accelerate-zero3", "deepspeed", 1),
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """80 samples: ten steps of two ranks with two microbatches of two."""
    folder = tmp_path_factory.mktemp("trainers")
    random = np.random.default_rng(7)
    rows = [random.integers(1, 64, length) for length in random.integers(4, 33, 80)]
    pq.write_table(pa.table({"input_ids": pa.array([row.tolist() for row in rows])}), folder / "corpus.parquet")
    metrics = arrowds.metrics.seqlen()
    arrowds.analyze(str(folder / "corpus.parquet"), metrics, folder / "index", workers=1, progress=False)
    return folder


def run(trainer: str, part: str, folder: Path, ranks: int) -> subprocess.CompletedProcess[str]:
    launchers = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in launchers}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
    launcher = torchrun if ranks > 1 or "zero" in trainer else []
    return subprocess.run(
        [sys.executable, *launcher, str(SCRIPT), trainer, part, str(folder)],
        capture_output=True, text=True, check=False, timeout=300, env=environment,
    )  # fmt: skip


@pytest.mark.parametrize(("trainer", "package", "ranks"), RUNS, ids=[name for name, _, _ in RUNS])
def test_a_killed_run_resumes_with_the_losses_of_an_uninterrupted_one(
    data: Path, tmp_path: Path, trainer: str, package: str, ranks: int
) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    for name in ("corpus.parquet", "index"):
        (tmp_path / name).symlink_to(data / name)
    killed = run(trainer, "killed", tmp_path, ranks)
    saved = [tmp_path / "broken" / "checkpoint-4", tmp_path / "broken.json"]
    assert killed.returncode != 0 and any(path.exists() for path in saved), killed.stderr[-4000:]
    assert not (tmp_path / "losses.json").exists()
    rest = run(trainer, "rest", tmp_path, ranks)
    assert rest.returncode == 0, rest.stderr[-4000:]
    whole, resumed = json.loads((tmp_path / "losses.json").read_text())
    assert resumed == whole
    assert len(whole) >= 12 and len({str(entry) for entry in whole}) == len(whole)


@pytest.mark.filterwarnings("ignore")
def test_what_the_trainer_and_the_sampler_do_not_agree_in_is_refused(data: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    from arrowds.integrations.transformers import CurriculumTrainer
    from arrowds.pipeline.collate import PaddingCollate

    index = arrowds.open_index(data / "index")
    source = arrowds.sources.open_source(data / "corpus.parquet")
    dataset = arrowds.ArrowDataset(source, columns=["input_ids"])

    def trainer(train_dataset: object, **options: object) -> CurriculumTrainer:
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path), max_steps=2, save_steps=1, per_device_train_batch_size=2, report_to=[],
            gradient_accumulation_steps=3, disable_tqdm=True, use_cpu=True, remove_unused_columns=False,
        )  # fmt: skip
        sampler = partial(arrowds.CurriculumSampler, index, {}, **options)
        small = transformers.GPT2Config(vocab_size=64, n_positions=64, n_embd=16, n_layer=1, n_head=2)
        return CurriculumTrainer(
            transformers.GPT2LMHeadModel(small),
            arguments,
            train_dataset=train_dataset,
            data_collator=PaddingCollate(max_length=64),
            sampler=sampler,
        )

    with pytest.raises(ConfigError, match=r"40 microbatches, which are no whole number of steps of 3: use drop_last"):
        trainer(dataset, drop_last=False).train()
    with pytest.raises(ConfigError, match="the dataset has 79 samples but the index 80"):
        trainer(torch.utils.data.Subset(dataset, range(79))).train()
    trainer(dataset).train()
    with pytest.raises(StateMismatchError, match="the saved state differs in seed"):
        trainer(dataset, seed=5).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    path = tmp_path / "checkpoint-1" / "trainer_state.json"
    state = json.loads(path.read_text())
    del state["stateful_callbacks"]["arrowds"]
    path.write_text(json.dumps(state))
    with pytest.raises(StateMismatchError, match="the checkpoint of step 1 has no position of an arrowds loader"):
        trainer(dataset).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
