"""Fields that ask for another answer are refused, and those that ask for nothing are not."""

from __future__ import annotations

from typing import Any

import pytest

from tenp_edge.serving.refusal import RefusalError
from tenp_edge.serving.schemas.anthropic import CountRequest, MessagesRequest
from tenp_edge.serving.schemas.generation import GenerationRequest
from tenp_edge.serving.schemas.native import NativeRequest
from tenp_edge.serving.schemas.openai import ChatRequest, CompletionRequest
from tenp_edge.serving.schemas.refusing import REFUSED
from tenp_edge.serving.schemas.responses import ResponsesRequest
from tenp_edge.serving.schemas.wording import check

HI: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]}
EVERY: list[tuple[type[Any], dict[str, Any]]] = [
    (ChatRequest, HI),
    (CompletionRequest, {"prompt": "a"}),
    (NativeRequest, {"prompt": "a"}),
    (ResponsesRequest, {"input": "a"}),
    (MessagesRequest, HI),
    (CountRequest, HI),
]


def refusal(kind: type[Any], fields: dict[str, Any]) -> tuple[str, str | None]:
    with pytest.raises(RefusalError) as caught:
        check(kind, fields)
    return str(caught.value), caught.value.body["error"]["param"]


@pytest.mark.parametrize(("kind", "fields"), EVERY)
def test_what_asks_for_another_answer(kind: type[Any], fields: dict[str, Any]) -> None:
    asked = {"modalities": ["text", "audio"], "web_search_options": {}}
    for name, why in REFUSED.items():
        stated = fields | {name: asked.get(name, ["x"])}
        assert refusal(kind, stated) == (f"{name}: {why}", name)
    nothing = dict.fromkeys(REFUSED) | {"lora": [], "functions": [], "modalities": ["text"]}
    check(kind, fields | nothing | {"use_beam_search": False})


@pytest.mark.parametrize("value", ["yes", 1, "true"])
def test_what_is_not_quite_true(value: object) -> None:
    shown = '"yes"' if value == "yes" else '"true"' if value == "true" else "1"
    for name in ("logprobs", "stream", "parallel_tool_calls", "ignore_eos"):
        said = f"{name} must be true or false, not {shown}"
        assert refusal(ChatRequest, HI | {name: value}) == (said, name)


def test_what_is_true_and_no_number() -> None:
    numbers = {
        name: "a whole number" if "int" in str(field.annotation) else "a number"
        for name, field in GenerationRequest.model_fields.items()
        if "int" in str(field.annotation) or "float" in str(field.annotation)
    }
    del numbers["logit_bias"]  # false excludes a token
    assert len(numbers) >= 12
    for name, wanted in numbers.items():
        said = f"{name} must be {wanted}, not true"
        assert refusal(ChatRequest, HI | {name: True}) == (said, name)
    stated = {"temperature": 1, "top_p": "0.5", "max_tokens": 2.0, "logit_bias": {"5": False}}
    assert check(ChatRequest, HI | stated).biases() == [("5", float("-inf"))]


@pytest.mark.parametrize(
    ("kind", "fields", "message", "param"),
    [
        (ChatRequest, HI | {"top_logprobs": 3}, "top_logprobs needs logprobs: true", None),
        (
            NativeRequest,
            {"prompt": "a", "n": 2},
            "n: a prompt has one answer here; send a list of prompts",
            None,
        ),
        (
            ChatRequest,
            {"messages": [{"role": "assistant", "audio": {"id": "a"}}]},
            "a message has audio: text alone is read",
            "messages",
        ),
    ],
)
def test_what_needs_another_field(
    kind: type[Any], fields: dict[str, Any], message: str, param: str | None
) -> None:
    assert refusal(kind, fields) == (message, param or message.partition(" ")[0].rstrip(":"))


def test_calls_in_the_field_that_tool_calls_replaced() -> None:
    call = {"name": "now", "arguments": "{}"}
    request = check(
        ChatRequest, {"messages": [{"role": "assistant", "function_call": call, "content": None}]}
    )
    [plain] = request.messages[0].plain()["tool_calls"]
    assert plain["function"] == call
