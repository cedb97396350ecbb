"""OpenAI's answers: chats and completions."""

from __future__ import annotations

import time
import uuid
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tenp_edge.runtime.chat_formats.calls import Call
from tenp_edge.runtime.generation import Piece
from tenp_edge.runtime.sampling import Logprobs
from tenp_edge.runtime.vocabulary import Vocabulary
from tenp_edge.serving.answers.answer import DONE, Answer, Body, event
from tenp_edge.serving.answers.choice import Choice, Delta
from tenp_edge.serving.answers.logprobs import chat_entry, completion_lists
from tenp_edge.version import __version__


class _OpenAIAnswer(Answer):
    """What both have: ids, counts, an end of the stream."""

    kind: str
    prefix: str

    def __init__(
        self,
        choices: Sequence[Choice],
        prompt_tokens: int,
        model: str,
        vocabulary: Vocabulary,
        with_usage: bool = False,
    ) -> None:
        super().__init__(choices, prompt_tokens)
        self._model, self._vocabulary, self._with_usage = model, vocabulary, with_usage
        self._id = f"{self.prefix}-{uuid.uuid4().hex}"
        self._created = int(time.time())

    def tail(self) -> list[str]:
        body = {**self._head(".chunk"), "choices": [], "usage": self.usage.openai()}
        timed = {**body, "timings": self.usage.timings()}
        return [event(timed), DONE] if self._with_usage else [DONE]

    def whole(self) -> Body:
        choices = [self._choice(index, choice) for index, choice in enumerate(self.choices)]
        counts = {"usage": self.usage.openai(), "timings": self.usage.timings()}
        return {**self._head(""), "choices": choices, **counts}

    @abstractmethod
    def _choice(self, index: int, choice: Choice) -> Body:
        """One of `whole`'s choices."""

    def _chunk(self, index: int, said: Body, logprobs: Body | None, finish: str | None) -> str:
        choice = {"index": index, **said, "logprobs": logprobs, "finish_reason": finish}
        usage = {"usage": None} if self._with_usage else {}
        return event({**self._head(".chunk"), "choices": [choice], **usage})

    def _head(self, suffix: str) -> Body:
        return {
            "id": self._id,
            "object": self.kind + (suffix if self.kind == "chat.completion" else ""),
            "created": self._created,
            "model": self._model,
            "system_fingerprint": f"tenp-edge-{__version__}",
        }


class ChatAnswer(_OpenAIAnswer):
    """/v1/chat/completions."""

    kind, prefix = "chat.completion", "chatcmpl"

    def events(self, index: int, delta: Delta) -> list[str]:
        """A chunk per token."""
        said: Body = {}
        if self.choices[index].tokens <= 1:
            said = {"role": "assistant"}
        if delta.reasoning:
            said["reasoning_content"] = delta.reasoning
        if delta.content or not (delta.reasoning or delta.calls):
            said["content"] = delta.content
        if delta.calls:
            said["tool_calls"] = [{"index": number, **called(call)} for number, call in delta.calls]
        return [self._chunk(index, {"delta": said}, self._told([delta.piece]), delta.finish)]

    def _choice(self, index: int, choice: Choice) -> Body:
        message: Body = {"role": "assistant", "content": choice.content}
        if choice.reasoning:
            message["reasoning_content"] = choice.reasoning
        if choice.calls:
            message["content"] = choice.content or None
            message["tool_calls"] = [called(call) for call in choice.calls]
        return {
            "index": index,
            "message": message,
            "logprobs": self._told(choice.pieces),
            "finish_reason": choice.finish,
        }

    def _told(self, pieces: Sequence[Piece]) -> Body | None:
        told = [chat_entry(self._vocabulary, piece) for piece in pieces if piece.logprobs]
        return {"content": told, "refusal": None} if told else None


def called(call: Call) -> dict[str, Any]:
    """A call as OpenAI spells it."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.identity, "type": "function", "function": function}


@dataclass
class Echo:
    """The prompt, before its continuation: text, and tokens where log probabilities are told."""

    text: str = ""
    pieces: Sequence[Piece] = ()


class CompletionAnswer(_OpenAIAnswer):
    """/v1/completions. ``echoed``: what stands before each choice's text."""

    kind, prefix = "text_completion", "cmpl"

    def __init__(self, *arguments: Any, echoed: Sequence[Echo] = (), **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._echoed = echoed or [Echo() for _ in self.choices]
        self._offsets = [0] * len(self.choices)  # where the next chunk's tokens begin

    def told_prompt(self, index: int, values: Sequence[Logprobs]) -> None:
        echo = self._echoed[index]
        first, *others = echo.pieces
        pairs = zip(others, values, strict=True)
        echo.pieces = [first, *(replace(piece, logprobs=value) for piece, value in pairs)]

    def events(self, index: int, delta: Delta) -> list[str]:
        """A chunk per token; the prompt before the first where it is echoed."""
        choice = self.choices[index]
        echo = self._echoed[index] if choice.tokens <= 1 else Echo()
        said = {"text": echo.text + delta.content}
        told = self._told(echo, choice.pieces[-1:], self._offsets[index])
        self._offsets[index] += sum(map(len, told["tokens"])) if told else 0
        return [self._chunk(index, said, told, delta.finish)]

    def _choice(self, index: int, choice: Choice) -> Body:
        echo = self._echoed[index]
        return {
            "index": index,
            "text": echo.text + choice.content,
            "logprobs": self._told(echo, choice.pieces),
            "finish_reason": choice.finish,
        }

    def _told(self, echo: Echo, pieces: Sequence[Piece], offset: int = 0) -> Body | None:
        if not echo.pieces and not any(piece.logprobs for piece in pieces):
            return None
        return completion_lists(self._vocabulary, [*echo.pieces, *pieces], offset)
