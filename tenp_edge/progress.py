"""Progress without a terminal: stages report to this, the command line draws it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


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
