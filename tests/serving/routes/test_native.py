"""llama-server's own routes, with and without /v1."""

from __future__ import annotations

import json
import re
from contextlib import AbstractContextManager

import httpx
import pytest
from support.serving_cases import Server

PROMPT = "def f(x):"


def native(server: Server, **fields: object) -> dict[str, object]:
    found: dict[str, object] = server.post("/completion", **fields).json()
    return found


def test_completion(shared: Server) -> None:
    found = native(shared, prompt=PROMPT, n_predict=5, temperature=0, n_probs=2, return_tokens=True)
    assert found["stop"] is True and found["stop_type"] == "limit"
    assert found["tokens_predicted"] == 5 and len(found["tokens"]) == 5  # type: ignore
    told = found["completion_probabilities"]
    assert [len(entry["top_logprobs"]) for entry in told] == [2] * 5  # type: ignore
    same = shared.openai.completions.create(model="", prompt=PROMPT, max_tokens=5, temperature=0)
    assert found["content"] == same.choices[0].text
    settings = found["generation_settings"]
    assert settings["temperature"] == 0 and settings["top_k"] == 40  # type: ignore


def test_completion_streamed(shared: Server) -> None:
    whole = native(shared, prompt=PROMPT, n_predict=6, temperature=0)
    lines = shared.post("/v1/completion", prompt=PROMPT, n_predict=6, temperature=0, stream=True)
    events = [json.loads(line[6:]) for line in lines.text.splitlines() if line]
    assert "".join(event["content"] for event in events) == whole["content"]
    assert [event["stop"] for event in events] == [False] * 6 + [True]
    timings = events[-1]["timings"]
    assert timings["predicted_n"] == 6 and timings["predicted_per_token_ms"] > 0
    assert timings["cache_n"] > 0 and timings["prompt_n"] > 0
    assert timings["cache_n"] + timings["prompt_n"] == whole["tokens_evaluated"]


def test_several_prompts_of_text_and_tokens(shared: Server) -> None:
    tokens = shared.post("/tokenize", content=" x", add_special=False).json()["tokens"]
    asked = [PROMPT, [*tokens, " y"], tokens]
    found = shared.post("/completion", prompt=asked, n_predict=2).json()
    assert [entry["index"] for entry in found] == [0, 1, 2]
    assert [entry["tokens_evaluated"] for entry in found][2] == len(tokens)
    mixed = native(shared, prompt=[*tokens, " y"], n_predict=1)
    assert mixed["tokens_evaluated"] == found[1]["tokens_evaluated"]


def test_stops_and_grammars(shared: Server) -> None:
    found = native(shared, prompt=PROMPT, grammar='root ::= "yes" [0-9]{3}', seed=1)
    assert re.fullmatch("yes[0-9]{3}", str(found["content"])) and found["stop_type"] == "eos"
    found = native(shared, prompt=PROMPT, json_schema={"type": "integer"}, stop=["5"], seed=3)
    assert re.fullmatch("-?[0-9]*", str(found["content"]))
    text = 'root ::= "one, two\\n\U0001f600 three"'
    found = native(shared, prompt=PROMPT, grammar=text, stop=["three", "\U0001f600", "\n\n"])
    assert (found["content"], found["has_new_line"]) == ("one, two\n", True)
    assert (found["stop_type"], found["stopping_word"]) == ("word", "\U0001f600")
    ends = native(shared, prompt=PROMPT, logit_bias=[[0, 1000]], n_predict=50)
    assert (ends["stop_type"], ends["tokens_predicted"]) == ("eos", 1)
    ignored = native(shared, prompt=PROMPT, logit_bias={"0": 100}, ignore_eos=True, n_predict=9)
    assert (ignored["stop_type"], ignored["tokens_predicted"]) == ("limit", 9)
    excluded = native(
        shared, prompt=PROMPT, logit_bias=[["def", False]], n_predict=30, return_tokens=True
    )
    banned = shared.post("/tokenize", content="def").json()["tokens"]
    assert not set(banned) & set(excluded["tokens"])  # type: ignore


def test_no_token_is_generated_where_none_is_asked_for(shared: Server) -> None:
    """The prompt is evaluated into the cache."""
    tokens = [7, 8] * 30
    found = native(shared, prompt=tokens, n_predict=0)
    assert (found["content"], found["tokens_predicted"], found["stop_type"]) == ("", 0, "limit")
    again = native(shared, prompt=tokens, n_predict=0, stream=False)
    assert again["tokens_cached"] == len(tokens) - 1
    lines = shared.post("/completion", prompt=tokens, n_predict=0, stream=True).text.splitlines()
    (event,) = [json.loads(line[6:]) for line in lines if line]
    assert event["stop"] and event["tokens"] == []
    chat = shared.post("/v1/chat/completions", messages=[{"role": "user"}], max_tokens=0).json()
    assert chat["usage"]["completion_tokens"] == 0 and not chat["choices"][0]["message"]["content"]


def test_slots_of_answers(shared: Server) -> None:
    """Two at a time are in two slots, and /slots shows what is asked of them."""
    asked = {"prompt": [5, 6], "n_predict": 1500, "ignore_eos": True, "temperature": 0.5}

    def streamed() -> AbstractContextManager[httpx.Response]:
        return shared.http.stream("POST", "/completion", json={**asked, "stream": True})

    with streamed() as first, streamed() as second:
        found = [json.loads(next(each.iter_lines())[6:])["id_slot"] for each in (first, second)]
        busy = [slot for slot in shared.http.get("/slots").json() if slot["is_processing"]]
    assert len(set(found)) == 2 and {slot["id"] for slot in busy} <= set(found)
    for slot in busy:
        assert slot["params"]["temperature"] == 0.5 and slot["n_prompt_tokens"] == 2
        assert slot["next_token"]["n_decoded"] + slot["next_token"]["n_remain"] == 1500


def test_tokens(shared: Server) -> None:
    text = "Straße <|endoftext|>"
    tokens = shared.post("/tokenize", content=text).json()["tokens"]
    assert shared.post("/v1/detokenize", tokens=tokens).json()["content"] == text
    literal = shared.post("/tokenize", content=text, parse_special=False).json()["tokens"]
    assert 0 in tokens and 0 not in literal
    pieces = shared.post("/tokenize", content="ß", with_pieces=True).json()["tokens"]
    assert [piece["piece"] for piece in pieces] == [[0xC3], [0x9F]]
    assert shared.error("/detokenize", tokens=[384]) == (
        400,
        "token 384 is not in the vocabulary of 384",
        "tokens",
    )


def test_apply_template(shared: Server) -> None:
    asked = {"messages": [{"role": "user", "content": "Hi"}]}
    assert shared.post("/apply-template", **asked).json() == {"prompt": "<user>Hi\n<assistant>"}
    asked["messages"].append({"role": "assistant", "content": "Once upon"})  # to go on from
    found = shared.post("/apply-template", **asked).json()
    assert found == {"prompt": "<user>Hi\n<assistant>Once upon"}


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_facts(shared: Server, prefix: str) -> None:
    props = shared.http.get(f"{prefix}/props").json()
    assert props["default_generation_settings"]["n_ctx"] == 2048
    assert "messages" in props["chat_template"] and props["eos_token"] == "<|endoftext|>"
    slots = shared.http.get(f"{prefix}/slots").json()
    assert len(slots) == props["total_slots"] and not slots[0]["is_processing"]
    assert shared.http.get(f"{prefix}/health").json()["status"] == "ok"
    for path in ("/health", "/models", "/models/"):
        assert shared.http.head(f"{prefix}{path}").status_code == 200
    assert shared.http.get(f"{prefix}/models/").json() == shared.http.get("/v1/models").json()


def test_metrics(shared: Server) -> None:
    def values() -> dict[str, float]:
        response = shared.http.get("/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = [line for line in response.text.splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    before = values()
    native(shared, prompt=[93] * 40, n_predict=7)
    after = values()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0.0)

    assert grown("llamacpp:prompt_tokens_total") == 40
    assert grown("llamacpp:tokens_predicted_total") == 7
    assert grown("llamacpp:tokens_predicted_seconds_total") > 0
    assert grown("llamacpp:n_decode_total") >= 7
    assert after["llamacpp:n_busy_slots_per_decode"] >= 1
    assert grown('tenp_edge:requests_total{route="/completion",status="200"}') == 1
    assert after["llamacpp:kv_cache_tokens"] >= 40
    assert 0 < after["llamacpp:kv_cache_usage_ratio"] <= 1
    assert after["llamacpp:requests_processing"] == after["llamacpp:requests_deferred"] == 0
    assert grown("tenp_edge:prompt_tokens_cached_total") == 0
    native(shared, prompt=[93] * 40, n_predict=1)
    assert values()["tenp_edge:prompt_tokens_cached_total"] >= 39
