"""Progress on stderr: bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from tenp_edge.progress import Task
from tenp_edge.units import format_size

_FIRST_SECONDS, _LOG_SECONDS = 2.0, 10.0


class _BarTask:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, amount: float = 1) -> None:
        self._progress.advance(self._task, amount)


class _LogTask:
    """For logs and pipes: a line after two seconds, then every ten; none for short work."""

    def __init__(self, console: Console, title: str, total: float, unit: str) -> None:
        self._console, self._title, self._total, self._unit = console, title, total, unit
        self._done = 0.0
        self._next = time.monotonic() + _FIRST_SECONDS

    def advance(self, amount: float = 1) -> None:
        self._done += amount
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _LOG_SECONDS
            done, total = _count(self._done, self._unit), _count(self._total, self._unit)
            self._console.print(f"{self._title}: {done} of {total}", highlight=False)


def _count(amount: float, unit: str) -> str:
    return format_size(amount) if unit == "bytes" else f"{amount:.0f} {unit}"


class TerminalProgress:
    """The `tenp_edge.progress.Progress` of the command line."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def task(self, title: str, total: float, unit: str) -> Iterator[Task]:
        if not self._console.is_terminal:
            yield _LogTask(self._console, title, total, unit)
            return
        amount = TextColumn("{task.fields[unit]}") if unit == "bytes" else MofNCompleteColumn()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            amount,
            TextColumn("" if unit == "bytes" else unit),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self._console, transient=True) as progress:
            shown = format_size(total) if unit == "bytes" else unit
            yield _BarTask(progress, progress.add_task(title, total=total, unit=shown))

    def step(self, text: str) -> None:
        """What begins now, before the seconds that importing takes."""
        self._console.print(f"{text} ...", highlight=False, soft_wrap=True)

    def note(self, text: str) -> None:
        self._console.print(f"note: {text}", highlight=False, soft_wrap=True)
