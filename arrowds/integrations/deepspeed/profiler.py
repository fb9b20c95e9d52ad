"""Record the parameter fetches of a ZeRO-3 engine: swap its coordinator's profiler, and put it back."""

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
    """A profiler that stands in a ZeRO-3 coordinator until ``detach``; ``attach_profiler`` makes it."""

    def __init__(self, coordinator: Any, timers: Any, **options: Any) -> None:
        super().__init__(timers, **options)
        self._coordinator = coordinator
        self._original = getattr(coordinator, _SLOT)
        setattr(coordinator, _SLOT, self)

    def detach(self) -> None:
        """Put the coordinator's own profiler back, and write the rows that are left. A second call does nothing.

        Raises:
            ProfilerError: when something else has replaced the profiler since; it is then left where it is.
        """
        coordinator, self._coordinator = self._coordinator, None
        if coordinator is None:
            return
        self.close()
        found = getattr(coordinator, _SLOT)
        if found is not self:
            raise ProfilerError(
                f"the coordinator's profiler is now a {type(found).__name__} that was put in after this one: "
                "detach in the reverse order"
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
    pass within a step is another micro-step. Where DeepSpeed's own profiler was on (``ENABLE_PROFILER``), its timers
    and its log lines go on as before. On an accelerator the durations are those of its own events.

    Args:
        engine: what ``deepspeed.initialize`` returned, with ZeRO stage 3.
        path: folder of the run, the same on every rank; rank N writes below ``rank=N``.
        flush_rows: rows after which a step boundary flushes.
        flush_seconds: seconds after which a step boundary flushes however few rows there are.

    Raises:
        ProfilerError: when the engine is not of ZeRO stage 3, when its coordinator is not of a known kind, or when a
            profiler is attached already.
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
    """Return the engine's parameter coordinator once everything that will be used of it is known to be there."""
    optimizer = getattr(engine, "optimizer", None)
    # Without an optimizer the offload itself stands in its place.
    offload: Any = getattr(optimizer, "parameter_offload", optimizer)
    if not hasattr(offload, "get_param_coordinator"):
        stage = engine.zero_optimization_stage() if hasattr(engine, "zero_optimization_stage") else None
        said = f"its ZeRO stage is {int(stage)}" if stage is not None else f"it is a {type(engine).__name__}"
        raise ProfilerError(
            f"only an engine of ZeRO stage 3 fetches parameters, and {said}: "
            'set "zero_optimization": {"stage": 3} in its configuration'
        )
    coordinator = offload.get_param_coordinator()
    profiler = getattr(coordinator, _SLOT, None)
    if isinstance(profiler, PartitionedParameterProfiler):
        raise ProfilerError("a profiler is attached to this engine already: detach it first")
    missing = [name for name in ("timers", *_METHODS) if not hasattr(profiler, name)]
    if missing or not hasattr(engine, "global_steps") or not hasattr(engine, "global_rank"):
        raise ProfilerError(
            f"DeepSpeed {version} has a {type(coordinator).__name__} that attach_profiler does not know "
            f"(no {_SLOT} with {', '.join(missing) or 'an engine that has global_steps and global_rank'}); "
            "versions 0.17.0 to 0.19.8 are known"
        )
    return coordinator


def _element_size(engine: Any, coordinator: Any) -> int | None:
    """Return the bytes of one element of the parameters; None when they differ, or travel quantized."""
    if getattr(coordinator, "zero_quantized_weights", False):
        return None
    sizes = {parameter.element_size() for parameter in engine.module.parameters()}
    return int(sizes.pop()) if len(sizes) == 1 else None
