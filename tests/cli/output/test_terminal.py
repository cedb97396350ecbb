"""Progress in a log: now and then a line, with what is left."""

from __future__ import annotations

import io
import itertools

import pytest
from rich.console import Console

from tenp_edge.cli.output import terminal
from tenp_edge.cli.output.terminal import TerminalProgress
from tenp_edge.progress import begin, expect, reused


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> tuple[io.StringIO, TerminalProgress]:
    """A log, and a clock on which every look takes a second."""
    seconds = itertools.count(0.0)
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(seconds))
    stream = io.StringIO()
    return stream, TerminalProgress(Console(file=stream, width=200))


def test_a_line_says_how_far_and_how_long(said: tuple[io.StringIO, TerminalProgress]) -> None:
    stream, progress = said
    with progress.task("calibrating", 6, "layers") as task:
        for _ in range(6):
            task.advance()
    first, *others = stream.getvalue().splitlines()
    assert first.startswith("calibrating: 2 of 6 layers; 33 %, about ")
    assert len(others) < 2  # at most every ten seconds


def test_the_whole_run_is_told_where_it_is_known(
    said: tuple[io.StringIO, TerminalProgress],
) -> None:
    stream, progress = said
    expect(progress, {"calibration": 100.0, "export": 300.0})
    begin(progress, "calibration")
    with progress.task("measuring", 2, "runs") as task:
        task.advance()
        task.advance()
    reused(progress, "export")
    reused(progress, "export")
    assert "measuring: 2 of 2 runs; the whole run 0 %, about 7 min left" in stream.getvalue()
    assert stream.getvalue().count("note: export: reused") == 1


def test_quiet_says_nothing() -> None:
    stream = io.StringIO()
    progress = TerminalProgress(Console(file=stream), quiet=True)
    progress.note("a note")
    progress.step("a step")
    with progress.task("calibrating", 6, "layers") as task:
        task.advance(6)
    assert stream.getvalue() == ""
