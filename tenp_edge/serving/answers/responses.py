"""Answers of OpenAI's Responses API: items of thoughts, text and calls.

created, in_progress
-> for every item: added -> (part added) -> deltas -> done -> (part done) -> item done
-> completed, or incomplete where the answer was cut
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tenp_edge.runtime.chat_formats.calls import Call
from tenp_edge.runtime.vocabulary import Vocabulary
from tenp_edge.serving.answers.answer import Answer, Body, event
from tenp_edge.serving.answers.choice import Choice, Delta
from tenp_edge.serving.answers.logprobs import chat_entry


@dataclass(frozen=True)
class _Kind:
    """An item of text: its type, its id's beginning, its part's type and its events' name."""

    type: str
    prefix: str
    part: str
    events: str


_MESSAGE = _Kind("message", "msg", "output_text", "response.output_text")
_REASONING = _Kind("reasoning", "rs", "reasoning_text", "response.reasoning_text")


class ResponseAnswer(Answer):
    """/v1/responses. ``echoed``: what the answer repeats of its request.

    The items are made by `events`, also of an answer in one piece.
    """

    def __init__(
        self,
        choices: Sequence[Choice],
        prompt_tokens: int,
        model: str,
        vocabulary: Vocabulary,
        echoed: Mapping[str, Any],
    ) -> None:
        super().__init__(choices, prompt_tokens)
        self._model, self._vocabulary, self._echoed = model, vocabulary, echoed
        self._id, self._created = _named("resp"), int(time.time())
        self._items: list[Body] = []
        self._open: _Kind | None = None
        self._untold: list[Body] = []  # log probabilities of tokens whose text is held back
        self._sent = self._reasoning_tokens = 0

    def head(self) -> list[str]:
        response = self._response("in_progress")
        return [
            self._event("response.created", response=response),
            self._event("response.in_progress", response=response),
        ]

    def events(self, index: int, delta: Delta) -> list[str]:
        return list(self._events(delta))

    def tail(self) -> list[str]:
        lines = [] if self._items else list(self._opened(_MESSAGE))
        lines += self._closed()
        status = self._status
        return [*lines, self._event(f"response.{status}", response=self._response(status))]

    def error(self, body: Body) -> str:
        stated = body["error"]
        fields = {name: stated[name] for name in ("code", "message", "param")}
        return self._event("error", **fields)

    def whole(self) -> Body:
        return self._response(self._status)

    # -- items ---------------------------------------------------------------------------------

    def _events(self, delta: Delta) -> Iterator[str]:
        if delta.piece.logprobs is not None:
            self._untold.append(chat_entry(self._vocabulary, delta.piece))
        if delta.reasoning:
            self._untold.clear()
            self._reasoning_tokens += 1
            yield from self._written(_REASONING, delta.reasoning)
        if delta.content:
            yield from self._written(_MESSAGE, delta.content)
        for _, call in delta.calls:
            yield from self._closed()
            yield from self._called(call)

    def _written(self, kind: _Kind, text: str) -> Iterator[str]:
        if self._open is not kind:
            yield from self._closed()
            yield from self._opened(kind)
        part = self._items[-1]["content"][0]
        part["text"] += text
        told, self._untold = self._untold, []
        logprobs = {"logprobs": told} if kind is _MESSAGE else {}
        if told and kind is _MESSAGE:
            part["logprobs"] += told
        yield self._of_part(f"{kind.events}.delta", delta=text, **logprobs)

    def _opened(self, kind: _Kind) -> Iterator[str]:
        self._open = kind
        part: Body = {"type": kind.part, "text": ""}
        item: Body = {"type": kind.type, "id": _named(kind.prefix), "status": "in_progress"}
        if kind is _MESSAGE:
            part |= {"annotations": [], "logprobs": []}
            item |= {"role": "assistant"}
        else:
            item |= {"summary": []}
        self._items.append(item | {"content": [part]})
        yield self._of_item("response.output_item.added", item=item | {"content": []})
        yield self._of_part("response.content_part.added", part=part)

    def _closed(self) -> Iterator[str]:
        """End the item of text that is open, if one is."""
        kind, self._open = self._open, None
        if kind is None:
            return
        item = self._items[-1]
        item["status"] = self._status
        part = item["content"][0]
        logprobs = {"logprobs": part["logprobs"]} if kind is _MESSAGE else {}
        yield self._of_part(f"{kind.events}.done", text=part["text"], **logprobs)
        yield self._of_part("response.content_part.done", part=part)
        yield self._of_item("response.output_item.done", item=item)

    def _called(self, call: Call) -> Iterator[str]:
        item: Body = {
            "type": "function_call",
            "id": _named("fc"),
            "call_id": call.identity,
            "name": call.name,
            "arguments": call.arguments,
            "status": "completed",
        }
        self._items.append(item)
        begun = item | {"arguments": "", "status": "in_progress"}
        yield self._of_item("response.output_item.added", item=begun)
        named = "response.function_call_arguments"
        place = {"item_id": item["id"]}
        yield self._of_item(f"{named}.delta", **place, delta=call.arguments)
        yield self._of_item(f"{named}.done", **place, name=call.name, arguments=call.arguments)
        yield self._of_item("response.output_item.done", item=item)

    # -- events --------------------------------------------------------------------------------

    def _of_part(self, name: str, /, **fields: Any) -> str:
        identity = self._items[-1]["id"]
        return self._of_item(name, item_id=identity, content_index=0, **fields)

    def _of_item(self, name: str, /, **fields: Any) -> str:
        return self._event(name, output_index=len(self._items) - 1, **fields)

    def _event(self, name: str, /, **fields: Any) -> str:
        number, self._sent = self._sent, self._sent + 1
        return event({"type": name, "sequence_number": number, **fields}, name)

    # -- the response --------------------------------------------------------------------------

    @property
    def _status(self) -> str:
        return "incomplete" if self.choices[0].finish == "length" else "completed"

    def _response(self, status: str) -> Body:
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        ended = status != "in_progress"
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if ended else None,
            "status": status,
            "error": None,
            "incomplete_details": cut,
            "model": self._model,
            "output": list(self._items),
            **self._echoed,
            "usage": self._usage() if ended else None,
        }

    def _usage(self) -> Body:
        usage = self.usage
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.tokens,
            "output_tokens_details": {"reasoning_tokens": self._reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.tokens,
        }


def _named(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"
