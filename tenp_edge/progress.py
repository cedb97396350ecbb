"""Progress without a terminal: stages report to this, the command line draws it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol, runtime_checkable


class Task(Protocol):
    """One running bar."""

    def advance(self, amount: float = 1) -> None: ...


class Progress(Protocol):
    """Where a stage says how far it is. ``unit`` names what is counted ("layers", "bytes")."""

    @contextmanager
    def task(self, title: str, total: float, unit: str) -> Iterator[Task]:
        """A bar of ``total`` units that is open inside the ``with``."""
        ...

    def note(self, text: str) -> None:
        """One line for the user that is not an error."""
        ...


@runtime_checkable
class Course(Protocol):
    """A Progress that also follows a run of several stages, for an estimate of the whole."""

    def expect(self, seconds: Mapping[str, float]) -> None:
        """The stages that are to come, in order, with about how long each takes."""
        ...

    def begin(self, stage: str) -> None:
        """``stage`` starts, and the one before has ended."""
        ...

    def reused(self, stage: str) -> None:
        """``stage`` was done before: it takes no time, and that is said."""
        ...


class _Quiet:
    def advance(self, amount: float = 1) -> None:
        pass


class QuietProgress:
    """Says nothing: the default of every library function."""

    @contextmanager
    def task(self, title: str, total: float, unit: str) -> Iterator[Task]:
        yield _Quiet()

    def note(self, text: str) -> None:
        pass


QUIET = QuietProgress()


def expect(progress: Progress, seconds: Mapping[str, float]) -> None:
    """`Course.expect` where somebody follows."""
    if isinstance(progress, Course):
        progress.expect(seconds)


def begin(progress: Progress, stage: str) -> None:
    """`Course.begin` where somebody follows."""
    if isinstance(progress, Course):
        progress.begin(stage)


def reused(progress: Progress, stage: str) -> None:
    """`Course.reused`, or at least the note of it."""
    if isinstance(progress, Course):
        progress.reused(stage)
    else:
        progress.note(f"{stage}: reused")
