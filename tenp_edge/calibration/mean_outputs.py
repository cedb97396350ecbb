"""The constant that an expert without neurons may give: its mean output (MoNE, 2507.00390). Pure.

Of all constants c the one that loses least, E ||g (y - c)||^2 / ||h'||^2, is the mean of y weighted
by g^2 / ||h'||^2, and it takes off E[g^2 / ||h'||^2] ||c||^2 of what the expert's absence costs.
Kept are the neurons' means: c is W_down times them.
"""

from __future__ import annotations

import torch

_TINY = torch.finfo(torch.float64).tiny


class MeanNeurons:
    """Grows E[g^2 m / ||h||^2], float64 [experts, width], and E[g^2 / ||h||^2], [experts]."""

    def __init__(self, experts: int, width: int) -> None:
        self.sums = torch.zeros(experts, width, dtype=torch.float64)
        self.weights = torch.zeros(experts, dtype=torch.float64)

    def add(self, expert: int, m: torch.Tensor, weights: torch.Tensor) -> None:
        """Tokens of one expert, as `elimination.JointMoments.add` takes them."""
        squares = weights.float().square()
        self.sums[expert] += (squares @ m[: len(weights)].float()).cpu().double()
        self.weights[expert] += squares.sum().cpu().double()

    def means(self) -> torch.Tensor:
        """Of every neuron, [experts, width], to the digits of bf16, which pack well; 0 of experts
        that no token reached."""
        means = self.sums / self.weights.clamp_min(_TINY)[:, None]
        return means.bfloat16().double()

    def taken_off(self, expert: int, down: torch.Tensor, growth: float) -> float:
        """How much less an expert without neurons loses with its constant; ``down``: its W_down
        [hidden, width], ``growth``: ||h'||^2 / ||h||^2 of the layer's block."""
        means = self.sums[expert] / self.weights[expert].clamp_min(_TINY)
        constant = down.float() @ means.float().to(down.device)
        return float(self.weights[expert]) * float(constant.square().sum()) / growth
