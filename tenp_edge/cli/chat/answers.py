"""An answer as it is generated: text for a pipe, with dimmed thoughts on a terminal, or JSON."""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TextIO

from tenp_edge.cli.chat import streams
from tenp_edge.runtime.thinking import TAGS, Part, Reply, Spoken

Note = Callable[[str], None]
_DIM, _NORMAL = "\x1b[2m", "\x1b[22m"


@dataclass(frozen=True)
class Summary:
    """How an answer went. ``finish``: "stop" (the model ended it), "length" (-n), "context" (no
    room is left), "interrupted"; ``used`` of the ``context`` tokens are taken. Times are None where
    there was no token, or only one."""

    finish: str
    prompt_tokens: int
    generated_tokens: int
    used: int
    context: int
    first_token_seconds: float | None
    tokens_per_second: float | None

    def __str__(self) -> str:
        speed = "" if self.tokens_per_second is None else f"{self.tokens_per_second:.1f} tokens/s, "
        return f"{speed}{self.used} of {self.context} tokens"

    @property
    def why(self) -> str | None:
        """Why the answer is not whole; None where the model ended it."""
        return {
            "length": f"the answer was cut after {self.generated_tokens} tokens, as -n says",
            "context": f"the answer was cut: the context of {self.context} tokens is full",
            "interrupted": "stopped",
        }.get(self.finish)


class Screen(ABC):
    """Where answers are written to."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    @abstractmethod
    def part(self, part: Part) -> None:
        """Write ``part`` now."""

    @abstractmethod
    def end(self, summary: Summary, note: Note) -> None:
        """End the answer, and tell how it went."""


class TextScreen(Screen):
    """The text as it is; what was thought stands between <think> and </think>, or on a terminal
    dimmed and above the answer."""

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        marks = (f"{TAGS.opens}\n", f"\n{TAGS.closes}\n\n")
        self._before, self._after = marks if streams.plain(out) else (_DIM, f"\n{_NORMAL}\n")
        self._thinking = False

    def part(self, part: Part) -> None:
        if part.thinking != self._thinking:
            self._out.write(self._before if part.thinking else self._after)
            self._thinking = part.thinking
        self._out.write(part.text)
        self._out.flush()

    def end(self, summary: Summary, note: Note) -> None:
        if self._thinking:
            self._out.write(self._after.rstrip("\n"))
        self._thinking = False
        self._out.write("\n")
        self._out.flush()
        if summary.why:
            note(summary.why)
        note(str(summary))


class JsonScreen(Screen):
    """A line for each part, and one at the end: {"text"} or {"thinking"}, then {"finish", ...}."""

    def part(self, part: Part) -> None:
        self._write({"thinking" if part.thinking else "text": part.text})

    def end(self, summary: Summary, note: Note) -> None:
        self._write(asdict(summary))

    def refused(self, message: str) -> None:
        """A message that got no answer."""
        self._write({"error": message})

    def _write(self, record: dict[str, object]) -> None:
        self._out.write(json.dumps(record) + "\n")
        self._out.flush()


def write(reply: Reply, screen: Screen, note: Note, context: int, most: int | None) -> Summary:
    """Write ``reply`` as it comes; Ctrl-C ends it. ``most``: the limit that -n sets."""
    count, begun, first, finish = 0, time.perf_counter(), 0.0, "interrupted"
    with closing(reply.spoken):
        try:
            for spoken in reply.spoken:
                count += 1
                first = first or time.perf_counter()
                for part in spoken.parts:
                    screen.part(part)
                finish = _finish(spoken, count, most)
        except KeyboardInterrupt:
            finish = "interrupted"
    seconds = time.perf_counter() - first
    summary = Summary(
        finish,
        reply.prompt_tokens,
        count,
        min(reply.prompt_tokens + count, context),
        context,
        first - begun if count else None,
        (count - 1) / seconds if count > 1 else None,
    )
    screen.end(summary, note)
    return summary


def _finish(spoken: Spoken, count: int, most: int | None) -> str:
    """Which of the two limits it was, if it was one."""
    finish = spoken.piece.finish or "interrupted"
    return "context" if finish == "length" and count != most else finish
