"""Where the tasks of a build run; what they compute and write does not depend on it."""

from arrowds.build.engines.base import Engine, Work, device
from arrowds.build.engines.choice import engine_named
from arrowds.build.engines.local import LocalEngine
from arrowds.build.engines.ray import RayEngine
from arrowds.build.engines.torch import TorchEngine

__all__ = ["Engine", "LocalEngine", "RayEngine", "TorchEngine", "Work", "device", "engine_named"]
