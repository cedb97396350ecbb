"""What repair leaves of a cut's loss, on text that it was not fitted to.

Repair (`recovery.reconstruction`) refits an expert's down on the neurons that stay: a ridge
regression of its whole output. On its own text it takes off more than elsewhere (on the bundled
model's first layer 80 % against 26 %), so it is fitted to one half of the tokens here and judged on
the other, both ways, for a few experts of every layer.

In the order of the cuts, what stays is always the beginning of one list, so that one factor
G + r I = U D U^T, U lower triangular with ones on its diagonal, has all the regressions: with
e = U^-1 m, the neurons behind place w differ from what those before it say by the sum over j >= w
of U_j e_j. Repaired, the loss of keeping w neurons is therefore the sum over i, j >= w of
(U^T W^T W U)_ij H_ij, with H = U^-1 G' U^-T of the other half's G'.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

RIDGE = 0.1  # of the mean of G's diagonal
POINTS = 32  # shares of the width that the curve is kept at, beside 0
_EXPERTS, _LIMIT_BYTES = 8, 2**26


class RepairSample:
    """Grows G = E[g^2 m m^T / ||h||^2] of some experts of a layer, of the two halves of their
    tokens apart: float32 [2, experts, size, size]. Of wide experts the first neurons are looked
    at."""

    def __init__(self, experts: int, width: int, device: torch.device) -> None:
        self.size = min(width, int((_LIMIT_BYTES / 8) ** 0.5))
        most = max(1, min(_EXPERTS, _LIMIT_BYTES // (8 * self.size**2), experts))
        self.experts = [(2 * place + 1) * experts // (2 * most) for place in range(most)]
        shape = (2, most, self.size, self.size)
        self.sums = torch.zeros(shape, dtype=torch.float32, device=device)

    def add(self, expert: int, m: torch.Tensor, weights: torch.Tensor) -> None:
        """Tokens of one expert, as `elimination.JointMoments.add` takes them."""
        if expert not in self.experts:
            return
        count, place = len(weights), self.experts.index(expert)
        rows = (m[:count, : self.size] * weights[:, None].to(m.dtype)).float()
        for half, part in enumerate((rows[: count // 2], rows[count // 2 :])):
            self.sums[half, place] += part.t() @ part

    def left(self, order: torch.Tensor, down: Callable[[int], torch.Tensor]) -> torch.Tensor:
        """What is left of the loss of a cut, once it is repaired, by the share of the neurons that
        is kept: float64 [POINTS + 1], from none to all, each at most 1.

        ``order``: [experts, width], neurons, best first; ``down``: an expert's W_down
        [hidden, width].
        """
        totals = torch.zeros(2, POINTS + 1, dtype=torch.float64)
        for place, expert in enumerate(self.experts):
            own = order[expert][order[expert] < self.size].to(self.sums.device)
            weights = down(expert)[:, own].float()
            alike = weights.t() @ weights
            first, second = (half[place][own][:, own] for half in self.sums)
            totals += _both(first, second, alike) + _both(second, first, alike)
        plain, repaired = totals
        left = torch.where(plain > 0, repaired / plain, 1.0).clamp(0, 1)
        left[0], left[-1] = 1.0, left[-2]  # Where nothing stays; where nothing is lost.
        return left


def _both(fitted: torch.Tensor, judged: torch.Tensor, alike: torch.Tensor) -> torch.Tensor:
    """Losses of cuts and of repaired cuts by the share that is kept, float64 [2, POINTS + 1];
    all [size, size], in the order of the cuts."""
    pull = RIDGE * fitted.diagonal().mean()
    if not pull > 0:
        return torch.zeros(2, POINTS + 1, dtype=torch.float64)
    eye = torch.eye(len(fitted), device=fitted.device)
    factor = torch.linalg.cholesky(fitted + pull * eye)
    unit = factor / factor.diagonal()
    half = torch.linalg.solve_triangular(unit, judged, upper=False, unitriangular=True)
    told = torch.linalg.solve_triangular(unit, half.t(), upper=False, unitriangular=True)
    repaired = (unit.t() @ alike @ unit) * told
    places = (torch.linspace(0, 1, POINTS + 1) * len(fitted)).round().long()
    return torch.stack([_tails(product)[places] for product in (alike * judged, repaired)])


def _tails(product: torch.Tensor) -> torch.Tensor:
    """Sum over i, j >= w, for w from 0 to the size, float64 [size + 1]."""
    upper = product.double().cpu().triu(1).sum(dim=1) * 2 + product.diagonal().double().cpu()
    tails = upper.flip(0).cumsum(0).flip(0)
    return torch.nn.functional.pad(tails, (0, 1))


def at_widths(left: torch.Tensor, width: int) -> torch.Tensor:
    """The curve of `RepairSample.left` at every width from 0 on, float64 [width + 1]."""
    places = torch.linspace(0, POINTS, width + 1, dtype=torch.float64)
    low = places.floor().long().clamp_max(POINTS - 1)
    part = places - low
    return (1 - part) * left[low] + part * left[low + 1]
