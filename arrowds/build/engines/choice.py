"""Which engine a name stands for."""

from __future__ import annotations

from arrowds.build.engines.base import Engine
from arrowds.build.engines.local import LocalEngine
from arrowds.build.engines.ray import RayEngine
from arrowds.build.engines.torch import TorchEngine
from arrowds.errors import ConfigError

_NAMES = ("local", "torch", "ray")


def engine_named(engine: str | Engine, workers: int | None = None) -> Engine:
    """Return an engine: one that is given, or that of a name with its defaults.

    Raises:
        ConfigError: for another name, and for a number of workers beside an engine that has its own.
        MissingExtraError: when the engine's package is not installed.
    """
    if isinstance(engine, Engine):
        if workers is not None:
            raise ConfigError(f"pass the number of workers to {type(engine).__name__}, not beside it")
        return engine
    if engine == "local":
        return LocalEngine(workers)
    if engine == "torch":
        if workers is not None:
            raise ConfigError("with engine='torch' the ranks are the workers; leave workers=None")
        return TorchEngine()
    if engine == "ray":
        return RayEngine(max_in_flight=workers)
    raise ConfigError(f"there is no engine {engine!r}; the engines are {', '.join(_NAMES)}")
