"""The sampler of a configuration file: DeepSpeed's JSON, or the configuration of a run."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from arrowds.curriculum.config import parse_curriculum
from arrowds.curriculum.mixture import MixtureSampler
from arrowds.curriculum.ranks import RankLayout
from arrowds.curriculum.sampler import CurriculumSampler
from arrowds.errors import ConfigError
from arrowds.index import Index
from arrowds.integrations.deepspeed import DeepSpeedDataSampler
from arrowds.pipeline.config import BatchConfig, PipelineConfig, load_config, read_settings, sql_expression

_SECTIONS = ("data_efficiency", "data_sampling", "curriculum_learning")
_SIZES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def sampler_from_settings(
    index: Index,
    settings: Mapping[str, Any] | str | PathLike[str],
    *,
    rank: int = 0,
    world_size: int | None = None,
) -> CurriculumSampler | MixtureSampler:
    """Return the sampler of a configuration over an index.

    Args:
        index: an open index with the metrics of the curriculum; paths in the configuration are not followed.
        settings: DeepSpeed's configuration, recognised by its batch sizes or ``data_efficiency``, for the draws of
            ``arrowds.integrations.deepspeed.initialize``; or that of ``arrowds run``. A dictionary or a file.
        rank: this process among all that train.
        world_size: number of processes that train. None: from DeepSpeed's three batch sizes if all are given, else 1.

    Raises:
        ConfigError: for a configuration without an enabled curriculum, or inconsistent batch sizes.

    >>> import tempfile, arrowds, pyarrow as pa
    >>> folder = tempfile.TemporaryDirectory()
    >>> index = arrowds.analyze(
    ...     pa.table({"input_ids": [[1] * n for n in range(1, 65)]}), arrowds.metrics.seqlen(), f"{folder.name}/index")
    >>> metrics = {"seqlen": {"difficulty_type": "value", "clustering_type": "schedule_based", "min_difficulty": 8,
    ...     "max_difficulty": 64, "schedule_type": "fixed_linear",
    ...     "schedule_config": {"total_curriculum_step": 20, "difficulty_step": 8}}}
    >>> sampling = {"enabled": True, "curriculum_learning": {"enabled": True, "curriculum_metrics": metrics}}
    >>> sampler = sampler_from_settings(
    ...     index, {"train_batch_size": 16, "data_efficiency": {"enabled": True, "data_sampling": sampling}})
    >>> len(sampler.global_batch_at(5)), sampler.difficulties_at(5)
    (16, {'seqlen': 16})
    >>> folder.cleanup()
    """
    values = settings if isinstance(settings, Mapping) else read_settings(settings)
    if {"data_efficiency", *_SIZES} & values.keys():
        return _of_deepspeed(index, values, deepspeed_layout(values, rank=rank, world_size=world_size))
    return sampler_of_run(index, load_config(values), rank=rank, world_size=world_size or 1)


def sampler_of_run(
    index: Index, config: PipelineConfig, *, rank: int, world_size: int, record: Path | None = None
) -> CurriculumSampler | MixtureSampler:
    """Return the sampler of the configuration of a run; ``record`` is where it notes what it has yielded.

    Raises:
        ConfigError: for settings that the sampler refuses, and for a mixture beside a curriculum of all samples.
    """
    batches, mixture = config.batches, config.mixture
    options: dict[str, Any] = {
        "micro_batch_size": batches.micro_batch_size,
        **_budget(batches),
        "gradient_accumulation_steps": batches.gradient_accumulation_steps,
        "rank": rank,
        "world_size": world_size,
        "seed": batches.seed,
        "num_epochs": batches.num_epochs,
        "order": batches.order,
        "where": None if batches.where is None else sql_expression(batches.where, "batches.where"),
        "record": record,
    }
    if mixture is None:
        return CurriculumSampler(index, config.curriculum, **options)
    if config.curriculum:
        raise ConfigError("give one of 'curriculum' and 'mixture'; curricula of groups are 'mixture.curricula'")
    groups: Any = mixture.groups
    if not isinstance(groups, str):
        groups = {name: sql_expression(sql, f"mixture.groups, {name!r}") for name, sql in groups.items()}
    if mixture.unit == "tokens" and batches.max_tokens is None:
        options["lengths"] = batches.lengths
    return MixtureSampler(
        index,
        mixture.weights,
        groups=groups,
        unit=mixture.unit,
        overlap=mixture.overlap,
        rest=mixture.rest,
        curricula=mixture.curricula,
        **options,
    )


def _budget(batches: BatchConfig) -> dict[str, Any]:
    if batches.max_tokens is None:
        return {}
    return {
        "max_tokens": batches.max_tokens,
        "lengths": batches.lengths,
        "padded": batches.cost is None if batches.padded is None else batches.padded,
        "overlong": "truncate" if batches.max_length and batches.max_length <= batches.max_tokens else "raise",
        "cost": batches.cost,
    }


def _of_deepspeed(index: Index, values: Mapping[str, Any], layout: RankLayout) -> CurriculumSampler:
    sections = [values]
    for depth, name in enumerate(_SECTIONS, 1):
        section = sections[-1].get(name, {})
        if not isinstance(section, Mapping) or not section.get("enabled", False):
            place = ".".join(_SECTIONS[:depth])
            raise ConfigError(
                f'{place} is not enabled, so the configuration has no curriculum; set "enabled": true in it'
            )
        sections.append(section)
    _, efficiency, sampling, learning = sections
    given = learning.get("curriculum_metrics", {})
    metrics = {metric.name: {**given[metric.name], "index_path": index.path} for metric in parse_curriculum(given)}
    learning = {**learning, "curriculum_metrics": metrics}
    return DeepSpeedDataSampler(
        {**efficiency, "data_sampling": {**sampling, "curriculum_learning": learning}},
        index.num_samples,
        layout.micro_batch_size,
        layout.rank,
        layout.world_size,
        None,
        layout.gradient_accumulation_steps,
        layout.rank,
    )


def deepspeed_layout(values: Mapping[str, Any], *, rank: int = 0, world_size: int | None = None) -> RankLayout:
    """Derive DeepSpeed's batch sizes from those that are given, as it does. Pure.

    Raises:
        ConfigError: when they are inconsistent or insufficient.

    >>> deepspeed_layout({"train_batch_size": 32, "train_micro_batch_size_per_gpu": 4}, world_size=2)
    RankLayout(micro_batch_size=4, rank=0, world_size=2, gradient_accumulation_steps=4)
    """
    total, micro, accumulation = (None if values.get(key) == "auto" else values.get(key) for key in _SIZES)
    given = ", ".join(f"{key}={values[key]!r}" for key in _SIZES if key in values) or "none of them"
    for size in (total, micro, accumulation):
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ConfigError(f"batch sizes must be positive integers, got {given}")
    if total is None and micro is None:
        raise ConfigError(f"train_batch_size or train_micro_batch_size_per_gpu must be given; got {given}")
    ranks = world_size
    if ranks is None:
        ranks = max(1, total // (micro * accumulation)) if total and micro and accumulation else 1
    if micro is None:
        micro = (total or 0) // (ranks * (accumulation or 1))
    if accumulation is None:
        accumulation = 1 if total is None else total // (micro * ranks) if micro else 0
    if total is not None and total != micro * accumulation * ranks:
        raise ConfigError(
            f"{given} are inconsistent with {ranks} ranks: train_batch_size must be the product of the others"
        )
    return RankLayout(micro_batch_size=micro, rank=rank, world_size=ranks, gradient_accumulation_steps=accumulation)
