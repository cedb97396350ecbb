"""Predicted losses of cutting neurons, from the calibration sums. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tenp_edge.calibration.elimination import prior
from tenp_edge.calibration.statistics import LayerStatistics
from tenp_edge.calibration.storage import Statistics
from tenp_edge.scoring.neuron_scores import relative
from tenp_edge.scoring.saliency import EPSILON, domain_tokens, ranking_scores, sum_of

if TYPE_CHECKING:
    from tenp_edge.scoring.score import WeightNorms


def cut_losses(statistics: Statistics, layer: int, order: torch.Tensor) -> torch.Tensor:
    """Predicted loss of keeping each expert's first w neurons of ``order``, w = 0 to the width.

    ``order``: [experts, width], best first; returns float64 [experts, width + 1]. The loss is the
    mean over tokens of ||what is cut||^2 / ||h'||^2 (see `relative`), averaged over the domains.
    With c_k = g m_k w_k / ||h'||, E ||sum c_k||^2 is the sum of E ||c_k||^2 over the cut neurons,
    plus cross terms. Of those the part along the expert's own output is known from the means
    rho_k = E <c_k, y> / ||y||: (sum rho_k)^2 - sum rho_k^2 over the share of tokens that reach the
    expert. It is what makes the last neurons of an expert dearer than their own energies.
    """
    norms = statistics.weight_norms(layer)
    parts = [
        _cut_losses(
            statistics.layer(domain, layer), norms, order, domain_tokens(statistics, domain)
        )
        for domain in statistics.domains
    ]
    return sum_of(parts) / len(parts)


def _cut_losses(
    stats: LayerStatistics, norms: WeightNorms, order: torch.Tensor, tokens: int
) -> torch.Tensor:
    single = tail_sums((relative(stats, norms) / tokens).gather(1, order))
    along = (stats["relative_projection"] / tokens / stats.growth.sqrt()).gather(1, order)
    share = (stats["tokens"] / tokens).clamp_min(EPSILON)[:, None]
    cross = (tail_sums(along).square() - tail_sums(along.square())) / share
    total: torch.Tensor = single + cross.clamp_min(0)
    return total


def prior_losses(statistics: Statistics, layer: int) -> torch.Tensor:
    """What cutting each neuron would cost if text said nothing about it, float64 [experts, width].

    `elimination.prior` of the layer's predicted losses of single neurons, averaged over the
    domains.
    """
    norms = statistics.weight_norms(layer)
    single = sum_of(
        relative(statistics.layer(domain, layer), norms) / domain_tokens(statistics, domain)
        for domain in statistics.domains
    ) / len(statistics.domains)
    return prior(single, norms)


def stream_square(statistics: Statistics, layer: int) -> float:
    """||h'||^2 after the layer's block: what all neurons' energies are over what they are relative
    to the stream (`relative`), so it is the one that busy tokens see. 1 where nothing was routed.
    """
    sums = torch.stack(
        [ranking_scores(statistics, layer, score).sum() for score in ("energy", "relative")]
    )
    return float(sums[0] / sums[1]) if bool((sums > 0).all()) else 1.0


def tail_sums(values: torch.Tensor) -> torch.Tensor:
    """[experts, width] -> [experts, width + 1]: the sum from each place on, 0 after the last."""
    tails = values.flip(-1).cumsum(-1).flip(-1)
    return torch.nn.functional.pad(tails, (0, 1))
