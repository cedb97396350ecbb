"""A conversation with tools in the words of the model's own chat template.

Templates differ in what they take. Where one refuses, the next spelling is tried: the arguments of
earlier calls as an object or as JSON, what a template does not know described in messages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tenp_edge.errors import UserError
from tenp_edge.runtime.chat_formats.calls import Tool
from tenp_edge.runtime.chat_formats.formats import (
    ChatFormat,
    format_of,
    thinking_of,
)
from tenp_edge.runtime.chat_template import PROCESS, TemplateError
from tenp_edge.runtime.thinking import TAGS, Thinking
from tenp_edge.runtime.vocabulary import Vocabulary

Message = Mapping[str, Any]
Messages = Sequence[Message]
_INSTRUCTION = (
    "You may call one or more functions to assist with the user query. Their signatures:\n"
    "<tools>\n{}\n</tools>\n\n"
    "For each function call, return a JSON object with its name and arguments within "
    "<tool_call></tool_call> tags:\n"
    '<tool_call>\n{{"name": <function-name>, "arguments": <args-json-object>}}\n</tool_call>'
)


@dataclass(frozen=True)
class ChatPrompt:
    """A rendered conversation, and how its answer holds thoughts and calls. ``control``: marks of
    the format that are control tokens, and their numbers."""

    text: str
    form: ChatFormat
    thinking: Thinking | None
    control: Mapping[str, int]


def chat_prompt(
    vocabulary: Vocabulary,
    messages: Messages,
    tools: Sequence[Tool] = (),
    variables: Mapping[str, Any] | None = None,
) -> ChatPrompt:
    """``messages`` as the model expects them, ready for its answer.

    A message is {"role", "content"} and perhaps "tool_calls", whose arguments are JSON,
    "tool_call_id" and "reasoning_content". Raises UserError when the file has no template, when it
    refuses the messages, and when it reaches a limit of `chat_template`.
    """
    template = vocabulary.chat_template
    if template is None:
        raise UserError(
            "the file has no chat template", "run it with --raw, or ask /v1/completions"
        )
    form, thinking = format_of(template), thinking_of(template)
    known = {**(variables or {}), **_template_facts(vocabulary)}
    if tools and not form.described:
        known["tools"] = [tool.described() for tool in tools]
    text = _rendered(template, _spellings(template, form, messages, tools), known)
    return ChatPrompt(text, form, thinking, control_marks(vocabulary, form, thinking))


def control_marks(
    vocabulary: Vocabulary, form: ChatFormat, thinking: Thinking | None
) -> dict[str, int]:
    """The marks, or what stands in them, that are control tokens, which no text shows, and their
    numbers."""
    thinking = thinking or TAGS
    found = {}
    for mark in (*form.marks(), thinking.opens, thinking.closes):
        for token in vocabulary.tokenize(mark, add_special=False, parse_special=True):
            text = vocabulary.piece(token, special=True).decode(errors="replace")
            if text and text in mark and not vocabulary.piece(token):
                found[text] = token
    return found


def _template_facts(vocabulary: Vocabulary) -> dict[str, Any]:
    """What every template is told beside the messages."""
    return {
        "add_generation_prompt": True,
        "bos_token": _text(vocabulary, vocabulary.bos),
        "eos_token": _text(vocabulary, vocabulary.eos),
    }


def _refused(error: TemplateError | None) -> UserError:
    """Why a template did not render its messages."""
    return UserError(
        f"the chat template cannot render these messages: {error}",
        "user and assistant in turn, beginning with user",
    )


def _text(vocabulary: Vocabulary, token: int | None) -> str:
    return "" if token is None else vocabulary.detokenize([token])


def _rendered(template: str, spellings: Iterator[Messages], known: Mapping[str, Any]) -> str:
    """The first spelling of the messages that the template takes."""
    first: TemplateError | None = None
    for messages in spellings:
        try:
            return PROCESS.render(template, {**known, "messages": messages})
        except TemplateError as error:
            first = first or error
    raise _refused(first)


def _spellings(
    template: str, form: ChatFormat, messages: Messages, tools: Sequence[Tool]
) -> Iterator[Messages]:
    spelled = list(_with_tools(template, form, messages, tools))
    yield from spelled
    for each in spelled:
        if each[0]["role"] == "system" and len(each) > 1:
            yield _merged(_without_system(each))


def _with_tools(
    template: str, form: ChatFormat, messages: Messages, tools: Sequence[Tool]
) -> Iterator[Messages]:
    """Calls and their results as the template may like them."""
    called = any("tool_calls" in message for message in messages)
    if form.described:
        used = called or any(message["role"] == "tool" for message in messages)
        messages = _described(messages, tools) if tools else messages
        yield _merged([_in_words(message) for message in messages]) if used else messages
        return
    if "tool_responses" in template:
        messages = _with_responses(messages)
    yield [_with_objects(message) for message in messages]
    if called:
        yield messages


# -- messages as templates like them ---------------------------------------------------------------


def _with_objects(message: Message) -> Message:
    """The arguments of calls as objects; thoughts also under gpt-oss' name for them."""
    changed = dict(message)
    if "tool_calls" in message:
        changed["tool_calls"] = [_with_object(call) for call in message["tool_calls"]]
    if "reasoning_content" in message:
        changed["thinking"] = message["reasoning_content"]
    return changed


def _with_object(call: Message) -> Message:
    function = call["function"]
    try:
        arguments = json.loads(function["arguments"])
    except ValueError:
        return call
    return {**call, "function": {**function, "arguments": arguments}}


def _with_responses(messages: Messages) -> list[Message]:
    """Results of tools within the message that called them, as Gemma's template wants them."""
    changed: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool" and changed and "tool_calls" in changed[-1]:
            name = message.get("name") or _called(changed[-1], message.get("tool_call_id"))
            response = {"name": name, "response": message["content"]}
            changed[-1].setdefault("tool_responses", []).append(response)
        else:
            changed.append(dict(message))
    return list(changed)


def _called(message: Message, identity: str | None) -> str:
    """The name of the function that the call of that identity called."""
    calls = [call for call in message["tool_calls"] if call["id"] == identity]
    return str((calls or message["tool_calls"])[0]["function"]["name"])


def _in_words(message: Message) -> Message:
    """Calls and results of tools as text."""
    if message["role"] == "tool":
        text = f"<tool_response>\n{message['content']}\n</tool_response>"
        return {"role": "user", "content": text}
    if "tool_calls" not in message:
        return message
    objects = [_with_object(call)["function"] for call in message["tool_calls"]]
    calls = [f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in objects]
    said = [message["content"]] if message["content"] else []
    return {"role": message["role"], "content": "\n".join(said + calls)}


def _described(messages: Messages, tools: Sequence[Tool]) -> list[Message]:
    """With a system message that describes the tools."""
    listed = "\n".join(json.dumps(tool.described()) for tool in tools)
    instruction = _INSTRUCTION.format(listed)
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": instruction}, *messages]
    system = {"role": "system", "content": f"{messages[0]['content']}\n\n{instruction}"}
    return [system, *messages[1:]]


def _without_system(messages: Messages) -> list[Message]:
    """The system message at the head of the user's first: not every template knows one."""
    system, first, *others = messages
    return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *others]


def _merged(messages: Messages) -> list[Message]:
    """Neighbours of the user's as one: results of tools, after a message or each other."""
    merged: list[Message] = []
    for message in messages:
        if merged and message["role"] == merged[-1]["role"] == "user":
            content = f"{merged[-1]['content']}\n{message['content']}"
            merged[-1] = {**merged[-1], "content": content}
        else:
            merged.append(message)
    return merged
