"""One record of people's data: a text or a conversation, in one form whatever its file calls it.

A conversation is a list of messages as chat templates take them. What is accepted: ``text``,
``messages``, ShareGPT's ``conversations``, ``prompt`` and ``completion``, Alpaca's ``instruction``,
``input`` and ``output``. Anything else is refused with the place and what was expected.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from tenp_edge.errors import UserError

Message = dict[str, Any]
EXAMPLE = '{"text": "..."} or {"messages": [{"role": "user", "content": "..."}]}'
CALLS = '"tool_calls": [{"type": "function", "function": {"name": "...", "arguments": {}}}]'
TOOLS = '"tools": [{"type": "function", "function": {"name": "...", "parameters": {}}}]'
ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
# Beside role, content and calls, templates read these; all are strings.
_EXTRAS = ("name", "tool_call_id", "reasoning_content")
_TEXT_PARTS = ("text", "input_text", "output_text")
_SHOWN = 5


@dataclass(frozen=True)
class Chat:
    """``messages``: role, content (None beside tool calls) and ``tool_calls``; ``tools``: what the
    assistant may call, as JSON schemas; ``left_out``: kinds of parts that are no text."""

    messages: tuple[Message, ...]
    tools: tuple[Any, ...] = ()
    left_out: frozenset[str] = frozenset()


Record = str | Chat


def parse_json(text: str) -> Any:
    """``json.loads`` whose only error is ValueError, however deep ``text`` nests."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it nests too deeply") from None


def parse_record(where: str, record: object) -> Record:
    """The text or conversation in ``record``. Raises UserError that begins with ``where``."""
    if not isinstance(record, dict):
        raise UserError(f"{where} is {kind_of(record)}, not a record", EXAMPLE)
    fields = {str(key): value for key, value in record.items() if value is not None}
    for keys, read in _READERS:
        if fields.keys() >= set(keys):
            return read(where, fields)
    names = " or ".join(" and ".join(keys) for keys, _ in _READERS)
    raise UserError(f"{where} has no {names}; it has {_listed(fields)}", EXAMPLE)


def kind_of(value: object) -> str:
    """What JSON calls ``value``, with its article."""
    if isinstance(value, bool):
        return "true or false"
    for kind, name in _KINDS:
        if isinstance(value, kind):
            return name
    return "null" if value is None else f"a {type(value).__name__}"


_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (dict, "an object"),
    (list, "a list"),
    (str, "a string"),
    ((int, float), "a number"),
)


def _listed(given: Mapping[str, Any]) -> str:
    names = ", ".join(ascii(key[:20])[1:-1] for key in list(given)[:_SHOWN])
    more = "" if len(given) <= _SHOWN else f" and {len(given) - _SHOWN} more"
    return f"{names}{more}" if names else "nothing"


# -- the forms of a record -------------------------------------------------------------------------


def _text(where: str, record: Mapping[str, Any]) -> str:
    return _string(where, "text", record["text"])


def _messages(where: str, record: Mapping[str, Any]) -> Chat:
    return _conversation(where, record, "messages")


def _sharegpt(where: str, record: Mapping[str, Any]) -> Chat:
    return _conversation(where, record, "conversations")


def _conversation(where: str, record: Mapping[str, Any], key: str) -> Chat:
    chat = _chat(where, key, record[key])
    has_system = chat.messages[0]["role"] == "system"
    system = () if has_system else _system(where, record)
    return replace(chat, messages=system + chat.messages, tools=_tools(where, record))


def _completion(where: str, record: Mapping[str, Any]) -> Chat:
    """Each side is a string (one turn) or a list of messages."""
    chats = []
    for key, role in (("prompt", "user"), ("completion", "assistant")):
        value = record[key]
        turns = value if isinstance(value, list) else [{"role": role, "content": value}]
        chats.append(_chat(where, key, turns))
    first, second = chats
    return Chat(
        first.messages + second.messages, _tools(where, record), first.left_out | second.left_out
    )


def _alpaca(where: str, record: Mapping[str, Any]) -> Chat:
    instruction, more, output = (
        _string(where, key, record.get(key, "")) for key in ("instruction", "input", "output")
    )
    question = f"{instruction}\n\n{more}" if more.strip() else instruction
    turns = ({"role": "user", "content": question}, {"role": "assistant", "content": output})
    return Chat(_system(where, record) + turns)


_READERS: tuple[tuple[tuple[str, ...], Callable[[str, Mapping[str, Any]], Record]], ...] = (
    (("messages",), _messages),
    (("conversations",), _sharegpt),
    (("text",), _text),
    (("prompt", "completion"), _completion),
    (("instruction", "output"), _alpaca),
)


def _system(where: str, record: Mapping[str, Any]) -> tuple[Message, ...]:
    """The system prompt that some files keep beside the turns."""
    text = _string(where, "system", record.get("system", ""))
    return ({"role": "system", "content": text},) if text.strip() else ()


def _tools(where: str, record: Mapping[str, Any]) -> tuple[Any, ...]:
    """A list of schemas, or that list as a string of JSON."""
    tools = record.get("tools", [])
    if isinstance(tools, str):
        try:
            tools = parse_json(tools) if tools.strip() else []
        except ValueError as error:
            raise UserError(f"{where}: 'tools' is not JSON: {error}", TOOLS) from None
    if not isinstance(tools, list):
        raise UserError(f"{where}: 'tools' is {kind_of(tools)}, not a list", TOOLS)
    return tuple(tools)


# -- messages --------------------------------------------------------------------------------------


def _chat(where: str, key: str, turns: object) -> Chat:
    if not isinstance(turns, list):
        raise UserError(f"{where}: '{key}' is {kind_of(turns)}, not a list", EXAMPLE)
    if not turns:
        raise UserError(f"{where}: '{key}' is empty", EXAMPLE)
    left_out: set[str] = set()
    messages = tuple(
        _message(f"{where}, message {number}", turn, left_out)
        for number, turn in enumerate(turns, 1)
    )
    return Chat(messages, left_out=frozenset(left_out))


def _message(where: str, turn: object, left_out: set[str]) -> Message:
    """role and content, or ShareGPT's from and value."""
    if not isinstance(turn, dict):
        raise UserError(f"{where} is {kind_of(turn)}, not an object", EXAMPLE)
    role = turn.get("role", turn.get("from"))
    if not isinstance(role, str) or role.lower() not in ROLES:
        shown = ascii(role[:20]) if isinstance(role, str) else kind_of(role)
        raise UserError(
            f"{where}: its role is {shown}, not system, user, assistant or tool", EXAMPLE
        )
    content, calls = turn.get("content", turn.get("value")), _calls(where, turn)
    if role in ("function_call", "tool_call") and isinstance(content, str) and not calls:
        calls = _call_in(content)
        content = None if calls else content
    message: Message = {"role": ROLES[role.lower()], "content": _content(where, content, left_out)}
    if calls:
        message["tool_calls"] = calls
    elif message["content"] is None:
        raise UserError(f"{where} has neither content nor tool_calls", EXAMPLE)
    extras = {key: turn[key] for key in _EXTRAS if isinstance(turn.get(key), str)}
    return message | extras


def _content(where: str, content: object, left_out: set[str]) -> str | None:
    """A string, or parts of which the text is kept."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UserError(f"{where}: its content is {kind_of(content)}, not a string", EXAMPLE)
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise UserError(
                f"{where}: a part of its content is {kind_of(part)} without a type",
                '"content": [{"type": "text", "text": "..."}]',
            )
        if kind in _TEXT_PARTS:
            texts.append(_string(where, "text", part.get("text")))
        else:
            left_out.add(ascii(kind[:20])[1:-1])
    return "\n".join(texts)


# -- tool calls ------------------------------------------------------------------------------------


def _calls(where: str, turn: Mapping[str, Any]) -> list[dict[str, Any]]:
    """``tool_calls``, or the one ``function_call`` of older files, in the templates' form."""
    calls = turn.get("tool_calls")
    if calls is None:
        calls = [] if turn.get("function_call") is None else [turn["function_call"]]
    if not isinstance(calls, list):
        raise UserError(f"{where}: 'tool_calls' is {kind_of(calls)}, not a list", CALLS)
    return [_call(where, call) for call in calls]


def _call(where: str, call: object) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str):
        raise UserError(f"{where}: a tool call has no function name", CALLS)
    arguments = _arguments(where, function.get("arguments"))
    parsed: dict[str, Any] = {
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }
    identity = call.get("id") if isinstance(call, dict) else None
    return parsed | ({"id": identity} if isinstance(identity, str) else {})


def _arguments(where: str, given: object) -> dict[str, Any] | str:
    """An object; OpenAI writes it as a string of JSON. Text that is no object stays text."""
    if given is None:
        return {}
    if isinstance(given, str):
        try:
            parsed = parse_json(given)
        except ValueError:
            return given
        return parsed if isinstance(parsed, dict) else given
    if not isinstance(given, dict):
        raise UserError(
            f"{where}: the arguments of a tool call are {kind_of(given)}, not an object", CALLS
        )
    try:
        json.dumps(given, default=str)  # whoever writes the conversation does
    except RecursionError:
        raise UserError(f"{where}: the arguments of a tool call nest too deeply", CALLS) from None
    return given


def _call_in(text: str) -> list[dict[str, Any]]:
    """The call that a function_call turn of ShareGPT spells as JSON, if it does."""
    try:
        parsed = parse_json(text)
    except ValueError:
        return []
    named = isinstance(parsed, dict) and isinstance(parsed.get("name"), str)
    usable = named and isinstance(parsed.get("arguments"), dict | str | None)
    return [_call("", parsed)] if usable else []


def _string(where: str, key: str, value: object) -> str:
    if not isinstance(value, str):
        raise UserError(f"{where}: '{key}' is {kind_of(value)}, not a string", EXAMPLE)
    return value
