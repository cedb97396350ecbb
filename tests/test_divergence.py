"""The metrics against closed forms and a plain numpy transcription of llama-perplexity's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tenp_edge.divergence import concatenate, score_tokens, scored_positions, summarise


def test_two_coins() -> None:
    """p = (1/2, 1/2), q = (1/4, 3/4): KL = ln 2 - ln 3 / 2 ... by hand."""
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    scores = score_tokens(p + 3.0, q - 7.0, torch.tensor([1]))  # a shift of logits changes nothing
    row = summarise("coins", 1, scores)
    assert row.mean_kl == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert row.reference_perplexity == pytest.approx(2.0)
    assert row.candidate_perplexity == pytest.approx(4 / 3)
    assert row.perplexity_ratio == pytest.approx(2 / 3)
    assert row.rms_delta_p == pytest.approx(0.25)
    assert row.same_top == 0.0


def test_equal_models_do_not_diverge() -> None:
    logits = torch.randn(40, 300, generator=torch.Generator().manual_seed(0)) * 5
    row = summarise("same", 1, score_tokens(logits, logits.clone(), torch.arange(40)))
    assert (row.mean_kl, row.kl_99, row.max_kl, row.rms_delta_p) == (0.0, 0.0, 0.0, 0.0)
    assert (row.same_top, row.perplexity_ratio) == (1.0, 1.0)


def test_equals_a_numpy_transcription() -> None:
    generator = torch.Generator().manual_seed(1)
    p = torch.randn(97, 500, generator=generator) * 4
    q = p + torch.randn(97, 500, generator=generator)
    targets = torch.randint(0, 500, (97,), generator=generator)
    halves = [
        score_tokens(p[:50], q[:50], targets[:50]),
        score_tokens(p[50:], q[50:], targets[50:]),
    ]
    row = summarise("random", 2, concatenate(halves))

    def log_softmax(x: np.ndarray) -> np.ndarray:
        shifted = x - x.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))

    lp, lq = log_softmax(p.double().numpy()), log_softmax(q.double().numpy())
    kl = np.where(lp > -800, np.exp(lp) * (lp - lq), 0).sum(-1)
    index = np.arange(97), targets.numpy()
    delta = np.exp(lq[index]) - np.exp(lp[index])
    expected = {
        "tokens": 97,
        "mean_kl": kl.mean(),
        "kl_99": np.quantile(kl, 0.99),
        "max_kl": kl.max(),
        "same_top": (lp.argmax(-1) == lq.argmax(-1)).mean(),
        "reference_perplexity": np.exp(-lp[index].mean()),
        "candidate_perplexity": np.exp(-lq[index].mean()),
        "perplexity_ratio": np.exp(lp[index].mean() - lq[index].mean()),
        "rms_delta_p": np.sqrt((delta**2).mean()),
    }
    for name, value in expected.items():
        assert getattr(row, name) == pytest.approx(value, rel=1e-12), name


@pytest.mark.parametrize(
    ("length", "positions"),
    [(512, (256, 510)), (7, (3, 5)), (3, (1, 1)), (2, None), (1, None), (0, None)],
)
def test_scored_positions(length: int, positions: tuple[int, int] | None) -> None:
    found = scored_positions(length)
    assert (found[0], found[-1]) == positions if positions else len(found) == 0
