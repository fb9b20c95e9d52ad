"""Profiler events and NVMe benchmark logs as Arrow tables."""

from arrowds.stats import aio

__all__ = ["aio"]
