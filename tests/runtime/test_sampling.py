"""Biases, penalties, typical tokens; and what is told of the choices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from support.edits import refusal
from support.vocabularies import byte_vocabulary

from tenp_edge.runtime.generation import Generation
from tenp_edge.runtime.sampling import Sampler, SamplingOptions, distribution, logprobs

OFF: Mapping[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
# Token 0 .. 4 with shares 0.1, 0.4, 0.2, 0.25, 0.05.
SHARES = np.array([0.1, 0.4, 0.2, 0.25, 0.05])
LOGITS = np.log(SHARES).astype(np.float32)
GONE = float("-inf")


def scores(changes: Mapping[str, Any], recent: list[int]) -> dict[int, float]:
    """Log shares by token, up to a constant: token 4's is never changed here."""
    tokens, shares = distribution(LOGITS, SamplingOptions(**{**OFF, **changes}), recent)
    found = dict(zip(tokens.tolist(), np.log(shares).tolist(), strict=True))
    return {token: value - found[4] + float(LOGITS[4]) for token, value in found.items()}


def test_presence_and_frequency() -> None:
    """llama.cpp's: logit - count * frequency - (count > 0) * presence, after the repeat penalty."""
    found = scores(
        {"presence_penalty": 0.5, "frequency_penalty": 0.25, "repeat_penalty": 2.0}, [1, 1, 3]
    )
    assert found[1] == pytest.approx(2 * float(LOGITS[1]) - 0.5 - 2 * 0.25, abs=1e-6)
    assert found[3] == pytest.approx(2 * float(LOGITS[3]) - 0.5 - 0.25, abs=1e-6)
    assert found[0] == pytest.approx(float(LOGITS[0]), abs=1e-6)
    rewarded = scores({"presence_penalty": -1.0}, [2])
    assert rewarded[2] == pytest.approx(float(LOGITS[2]) + 1.0, abs=1e-6)


def test_biases() -> None:
    found = scores({"logit_bias": ((0, 2.0), (1, GONE))}, [])
    assert found[0] == pytest.approx(float(LOGITS[0]) + 2.0, abs=1e-6)
    assert set(found) == {0, 2, 3, 4}
    everything = tuple((token, GONE) for token in range(5))
    for temperature in (0.0, 1.0):
        options = SamplingOptions(temperature=temperature, logit_bias=everything)
        assert refusal(lambda options=options: distribution(LOGITS, options)) == (
            "no token may be drawn: all are excluded",
            "a smaller logit_bias",
        )


def test_what_is_excluded_is_never_drawn() -> None:
    """Not even where fewer tokens are left than top-k takes, and a penalty falls on them."""
    options = SamplingOptions(
        **OFF, seed=1, logit_bias=tuple((token, GONE) for token in (0, 1, 2)), repeat_penalty=1.5
    )
    sampler = Sampler(options, [0, 1])
    assert {sampler.choose(LOGITS) for _ in range(200)} == {3, 4}


def test_typical() -> None:
    """The expected surprise is 1.42 nats: 0.25 (1.39) is nearest to it, then 0.2 (1.61), then 0.4
    (0.92), 0.1 (2.30), 0.05 (3.00)."""
    for typical_p, kept in ((0.2, [3]), (0.44, [3, 2]), (0.84, [1, 3, 2]), (0.86, [1, 3, 2, 0])):
        tokens, shares = distribution(LOGITS, SamplingOptions(**OFF, typical_p=typical_p))
        assert tokens.tolist() == kept
        assert shares == pytest.approx(SHARES[kept] / SHARES[kept].sum(), abs=1e-6)


def test_logprobs_are_torchs() -> None:
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(1)) * 7
    wanted = torch.log_softmax(logits.double(), 0)
    told = logprobs(logits.numpy(), 17, 5)
    assert told.chosen == pytest.approx(wanted[17].item(), abs=1e-9)
    best = wanted.topk(5)
    assert [token for token, _ in told.best] == best.indices.tolist()
    assert [value for _, value in told.best] == pytest.approx(best.values.tolist(), abs=1e-9)
    assert logprobs(logits.numpy(), 17, 0).best == ()


def test_logprobs_are_the_models_own_whatever_the_samplers_do() -> None:
    vocabulary = byte_vocabulary()
    options = SamplingOptions(
        temperature=0.0, logprobs=1, logit_bias=((70, 50.0),), presence_penalty=9.0
    )
    generation = Generation(vocabulary, [5], options, 3)
    logits = np.random.default_rng(2).normal(size=vocabulary.size).astype(np.float32)
    piece = generation.take(logits)
    assert piece.token == 70 and piece.logprobs is not None
    wanted = torch.log_softmax(torch.from_numpy(logits).double(), 0)
    assert piece.logprobs.chosen == pytest.approx(wanted[70].item())
    assert piece.logprobs.best[0][0] == int(logits.argmax())


def test_control_tokens_are_shown_where_they_are_asked_for() -> None:
    vocabulary = byte_vocabulary(["<|a|>", "<|b|>"])
    a, b = vocabulary.control.values()
    options = SamplingOptions(temperature=0.0, shown=frozenset({a}))
    generation = Generation(vocabulary, [5], options, 9)
    texts = []
    for token in (a, b, 0):
        logits = np.zeros(vocabulary.size, dtype=np.float32)
        logits[token] = 9
        texts.append(generation.take(logits).text)
    assert texts == ["<|a|>", "", ""] and generation.finished


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"typical_p": 1.5}, "--typical-p is 1.5"),
        ({"presence_penalty": float("nan")}, "--presence-penalty is nan"),
        ({"frequency_penalty": float("inf")}, "--frequency-penalty is inf"),
    ],
)
def test_meaningless(changes: dict[str, float], text: str) -> None:
    assert refusal(lambda: Sampler(SamplingOptions(**changes)))[0] == text
