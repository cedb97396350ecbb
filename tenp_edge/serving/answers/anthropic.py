"""Anthropic's messages: blocks of thoughts, text and calls."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence

from tenp_edge.runtime.chat_formats.calls import Call
from tenp_edge.serving.answers.answer import Answer, Body, event
from tenp_edge.serving.answers.choice import Choice, Delta

_ERRORS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
}
_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class MessageAnswer(Answer):
    """/v1/messages."""

    def __init__(self, choices: Sequence[Choice], prompt_tokens: int, model: str) -> None:
        super().__init__(choices, prompt_tokens)
        self._model = model
        self._id = f"msg_{uuid.uuid4().hex}"
        self._block = -1
        self._open: str | None = None

    def head(self) -> list[str]:
        message = {**self._message([]), "stop_reason": None, "stop_sequence": None}
        return [_named({"type": "message_start", "message": message})]

    def events(self, index: int, delta: Delta) -> list[str]:
        return list(self._events(delta))

    def tail(self) -> list[str]:
        ended = self._ended(self.choices[0])
        usage = {"output_tokens": self.usage.tokens}
        return [
            *self._closed(),
            _named({"type": "message_delta", "delta": ended, "usage": usage}),
            _named({"type": "message_stop"}),
        ]

    def error(self, body: Body) -> str:
        return _named(anthropic_error(body))

    def whole(self) -> Body:
        choice = self.choices[0]
        blocks: list[Body] = []
        if choice.reasoning:
            blocks.append({"type": "thinking", "thinking": choice.reasoning, "signature": ""})
        if choice.content or not choice.calls:
            blocks.append({"type": "text", "text": choice.content})
        blocks += [_tool_use(call) | {"input": json.loads(call.arguments)} for call in choice.calls]
        return {**self._message(blocks), **self._ended(choice)}

    def _events(self, delta: Delta) -> Iterator[str]:
        if delta.reasoning:
            yield from self._opened("thinking", {"type": "thinking", "thinking": ""})
            yield self._delta({"type": "thinking_delta", "thinking": delta.reasoning})
        if delta.content:
            yield from self._opened("text", {"type": "text", "text": ""})
            yield self._delta({"type": "text_delta", "text": delta.content})
        for _, call in delta.calls:
            yield from self._closed()
            yield from self._opened("tool_use", _tool_use(call))
            yield self._delta({"type": "input_json_delta", "partial_json": call.arguments})
            yield from self._closed()

    def _opened(self, kind: str, block: Body) -> Iterator[str]:
        """Begin a block, unless one of that kind is open."""
        if self._open == kind:
            return
        yield from self._closed()
        self._open, self._block = kind, self._block + 1
        yield _named({"type": "content_block_start", "index": self._block, "content_block": block})

    def _closed(self) -> Iterator[str]:
        if self._open is not None:
            self._open = None
            yield _named({"type": "content_block_stop", "index": self._block})

    def _delta(self, delta: Body) -> str:
        return _named({"type": "content_block_delta", "index": self._block, "delta": delta})

    def _message(self, blocks: list[Body]) -> Body:
        usage = {"input_tokens": self.usage.prompt_tokens, "output_tokens": self.usage.tokens}
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": blocks,
            "usage": usage,
        }

    def _ended(self, choice: Choice) -> Body:
        by_word = choice.word is not None and choice.finish == "stop"
        reason = "stop_sequence" if by_word else _REASONS[choice.finish]
        return {"stop_reason": reason, "stop_sequence": choice.word if by_word else None}


def _tool_use(call: Call) -> Body:
    return {"type": "tool_use", "id": call.identity, "name": call.name, "input": {}}


def anthropic_error(body: Body, status: int = 500) -> Body:
    """OpenAI's error object as Anthropic's; ``status``: of the answer that it is."""
    stated = body["error"]
    default = "api_error" if stated["type"] == "server_error" else "invalid_request_error"
    kind = _ERRORS.get(status, default)
    return {"type": "error", "error": {"type": kind, "message": stated["message"]}}


def _named(body: Body) -> str:
    return event(body, body["type"])
