"""Profiler events and NVMe benchmark logs as Arrow tables."""

from arrowds.stats import aio, profiler

__all__ = ["aio", "profiler"]
