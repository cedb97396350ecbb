"""What rounding the weights of an expert costs, neuron by neuron: sums that price tensor types.

A tensor type stores W + E for W. Its errors are as good as independent, so what they add to the
expert's output is, in units of the residual stream h' (as `elimination` counts cuts),

    down:      sum over k of E[g^2 m_k^2 / ||h'||^2] ||E_down[:, k]||^2
    gate, up:  sum over k of ||w_k||^2 E[g^2 s_k^2 / ||h'||^2] sum over j of E_kj^2 E[x_j^2]

with s_k = dm_k/da_k for gate and dm_k/du_k for up. Of a type only the relative error is needed
(`rounding_errors`): its square as a share of the same sums with W in the place of E. Those are kept
here, for every neuron; what a narrowed expert costs is the sum over the neurons that stay.

Unlike a cut, an error counts beside the stream as it really is after the block, massive activations
included: a token that the block makes massive hides its own errors.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tenp_edge.checkpoint.files import ExpertWeights
from tenp_edge.forward.experts import ExpertGroup, neurons, pad_group, slopes
from tenp_edge.forward.scratch import Scratch
from tenp_edge.models.family import Activation

# Tokens of an expert that are computed again, of every batch that goes through it: as many as one
# padded group, a fraction of the forward itself.
_MOST_TOKENS = 64
_ROWS = 128
_SHORTEST = 1e-30


@dataclass(frozen=True)
class Sampled:
    """Some tokens of an expert: ``rows`` [n] among the forward's, x [n, hidden], ``shares`` [n],
    g^2 times each token's share in the mean."""

    expert: int
    rows: torch.Tensor
    x: torch.Tensor
    shares: torch.Tensor


def sampled(group: ExpertGroup, share: float) -> Sampled:
    """A spread sample of the group's tokens that stands for all; ``share``: a token's."""
    every = -(-len(group.rows) // _MOST_TOKENS)
    picked = slice(every // 2, None, every)
    shares = group.g[picked].float().square() * (share * len(group.rows))
    return Sampled(group.expert, group.rows[picked], group.x[picked], shares / max(len(shares), 1))


class RoundingMoments:
    """Grows E[g^2 s^2 / ||h'||^2] of gate and up, and with m for s that of down, float64
    [3, experts, width]."""

    def __init__(self, experts: int, width: int) -> None:
        self.sums = torch.zeros(3, experts, width, dtype=torch.float64)
        self._scratch = Scratch()

    def add(
        self, tokens: Sampled, stream: torch.Tensor, weights: ExpertWeights, activation: Activation
    ) -> None:
        """``stream``: ||h'||^2 of the ``tokens``, [n], float32."""
        given = tokens.shares / stream.clamp_min(_SHORTEST)
        count = len(given)
        x = pad_group(tokens.x)
        parts = (*slopes(weights, x, activation), neurons(weights, x, activation).float())
        for part, values in enumerate(parts):
            total = given @ values[:count].square()
            self.sums[part, tokens.expert] += total.cpu().double()

    def losses(self, expert: int, weights: ExpertWeights, inputs: torch.Tensor) -> torch.Tensor:
        """Of gate, up and down, each neuron's loss at an error as large as itself, float64
        [3, width]; ``inputs``: E[x_j^2], [hidden]. Without a gate its are 0."""
        squares = self._scratch.copy("squares", weights.down).square_()
        columns = squares.sum(dim=0).cpu().double()
        up = _energies(weights.up, inputs)
        gate = torch.zeros_like(up) if weights.gate is None else _energies(weights.gate, inputs)
        return self.sums[:, expert] * columns * torch.stack([gate, up, torch.ones_like(up)])


def _energies(matrix: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """sum over j of W_kj^2 E[x_j^2] of every row k, float64 [rows]; a few rows at a time."""
    weights = inputs.to(matrix.device).float()
    parts = [part.float().square() @ weights for part in torch.split(matrix, _ROWS)]
    return torch.cat(parts).cpu().double()
