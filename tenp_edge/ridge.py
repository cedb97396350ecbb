"""Closed-form repair of a cut expert: the neurons that stay take over for the cut ones. Pure.

An expert's output is linear in its neurons, y = W m. With S retained and C cut, W' on S minimises

    sum over tokens of (g / ||h'||)^2 ||W' m_S - W m||^2  +  damping ||W' - W_S||^2

whose solution needs the second moments G = sum (g / ||h'||)^2 m m^T only:

    W' = W_S + W_C G_CS (G_SS + damping I)^-1,    damping = ridge * mean(diag G_SS).

The weights g / ||h'|| count an error by what it changes in the residual stream, as in the planner.
"""

from __future__ import annotations

import torch

from tenp_edge.errors import UserError

RIDGE = 0.1


class Moments:
    """G of one expert over chunks of its tokens: float64 (width, width) on the CPU."""

    def __init__(self, width: int) -> None:
        self.total = torch.zeros(width, width, dtype=torch.float64)

    def add(self, m: torch.Tensor, weight: torch.Tensor) -> None:
        """Tokens' neurons ``m`` [n, width] and their ``weight`` g / ||h'||, [n].

        Products of a chunk in the dtype of ``weight``, chunks in float64.
        """
        scaled = m.to(weight.dtype) * weight[:, None]
        self.total += (scaled.T @ scaled).cpu().double()


def repaired_down(
    down: torch.Tensor, kept: torch.Tensor, moments: torch.Tensor, ridge: float = RIDGE
) -> torch.Tensor:
    """W' (hidden, len(kept)) in float64, from the whole W_down (hidden, width).

    ``kept``: ascending indices; ``moments``: G, (width, width). Nothing cut, or no token: W_S as it
    is. The ridge pulls towards W_S, not towards zero: an expert of few tokens, whose G has fewer
    directions than neurons, keeps its own weights in all the directions that the text never used.
    Raises UserError when ``ridge`` is too small for the arithmetic.
    """
    kept = kept.long()
    retained = down[:, kept].double()
    cut = torch.ones(down.shape[1], dtype=torch.bool)
    cut[kept] = False
    own = moments[kept][:, kept]
    scale = float(own.diagonal().mean()) if len(kept) else 0.0
    if not cut.any() or scale == 0.0:
        return retained
    own = own + ridge * scale * torch.eye(len(kept), dtype=torch.float64)
    factor, failed = torch.linalg.cholesky_ex(own)
    if failed:
        raise UserError(
            f"--set repair-ridge={ridge:g} is too small: an expert's moments are singular",
            f"--set repair-ridge={RIDGE:g}",
        )
    # [S, C]: how much of each cut neuron each retained one takes over.
    shares = torch.cholesky_solve(moments[kept][:, cut], factor)
    return retained + down[:, cut].double() @ shares.T
