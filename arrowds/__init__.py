"""Index training data by metrics and feed it to training in the order that the metrics call for."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arrowds import cost, errors, metrics, sources, stats
    from arrowds.build.api import add_metrics, add_values, analyze, append
    from arrowds.build.compact import compact, vacuum, versions
    from arrowds.build.moved import move_data
    from arrowds.curriculum.config import CurriculumMetric
    from arrowds.curriculum.mixture import MixtureSampler, quantile_groups
    from arrowds.curriculum.sampler import CurriculumSampler
    from arrowds.curriculum.schedule import register_schedule
    from arrowds.duplicates import find_duplicates
    from arrowds.index import Index, open_index
    from arrowds.integrations.deepspeed.scheduler import CurriculumScheduler
    from arrowds.loading import ArrowDataset, CurriculumDataLoader, RepeatingLoader
    from arrowds.pipeline import create_data_loader, execute_data_pipeline
    from arrowds.report import write_report
    from arrowds.stats.profiler import PartitionedParameterProfiler
    from arrowds.token_batches.plan import TokenBatchPlan, batch_by_tokens
    from arrowds.token_batches.sampler import TokenBudgetBatchSampler

__version__ = "0.1.0"

__all__ = [
    "ArrowDataset",
    "CurriculumDataLoader",
    "CurriculumMetric",
    "CurriculumSampler",
    "CurriculumScheduler",
    "Index",
    "MixtureSampler",
    "PartitionedParameterProfiler",
    "RepeatingLoader",
    "TokenBatchPlan",
    "TokenBudgetBatchSampler",
    "add_metrics",
    "add_values",
    "analyze",
    "append",
    "batch_by_tokens",
    "compact",
    "cost",
    "create_data_loader",
    "errors",
    "execute_data_pipeline",
    "find_duplicates",
    "metrics",
    "move_data",
    "open_index",
    "quantile_groups",
    "register_schedule",
    "sources",
    "stats",
    "vacuum",
    "versions",
    "write_report",
]

_HOMES = {
    "ArrowDataset": "arrowds.loading",
    "CurriculumDataLoader": "arrowds.loading",
    "CurriculumMetric": "arrowds.curriculum.config",
    "CurriculumSampler": "arrowds.curriculum.sampler",
    "CurriculumScheduler": "arrowds.integrations.deepspeed.scheduler",
    "Index": "arrowds.index",
    "MixtureSampler": "arrowds.curriculum.mixture",
    "PartitionedParameterProfiler": "arrowds.stats.profiler",
    "RepeatingLoader": "arrowds.loading",
    "TokenBatchPlan": "arrowds.token_batches.plan",
    "TokenBudgetBatchSampler": "arrowds.token_batches.sampler",
    "add_metrics": "arrowds.build.api",
    "add_values": "arrowds.build.api",
    "analyze": "arrowds.build.api",
    "append": "arrowds.build.api",
    "batch_by_tokens": "arrowds.token_batches.plan",
    "compact": "arrowds.build.compact",
    "create_data_loader": "arrowds.pipeline",
    "execute_data_pipeline": "arrowds.pipeline",
    "find_duplicates": "arrowds.duplicates",
    "move_data": "arrowds.build.moved",
    "open_index": "arrowds.index",
    "quantile_groups": "arrowds.curriculum.mixture",
    "register_schedule": "arrowds.curriculum.schedule",
    "vacuum": "arrowds.build.compact",
    "versions": "arrowds.build.compact",
    "write_report": "arrowds.report",
}
"""Where each name is defined that is no module: programs import what they use, when they first use it."""


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return value
    if not name.startswith("_") and find_spec(f"arrowds.{name}") is not None:
        return import_module(f"arrowds.{name}")
    raise AttributeError(f"module 'arrowds' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
