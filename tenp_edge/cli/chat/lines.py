"""Where questions come from: a line editor on a terminal, or lines as they come."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tenp_edge.cli.chat import streams
from tenp_edge.errors import UserError
from tenp_edge.runtime.child import environment

QUOTES = '"""'
PROMPT, MORE = ">>> ", "... "
# Until the terminal is the editor's, Ctrl-C is for the process of the model, which ends it.
_EDITOR = (
    "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "from tenp_edge.cli.chat.editor import main; main()"
)


class Lines(ABC):
    """Questions, one after the other."""

    @abstractmethod
    def ask(self) -> str | None:
        """The next question; None at the end. Raises KeyboardInterrupt for Ctrl-C."""

    def forget(self) -> None:  # noqa: B027  nothing is read ahead unless a class says so
        """Drop what was typed ahead, as terminals do at Ctrl-C."""


class PlainLines(Lines):
    """stdin as it is: a line is a question, and so is what stands between two \"\"\"."""

    def __init__(self) -> None:
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(encoding="utf-8", errors="replace")

    def ask(self) -> str | None:
        line = self._line(PROMPT)
        if line is None or not line.lstrip().startswith(QUOTES):
            return line
        block = [line.lstrip()[len(QUOTES) :]]
        while QUOTES not in block[-1] and (line := self._line(MORE)) is not None:
            block.append(line)
        return "\n".join(block).partition(QUOTES)[0].strip("\n")

    def _line(self, prompt: str) -> str | None:
        if streams.typed():
            sys.stderr.write(prompt)
            sys.stderr.flush()
        line = sys.stdin.readline()
        return line.rstrip("\r\n") if line else None


class EditedLines(Lines):
    """A line editor with a history, in a process that is there only while somebody types: what it
    holds in memory (28 MiB) is gone before the model computes."""

    def __init__(self, words: Sequence[str], history: Path | None) -> None:
        self._facts: dict[str, Any] = {
            "prompt": PROMPT,
            "more": MORE,
            "words": [*words],
            "history": None if history is None else str(history),
            "ahead": [],
        }

    def ask(self) -> str | None:
        with _as_it_was(sys.stdin.fileno()):
            done = subprocess.run(
                # -P: what lies in the user's directory is no library.
                [sys.executable, "-P", "-c", _EDITOR, json.dumps(self._facts)],
                stdout=subprocess.PIPE,
                env=environment(),
                check=False,
            )
        if done.returncode or not done.stdout:
            raise UserError(
                f"the line editor ended with {done.returncode}", "pip install prompt_toolkit"
            )
        answer: dict[str, Any] = json.loads(done.stdout)
        self._facts["ahead"] = answer["ahead"]
        if answer.get("end") == "interrupt":
            raise KeyboardInterrupt
        return answer.get("text")

    def forget(self) -> None:
        self._facts["ahead"] = []


@contextmanager
def _as_it_was(terminal: int) -> Iterator[None]:
    """The terminal's settings afterwards as before, however the editor ends."""
    import termios  # not on Windows

    settings = termios.tcgetattr(terminal)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, settings)


def lines(words: Sequence[str], history: Path | None) -> Lines:
    """What suits stdin. Windows' console edits lines and remembers them itself; a dumb terminal can
    show no edits."""
    terminal = streams.typed() and sys.stderr.isatty() and not streams.is_dumb()
    edited = terminal and sys.platform != "win32"
    return EditedLines(words, history) if edited else PlainLines()
