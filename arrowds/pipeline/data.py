"""The first half of a run: from a configuration to the dataset, its index, and the loader that feeds training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from typing import Any

import pyarrow as pa

from arrowds import metrics
from arrowds.build.api import analyze
from arrowds.curriculum.trace import CONSUMED
from arrowds.errors import ConfigError
from arrowds.index import Index, open_index
from arrowds.loading import ArrowDataset, CurriculumDataLoader
from arrowds.metrics import Metric
from arrowds.pipeline.collate import PaddingCollate
from arrowds.pipeline.config import (
    ColumnMetric,
    DataConfig,
    ExpressionMetric,
    IndexConfig,
    PipelineConfig,
    load_config,
    sql_expression,
)
from arrowds.pipeline.sampler_settings import sampler_of_run
from arrowds.sources import Source, TokenizedSource, open_source


def create_data_loader(
    dataset: Any,
    config: PipelineConfig | Mapping[str, Any] | str | PathLike[str],
    *,
    rank: int = 0,
    world_size: int = 1,
    collate_fn: Callable[[Any], Any] | None = None,
) -> CurriculumDataLoader:
    """Return the loader of a configuration; the dataset is indexed first if the index is missing.

    An interrupted index is finished. Every rank calls this; if several processes start at once, call
    :func:`prepare_index` on one of them first.

    Args:
        dataset: a map-style dataset whose samples have token ids, files, or a table; None: the one of ``config.data``.
        config: sections ``index``, ``curriculum`` and ``batches``, and ``data`` unless a dataset is given.
        rank: this process among all that train.
        world_size: number of processes that train.
        collate_fn: turns samples into a batch; by default :class:`PaddingCollate` with the settings of ``batches``.

    Raises:
        ConfigError: for an invalid configuration.
        IndexExistsError: when the index is of other data or other metrics.

    >>> import tempfile
    >>> table = pa.table({"input_ids": [[1, 2, 3], [4], [5, 6]]})
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     config = {"index": {"path": f"{folder}/index", "metrics": [{"kind": "seqlen"}]}, "output": folder,
    ...               "batches": {"micro_batch_size": 3}}
    ...     batch = next(iter(create_data_loader(table, config)))
    >>> sorted(batch), sorted(batch["input_ids"].tolist())
    (['attention_mask', 'input_ids', 'labels'], [[1, 2, 3], [4, 0, 0], [5, 6, 0]])
    """
    checked = load_config(config)
    index = prepare_index(dataset, checked)
    batches = checked.batches
    column = (checked.data or DataConfig(source="")).token_column
    record = checked.output / CONSUMED if batches.record else None
    sampler = sampler_of_run(index, checked, rank=rank, world_size=world_size, record=record)
    samples = _source(checked) if dataset is None else dataset
    if isinstance(samples, str | PathLike | Source | pa.Table):
        samples = ArrowDataset(samples, columns=[column])
    collate = collate_fn or PaddingCollate(token_column=column, max_length=batches.max_length, pad_id=batches.pad_id)
    return CurriculumDataLoader(samples, sampler, num_workers=batches.num_workers, collate_fn=collate)


def prepare_index(dataset: Any, config: PipelineConfig) -> Index:
    """Return the index of a configuration; if ``index.metrics`` is given, create or finish it first."""
    measured = list(_metrics(config.index, config.data))
    if not measured:
        return open_index(config.index.path)
    source = _source(config) if dataset is None else dataset
    return analyze(source, measured, config.index.path, workers=config.index.workers)


def _source(config: PipelineConfig) -> Source:
    data = config.data
    if data is None:
        raise ConfigError("no dataset: pass one, or name its files in the section 'data'")
    source = open_source(data.source)
    if data.tokenizer is None:
        return source
    return TokenizedSource(source, column=data.text_column, tokenizer=data.tokenizer, output=data.token_column)


def _metrics(config: IndexConfig, data: DataConfig | None) -> Iterator[Metric]:
    of_tokens: dict[str, Callable[..., Metric]] = {
        "seqlen": metrics.seqlen,
        "vocab_rarity": metrics.vocab_rarity,
        "token_counts": metrics.token_counts,
    }
    default = "input_ids" if data is None else data.token_column
    for metric in config.metrics:
        if isinstance(metric, ExpressionMetric):
            place = f"index.metrics, {metric.name!r}"
            yield metrics.expr(metric.name, sql_expression(metric.sql, place))
        elif isinstance(metric, ColumnMetric):
            yield metrics.column(metric.column, name=metric.name)
        else:
            yield of_tokens[metric.kind](metric.column or default, name=metric.name or metric.kind)
