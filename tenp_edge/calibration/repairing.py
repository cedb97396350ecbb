"""What a cut costs once the neurons that stay have taken over for the cut ones. Pure.

Repair (`recovery.reconstruction`) refits an expert's down on the neurons S that stay: a ridge
regression of its whole output, drawn towards the weights that were. What it leaves of the loss of
cutting C is, with G = E[g^2 m m^T / ||h'||^2] and r the ridge,

    tr W_C (G_CC - G_CS (G_SS + r I)^-1 G_SC) W_C^T

with the penalty of what was changed, which stands for what a fit to a sample promises too much. In
the order of the cuts every S is the beginning of the same list, so that one Cholesky factor of
G + r I has them all: the matrix in the brackets, with r on its diagonal, is L L^T of the columns of
L behind S.
"""

from __future__ import annotations

import torch

from tenp_edge.calibration.elimination import Elimination

RIDGE = 0.1  # of the mean of G's diagonal


def repaired_losses(
    gram: torch.Tensor, down: torch.Tensor, order: torch.Tensor, ridge: float = RIDGE
) -> torch.Tensor:
    """The loss of keeping the first w neurons of ``order``, repaired, w = 0 to the width, float64
    [width + 1].

    ``gram``: G of one expert, [blocks * size, size], of which a neuron knows its own block
    (`elimination.JointMoments`); ``down``: W [hidden, width]; ``order``: [width], best first.
    """
    size, places = gram.shape[1], torch.zeros(len(order), dtype=torch.float64)
    order = order.to(gram.device)
    for start in range(0, len(order), size):
        here = (order // size == start // size).nonzero().flatten()
        neurons = order[here]
        own = gram[neurons][:, neurons - start]
        places[here.cpu()] = _of_places(own, down[:, neurons], ridge).cpu().double()
    tails = places.flip(0).cumsum(0).flip(0)
    return torch.nn.functional.pad(tails, (0, 1)).clamp_min(0)


def _of_places(gram: torch.Tensor, down: torch.Tensor, ridge: float) -> torch.Tensor:
    """What each place of the order adds to the loss of all cuts that reach it, [width]."""
    pull = ridge * gram.diagonal().mean()
    if not pull > 0:
        return torch.zeros_like(gram[0])
    factor = torch.linalg.cholesky(gram + pull * torch.eye(len(gram), device=gram.device))
    return (down @ factor).square().sum(dim=0) - pull * down.square().sum(dim=0)


def with_repair(elimination: Elimination, repaired: torch.Tensor, growth: float) -> torch.Tensor:
    """``repaired`` losses [experts, width + 1] of energies beside h, in the unit of the
    elimination's, never above them."""
    return torch.minimum(repaired / growth, elimination.losses)
