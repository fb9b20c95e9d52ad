"""Logs of DeepSpeed's NVMe benchmarks: read them, choose the best setting, configure the engine with it.

Logs become a table (``logs``), the table a ranking (``ranking``), the ranking the engine's ``aio`` block (``config``);
``store`` keeps the tables of many runs in one Parquet file, ``chart`` draws them.
"""

from arrowds.stats.aio.chart import plot
from arrowds.stats.aio.config import check_config, deepspeed_config
from arrowds.stats.aio.logs import SCHEMA, STATUSES, read_logs
from arrowds.stats.aio.ranking import RULES, BestSetting, best, rank
from arrowds.stats.aio.store import Appended, append, load

__all__ = [
    "RULES",
    "SCHEMA",
    "STATUSES",
    "Appended",
    "BestSetting",
    "append",
    "best",
    "check_config",
    "deepspeed_config",
    "load",
    "plot",
    "rank",
    "read_logs",
]
