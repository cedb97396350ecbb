"""Progress on stderr: bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn
from rich.progress import Task as RichTask
from rich.table import Column
from rich.text import Text

from tenp_edge.cli.output.course import RunCourse, left_of_task
from tenp_edge.progress import Task
from tenp_edge.units import counted, format_seconds, format_size, percent

_FIRST_SECONDS, _LOG_SECONDS = 2.0, 10.0
_OF_THE_RUN = "the whole run "
_WIDE, _BAR_CELLS = 100, 20  # columns of a terminal that has room for a bar beside the words


class _Counter:
    """How far one task is."""

    def __init__(self, title: str, total: float, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self._start = 0.0, time.monotonic()

    @property
    def share(self) -> float:
        return min(self.done / self.total, 1.0) if self.total else 1.0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def __str__(self) -> str:
        if self.unit == "bytes":
            return f"{format_size(self.done)} of {format_size(self.total)}"
        return f"{self.done:.0f} of {counted(round(self.total), self.unit)}"


class _LogTask:
    """For logs and pipes: a line after two seconds, then at most every ten."""

    def __init__(self, owner: TerminalProgress, counter: _Counter) -> None:
        self._owner, self._counter = owner, counter

    def advance(self, amount: float = 1) -> None:
        self._counter.done += amount
        self._owner.log(self._counter)


class _BarTask:
    def __init__(self, progress: Progress, task: TaskID, counter: _Counter) -> None:
        self._progress, self._task, self._counter = progress, task, counter

    def advance(self, amount: float = 1) -> None:
        self._counter.done += amount
        self._progress.advance(self._task, amount)


class _SilentTask:
    def advance(self, amount: float = 1) -> None:
        pass


class _Left(ProgressColumn):
    """How far, and how long to the end of the run."""

    def __init__(self, owner: TerminalProgress, counter: _Counter) -> None:
        super().__init__(Column(no_wrap=True))
        self._owner, self._counter = owner, counter

    def render(self, task: RichTask) -> Text:
        return Text(self._owner.shown(self._counter))


class TerminalProgress:
    """The `tenp_edge.progress.Progress` of the command line, and the `Course` of a run.

    ``quiet``: says nothing. A note is said once.
    """

    def __init__(self, console: Console, quiet: bool = False) -> None:
        self._console, self._quiet = console, quiet
        self._course = RunCourse()
        self._next: float | None = None
        self._noted: set[str] = set()

    @contextmanager
    def task(self, title: str, total: float, unit: str) -> Iterator[Task]:
        counter = _Counter(title, total, unit)
        if self._next is None:
            self._next = time.monotonic() + _FIRST_SECONDS
        if self._quiet:
            yield _SilentTask()
        elif not self._console.is_terminal:
            yield _LogTask(self, counter)
        else:
            bar = () if self._console.width < _WIDE else (BarColumn(_BAR_CELLS),)
            columns = (TextColumn("{task.description}:"), *bar, _Left(self, counter))
            with Progress(*columns, console=self._console, transient=True) as progress:
                yield _BarTask(progress, progress.add_task(title, total=total), counter)

    def log(self, counter: _Counter) -> None:
        """Where the task and the run are, unless that was said a moment ago."""
        if self._next is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + _LOG_SECONDS
            said = f"{counter.title}: {counter}; {self.left(counter)}"
            self._console.print(said, markup=False, highlight=False, soft_wrap=True)

    def shown(self, counter: _Counter) -> str:
        """What stands beside a bar: where the screen is narrow, what is left alone."""
        left = self.left(counter)
        narrow = self._console.width < _WIDE
        return left.removeprefix(_OF_THE_RUN) if narrow else f"{counter}; {left}"

    def left(self, counter: _Counter) -> str:
        """ "the whole run 14 %, about 55 s left", of the task alone where no more is known."""
        if not self._course.known:
            rest = left_of_task(counter.share, counter.seconds)
            return f"{percent(counter.share, 0)}, about {format_seconds(rest)} left"
        rest = self._course.left(counter.share, counter.seconds)
        share = percent(self._course.share(rest), 0)
        return f"{_OF_THE_RUN}{share}, about {format_seconds(rest)} left"

    # -- a run of several stages -------------------------------------------------------------------

    def expect(self, seconds: Mapping[str, float]) -> None:
        self._course.expect(seconds)

    def begin(self, stage: str) -> None:
        self._course.begin(stage)

    def reused(self, stage: str) -> None:
        self._course.leave_out(stage)
        self.note(f"{stage}: reused")

    # -- lines -------------------------------------------------------------------------------------

    def step(self, text: str) -> None:
        """What begins now, before the seconds that importing takes."""
        self._say(f"{text} ...")

    def note(self, text: str) -> None:
        if text not in self._noted:
            self._noted.add(text)
            self._say(f"note: {text}")

    def _say(self, text: str) -> None:
        if not self._quiet:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
