"""OpenAI's completions: echoes, log probabilities, several prompts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support.serving_cases import Server, together

from tenp_edge.runtime.opening import RunOptions, open_model

PROMPT = "def f(x):\n    return x"
# More than are evaluated at once.
LONG = PROMPT * 8


def test_echoed_log_probabilities_are_torchs(shared: Server, files: dict[str, Path]) -> None:
    """What lm-eval asks for: every token of the prompt, and one that follows."""
    asked = {"prompt": LONG, "echo": True, "logprobs": 2, "max_tokens": 1, "temperature": 0}
    choice = shared.post("/v1/completions", **asked).json()["choices"][0]
    told = choice["logprobs"]
    with open_model(files["per-expert"], RunOptions(512, 1, kv_type="F32")) as session:
        tokens = session.tokenize(LONG)
        logits = torch.from_numpy(session.logits(tokens)).double()
        wanted = torch.log_softmax(logits, 1)
        best = int(wanted[-1].argmax())
        pieces = [session.vocabulary.piece(token, True) for token in [*tokens, best]]
    assert told["tokens"] == [piece.decode(errors="replace") for piece in pieces]
    assert told["token_logprobs"][0] is None and told["top_logprobs"][0] is None
    following = torch.tensor([*tokens[1:], best])
    expected = wanted.gather(1, following[:, None])[:, 0].tolist()
    assert told["token_logprobs"][1:] == pytest.approx(expected, abs=2e-4)
    assert [max(row.values()) for row in told["top_logprobs"][1:]] == pytest.approx(
        wanted.max(1).values.tolist(), abs=2e-4
    )
    assert choice["text"] == LONG + pieces[-1].decode(errors="replace")
    assert told["text_offset"][:3] == [0, *(len(pieces[0]), len(pieces[0] + pieces[1]))]
    # Others run beside it, and nothing of it was in the cache.
    calls = [lambda: shared.post("/v1/completions", **asked).json()["choices"][0]] * 3
    for other in together(*calls):
        assert other["logprobs"]["token_logprobs"][1:] == pytest.approx(expected, abs=2e-4)


def test_an_echo_alone(shared: Server) -> None:
    found = shared.post("/v1/completions", prompt=PROMPT, echo=True, max_tokens=0).json()
    assert found["choices"][0]["text"] == PROMPT
    told = shared.post("/v1/completions", prompt="ab", echo=True, max_tokens=0, logprobs=0).json()
    assert len(told["choices"][0]["logprobs"]["tokens"]) == 2
    lines = shared.post("/v1/completions", prompt=PROMPT, echo=True, max_tokens=2, stream=True)
    assert lines.text.count("return x") == 1


def test_offsets_in_a_stream(shared: Server) -> None:
    asked = {"prompt": PROMPT, "max_tokens": 4, "temperature": 0, "echo": True, "logprobs": 0}
    whole = shared.post("/v1/completions", **asked).json()["choices"][0]["logprobs"]
    lines = shared.post("/v1/completions", stream=True, **asked).text.splitlines()
    chunks = [json.loads(line[6:])["choices"][0] for line in lines if line[6:7] == "{"]
    found = [offset for chunk in chunks for offset in chunk["logprobs"]["text_offset"]]
    assert found == whole["text_offset"] and len(chunks) == 4


def test_several_prompts_and_choices(shared: Server) -> None:
    asked = {"max_tokens": 4, "seed": 7, "temperature": 1.0}
    found = shared.post("/v1/completions", prompt=["a", [5, 6]], n=2, **asked).json()
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2, 3]
    assert found["usage"]["completion_tokens"] == 16 and found["usage"]["prompt_tokens"] == 3
    alone = shared.post("/v1/completions", prompt=[5, 6], **asked).json()
    assert found["choices"][2]["text"] == alone["choices"][0]["text"]
