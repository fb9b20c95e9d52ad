"""The ``aio`` block of the engine's configuration, as DeepSpeed's engine reads it."""

from __future__ import annotations

from typing import TypedDict

import pyarrow as pa

from arrowds.errors import ConfigError, MissingExtraError
from arrowds.stats.aio.ranking import BestSetting, best


class AioBlock(TypedDict):
    """The keys that DeepSpeed's engine reads; ``block_size`` in bytes."""

    block_size: int
    queue_depth: int
    intra_op_parallelism: int
    single_submit: bool
    overlap_events: bool
    use_gds: bool


def deepspeed_config(table: pa.Table | BestSetting, *, by: str = "both") -> dict[str, AioBlock]:
    """Return the configuration of the best setting, to merge into DeepSpeed's JSON.

    DeepSpeed's tuner prints ``num_threads``, which the engine ignores, and the booleans as strings, so that ``"false"``
    is true; this block has the engine's own key and real booleans.

    Args:
        table: what ``read_logs`` returned, or what ``best`` chose from it.
        by: the rule, if ``table`` is a table: ``both``, ``read_speed``, ``write_speed`` or ``sum``.

    Returns:
        ``{"aio": {...}}``, which ``json.dumps`` prints.

    Raises:
        ConfigError: when no setting can be ranked, or the logs of the best one lack a parameter.

    >>> logs = pa.table({"queue_depth": [8]})
    >>> deepspeed_config(logs)
    Traceback (most recent call last):
    ...
    arrowds.errors.ConfigError: the table has no column ...
    """
    setting = table if isinstance(table, BestSetting) else best(table, by=by)
    stated = ("block_size_bytes", "queue_depth", "io_parallel", "single_submit", "overlap_events")
    if absent := [name for name in stated if getattr(setting, name) is None]:
        raise ConfigError(f"the logs of the best setting do not say {', '.join(absent)}; filter those logs out")
    return {
        "aio": AioBlock(
            block_size=setting.block_size_bytes,
            queue_depth=setting.queue_depth,
            intra_op_parallelism=setting.io_parallel,
            single_submit=setting.single_submit,
            overlap_events=setting.overlap_events,
            use_gds=bool(setting.use_gds),
        )
    }


def check_config(config: dict[str, AioBlock]) -> None:
    """Load a configuration with the installed DeepSpeed and compare what it read.

    Raises:
        MissingExtraError: when DeepSpeed is not installed.
        ConfigError: when DeepSpeed refuses it, or reads another value than was written.
    """
    try:
        from deepspeed.runtime.swap_tensor.aio_config import get_aio_config
    except ImportError as error:
        raise MissingExtraError("deepspeed", "deepspeed") from error
    try:
        understood = get_aio_config(config)
    except AssertionError as error:
        raise ConfigError(f"DeepSpeed refuses the configuration on this machine: {error}") from error
    for key, value in config["aio"].items():
        read = understood.get(key)
        if read != value or type(read) is not type(value):
            raise ConfigError(f"DeepSpeed reads {key} as {read!r}, expected {value!r}; its version is too old")
