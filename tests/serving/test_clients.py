"""The clients that people use: OpenAI's, LangChain's and Anthropic's, and an agent with tools."""

from __future__ import annotations

import json
import math
from typing import Any

import anthropic
import openai
import pytest
from jsonschema import validate
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import SecretStr
from support.serving_cases import Server

MODEL = "gpt-4o"
HI: list[Any] = [{"role": "user", "content": "Hi"}]
GREEDY = {"temperature": 0.0}  # random text may end at its first token; not every SDK has the field
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Oslo", "Rome"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
WEATHER: Any = {
    "type": "function",
    "function": {"name": "weather", "description": "How it will be.", "parameters": SCHEMA},
}
ONE_CALL: Any = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False}


# -- OpenAI ----------------------------------------------------------------------------------------


def test_json_schema(shared: Server) -> None:
    asked: Any = {"name": "place", "strict": True, "schema": SCHEMA}
    for seed in range(3):
        answer = shared.openai.chat.completions.create(
            model=MODEL,
            messages=HI,
            seed=seed,
            response_format={"type": "json_schema", "json_schema": asked},
        )
        assert answer.choices[0].finish_reason == "stop"
        validate(json.loads(answer.choices[0].message.content or ""), SCHEMA)


def test_logprobs_are_those_of_the_logits(shared: Server) -> None:
    """Greedy: the chosen token is the best, whatever samplers say; n choices have their own."""
    answer = shared.openai.chat.completions.create(
        model=MODEL, messages=HI, max_tokens=4, n=2, logprobs=True, top_logprobs=3, temperature=0
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.logprobs is not None and choice.logprobs.content is not None
        assert len(choice.logprobs.content) == 4
        for told in choice.logprobs.content:
            best = told.top_logprobs
            assert len(best) == 3 and best[0].token == told.token
            assert told.logprob == pytest.approx(best[0].logprob)
            assert math.exp(best[0].logprob) > math.exp(best[2].logprob) > 0
            assert told.bytes is not None
            assert bytes(told.bytes).decode(errors="replace") == told.token


def test_choices_are_drawn_apart(shared: Server) -> None:
    def texts(**more: Any) -> list[str | None]:
        answer = shared.openai.chat.completions.create(
            model=MODEL, messages=HI, max_tokens=12, n=3, seed=5, temperature=1.5, **more
        )
        return [choice.message.content for choice in answer.choices]

    found = texts()
    assert len(set(found)) == 3 and texts() == found
    streamed = ["", "", ""]
    for chunk in shared.openai.chat.completions.create(
        model=MODEL, messages=HI, max_tokens=12, n=3, seed=5, temperature=1.5, stream=True
    ):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == found


def test_an_agent_with_tools(shared: Server) -> None:
    """Asked, called, executed, told: what any agent does."""
    messages = list(HI)
    first = shared.openai.chat.completions.create(
        model=MODEL, messages=messages, seed=1, **ONE_CALL
    )
    assert first.choices[0].finish_reason == "tool_calls"
    message = first.choices[0].message
    assert message.tool_calls is not None and message.content is None
    messages.append(message)
    for call in message.tool_calls:
        assert call.type == "function" and call.function.name == "weather"
        arguments = json.loads(call.function.arguments)
        validate(arguments, SCHEMA)
        result = f"{arguments['days']} days of sun"
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    second = shared.openai.chat.completions.create(
        model=MODEL, messages=messages, tools=[WEATHER], max_tokens=8
    )
    assert second.choices[0].message.role == "assistant"
    assert second.usage is not None and first.usage is not None
    assert second.usage.prompt_tokens > first.usage.prompt_tokens


def test_calls_are_streamed(shared: Server) -> None:
    chunks = list(
        shared.openai.chat.completions.create(
            model=MODEL,
            messages=HI,
            seed=2,
            stream=True,
            stream_options={"include_usage": True},
            **ONE_CALL,
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert [(call.index, call.type) for call in calls] == [(0, "function")]
    assert calls[0].function is not None and calls[0].function.name == "weather"
    validate(json.loads(calls[0].function.arguments or ""), SCHEMA)
    assert not any(delta.content for delta in deltas)
    assert chunks[-2].choices[0].finish_reason == "tool_calls" and chunks[-1].usage is not None


def test_keys(shared: Server) -> None:
    stranger = openai.OpenAI(base_url=f"{shared.url}/v1", api_key="guess", max_retries=0)
    with pytest.raises(openai.AuthenticationError, match="the API key is wrong"):
        stranger.models.list()
    assert [model.id for model in shared.openai.models.list()] == ["per-expert", MODEL]


def test_responses(shared: Server) -> None:
    """A text in pieces, a call, its result, and a schema's object."""
    responses = shared.openai.responses
    limited = responses.create(model=MODEL, input="Hi", max_output_tokens=4)
    assert limited.status == "incomplete" and limited.usage and limited.usage.output_tokens == 4
    tool: Any = {"type": "function", **WEATHER["function"], "strict": True}
    asked: Any = {"tools": [tool], "tool_choice": "required", "parallel_tool_calls": False}
    with responses.stream(model=MODEL, input="Hi", **asked) as stream:
        called = stream.until_done().get_final_response()
    (call,) = called.output
    assert call.type == "function_call" and call.name == "weather"
    validate(json.loads(call.arguments), SCHEMA)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sun"}
    said: Any = [*HI, call.model_dump(exclude_none=True, exclude={"parsed_arguments"}), result]
    again = responses.create(
        model=MODEL,
        input=said,
        tools=[tool],
        tool_choice="none",
        extra_body={"grammar": 'root ::= "It is sunny."'},
    )
    assert again.output_text == "It is sunny." and again.status == "completed"
    counted = responses.input_tokens.count(model=MODEL, input=said, tools=[tool])
    assert counted.input_tokens > responses.input_tokens.count(input="Hi").input_tokens > 0
    with pytest.raises(openai.BadRequestError, match="this server remembers no answers"):
        responses.create(model=MODEL, input="Hi", previous_response_id=again.id)


# -- LangChain -------------------------------------------------------------------------------------


def test_langchain(shared: Server) -> None:
    chat = ChatOpenAI(
        base_url=f"{shared.url}/v1", api_key=SecretStr("none"), model=MODEL, max_retries=0
    )
    chat.temperature = 0.0
    said = chat.invoke("Hi", max_tokens=6)
    assert said.usage_metadata is not None and said.usage_metadata["output_tokens"] == 6
    streamed = list(chat.stream("Hi", max_tokens=6))
    assert "".join(str(chunk.content) for chunk in streamed)
    newer = chat.model_copy(update={"use_responses_api": True}).invoke("Hi", max_tokens=6)
    assert newer.response_metadata["object"] == "response"
    bound = chat.bind_tools([WEATHER], tool_choice="weather", parallel_tool_calls=False)
    answer: Any = bound.invoke([HumanMessage("Hi")], seed=3)
    (call,) = answer.tool_calls
    assert call["name"] == "weather"
    validate(call["args"], SCHEMA)
    told = ToolMessage("sun", tool_call_id=call["id"])
    assert chat.invoke([HumanMessage("Hi"), answer, told], max_tokens=4).response_metadata
    structured: Any = chat.with_structured_output(
        {"title": "place", **SCHEMA}, method="json_schema"
    )
    validate(structured.invoke("Hi"), SCHEMA)


# -- Anthropic -------------------------------------------------------------------------------------


@pytest.fixture
def claude(shared: Server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=shared.url, api_key="none", max_retries=0)


def test_messages(claude: anthropic.Anthropic) -> None:
    asked: Any = {"model": MODEL, "max_tokens": 6, "messages": HI, "extra_body": GREEDY}
    answer = claude.messages.create(**asked, system="Be brief.")
    assert answer.type == "message" and answer.stop_reason == "max_tokens"
    assert answer.content[0].type == "text" and answer.usage.output_tokens == 6
    with claude.messages.stream(**asked) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert final.content[0].type == "text" and final.content[0].text == text
    count = claude.messages.count_tokens(model=MODEL, messages=HI, system="Be brief.")
    assert count.input_tokens == answer.usage.input_tokens
    with pytest.raises(anthropic.BadRequestError, match="keeps nothing of anybody"):
        claude.messages.batches.list()
    with pytest.raises(anthropic.NotFoundError, match="not_found_error"):
        claude.get("/v1/messages/nothing", cast_to=object)
    with pytest.raises(anthropic.BadRequestError, match="functions are the only kind"):
        search: Any = [{"type": "web_search_20250305", "name": "web_search"}]
        claude.messages.create(model=MODEL, max_tokens=6, messages=HI, tools=search)
    with pytest.raises(anthropic.BadRequestError, match="block of type 'image'"):
        claude.messages.create(
            model=MODEL,
            max_tokens=6,
            messages=[{"role": "user", "content": [{"type": "image"}]}],  # type: ignore
        )


def test_messages_of_a_schema(claude: anthropic.Anthropic) -> None:
    asked: Any = {"model": "any", "max_tokens": 20, "messages": [{"role": "user", "content": "Hi"}]}
    form: Any = {"type": "json_schema", "schema": {"const": 5}}
    said = claude.messages.create(**asked, output_config={"format": form})
    assert said.content[0].text == "5"  # type: ignore
    said = claude.messages.create(**asked, extra_body={"output_format": form})
    assert said.content[0].text == "5"  # type: ignore
    with pytest.raises(anthropic.BadRequestError, match=r"output_config\.format\.type must be"):
        claude.messages.create(**asked, output_config={"format": form | {"type": "xml"}})


def test_messages_with_tools(claude: anthropic.Anthropic) -> None:
    asked: Any = {
        "tools": [{"name": "weather", "input_schema": SCHEMA}],
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    }
    with claude.messages.stream(model=MODEL, max_tokens=900, messages=HI, **asked) as stream:
        answer = stream.get_final_message()
    assert answer.stop_reason == "tool_use"
    (block,) = answer.content
    assert block.type == "tool_use"
    validate(block.input, SCHEMA)
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "sun"}
    messages = [
        *HI,
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": [result]},
    ]
    asked |= {"tool_choice": {"type": "none"}, "extra_body": GREEDY}
    assert claude.messages.create(model=MODEL, max_tokens=3, messages=messages, **asked).content
