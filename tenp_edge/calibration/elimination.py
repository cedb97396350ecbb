"""What the neurons of an expert add together: second moments, and the order in which to cut. Pure.

With c_k = g m_k w_k / ||h'|| what neuron k adds to the residual stream h' after its block, in units
of the stream, cutting a set C of neurons changes the stream by E ||sum over C of c_k||^2, the sum
over C x C of

    A_kj = E[g^2 m_k m_j / ||h'||^2] <w_k, w_j>

(the Hadamard product of two Gram matrices). `JointMoments` collects A, `eliminate` cuts one neuron
after the other, each time the one that adds least to that sum: neurons whose parts cancel go
together, of two alike the second becomes dear. What is kept is an order and its losses; A itself
would be width^2 numbers an expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from tenp_edge.forward.scratch import Scratch

# Of all experts of a layer together. Where A would be larger, only the cross terms inside blocks of
# neurons are kept: half of them still gave nine tenths of the gain on the bundled model.
LIMIT_BYTES = 2**28


@dataclass(frozen=True)
class Elimination:
    """``order`` [experts, width]: neurons, the last one cut first; ``losses`` [experts, width + 1]:
    the loss of keeping the first w of them, w = 0 to the width, float64."""

    order: torch.Tensor
    losses: torch.Tensor


class JointMoments:
    """Grows A, float32 [experts, blocks * size, size]: row k has neuron k's block as columns."""

    def __init__(
        self, experts: int, width: int, device: torch.device, limit_bytes: int = LIMIT_BYTES
    ) -> None:
        max_rows = max(1, limit_bytes // (4 * experts * width))
        blocks = -(-width // max_rows)
        self.width, self.size = width, -(-width // blocks)
        shape = (experts, blocks, self.size, self.size)
        self.sums = torch.zeros(shape, dtype=torch.float32, device=device)
        self._scratch = Scratch()

    def add(self, expert: int, m: torch.Tensor, weights: torch.Tensor) -> None:
        """Tokens of one expert: m [tokens, width]; ``weights`` [tokens], g / ||h|| times the square
        root of the token's share in the mean. Rows of m beyond them are padding."""
        weights = torch.nn.functional.pad(weights, (0, len(m) - len(weights)))
        rows = m * weights[:, None].to(m.dtype)
        for block in range(self.sums.shape[1]):
            part = rows[:, block * self.size : (block + 1) * self.size]
            count = part.shape[1]
            own = self.sums[expert, block, :count, :count]
            product = self._scratch.like("product", own, part.dtype)
            own += torch.mm(part.t(), part, out=product)

    def finish(self, expert: int, down: torch.Tensor) -> None:
        """Multiply by <w_k, w_j>; ``down``: the expert's W_down [hidden, width]. Once an expert,
        after its last token."""
        for block in range(self.sums.shape[1]):
            part = down[:, block * self.size : (block + 1) * self.size]
            count = part.shape[1]
            self.sums[expert, block, :count, :count] *= (part.t() @ part).float()


def eliminate(moments: JointMoments, insurance: torch.Tensor, growth: float) -> Elimination:
    """The greedy order of every expert, and its losses, after `JointMoments.finish`.

    ``insurance`` [experts, width] float64 is added to what each neuron costs in the order (not in
    the losses); ``growth``: ||h'||^2 / ||h||^2 of the layer's block. All experts advance together:
    one step reads a row of A for each.
    """
    experts, blocks, size, _ = moments.sums.shape
    padded, width = blocks * size, moments.width
    table = moments.sums.view(experts, padded, size)
    every, columns = torch.arange(experts), torch.arange(size)
    cost = own_losses(moments, growth)  # what cutting a neuron next would add
    order = torch.empty(experts, width, dtype=torch.int64)
    losses = torch.zeros(experts, width + 1, dtype=torch.float64)
    gone = torch.zeros(experts, padded, dtype=torch.float64)
    cost = torch.nn.functional.pad(cost, (0, padded - width))
    insurance = torch.nn.functional.pad(insurance, (0, padded - width), value=torch.inf)
    for place in reversed(range(width)):
        chosen = (cost + insurance + gone).argmin(dim=1)
        order[:, place] = chosen
        losses[:, place] = losses[:, place + 1] + cost[every, chosen]
        gone[every, chosen] = torch.inf
        row = table[every.to(table.device), chosen.to(table.device)].cpu().double()
        block = (chosen // size * size)[:, None] + columns
        cost.scatter_add_(1, block, row * (2 / growth))
    return Elimination(order, losses.clamp_min(0))


def own_losses(moments: JointMoments, growth: float) -> torch.Tensor:
    """E ||c_k||^2 of every neuron, float64 [experts, width], after `JointMoments.finish`."""
    diagonal = moments.sums.diagonal(dim1=2, dim2=3).flatten(1)[:, : moments.width]
    return diagonal.cpu().double() / growth


def prior(single: torch.Tensor, norms: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What cutting neurons would cost if text said nothing about them, float64 [experts, width].

    In proportion to (||gate_k|| ||up_k|| ||w_k||)^2, a neuron's mean square output for inputs of no
    direction at experts that are chosen alike. Their mean is the geometric mean of the layer's
    ``single`` losses (`own_losses`, [experts, width]): what an ordinary neuron is worth, where the
    arithmetic mean would be that of the few busiest. Mixed in, it insures neurons that the
    calibration text did not need but other text may. Without a gate a neuron is relu(u)^2, a
    product of u with itself: up's row counts twice. ``norms``: WEIGHT_NORMS, [experts, width].
    """
    up, down = norms["up_norm"], norms["down_norm"]
    sizes = (norms.get("gate_norm", up) * up * down).double().square()
    needed = single[single > 0]
    typical = needed.log().mean().exp() if len(needed) else single.new_zeros(())
    return sizes * (typical / sizes.mean().clamp_min(torch.finfo(torch.float64).tiny))
