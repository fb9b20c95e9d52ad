"""Drop-in replacements for DeepSpeed's data-efficiency classes, and its files; importing this loads no torch.

Names are imported when they are first used:

>>> from arrowds.integrations import deepspeed as ads
>>> ads.DataAnalyzer.__module__
'arrowds.integrations.deepspeed.data_analyzer'
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from arrowds.integrations.deepspeed.data_analyzer import DataAnalyzer
    from arrowds.integrations.deepspeed.data_loader import DeepSpeedDataLoader
    from arrowds.integrations.deepspeed.data_sampler import DeepSpeedDataSampler
    from arrowds.integrations.deepspeed.distributed_analyzer import DistributedDataAnalyzer
    from arrowds.integrations.deepspeed.dynamic_batching import (
        batch_by_seqlens,
        dataloader_for_variable_batch_size,
        get_dataloader_and_lr_scheduler_for_variable_batch_size,
        lr_scheduler_for_variable_batch_size,
        scale_lr,
    )
    from arrowds.integrations.deepspeed.dynamic_batching_engine import (
        get_dataloader_and_lr_scheduler_for_variable_batch_size_deepspeed,
    )
    from arrowds.integrations.deepspeed.engine import deepspeed_io, initialize
    from arrowds.integrations.deepspeed.export import AnalyzerRun, export_index
    from arrowds.integrations.deepspeed.import_legacy import import_index
    from arrowds.integrations.deepspeed.profiler import attach_profiler
    from arrowds.integrations.deepspeed.scheduler import CurriculumScheduler

__all__ = [
    "AnalyzerRun",
    "CurriculumScheduler",
    "DataAnalyzer",
    "DeepSpeedDataLoader",
    "DeepSpeedDataSampler",
    "DistributedDataAnalyzer",
    "attach_profiler",
    "batch_by_seqlens",
    "dataloader_for_variable_batch_size",
    "deepspeed_io",
    "export_index",
    "get_dataloader_and_lr_scheduler_for_variable_batch_size",
    "get_dataloader_and_lr_scheduler_for_variable_batch_size_deepspeed",
    "import_index",
    "initialize",
    "lr_scheduler_for_variable_batch_size",
    "scale_lr",
]

_MODULES = {
    "AnalyzerRun": "export",
    "CurriculumScheduler": "scheduler",
    "DataAnalyzer": "data_analyzer",
    "DeepSpeedDataLoader": "data_loader",
    "DeepSpeedDataSampler": "data_sampler",
    "DistributedDataAnalyzer": "distributed_analyzer",
    "attach_profiler": "profiler",
    "batch_by_seqlens": "dynamic_batching",
    "dataloader_for_variable_batch_size": "dynamic_batching",
    "deepspeed_io": "engine",
    "export_index": "export",
    "get_dataloader_and_lr_scheduler_for_variable_batch_size": "dynamic_batching",
    "get_dataloader_and_lr_scheduler_for_variable_batch_size_deepspeed": "dynamic_batching_engine",
    "import_index": "import_legacy",
    "initialize": "engine",
    "lr_scheduler_for_variable_batch_size": "dynamic_batching",
    "scale_lr": "dynamic_batching",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
