"""What is generated, collected token by token, whatever API spells it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tenp_edge.runtime.chat_formats.calls import Call
from tenp_edge.runtime.chat_formats.reading import AnswerReader
from tenp_edge.runtime.generation import Piece
from tenp_edge.runtime.thinking import Part


@dataclass(frozen=True)
class Delta:
    """What one token adds. ``calls``: (number, call) of those that are complete with it, each with
    an identity. ``finish``: "stop", "length", "tool_calls", or None."""

    piece: Piece
    content: str
    reasoning: str
    calls: tuple[tuple[int, Call], ...]
    finish: str | None


class Choice:
    """One answer in the making. ``reader`` takes it apart; without one, all of it is content.

    ``single``: further calls than one are left out. ``silent``: no token was asked for; the one
    that ends the evaluation of the prompt is nobody's. ``slot`` and ``cached_tokens`` are the
    job's; ``word`` is the stop string that ended it.
    """

    def __init__(
        self, reader: AnswerReader | None = None, single: bool = False, silent: bool = False
    ) -> None:
        self._reader, self._single, self.silent = reader, single, silent
        self.slot = self.cached_tokens = 0
        self.word: str | None = None
        self._contents: list[str] = []
        self._reasonings: list[str] = []
        self.calls: list[Call] = []
        self.pieces: list[Piece] = []
        self.finish = "stop"

    def add(self, piece: Piece) -> Delta:
        """Count one token."""
        if self.silent:
            self.finish = "length"
            return Delta(replace(piece, logprobs=None), "", "", (), "length")
        parts = self._parts(piece)
        content = "".join(part.text for part in parts if part.kind == "content")
        reasoning = "".join(part.text for part in parts if part.kind == "reasoning")
        calls = tuple(self._called(part.call) for part in parts if part.call is not None)
        self._contents.append(content)
        self._reasonings.append(reasoning)
        kept = tuple(call for call in calls if call is not None)
        # The text is in the parts now; the rest is kept for log probabilities and counts.
        self.pieces.append(replace(piece, text=""))
        finish, self.word = piece.finish, piece.word
        if finish is not None:
            finish = "tool_calls" if finish == "stop" and self.calls else finish
            self.finish = finish
        return Delta(piece, content, reasoning, kept, finish)

    @property
    def content(self) -> str:
        return "".join(self._contents)

    @property
    def reasoning(self) -> str:
        return "".join(self._reasonings)

    @property
    def tokens(self) -> int:
        return len(self.pieces)

    def _parts(self, piece: Piece) -> Sequence[Part]:
        if self._reader is None:
            return [Part("content", piece.text)]
        parts = self._reader.feed(piece.text)
        return parts if piece.finish is None else [*parts, *self._reader.finish()]

    def _called(self, call: Call) -> tuple[int, Call] | None:
        if self._single and self.calls:
            return None
        # Letters and digits alone: some templates take no others.
        known = call if call.identity else replace(call, identity=f"call{uuid.uuid4().hex[:20]}")
        self.calls.append(known)
        return len(self.calls) - 1, known


@dataclass
class Usage:
    """What an answer took. Times are of `time.monotonic`; ``begun`` is when it took its
    place in the line; ``cached_tokens`` of its prompts were in the cache."""

    prompt_tokens: int
    cached_tokens: int = 0
    tokens: int = 0
    begun: float = field(default_factory=time.monotonic)
    first: float | None = None
    last: float | None = None

    def count(self) -> None:
        """One more token, now."""
        self.tokens += 1
        self.last = time.monotonic()
        self.first = self.first or self.last

    @property
    def prompt_seconds(self) -> float:
        return 0.0 if self.first is None else max(0.0, self.first - self.begun)

    @property
    def seconds(self) -> float:
        """Of the generation, after its first token."""
        return 0.0 if self.first is None or self.last is None else self.last - self.first

    @property
    def tokens_per_second(self) -> float:
        return (self.tokens - 1) / self.seconds if self.tokens > 1 and self.seconds else 0.0

    def openai(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": self.prompt_tokens + self.tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    def timings(self) -> dict[str, float]:
        """As llama-server tells them."""
        evaluated = self.prompt_tokens - self.cached_tokens
        prompt = evaluated / self.prompt_seconds if self.prompt_seconds else 0.0
        return {
            "cache_n": self.cached_tokens,
            "prompt_n": evaluated,
            "prompt_ms": round(1000 * self.prompt_seconds, 3),
            "prompt_per_token_ms": _milliseconds_each(self.prompt_seconds, evaluated),
            "prompt_per_second": round(prompt, 3),
            "predicted_n": self.tokens,
            "predicted_ms": round(1000 * self.seconds, 3),
            "predicted_per_token_ms": _milliseconds_each(self.seconds, self.tokens - 1),
            "predicted_per_second": round(self.tokens_per_second, 3),
        }


def _milliseconds_each(seconds: float, count: int) -> float:
    return round(1000 * seconds / count, 3) if count > 0 else 0.0
