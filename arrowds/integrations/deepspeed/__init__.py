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
    from arrowds.integrations.deepspeed.distributed_analyzer import DistributedDataAnalyzer
    from arrowds.integrations.deepspeed.export import AnalyzerRun, export_index
    from arrowds.integrations.deepspeed.import_legacy import import_index

__all__ = ["AnalyzerRun", "DataAnalyzer", "DistributedDataAnalyzer", "export_index", "import_index"]

_MODULES = {
    "AnalyzerRun": "export",
    "DataAnalyzer": "data_analyzer",
    "DistributedDataAnalyzer": "distributed_analyzer",
    "export_index": "export",
    "import_index": "import_legacy",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
