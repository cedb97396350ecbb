"""What cutting costs, by how much text there was to judge experts by."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tenp_edge.planning.joint.tables import cut_costs
from tenp_edge.planning.scores.tables import LayerEvidence
from tenp_edge.planning.space import Space

SPACE = Space((0,), 2, 96, 32)
WIDTHS = (0, 32, 64, 96)


def evidence(tokens: float) -> LayerEvidence:
    """Of two experts, the first of which text hardly needs."""
    losses = torch.tensor([[0.3, 0.1, 0.0, 0.0], [2.7, 1.5, 0.6, 0.0]], dtype=torch.float64)
    counts = torch.tensor([tokens / 2, 1.5 * tokens], dtype=torch.float64)
    return LayerEvidence((1, 0), losses, losses[:, 1:], losses, counts, 1.0)


def test_text_enough_is_believed() -> None:
    known = evidence(32)
    assert np.array_equal(cut_costs(known, SPACE, WIDTHS, 0.0), known.insured.numpy())
    twice = cut_costs(known, SPACE, (0, *WIDTHS), 0.0)
    assert np.array_equal(twice, known.insured.numpy()[:, [0, 0, 1, 2, 3]])


def test_as_far_as_it_is_too_short_cuts_cost_what_the_mean_expert_s_would() -> None:
    """Eight of 32 tokens have half of the weight; a whole expert costs 1.5 on average."""
    got = cut_costs(evidence(8), SPACE, WIDTHS, 0.0)
    assert got[0] == pytest.approx([0.15 + 0.75, 0.05 + 0.5, 0.25, 0])
    assert got[1] == pytest.approx([1.35 + 0.75, 0.75 + 0.5, 0.3 + 0.25, 0])
    assert cut_costs(evidence(0), SPACE, WIDTHS, 0.0)[0] == pytest.approx([1.5, 1.0, 0.5, 0])


def test_what_was_not_seen_is_shared_by_all_neurons() -> None:
    got = cut_costs(evidence(32), SPACE, WIDTHS, 6.0) - evidence(32).insured.numpy()
    assert got[0] == pytest.approx([3, 2, 1, 0]) and got[1] == pytest.approx(got[0])
