"""Requests of the Responses API as chats."""

from __future__ import annotations

from typing import Any

import pytest

from tenp_edge.serving.refusal import RefusalError
from tenp_edge.serving.schemas.responses import ResponsesRequest
from tenp_edge.serving.schemas.wording import check, translated

CALL = {"type": "function_call", "call_id": "c1", "name": "now", "arguments": "{}"}
NOW = {"type": "function", "name": "now", "parameters": {"type": "object"}, "strict": True}


def messages(*items: dict[str, Any]) -> list[dict[str, Any]]:
    request = check(ResponsesRequest, {"input": list(items)}).openai()
    return [message.plain() for message in request.messages]


def test_what_belongs_to_one_message_of_the_model() -> None:
    """Thoughts, then a text, then calls; what follows the results is another."""
    thought = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
    said = {"type": "message", "role": "assistant", "content": "I ask."}
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    result = {"type": "function_call_output", "call_id": "c1", "output": parts}
    found = messages({"role": "user", "content": parts}, thought, said, CALL, result, said, said)
    assert [message["role"] for message in found] == ["user", "assistant", "tool"] + 2 * [
        "assistant"
    ]
    assert found[0]["content"] == found[2]["content"] == "ab"
    assert found[1]["content"] == "I ask." and found[1]["reasoning_content"] == "Hm."
    (call,) = found[1]["tool_calls"]
    assert call["id"] == found[2]["tool_call_id"] == "c1"


def test_options_and_tools() -> None:
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [NOW]}
    schema = {"type": "json_schema", "name": "x", "schema": {"const": 1}, "strict": True}
    chat = check(
        ResponsesRequest,
        {
            "input": "Hi",
            "instructions": "Be brief.",
            "max_output_tokens": 7,
            "seed": 5,
            "tools": [NOW, NOW | {"name": "later"}],
            "tool_choice": allowed,
            "text": {"format": schema},
            "reasoning": {"effort": "none"},
            "include": ["message.output_text.logprobs"],
        },
    ).openai()
    assert [message.role for message in chat.messages] == ["system", "user"]
    assert (chat.max_tokens, chat.seed, chat.told, chat.must_call) == (7, 5, 0, True)
    assert [(tool.name, tool.strict) for tool in chat.usable_tools()] == [("now", True)]
    source = chat.grammar_source()
    assert source is not None and source.kind == "strict_json_schema"
    assert chat.variables()["enable_thinking"] is False


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"input": []}, "input must not be empty"),
        (
            {"input": "a", "previous_response_id": "resp_1"},
            "previous_response_id: this server remembers no answers; send all of it as input",
        ),
        (
            {"input": [{"type": "item_reference", "id": "x"}]},
            "an item of type 'item_reference': this server cannot read it",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "an item has a part of type 'input_image': text alone is read",
        ),
        (
            {"input": "a", "tools": [{"type": "web_search"}]},
            "a tool of type 'web_search': functions are the only kind",
        ),
        (
            {"input": "a", "tool_choice": {"type": "allowed_tools", "tools": 5}},
            "tool_choice of type 'allowed_tools' needs tools, a list",
        ),
    ],
)
def test_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RefusalError) as caught:
        translated(check(ResponsesRequest, fields).openai)
    assert str(caught.value) == message
