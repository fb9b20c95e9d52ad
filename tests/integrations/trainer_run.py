"""Training runs of tests/integrations/test_trainers.py: TRAINER PART FOLDER.

Part "killed" is killed after step 7 and has a checkpoint of step 4. Part "rest" resumes it, and then runs once without
a break in another folder; rank 0 writes the losses of both to losses.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch

import arrowds
from arrowds.pipeline.collate import PaddingCollate

STEPS, SAVED, KILLED = 12, 4, 7  # the data are for 10 steps: the second epoch begins within the run
CURRICULUM = {
    "seqlen": {
        "difficulty_type": "value",
        "clustering_type": "schedule_based",
        "min_difficulty": 8,
        "max_difficulty": 32,
        "schedule_type": "fixed_linear",
        "schedule_config": {"total_curriculum_step": 9, "difficulty_step": 4},
    }
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def datasets(folder: Path) -> tuple[Any, Any]:
    index = arrowds.open_index(folder / "index")
    return index, arrowds.ArrowDataset(arrowds.sources.open_source(folder / "corpus.parquet"), columns=["input_ids"])


# Hugging Face Trainer and TRL


def hugging_face(folder: Path, output: str, killed: bool, *, trl: bool = False, max_tokens: int | None = None) -> list:
    from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback, TrainingArguments, set_seed

    from arrowds.integrations.transformers import CurriculumTrainer, CurriculumTrainerMixin

    class Kill(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if killed and state.global_step == KILLED:
                die()

    index, dataset = datasets(folder)
    resume = (folder / output / f"checkpoint-{SAVED}").exists()
    options: dict[str, Any] = {
        "output_dir": str(folder / output),
        "max_steps": STEPS,
        "save_steps": SAVED,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "logging_first_step": True,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_num_workers": 0 if trl else 1,
        "bf16": False,
    }
    budget = {} if max_tokens is None else {"max_tokens": max_tokens, "padded": True}
    new_sampler = partial(arrowds.CurriculumSampler, index, CURRICULUM, **budget)
    set_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_positions=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    )
    model.config.use_cache = False
    if trl:
        from datasets import load_dataset
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast
        from trl import SFTConfig, SFTTrainer

        class CurriculumSFTTrainer(CurriculumTrainerMixin, SFTTrainer):
            pass

        tokens = Tokenizer(models.WordLevel({str(token): token for token in range(64)}, unk_token="0"))
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokens, pad_token="0", eos_token="0")
        trainer: Any = CurriculumSFTTrainer(
            model,
            SFTConfig(**options, max_length=64),
            train_dataset=load_dataset(
                "parquet", data_files=str(folder / "corpus.parquet"), split="train", cache_dir=str(folder / "cache")
            ),
            processing_class=tokenizer,
            sampler=new_sampler,
            callbacks=[Kill()],
        )
    else:
        trainer = CurriculumTrainer(
            model,
            TrainingArguments(**options),
            train_dataset=dataset,
            data_collator=PaddingCollate(max_length=64),
            sampler=new_sampler,
            callbacks=[Kill()],
        )
    read = note_reads(trainer)
    trainer.train(resume_from_checkpoint=resume)
    if resume:
        assert min(read) == SAVED, f"steps {sorted(read)} were read"  # not one before the checkpoint
    return [[entry["step"], entry["epoch"], entry["loss"]] for entry in trainer.state.log_history if "loss" in entry]


def note_reads(trainer: Any) -> set[int]:
    """Return a set to which every training step adds how many steps the Trainer had done."""
    read: set[int] = set()
    whole = trainer.training_step

    def training_step(*args: Any, **kwargs: Any) -> Any:
        read.add(trainer.state.global_step)
        return whole(*args, **kwargs)

    trainer.training_step = training_step
    return read


# Accelerate, alone and with DeepSpeed


def accelerate(folder: Path, output: str, killed: bool, *, stage: int | None = None) -> list:
    from accelerate import Accelerator, DeepSpeedPlugin

    from arrowds.integrations.accelerate import AcceleratedDataLoader
    from arrowds.pipeline.byte_model import make_byte_model

    plugin = None
    if stage is not None:
        configuration = {
            "train_micro_batch_size_per_gpu": "auto",
            "train_batch_size": "auto",
            "gradient_accumulation_steps": "auto",
            "zero_optimization": {"stage": stage},
            "zero_force_ds_cpu_optimizer": False,
        }
        plugin = DeepSpeedPlugin(hf_ds_config=configuration)
    accelerator = Accelerator(cpu=plugin is None, deepspeed_plugin=plugin, gradient_accumulation_steps=2)
    index, dataset = datasets(folder)
    sampler = arrowds.CurriculumSampler(
        index,
        CURRICULUM,
        micro_batch_size=2,
        gradient_accumulation_steps=2,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
    )
    torch.manual_seed(0)
    model: Any = make_byte_model(width=16, layers=1, heads=2, max_length=64)
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader: Any = AcceleratedDataLoader(accelerator, dataset, sampler, collate_fn=PaddingCollate(max_length=64))
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if plugin is not None:
        assert model.train_micro_batch_size_per_gpu() == 2
        assert model.train_batch_size() == 4 * accelerator.num_processes
    losses: list[Any] = []
    if (folder / output).exists():
        accelerator.load_state(str(folder / output))
        losses = json.loads((folder / f"{output}.json").read_text())
    for batch in arrowds.RepeatingLoader(loader):
        with accelerator.accumulate(model):
            loss = model(**batch)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(accelerator.gather(loss.detach().reshape(1)).tolist())
        if len(losses) == 2 * SAVED:
            accelerator.save_state(str(folder / output))
            if accelerator.is_main_process:
                (folder / f"{output}.json").write_text(json.dumps(losses))
            accelerator.wait_for_everyone()
        if killed and len(losses) == 2 * KILLED:
            die()
        if len(losses) == 2 * STEPS:
            return losses
    raise AssertionError


RUNS = {
    "trainer": hugging_face,
    "tokens": partial(hugging_face, max_tokens=128),
    "trl": partial(hugging_face, trl=True),
    "accelerate": accelerate,
    "accelerate-zero2": partial(accelerate, stage=2),
    "accelerate-zero3": partial(accelerate, stage=3),
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    run, place = RUNS[sys.argv[1]], Path(sys.argv[3])
    if sys.argv[2] == "killed":
        run(place, "broken", True)
    resumed = run(place, "broken", False)
    if "accelerate" in sys.argv[1]:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=False)
    whole = run(place, "whole", False)
    if os.environ.get("RANK", "0") == "0":
        (place / "losses.json").write_text(json.dumps([whole, resumed]))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may outlive the interpreter, and then abort it on the way out
