"""A report on an index, and on a run that trained with it: one HTML page that needs no network."""

from __future__ import annotations

from arrowds.report.page import write_report

__all__ = ["write_report"]
