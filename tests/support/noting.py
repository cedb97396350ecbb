"""Progress that is kept, the names in a directory, and damage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Notes:
    """A Progress that keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    @contextmanager
    def task(self, title: str, total: float, unit: str) -> Iterator[Notes]:
        yield self

    def advance(self, amount: float = 1) -> None:
        pass

    def note(self, text: str) -> None:
        self.said.append(text)


def names(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


def flip(file: Path) -> None:
    """Flip 1,000 bytes in the middle; the size stays."""
    data = bytearray(file.read_bytes())
    start = max(0, len(data) // 2 - 500)
    data[start : start + 1000] = bytes(byte ^ 0xFF for byte in data[start : start + 1000])
    file.write_bytes(data)
