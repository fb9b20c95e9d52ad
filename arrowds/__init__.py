"""Index training data by metrics and feed it to training in the order that the metrics call for."""

from arrowds import errors, metrics, sources, stats
from arrowds.build.api import add_metrics, analyze, append
from arrowds.build.compact import compact, vacuum, versions
from arrowds.curriculum.batch_sampler import TokenBudgetBatchSampler
from arrowds.curriculum.batching import TokenBatchPlan, batch_by_tokens
from arrowds.curriculum.config import CurriculumMetric
from arrowds.curriculum.mixture import MixtureSampler
from arrowds.curriculum.sampler import CurriculumSampler
from arrowds.curriculum.schedule import CurriculumScheduler, register_schedule
from arrowds.dataset import ArrowDataset
from arrowds.index import Index, open_index
from arrowds.loading import CurriculumDataLoader, RepeatingLoader
from arrowds.pipeline import create_data_loader, execute_data_pipeline
from arrowds.stats.events import PartitionedParameterProfiler

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
