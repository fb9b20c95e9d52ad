"""The model of a run: the small built-in one, or the result of an importable function."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, cast

from arrowds.errors import ConfigError, MissingExtraError
from arrowds.pipeline.byte_model import make_byte_model
from arrowds.pipeline.config import ModelConfig


def make_model(config: ModelConfig) -> Any:
    """Return the model that a configuration names: "bytes", or the result of an importable "module:function".

    Raises:
        ConfigError: when the module or function does not exist.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "torch") from error
    factory = make_byte_model if config.factory == "bytes" else _imported(config.factory)
    torch.manual_seed(config.seed)
    return factory(**config.arguments)


def _imported(name: str) -> Callable[..., Any]:
    module, colon, function = name.partition(":")
    if not colon:
        raise ConfigError(f"model.factory must be 'bytes' or 'module:function', got {name!r}")
    try:
        factory = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"model.factory {name!r} can't be imported: {error}") from error
    if not callable(factory):
        raise ConfigError(
            f"model.factory {name!r} is a {type(factory).__name__}; expected a function that returns a model"
        )
    return cast(Callable[..., Any], factory)
