"""Real engines with a curriculum, on CPU: test_initialize.py starts the parts, on one or two ranks."""

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed import comm
from deepspeed.pipe import PipelineModule

import arrowds
from arrowds.integrations import deepspeed as ads

SAMPLES, WIDTH, STEPS, GLOBAL_BATCH, SAVED_EVERY, KILLED_AT = 96, 16, 8, 8, 2, 5
METRIC = {
    "difficulty_type": "value",
    "clustering_type": "schedule_based",
    "min_difficulty": 4,
    "max_difficulty": 16,
    "schedule_type": "fixed_linear",
    "schedule_config": {"total_curriculum_step": 7, "difficulty_step": 2},
}


class Rows(torch.utils.data.Dataset):
    def __init__(self, length: int = SAMPLES) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, row: int) -> dict[str, Any]:
        x = torch.randn(WIDTH, generator=torch.Generator().manual_seed(row))
        return {"id": row, "x": x, "y": x.sum().sin()}


def cut(batch: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """What Megatron's seqlen_truncate does to tokens."""
    difficulty = state["current_difficulties"]["seqlen"]
    x = batch["x"].clone()
    x[:, difficulty:] = 0
    return batch | {"x": x, "difficulty": difficulty}


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(WIDTH, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1))


def configuration(folder: Path, *, stage: int = 3, curriculum: bool = True, **sampling: Any) -> dict[str, Any]:
    config = {
        "train_batch_size": GLOBAL_BATCH,
        "gradient_accumulation_steps": 2,
        "optimizer": {"type": "Adam", "params": {"torch_adam": True, "lr": 0.01}},
        "zero_optimization": {"stage": stage},
    }
    if curriculum:
        metric = METRIC | {"index_path": str(folder / "index")} | sampling.pop("metric", {})
        learning = {"enabled": True, "curriculum_metrics": {"seqlen": metric}}
        sampling = {"enabled": True, "num_workers": 2, "num_epochs": 5, "curriculum_learning": learning} | sampling
        config["data_efficiency"] = {"enabled": True, "seed": 11, "data_sampling": sampling}
    return config


def new_engine(config: dict[str, Any]) -> Any:
    engine, optimizer, loader, _ = ads.initialize(model=network(), training_data=Rows(), config=config)
    assert engine.training_dataloader is loader
    assert engine.optimizer is optimizer
    engine.set_data_post_process_func(cut)
    return engine


class Log:
    """Lines of JSON of one rank, each written at once: a killed process leaves what it did."""

    def __init__(self, folder: Path, name: str) -> None:
        self.file = (folder / f"{name}-{comm.get_rank()}.jsonl").open("w")

    def __call__(self, **values: Any) -> None:
        self.file.write(json.dumps(values) + "\n")
        self.file.flush()


def train(engine: Any, batches: Iterable[dict[str, Any]], log: Log, until: int, after: Callable = lambda: None) -> None:
    iterator: Iterator[dict[str, Any]] = iter(batches)
    while engine.global_steps < until:
        step = engine.global_steps + 1
        for _ in range(engine.gradient_accumulation_steps()):
            batch = next(iterator)
            loss = ((engine(batch["x"]).squeeze(1) - batch["y"]) ** 2).mean()
            log(step=step, ids=batch["id"].tolist(), loss=loss.item(), difficulty=batch["difficulty"])
            if step == KILLED_AT and "killed" in sys.argv and comm.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            engine.backward(loss)
            engine.step()
        after()


def by_hand(folder: Path, rank: int, world: int) -> Iterator[dict[str, Any]]:
    """Yield the microbatches that the batches of the sampler, asked for step by step, divide into."""
    index = arrowds.open_index(folder / "index")
    sampler = arrowds.CurriculumSampler(
        index, {"seqlen": METRIC}, micro_batch_size=GLOBAL_BATCH, seed=11, num_epochs=5, order="deepspeed"
    )
    rows, size = Rows(), GLOBAL_BATCH // 2 // world
    for step in range(1, STEPS + 1):
        ids = sampler.global_batch_at(step).reshape(2, world, size)[:, rank]
        for micro in ids:
            batch = torch.utils.data.default_collate([rows[int(row)] for row in micro])
            yield cut(batch, {"current_difficulties": sampler.difficulties_at(step)})


def whole(folder: Path) -> None:
    engine = new_engine(configuration(folder))
    train(engine, engine.training_dataloader, Log(folder, "whole"), STEPS)
    log = Log(folder, "facts")
    log(length=len(engine.training_dataloader), timed=engine.tput_timer.micro_step_count)
    log(evaluated=[batch["id"].tolist() for batch in ads.deepspeed_io(engine, Rows(10), route="eval")])

    plain = deepspeed.initialize(model=network(), config=configuration(folder, curriculum=False))[0]
    train(plain, by_hand(folder, comm.get_rank(), comm.get_world_size()), Log(folder, "hand"), STEPS)
    plain.save_checkpoint(folder / "without")
    engine.load_checkpoint(folder / "without")
    log(without=engine.training_dataloader.data_sampler.curriculum_step)

    unset = {"metric": {"schedule_type": "custom", "schedule_config": {}}}
    custom = new_engine(configuration(folder, stage=0, **unset))
    custom.set_custom_curriculum_learning_schedule({"seqlen": lambda step: 6 + step})
    log(custom=[batch["difficulty"] for batch, _ in zip(custom.training_dataloader, range(6), strict=False)])

    shuffled = ads.initialize(model=network(), training_data=Rows(), config=configuration(folder, curriculum=False))[2]
    log(shuffled=[batch["id"].tolist() for batch in shuffled])

    elastic = new_engine(configuration(folder, stage=0, order="stateless"))
    log = Log(folder, "elastic")
    train(elastic, elastic.training_dataloader, log, 3)
    elastic.save_checkpoint(folder / "elastic")
    train(elastic, elastic.training_dataloader, log, 6)


def killed(folder: Path) -> None:
    engine = new_engine(configuration(folder))

    def save() -> None:
        if engine.global_steps % SAVED_EVERY == 0:
            engine.save_checkpoint(folder / "saved")

    train(engine, engine.training_dataloader, Log(folder, "killed"), STEPS, save)


def resumed(folder: Path) -> None:
    engine = new_engine(configuration(folder))
    engine.load_checkpoint(folder / "saved")
    train(engine, engine.training_dataloader, Log(folder, "resumed"), STEPS)
    pipeline(folder)


def one_rank(folder: Path) -> None:
    comm.init_distributed("gloo")
    engine = new_engine(configuration(folder, stage=0, order="stateless"))
    engine.load_checkpoint(folder / "elastic")
    train(engine, engine.training_dataloader, Log(folder, "one"), 6)


def pipeline(folder: Path) -> None:
    """A stage on each rank; both load the batches."""
    log, stages = Log(folder, "pipeline"), comm.get_world_size()
    for name in ("straight", "resumed"):
        layers = list(network())
        module = PipelineModule(layers, num_stages=stages, loss_fn=lambda found, y: ((found[:, 0] - y) ** 2).mean())
        engine, _, loader, _ = ads.initialize(model=module, training_data=Rows(), config=configuration(folder, stage=0))
        seen: list[list[int]] = []

        def note(batch: dict[str, Any], state: dict[str, Any], seen: list = seen) -> tuple[torch.Tensor, torch.Tensor]:
            seen.append([state["current_difficulties"]["seqlen"], *batch["id"].tolist()])
            return cut(batch, state)["x"], batch["y"]

        engine.set_data_post_process_func(note)
        if name == "resumed":
            engine.load_checkpoint(folder / "pipeline")
        losses = []
        while engine.global_steps < 6:
            losses.append(engine.train_batch().item())
            if engine.global_steps == 3 and name == "straight":
                engine.save_checkpoint(folder / "pipeline")
        log(name=name, losses=losses, seen=seen, same=loader is engine.training_dataloader)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    {"whole": whole, "killed": killed, "resumed": resumed, "one": one_rank}[sys.argv[1]](Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may outlive the interpreter, and then abort it on the way out
