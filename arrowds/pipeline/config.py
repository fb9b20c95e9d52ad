"""The configuration of a run: frozen models of every section, read from JSON, YAML or a dictionary, checked once."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from arrowds.curriculum.config import parse_curriculum
from arrowds.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    import polars as pl

Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the configuration: frozen, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Section):
    """The dataset: files, and the column of token ids (or of the text that they are made from)."""

    source: str | list[str]
    token_column: str = "input_ids"
    text_column: str = "text"
    tokenizer: str | None = None
    """A ``tokenizer.json`` or "bytes", which makes ``token_column`` from ``text_column``. None: the column exists."""


class TokenMetric(Section):
    """A built-in metric of a column of token ids."""

    kind: Literal["seqlen", "vocab_rarity", "token_counts"]
    column: str | None = None
    name: str | None = None


class ColumnMetric(Section):
    """A column as it is: numbers, or strings as categories."""

    kind: Literal["column"]
    column: str
    name: str | None = None


class ExpressionMetric(Section):
    """A metric in Polars' SQL expressions, such as ``length(text)``."""

    kind: Literal["expr"]
    name: str
    sql: str


class IndexConfig(Section):
    """The index, and what to measure if it is missing."""

    path: Path
    metrics: list[Annotated[TokenMetric | ColumnMetric | ExpressionMetric, Field(discriminator="kind")]] = []
    workers: Positive | None = None


class BatchConfig(Section):
    """How samples become batches of tensors."""

    micro_batch_size: Positive | None = None
    """Samples of a microbatch; or ``max_tokens``."""
    max_tokens: Positive | None = None
    """Tokens of a microbatch."""
    lengths: str = "seqlen"
    """With ``max_tokens``, the metric that counts the tokens of a sample."""
    padded: bool | None = None
    """With ``max_tokens``, whether padding counts; by default it does, unless there is a ``cost``."""
    cost: str | tuple[float, float] | None = None
    """With ``max_tokens``, what a sample costs: a metric, or a and b of a L + b L^2; ranks then get equal work."""
    gradient_accumulation_steps: Positive = 1
    seed: int = 1234
    num_epochs: Positive = 1
    order: Literal["stateless", "deepspeed"] = "stateless"
    where: str | None = None
    """Only samples for which this is true are drawn: an SQL expression over metrics, such as ``seqlen >= 16``."""
    max_length: Positive | None = None
    """Longer samples are cut to this many tokens."""
    pad_id: int = 0
    num_workers: Annotated[int, Field(ge=0)] = 0
    record: bool = False
    """Record which samples were consumed, in the folder ``consumed`` of the output."""


class MixtureConfig(Section):
    """Groups of samples, and the share of each."""

    groups: str | dict[str, str]
    """A metric whose values are the names of groups, or an SQL condition over metrics for each name."""
    weights: dict[str, float] | list[tuple[Positive, dict[str, float]]]
    """The share of each group, or a list of [first step, shares]."""
    unit: Literal["samples", "tokens"] = "samples"
    overlap: Literal["raise", "first"] = "raise"
    rest: str = "raise"
    """What becomes of samples in no group: "raise", "leave", or the name of a group of them."""
    curricula: dict[str, dict[str, dict[str, Any]]] = {}
    """A curriculum for some of the groups."""


class ModelConfig(Section):
    """The model: "bytes", the small built-in one, or an importable "module:function" that returns a torch module."""

    factory: str = "bytes"
    arguments: dict[str, Any] = {}
    seed: int = 0
    """torch's seed while the model is created."""


class TrainingConfig(Section):
    """How to train: with plain PyTorch, or with DeepSpeed under its own JSON configuration."""

    engine: Literal["torch", "deepspeed"] = "torch"
    steps: Positive | None = None
    """Steps of the optimizer; None: until the data ends."""
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    max_grad_norm: Annotated[float, Field(gt=0)] | None = 1.0
    device: str | None = None
    """Of plain PyTorch: "cpu", "cuda", ...; None: an accelerator if available."""
    checkpoint_every: Positive | None = None
    """Steps between checkpoints; one is always written at the end."""
    deepspeed: dict[str, Any] | Path = {}
    """DeepSpeed's configuration, or its JSON file; batch sizes come from ``batches``."""


class PipelineConfig(Section):
    """A whole run. ``data`` may be omitted if the dataset is passed in Python.

    >>> load_config({"index": {"path": "i"}, "batches": {"micro_batch_size": 8, "sead": 1}, "output": "run"})
    Traceback (most recent call last):
    arrowds.errors.ConfigError: unknown key 'sead' in 'batches'; did you mean 'seed'?
    """

    data: DataConfig | None = None
    index: IndexConfig
    curriculum: dict[str, dict[str, Any]] = {}
    mixture: MixtureConfig | None = None
    batches: BatchConfig
    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    output: Path
    """The folder for tables, chart and checkpoints."""


def load_config(config: PipelineConfig | Mapping[str, Any] | str | PathLike[str]) -> PipelineConfig:
    """Return a checked configuration from a dictionary, or from a ``.json``, ``.yaml`` or ``.yml`` file.

    Relative paths in it are relative to the working directory.

    Raises:
        ConfigError: for unknown keys (with the nearest known one), and missing or invalid values.
        MissingExtraError: for YAML without PyYAML.
    """
    if isinstance(config, PipelineConfig):
        return config
    values = config if isinstance(config, Mapping) else read_settings(config)
    try:
        checked = PipelineConfig.model_validate(values)
    except ValidationError as error:
        # Unknown keys first: a missing key may have been misspelled.
        errors = sorted(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
        raise ConfigError("; ".join(map(_explained, errors))) from error
    parse_curriculum(checked.curriculum)
    if checked.batches.where is not None:
        sql_expression(checked.batches.where, "batches.where")
    return checked


def sql_expression(sql: str, place: str) -> pl.Expr:
    """Return an SQL expression of the configuration as one of Polars, which evaluates it.

    Raises:
        ConfigError: naming the place, when it is not one.
    """
    import polars as pl

    try:
        return pl.sql_expr(sql)
    except pl.exceptions.PolarsError as error:
        raise ConfigError(f"{place}: {sql!r} is not a valid SQL expression: {error}") from error


def read_settings(path: str | PathLike[str]) -> dict[str, Any]:
    """Return the dictionary of a JSON or YAML file.

    Raises:
        ConfigError: for a file that can't be read, or whose content is not a dictionary.
        MissingExtraError: for YAML without PyYAML.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else _yaml(path, text)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"the configuration {path} can't be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"the configuration {path} is a {type(values).__name__}; expected a dictionary of sections")
    return values


def _yaml(path: Path, text: str) -> Any:
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"the configuration {path} must end in .json, .yaml or .yml")
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("pyyaml", "all") from error
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the configuration {path} is not valid YAML: {error}") from error


def _explained(error: Any) -> str:
    """Return what is wrong and where; for an unknown key, with the nearest known one."""
    place, kind = error["loc"], error["type"]
    if kind == "missing":
        return f"{'.'.join(map(str, place))} is missing"
    if kind != "extra_forbidden":
        return f"{'.'.join(map(str, place))}: {error['msg']}, got {error['input']!r}"
    *parents, key = (part for part in place if not isinstance(part, int))
    where = repr(".".join(map(str, parents))) if parents else "the configuration"
    known = sorted(_section(parents).model_fields)
    close = difflib.get_close_matches(str(key), known, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
    return f"unknown key {key!r} in {where}; {hint}"


def _section(names: list[Any]) -> type[Section]:
    """Return the model that keys lead to; a discriminator such as "expr" leads to the metric of that kind."""
    section: type[Section] = PipelineConfig
    for name in names:
        candidates = _models(section.model_fields[name].annotation) if name in section.model_fields else []
        if len(candidates) == 1:
            section = candidates[0]
        elif not candidates:
            section = ExpressionMetric if name == "expr" else TokenMetric
    return section


def _models(annotation: Any) -> list[type[Section]]:
    """Return the section models that an annotation mentions."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]
