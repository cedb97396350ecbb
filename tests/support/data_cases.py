"""What the tests of calibration data share: files, refusals and notes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tenp_edge.errors import UserError
from tenp_edge.progress import QuietProgress


class Notes(QuietProgress):
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def written(file: Path, content: str | bytes) -> Path:
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def refusal(call: Callable[[], object]) -> str:
    """The words of the UserError that ``call`` raises."""
    with pytest.raises(UserError) as error:
        call()
    return str(error.value)
