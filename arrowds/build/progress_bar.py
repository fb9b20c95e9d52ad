"""A bar with rows per second and time left on standard error; in a module of its own, as rich is slow to import."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


@contextmanager
def progress_bar(total: int) -> Iterator[Callable[[int, int], None]]:
    """Give a callback that moves a bar over ``total`` rows."""
    columns = (TextColumn("{task.description}"), BarColumn(), _RowsPerSecond(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("mapping", total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _RowsPerSecond(ProgressColumn):
    """Rows done, rows in all, and rows per second."""

    def render(self, task: Task) -> Text:
        speed = f"{task.speed:,.0f} rows/s" if task.speed else "- rows/s"
        return Text(f"{int(task.completed):,}/{int(task.total or 0):,} {speed}")
