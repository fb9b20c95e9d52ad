"""The ZeRO-3 parameter profiler: DeepSpeed's methods, an Arrow table of all events, and what the table says.

parameter_profiler --> recorder (buffer, device) --> files --> summary, chart
"""

from arrowds.stats.profiler.buffer import EVENT_SCHEMA
from arrowds.stats.profiler.chart import draw_profile
from arrowds.stats.profiler.files import read_events
from arrowds.stats.profiler.parameter_profiler import NoTimers, PartitionedParameterProfiler
from arrowds.stats.profiler.summary import read_difficulties, stragglers, summarize, with_difficulties

__all__ = [
    "EVENT_SCHEMA",
    "NoTimers",
    "PartitionedParameterProfiler",
    "draw_profile",
    "read_difficulties",
    "read_events",
    "stragglers",
    "summarize",
    "with_difficulties",
]
