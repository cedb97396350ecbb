"""Requests that are refused, each in words of ours."""

from __future__ import annotations

import pytest
from support.serving_cases import Server, error_of

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
RESPONSES = "/v1/responses"
HI = {"messages": [{"role": "user", "content": "Hi"}]}
TOOL = {"type": "function", "function": {"name": "now"}}
BROKEN = {"type": "function", "function": {"name": "f", "parameters": {"type": "objekt"}}}
STRICT = {"name": "no_text", "strict": True, "schema": {"not": {"type": "string"}}}
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}


@pytest.mark.parametrize(
    ("path", "fields", "message", "param"),
    [
        (COMPLETIONS, {"prompt": ""}, "the prompt is empty", "prompt"),
        (
            RESPONSES,
            {"input": "a", "text": {"format": {"type": "json_schema"}}},
            "text.format.schema must be an object, not null",
            "text.format",
        ),
        (
            RESPONSES,
            {"input": "a", "tools": [{"type": "function"}]},
            "tools[0].name is missing",
            "tools",
        ),
        (
            RESPONSES,
            {"input": "a" * 70_000},
            "the prompt is too long: 70000 bytes, which exceeds the available context size "
            "of 65536 bytes (2048 tokens)",
            "input",
        ),
        (COMPLETIONS, {"prompt": []}, "the prompt is empty", "prompt"),
        (COMPLETIONS, {}, "prompt is missing", "prompt"),
        (
            COMPLETIONS,
            {"prompt": {"a": 1}},
            'prompt must be text, a list of token numbers, or a list of these, not {"a": 1}',
            "prompt",
        ),
        (
            COMPLETIONS,
            {"prompt": "a", "max_tokens": "many"},
            'max_tokens must be a whole number, not "many"',
            "max_tokens",
        ),
        (
            COMPLETIONS,
            {"prompt": [5] * 2049},
            "the prompt is too long: 2049 tokens, which exceeds the available context size of "
            "2048 tokens",
            "prompt",
        ),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "x\u00e9" * 2048}]},
            "the prompt is too long: 6159 tokens, which exceeds the available context size of "
            "2048 tokens",
            "messages",
        ),
        (
            COMPLETIONS,
            {"prompt": "a", "temperature": -1},
            "temperature must be at least 0, not -1",
            "temperature",
        ),
        (
            COMPLETIONS,
            {"prompt": "a", "stop": ["a"] * 17},
            "stop must be text of at most 256 characters, or a list of up to 16 such texts, not "
            '["a", "a", "a", "a", "a", "a", "a", "a", "a", "a", "a", "a",...',
            "stop",
        ),
        (
            COMPLETIONS,
            {"prompt": "a", "suffix": "b"},
            "suffix needs a model that fills gaps, and this one continues text",
            "suffix",
        ),
        (
            COMPLETIONS,
            {"prompt": "a", "best_of": 3},
            "best_of is more than n: this server returns all that it generates",
            "best_of",
        ),
        (
            COMPLETIONS,
            {"prompt": "a", "logit_bias": {"384": 1}},
            "token 384 is not in the vocabulary of 384",
            "logit_bias",
        ),
        (
            CHAT,
            {"messages": [{"role": "assistant", "content": "Hi"}]},
            "the chat template cannot render these messages: user first; try: user and assistant "
            "in turn, beginning with user",
            "messages",
        ),
        (CHAT, {"messages": []}, "messages must not be empty", "messages"),
        (
            CHAT,
            {"messages": [{"role": "king", "content": "Hi"}]},
            "messages[0].role must be one of 'system', 'developer', 'user', 'assistant', 'tool' or "
            "'function', not \"king\"",
            "messages",
        ),
        (
            CHAT,
            {"messages": [IMAGE]},
            "a message has a part of type 'image_url': text alone is read",
            "messages",
        ),
        (
            CHAT,
            HI | {"tools": [{"type": "web_search"}]},
            "a tool of type 'web_search': functions are the only kind",
            "tools",
        ),
        (CHAT, HI | {"tools": [{}]}, "a tool of type 'function' needs function", "tools"),
        (
            CHAT,
            HI | {"tool_choice": "required"},
            "tool_choice is 'required', and there are no tools",
            "tool_choice",
        ),
        (
            CHAT,
            HI | {"tools": [TOOL], "tool_choice": {"function": {"name": "later"}}},
            "tool_choice names 'later', no tool",
            "tool_choice",
        ),
        (
            CHAT,
            HI | {"tools": [BROKEN], "tool_choice": "required"},
            "the grammar cannot be used: Invalid type: objekt; try: a simpler one",
            "tools",
        ),
        (
            CHAT,
            HI | {"response_format": {"type": "xml"}},
            "response_format.type must be one of 'text', 'json_object', 'json_schema', 'regex' or "
            "'grammar', not \"xml\"",
            "response_format",
        ),
        (
            CHAT,
            HI | {"response_format": {"type": "json_schema"}},
            "response_format of type 'json_schema' needs json_schema",
            "response_format",
        ),
        (
            CHAT,
            HI | {"response_format": {"type": "json_schema", "json_schema": STRICT}},
            'the grammar cannot be used: Unimplemented keys: ["not"]; try: a simpler one',
            "response_format",
        ),
        (
            COMPLETIONS,
            {"prompt": "a", "grammar": 'root ::= "a" b'},
            "the grammar cannot be used: Failed to convert the grammar from GBNF to Lark: "
            "Rule 'b' not found; try: a simpler one",
            "grammar",
        ),
        (
            COMPLETIONS,
            {"prompt": "a", "json_schema": {"$ref": "#"}},
            "the grammar cannot be followed: it never ends, as a rule needs itself; try: a simpler "
            "grammar or schema",
            "grammar",
        ),
        (
            "/api/chat",
            HI,
            "this is Ollama's API, which is not served; its clients also speak OpenAI's, at /v1",
            None,
        ),
        (
            "/v1/embeddings",
            {"input": "a"},
            "embeddings need a model that is trained for them; this one generates text",
            None,
        ),
        (
            CHAT,
            HI | {"modalities": ["audio"]},
            "modalities: this model writes text alone",
            "modalities",
        ),
    ],
)
def test_refused(
    shared: Server, path: str, fields: dict[str, object], message: str, param: str | None
) -> None:
    assert shared.error(path, **fields) == (400, message, param)


@pytest.mark.parametrize(
    ("method", "path", "part"),
    [
        ("POST", "/slots/0?action=save", "what a slot holds is neither saved nor restored"),
        ("POST", "/v1/slots/3?action=erase", "takes the slot that holds most of it by itself"),
        ("POST", "/lora-adapters", "no adapter is loaded"),
        ("POST", "/props", "the command's flags are the settings"),
        ("POST", "/models/unload", "one model is served from start to end"),
        ("GET", "/v1/responses/resp_1", "this server keeps nothing of anybody"),
        ("POST", "/v1/responses/resp_1/cancel", "this server keeps nothing of anybody"),
        ("DELETE", "/v1/files/a", "this server keeps nothing of anybody"),
        ("POST", "/v1/audio/speech", "writes text alone"),
        ("POST", "/v1/audio/translations", "reads text alone"),
        ("POST", "/reranking", "ranking needs a model"),
    ],
)
def test_routes_that_others_have(shared: Server, method: str, path: str, part: str) -> None:
    response = shared.http.request(method, path, json={})
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "not_supported")
    assert part in error["message"]


def test_routes_that_nobody_has(shared: Server) -> None:
    assert error_of(shared.http.get("/nothing")) == (
        404,
        "GET /nothing is no route of this server; it has /v1/chat/completions, /v1/completions, "
        "/v1/responses, /v1/messages, /completion, /v1/models and the others of docs/serving.md",
        None,
    )
    assert shared.http.get("/lora-adapters").json() == []


def test_what_clients_send_by_default_is_served(shared: Server) -> None:
    """Names of other models, more tokens than there is room for, fields of other servers."""
    unknown = {
        "model": "gpt-4",
        "reasoning_effort": "low",
        "chat_template_kwargs": {"enable_thinking": False},
        "cache_prompt": True,
        "options": {"num_ctx": 4096},
        "mirostat": 0,
        "user": "me",
        "metadata": {},
        "parallel_tool_calls": True,
        "tools": [],
        "presence_penalty": 0.1,
        "repetition_penalty": 1.1,
    }
    answer = shared.post(CHAT, **HI, **unknown, max_tokens=3)
    assert answer.status_code == 200, answer.text
    assert answer.json()["model"] == "per-expert"
    assert shared.post(CHAT, **HI, model="gpt-4o", max_tokens=3).json()["model"] == "gpt-4o"
    for tokens in (1_000_000, -1):
        cut = shared.post(COMPLETIONS, prompt=[5] * 2040, max_tokens=tokens, ignore_eos=True).json()
        assert cut["usage"]["completion_tokens"] == 9  # The last one is not evaluated.
        assert cut["choices"][0]["finish_reason"] == "length"


def test_values_at_their_ends_are_served(shared: Server) -> None:
    """What llama-server or OpenAI take: no probability mass, more tokens back than there are."""
    for fields in ({"top_p": 0}, {"typical_p": 0}, {"repeat_last_n": 2**70}, {"seed": -(2**63)}):
        assert shared.post(COMPLETIONS, prompt="a", max_tokens=1, **fields).status_code == 200
    form = {"type": "json_schema", "schema": {"const": 5}}  # llama-server's short form
    said = shared.post(CHAT, **HI, response_format=form, reasoning_effort="none").json()
    assert said["choices"][0]["message"]["content"] == "5"
    loose = {"const": 5, "not": {"type": "string"}, "format": "any"}
    said = shared.post("/completion", prompt="a", json_schema=loose).json()
    assert said["content"] == "5"
    said = shared.post("/completion", prompt="a", json_schema=True, n_predict=3)
    assert said.status_code == 200
