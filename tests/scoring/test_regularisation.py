"""What is added to predicted losses for text that was not calibrated on."""

from __future__ import annotations

import torch

from tenp_edge.calibration.coverage import MIN_TOKENS
from tenp_edge.scoring.regularisation import NO_INSURANCE, PROTECTION, Insurance, insured

# Two experts of two neurons; the second was chosen by a third of the first's tokens.
LOSSES = torch.tensor([[9.0, 4.0, 0.0], [3.0, 1.0, 0.0]], dtype=torch.float64)
PRIOR = torch.tensor([[2.0, 1.0, 0.0], [4.0, 1.0, 0.0]], dtype=torch.float64)
TOKENS = torch.tensor([600.0, 200.0], dtype=torch.float64)


def test_each_part() -> None:
    """Mean 400 tokens: the first expert would be chosen 2/3 as often, the second twice."""

    def added(**parts: float) -> list[list[float]]:
        rows = insured(LOSSES, PRIOR, TOKENS, Insurance(**parts)) - LOSSES
        return [[round(float(value), 9) for value in row] for row in rows]

    assert added() == [[0, 0, 0], [0, 0, 0]]
    assert added(alike=0.5) == [[3, round(4 / 3, 9), 0], [3, 1, 0]]
    assert added(norms=2) == [[4, 2, 0], [8, 2, 0]]
    assert added(even=1) == [[6, 1.5, 0], [6, 1.5, 0]]  # both whole experts cost 6 if alike


def test_a_few_tokens_are_not_multiplied_without_end() -> None:
    rare = torch.tensor([600.0, 1.0], dtype=torch.float64)
    grown = insured(LOSSES, PRIOR, rare, Insurance(alike=1))[1, 0] / LOSSES[1, 0] - 1
    assert float(grown) == float(rare.mean() / MIN_TOKENS)


def test_protection_rises_with_its_words() -> None:
    none, little, much = (PROTECTION[word] for word in ("none", "little", "much"))
    assert none == NO_INSURANCE == Insurance()
    assert much.alike > little.alike > 0 and much.norms > little.norms > 0
    assert much.even > little.even == 0
