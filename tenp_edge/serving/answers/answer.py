"""What an API makes of choices."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from tenp_edge.runtime.generation import Piece
from tenp_edge.runtime.sampling import Logprobs
from tenp_edge.serving.answers.choice import Choice, Delta, Usage

Body = dict[str, Any]
DONE = "data: [DONE]\n\n"


class Answer(ABC):
    """The answer to one request: of one `Choice` for every job."""

    def __init__(self, choices: Sequence[Choice], prompt_tokens: int) -> None:
        self.choices = choices
        self.usage = Usage(prompt_tokens)

    def add(self, index: int, piece: Piece) -> Delta:
        """Count one token of choice ``index``."""
        choice = self.choices[index]
        if not choice.silent:
            self.usage.count()
        if piece.finish is not None:
            self.usage.cached_tokens += choice.cached_tokens
        return choice.add(piece)

    def told_prompt(self, index: int, values: Sequence[Logprobs]) -> None:
        """Take the log probabilities of the prompt of choice ``index``: of every token but the
        first, which nothing foretells. Only completions ask for them (`Work.told`)."""
        raise NotImplementedError(f"{type(self).__name__} tells nothing of prompts")

    def head(self) -> list[str]:
        """Events before the first token."""
        return []

    @abstractmethod
    def events(self, index: int, delta: Delta) -> list[str]:
        """Events of a token that was added."""

    def tail(self) -> list[str]:
        """Events after the last token."""
        return []

    def error(self, body: Body) -> str:
        """The event that ends a stream that failed; ``body`` is OpenAI's."""
        return event(body)

    @abstractmethod
    def whole(self) -> Body:
        """The answer in one piece."""


def event(body: Body, name: str | None = None) -> str:
    """``body`` as a server-sent event."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(body)}\n\n"
