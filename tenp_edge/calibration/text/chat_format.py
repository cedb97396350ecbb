"""Conversations as the text a model reads: through its own chat template, or plainly without one.

Templates differ in what they take: some need a tool call's arguments as text, some know no calls at
all, some no system role. A few forms of the same conversation are tried in order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from tenp_edge.calibration.text.records import Chat, Message, Record
from tenp_edge.errors import UserError
from tenp_edge.progress import QUIET, Progress

_ROLES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}
_ERROR_CHARS = 200


class ChatWriter:
    """Writes records for one tokenizer; what there is to say about them is said once."""

    def __init__(self, tokenizer: Any, progress: Progress = QUIET) -> None:
        self._tokenizer, self._progress = tokenizer, progress
        self._has_template = bool(getattr(tokenizer, "chat_template", None))
        self._said: set[str] = set()

    def text(self, where: str, record: Record, *, lenient: bool = False) -> str:
        """Of ``record`` at ``where``. A conversation that the template refuses raises UserError, or
        is written plainly when ``lenient``."""
        text = record if isinstance(record, str) else self._chat(where, record, lenient)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = ord(error.object[error.start])
            raise UserError(
                f"{where} holds half a character (\\u{half:04x}), which no tokenizer reads",
                "whole characters: both halves of the pair, or none",
            ) from None
        return text

    def _chat(self, where: str, chat: Chat, lenient: bool) -> str:
        for kind in sorted(chat.left_out):
            self._say(
                f"parts of messages that are no text are left out ({kind})", f", first in {where}"
            )
        if self._has_template:
            return self._templated(where, chat, lenient)
        if not lenient:
            self._say("the tokenizer has no chat template: conversations are written as User: ...")
        return plainly(chat)

    def _templated(self, where: str, chat: Chat, lenient: bool) -> str:
        text, refusal = self._first(chat, chat.messages)
        if text is None and len(chat.messages) > 1 and chat.messages[0]["role"] == "system":
            text, _ = self._first(chat, _folded(chat.messages))
            if text is not None and not lenient:
                self._say("the chat template has no system role: it goes into the first user turn")
        if text is not None:
            return text
        if lenient:
            return plainly(chat)
        reason = (str(refusal).strip().splitlines() or ["no reason given"])[0][:_ERROR_CHARS]
        raise UserError(
            f"{where}: the chat template refuses it: {reason}",
            "one system turn at most, then user and assistant in turn",
        ) from refusal

    def _first(
        self, chat: Chat, messages: tuple[Message, ...]
    ) -> tuple[str | None, Exception | None]:
        """The first form of ``messages`` that the template takes and shows the tool calls of, if
        any; or why it refused the first."""
        refusal: Exception | None = None
        for form, without_calls in _forms(messages):
            try:
                text = self._apply(chat, form)
                if without_calls is None or text != self._apply(chat, without_calls):
                    return text, None
            except Exception as error:  # a template is a program of the model's; it may raise any
                refusal = refusal or error
        return None, refusal

    def _apply(self, chat: Chat, messages: Iterable[Message]) -> str:
        tools = list(chat.tools) or None
        return str(self._tokenizer.apply_chat_template(list(messages), tools=tools, tokenize=False))

    def _say(self, text: str, first: str = "") -> None:
        if text not in self._said:
            self._said.add(text)
            self._progress.note(text + first)


def plainly(chat: Chat) -> str:
    """Without a template: a line with the speaker, a blank line between the turns."""
    turns = [f"{_ROLES[m['role']]}: {_with_calls(m)['content']}" for m in chat.messages]
    return "\n\n".join(turns) + "\n"


def _forms(
    messages: tuple[Message, ...],
) -> Iterator[tuple[tuple[Message, ...], tuple[Message, ...] | None]]:
    """Arguments of calls as objects, as text, and calls as text; and what each is without calls,
    where a template might not look at them."""
    if not any("tool_calls" in message for message in messages):
        yield messages, None
        return
    objects = tuple(message | {"content": message["content"] or ""} for message in messages)
    bare = tuple({k: v for k, v in m.items() if k != "tool_calls"} for m in objects)
    yield objects, bare
    yield tuple(map(_texts_as_arguments, objects)), bare
    yield tuple(map(_with_calls, messages)), None


def _texts_as_arguments(message: Message) -> Message:
    if "tool_calls" not in message:
        return message
    calls = []
    for call in message["tool_calls"]:
        function = call["function"]
        calls.append(call | {"function": function | {"arguments": _as_text(function["arguments"])}})
    return message | {"tool_calls": calls}


def _with_calls(message: Message) -> Message:
    """``message`` with its calls as lines of its content: name({"argument": 1})."""
    lines = [message["content"]] if message["content"] else []
    for call in message.get("tool_calls", ()):
        function = call["function"]
        lines.append(f"{function['name']}({_as_text(function['arguments'])})")
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return rest | {"content": "\n".join(lines)}


def _as_text(arguments: dict[str, Any] | str) -> str:
    if isinstance(arguments, str):
        return arguments
    return json.dumps(arguments, ensure_ascii=False, default=str)  # str: dates of Parquet files


def _folded(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """The system turn at the head of the turn after it."""
    system, first, *rest = messages
    content = f"{system['content']}\n\n{first['content'] or ''}"
    return (first | {"content": content}, *rest)
