"""Record the parameter fetches of a ZeRO-3 engine: replace its coordinator's profiler, and restore it."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, Self

from arrowds.errors import MissingExtraError, ProfilerError
from arrowds.stats.profiler.parameter_profiler import NoTimers, PartitionedParameterProfiler

# The one attribute that is replaced. DeepSpeed 0.17.0 to 0.19.8 have it under this name, set in the constructor.
_SLOT = "_PartitionedParameterCoordinator__profiler"
_METHODS = ("reset_events", "start_event", "stop_event", "log_events")


class AttachedProfiler(PartitionedParameterProfiler):
    """A profiler in a ZeRO-3 coordinator until ``detach``; created by ``attach_profiler``."""

    def __init__(self, coordinator: Any, timers: Any, **options: Any) -> None:
        super().__init__(timers, **options)
        self._coordinator = coordinator
        self._original = getattr(coordinator, _SLOT)
        setattr(coordinator, _SLOT, self)

    def detach(self) -> None:
        """Restore the coordinator's own profiler, and write the remaining rows. A second call does nothing.

        Raises:
            ProfilerError: when another profiler was attached since; it then stays.
        """
        coordinator, self._coordinator = self._coordinator, None
        if coordinator is None:
            return
        self.close()
        current = getattr(coordinator, _SLOT)
        if current is not self:
            raise ProfilerError(
                f"a {type(current).__name__} was attached to the coordinator after this profiler: detach that one first"
            )
        setattr(coordinator, _SLOT, self._original)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def __enter__(self) -> Self:
        return self


def attach_profiler(
    engine: Any, path: str | Path, *, flush_rows: int = 16384, flush_seconds: float = 10.0
) -> AttachedProfiler:
    """Record every parameter fetch of a ZeRO-3 engine, on this rank, into ``path``.

    Call it on every rank after ``deepspeed.initialize``; call ``detach`` on the result, or use it in a ``with`` block.
    It replaces one attribute of one object, the coordinator's profiler, and reads the rest. Steps are
    ``engine.global_steps + 1``: the step being computed, the first is 1, as the curriculum counts them. Each forward
    pass within a step is another micro-step. If DeepSpeed's own profiler is on (``ENABLE_PROFILER``), its timers and
    its log lines continue as before. On an accelerator the durations are those of its own events.

    Args:
        engine: the engine that ``deepspeed.initialize`` returned, with ZeRO stage 3.
        path: folder of the run, the same on every rank; rank N writes below ``rank=N``.
        flush_rows: rows after which a step boundary flushes.
        flush_seconds: seconds after which a step boundary flushes, regardless of the number of rows.

    Raises:
        ProfilerError: when the engine is not of ZeRO stage 3, its coordinator is of an unknown kind, or a profiler is
            already attached.
        MissingExtraError: when DeepSpeed is not installed.
    """
    try:
        import deepspeed
        from deepspeed.accelerator import get_accelerator
    except ImportError as error:
        raise MissingExtraError("deepspeed", "deepspeed") from error

    coordinator = _coordinator(engine, deepspeed.__version__)
    own_timers = getattr(coordinator, _SLOT).timers
    accelerator = get_accelerator()
    return AttachedProfiler(
        coordinator,
        NoTimers() if own_timers is None else own_timers,
        rank=engine.global_rank,
        path=path,
        element_size=_element_size(engine, coordinator),
        step_of=lambda: int(engine.global_steps) + 1,
        device_events=None if accelerator.use_host_timers() else lambda: accelerator.Event(enable_timing=True),
        log=own_timers is not None,
        flush_rows=flush_rows,
        flush_seconds=flush_seconds,
    )


def _coordinator(engine: Any, version: str) -> Any:
    """Return the engine's parameter coordinator, after checking every attribute that will be used."""
    optimizer = getattr(engine, "optimizer", None)
    # Without an optimizer, engine.optimizer is the offload itself.
    offload: Any = getattr(optimizer, "parameter_offload", optimizer)
    if not hasattr(offload, "get_param_coordinator"):
        stage = engine.zero_optimization_stage() if hasattr(engine, "zero_optimization_stage") else None
        got = type(engine).__name__ if stage is None else f"stage {int(stage)}"
        raise ProfilerError(
            f"expected an engine of ZeRO stage 3, which alone fetches parameters, got {got}: "
            'set "zero_optimization": {"stage": 3} in its configuration'
        )
    coordinator = offload.get_param_coordinator()
    profiler = getattr(coordinator, _SLOT, None)
    if isinstance(profiler, PartitionedParameterProfiler):
        raise ProfilerError("a profiler is already attached to this engine: detach it first")
    missing = [name for name in ("timers", *_METHODS) if not hasattr(profiler, name)]
    if missing or not hasattr(engine, "global_steps") or not hasattr(engine, "global_rank"):
        raise ProfilerError(
            f"attach_profiler does not support the {type(coordinator).__name__} of DeepSpeed {version} "
            f"(no {_SLOT} with {', '.join(missing) or 'an engine that has global_steps and global_rank'}); "
            "it supports versions 0.17.0 to 0.19.8"
        )
    return coordinator


def _element_size(engine: Any, coordinator: Any) -> int | None:
    """Return the bytes of one element of the parameters; None if they differ, or are quantized in transit."""
    if getattr(coordinator, "zero_quantized_weights", False):
        return None
    sizes = {parameter.element_size() for parameter in engine.module.parameters()}
    return int(sizes.pop()) if len(sizes) == 1 else None
