"""One record of people's data: every accepted form, and every refusal in its words."""

from __future__ import annotations

import json
from typing import Any

import pytest
from support.data_cases import refusal

from tenp_edge.calibration.text.records import CALLS, EXAMPLE, TOOLS, Chat, parse_json, parse_record

TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}


def chat(record: dict[str, Any]) -> Chat:
    found = parse_record("here", record)
    assert isinstance(found, Chat)
    return found


@pytest.mark.parametrize(
    "record",
    [
        {"messages": TURNS},
        {"messages": TURNS, "text": "rendered for another model", "prompt": "hi"},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]},
        {"conversations": TURNS},
        {"prompt": "hi", "completion": "yes"},
        {"prompt": TURNS[:1], "completion": TURNS[1:]},
        {"instruction": "hi", "input": "", "output": "yes"},
        {"instruction": "hi", "output": "yes", "text": None},
    ],
)
def test_the_same_conversation_in_every_form(record: dict[str, Any]) -> None:
    assert chat(record) == Chat(tuple(TURNS))


def test_text() -> None:
    assert parse_record("here", {"text": "one\ntwo", "id": 3}) == "one\ntwo"


def test_system_prompts_inputs_and_roles_of_many_names() -> None:
    shared = {"conversations": [{"from": "Human", "value": "hi"}], "system": "be brief"}
    assert [m["role"] for m in chat(shared).messages] == ["system", "user"]
    asked = chat({"instruction": "sum up", "input": "a text", "output": "b", "system": "s"})
    assert [m["content"] for m in asked.messages] == ["s", "sum up\n\na text", "b"]
    roles = ["developer", "user", "bot", "observation", "model", "ipython"]
    named = chat({"messages": [{"role": role, "content": "x"} for role in roles]})
    assert [m["role"] for m in named.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
    ]


def test_of_parts_the_text_is_kept() -> None:
    parts = [
        {"type": "text", "text": "what is"},
        {"type": "image_url", "image_url": {"url": "data:"}},
        {"type": "text", "text": "this?"},
    ]
    found = chat({"messages": [{"role": "user", "content": parts}]})
    assert found.messages == ({"role": "user", "content": "what is\nthis?"},)
    assert found.left_out == {"image_url"}


@pytest.mark.parametrize(
    "turn",
    [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]},
        {"role": "assistant", "function_call": {"name": "f", "arguments": '{"a": 1}'}},
        {"from": "function_call", "value": '{"name": "f", "arguments": {"a": 1}}'},
    ],
)
def test_tool_calls_in_every_form(turn: dict[str, Any]) -> None:
    (found,) = chat({"messages": [turn]}).messages
    assert found == {"role": "assistant", "content": None, "tool_calls": [CALL]}


def test_tools_and_answers() -> None:
    record = {
        "messages": [{"role": "tool", "content": "7", "tool_call_id": "a", "name": "f", "x": 1}],
        "tools": '[{"type": "function"}]',
    }
    found = chat(record)
    assert found.tools == ({"type": "function"},)
    assert found.messages == ({"role": "tool", "content": "7", "tool_call_id": "a", "name": "f"},)


NONE_OF = (
    "has no messages or conversations or text or prompt and completion or instruction and output"
)
WRONG: list[tuple[object, str]] = [
    (["a"], f"here is a list, not a record\ntry: {EXAMPLE}"),
    (None, f"here is null, not a record\ntry: {EXAMPLE}"),
    ({}, f"here {NONE_OF}; it has nothing\ntry: {EXAMPLE}"),
    ({"prompt": "no", "x": 1}, f"here {NONE_OF}; it has prompt, x\ntry: {EXAMPLE}"),
    (
        {f"key number {n} \ud800 of many": n for n in range(7)},
        "here "
        + NONE_OF
        + "; it has "
        + ", ".join(f"key number {n} \\ud800 of ma" for n in range(5))
        + f" and 2 more\ntry: {EXAMPLE}",
    ),
    ({"text": 5}, f"here: 'text' is a number, not a string\ntry: {EXAMPLE}"),
    ({"messages": "hi"}, f"here: 'messages' is a string, not a list\ntry: {EXAMPLE}"),
    ({"messages": []}, f"here: 'messages' is empty\ntry: {EXAMPLE}"),
    ({"messages": ["hi"]}, f"here, message 1 is a string, not an object\ntry: {EXAMPLE}"),
    (
        {"messages": [*TURNS, {"role": "narrator", "content": "x"}]},
        "here, message 3: its role is 'narrator', not system, user, assistant or tool\n"
        f"try: {EXAMPLE}",
    ),
    (
        {"messages": [{"content": "x"}]},
        f"here, message 1: its role is null, not system, user, assistant or tool\ntry: {EXAMPLE}",
    ),
    (
        {"messages": [{"role": "assistant"}]},
        f"here, message 1 has neither content nor tool_calls\ntry: {EXAMPLE}",
    ),
    (
        {"messages": [{"role": "user", "content": {"text": "x"}}]},
        f"here, message 1: its content is an object, not a string\ntry: {EXAMPLE}",
    ),
    (
        {"messages": [{"role": "user", "content": [{"text": "x"}]}]},
        "here, message 1: a part of its content is an object without a type\n"
        'try: "content": [{"type": "text", "text": "..."}]',
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
        f"here, message 1: 'text' is a number, not a string\ntry: {EXAMPLE}",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": {}}]},
        f"here, message 1: 'tool_calls' is an object, not a list\ntry: {CALLS}",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]},
        f"here, message 1: a tool call has no function name\ntry: {CALLS}",
    ),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": [1]}]}]},
        f"here, message 1: the arguments of a tool call are a list, not an object\ntry: {CALLS}",
    ),
    ({"messages": TURNS, "tools": "{"}, "here: 'tools' is not JSON: Expecting property name"),
    (
        {"messages": TURNS, "tools": True},
        f"here: 'tools' is true or false, not a list\ntry: {TOOLS}",
    ),
    (
        {"prompt": "a", "completion": 1},
        f"here, message 1: its content is a number, not a string\ntry: {EXAMPLE}",
    ),
    (
        {"instruction": "a", "output": ["b"]},
        f"here: 'output' is a list, not a string\ntry: {EXAMPLE}",
    ),
]


@pytest.mark.parametrize(("record", "words"), WRONG)
def test_refused_records(record: object, words: str) -> None:
    found = refusal(lambda: parse_record("here", record))
    assert found == words or (words.endswith("property name") and found.startswith(words))


def test_deep_nesting_is_refused_and_not_followed() -> None:
    with pytest.raises(ValueError, match=r"^it nests too deeply$"):
        parse_json("[" * 100_000)
    deep: dict[str, Any] = {}
    for _ in range(20_000):
        deep = {"a": deep}
    record = {"messages": [{"role": "assistant", "tool_calls": [{"name": "f", "arguments": deep}]}]}
    assert refusal(lambda: parse_record("here", record)) == (
        f"here, message 1: the arguments of a tool call nest too deeply\ntry: {CALLS}"
    )
    calls = json.dumps({"name": "f", "arguments": "[" * 100_000})
    (found,) = chat({"conversations": [{"from": "function_call", "value": calls}]}).messages
    assert found["tool_calls"][0]["function"]["arguments"] == "[" * 100_000
