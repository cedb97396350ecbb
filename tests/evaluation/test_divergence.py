"""The metrics against closed forms and a plain numpy transcription of llama-perplexity's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tenp_edge.evaluation.divergence import concatenate, score_tokens, scored_positions, summarise


def test_two_coins() -> None:
    """p = (1/2, 1/2), q = (1/4, 3/4): KL = ln 2 - ln 3 / 2 ... by hand."""
    p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    scores = score_tokens(p + 3.0, q - 7.0, torch.tensor([1]))  # a shift of logits changes nothing
    row = summarise("coins", 1, scores)
    assert row.mean_kl == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(2 / 3))
    assert row.reference_perplexity == pytest.approx(2.0)
    assert row.candidate_perplexity == pytest.approx(4 / 3)
    assert row.perplexity_ratio == pytest.approx(2 / 3)
    assert row.mean_delta_p == row.rms_delta_p == pytest.approx(0.25)
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
        "mean_delta_p": delta.mean(),
        "rms_delta_p": np.sqrt((delta**2).mean()),
    }
    for name, value in expected.items():
        assert getattr(row, name) == pytest.approx(value, rel=1e-12), name


class LlamaPerplexity:
    """Its arithmetic for one token (log_softmax and kl_divergence_result), in its own precision:
    float32 throughout, sums in float64, the reference as 16-bit steps over the top 16 nats."""

    def __init__(self) -> None:
        self.kl: list[float] = []
        self.nll, self.nll_base = 0.0, 0.0
        self.difference, self.squared_difference, self.same_top = 0.0, 0.0, 0
        self.tied = 0  # tokens whose two best fall on neighbouring steps or on one

    def stored(self, logits: np.ndarray) -> tuple[np.float32, np.float32, np.ndarray]:
        highest, lowest = logits.max(), max(logits.min(), logits.max() - np.float32(16))
        total = np.float32(np.log(np.exp(logits - highest).sum(dtype=np.float64)))
        scale = np.float32((highest - lowest) / np.float32(65535))
        steps = np.where(logits > lowest, np.rint((logits - lowest) / scale), 0)
        return scale, np.float32(lowest - highest - total), steps.astype(np.uint16)

    def add(self, reference: np.ndarray, logits: np.ndarray, token: int) -> None:
        scale, lowest, steps = self.stored(reference)
        base = (scale * steps + lowest).astype(np.float32)
        highest = logits.max()
        total = np.float32(np.log(np.exp(logits - highest).sum(dtype=np.float64)))
        nll, nll_base = highest + total - logits[token], -base[token]
        counted = base > -16
        p = np.exp(base[counted])
        terms = p * (base[counted] - logits[counted] + (highest + total))
        self.kl.append(float(terms.sum(dtype=np.float64)))
        self.nll, self.nll_base = self.nll + float(nll), self.nll_base + float(nll_base)
        difference = float(np.exp(-nll) - np.exp(-nll_base))
        self.difference += difference
        self.squared_difference += difference**2
        highest_two = np.partition(steps, -2)[-2:].astype(int)
        self.tied += int(highest_two[1] - highest_two[0] <= 1)
        self.same_top += int(logits.argmax() == base.argmax())

    def percentile(self, share: float) -> float:
        values = sorted(self.kl)
        place = share * (len(values) - 1)
        low = int(place)
        high = min(low + 1, len(values) - 1)
        return (1 - (place - low)) * values[low] + (place - low) * values[high]


def test_equals_llama_perplexity() -> None:
    """To the rounding of its 16-bit reference, with and without a tail below its 16 nats."""
    generator = torch.Generator().manual_seed(2)
    for spread, tolerance in ((2.0, 2e-4), (5.0, 2e-3)):
        p = torch.randn(300, 800, generator=generator) * spread
        q = p + 0.3 * torch.randn(300, 800, generator=generator)
        # Drawn from the reference, as text is: not from the tail that the judge cuts off.
        targets = torch.multinomial(p.softmax(-1), 1, generator=generator)[:, 0]
        row = summarise("random", 1, score_tokens(p, q, targets))
        judge = LlamaPerplexity()
        for reference, logits, token in zip(p.numpy(), q.numpy(), targets.tolist(), strict=True):
            judge.add(reference, logits, token)
        assert row.mean_kl == pytest.approx(float(np.mean(judge.kl)), rel=tolerance)
        assert row.kl_99 == pytest.approx(judge.percentile(0.99), rel=tolerance)
        assert row.max_kl == pytest.approx(max(judge.kl), rel=tolerance)
        assert abs(300 * row.same_top - judge.same_top) <= judge.tied + 1e-9
        assert judge.tied <= 3
        assert row.mean_delta_p == pytest.approx(judge.difference / 300, rel=tolerance, abs=1e-6)
        assert row.rms_delta_p == pytest.approx(
            math.sqrt(judge.squared_difference / 300), rel=tolerance
        )
        assert row.candidate_perplexity == pytest.approx(math.exp(judge.nll / 300), rel=1e-5)
        assert row.reference_perplexity == pytest.approx(math.exp(judge.nll_base / 300), rel=1e-4)


@pytest.mark.parametrize(
    ("length", "positions"),
    [(512, (256, 510)), (7, (3, 5)), (3, (1, 1)), (2, None), (1, None), (0, None)],
)
def test_scored_positions(length: int, positions: tuple[int, int] | None) -> None:
    found = scored_positions(length)
    assert (found[0], found[-1]) == positions if positions else len(found) == 0
