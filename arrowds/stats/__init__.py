"""Profiler events and NVMe benchmark logs as Arrow tables."""
