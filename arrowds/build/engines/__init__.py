"""Where the tasks of a build run; what they compute and write does not depend on it."""

from arrowds.build.engines.base import Engine, Work
from arrowds.build.engines.choice import engine_named
from arrowds.build.engines.local import LocalEngine

__all__ = ["Engine", "LocalEngine", "Work", "engine_named"]
