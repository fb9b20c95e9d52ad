"""Index training data by metrics and feed it to training in the order that the metrics call for."""

from arrowds import cost, errors, metrics, sources, stats
from arrowds.build.api import add_metrics, analyze, append
from arrowds.build.compact import compact, vacuum, versions
from arrowds.curriculum.config import CurriculumMetric
from arrowds.curriculum.mixture import MixtureSampler
from arrowds.curriculum.sampler import CurriculumSampler
from arrowds.curriculum.schedule import register_schedule
from arrowds.index import Index, open_index
from arrowds.integrations.deepspeed.scheduler import CurriculumScheduler
from arrowds.loading import ArrowDataset, CurriculumDataLoader, RepeatingLoader
from arrowds.pipeline import create_data_loader, execute_data_pipeline
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
    "analyze",
    "append",
    "batch_by_tokens",
    "compact",
    "cost",
    "create_data_loader",
    "errors",
    "execute_data_pipeline",
    "metrics",
    "open_index",
    "register_schedule",
    "sources",
    "stats",
    "vacuum",
    "versions",
]
