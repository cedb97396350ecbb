"""Whether a calibration's text is of one kind, by how its sequences use the experts. Pure."""

from __future__ import annotations

import math

import torch

from tenp_edge.calibration.storage import Statistics

# Below this the sequences are taken for one kind of text: rather silent than wrong. Narrow kinds
# (mathematics, an encyclopaedia, code) measured 0.009 to 0.037 on three models, wide ones (prose of
# all sorts) 0.02 to 0.05, mixes of four or five kinds 0.043 to 0.113 (docs/experiments.md).
ONE_KIND = 0.04


def use_apart(statistics: Statistics) -> float | None:
    """How far apart the sequences' uses of the experts are: 0 all alike, 1 no expert in common.

    Jensen-Shannon divergence of all sequences in bits, less what sequences of so few tokens would
    show if they were all alike, (experts - 1) / (2 choices ln 2); as a share of log2(experts /
    choices a token), the most that is possible; mean over the layers. None where the statistics do
    not say.
    """
    uses = [statistics.sequence_use(layer) for layer in statistics.layers]
    shares = [_layer_share(use, statistics.choices) for use in uses if use is not None]
    return sum(shares) / len(shares) if shares else None


def is_one_kind(statistics: Statistics) -> bool:
    apart = use_apart(statistics)
    return apart is not None and apart < ONE_KIND


def _layer_share(use: torch.Tensor, choices: int) -> float:
    """``use`` [sequences, experts]: counts; ``choices``: experts a token."""
    use = use[use.sum(dim=1) > 0]
    max_bits = math.log2(use.shape[1] / choices)
    if len(use) < 2 or max_bits <= 0:
        return 0.0
    shares = use / use.sum(dim=1, keepdim=True)
    apart = _entropy_bits(shares.mean(dim=0)) - _entropy_bits(shares).mean()
    reached = int((use.sum(dim=0) > 0).sum())
    noise = ((reached - 1) / use.sum(dim=1) / (2 * math.log(2))).mean()
    return max(float(apart - noise), 0.0) / max_bits


def _entropy_bits(shares: torch.Tensor) -> torch.Tensor:
    entropy: torch.Tensor = torch.special.entr(shares).sum(dim=-1)
    return entropy / math.log(2)
