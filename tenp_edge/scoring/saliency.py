"""Scores and predicted losses of a layer over all calibration domains.

Scores (`scores`) of several domains are L2-normalised (an expert score over the layer's experts, a
neuron score over the expert's neurons) and added, so that a domain with more text does not outvote
the others.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from tenp_edge.calibration.statistics import LayerStatistics
from tenp_edge.calibration.storage import Statistics
from tenp_edge.scoring.expert_scores import expert_score
from tenp_edge.scoring.neuron_scores import neuron_magnitude, neuron_score
from tenp_edge.scoring.score import Score

EPSILON = 1e-30


def expert_scores(statistics: Statistics, layer: int, name: str, seed: int = 0) -> torch.Tensor:
    """Scores of one layer's experts over all domains, float64 [experts].

    An expert that no token reached has no evidence, not a low score: `unreached` finds it.
    """
    score, norms = expert_score(name), statistics.weight_norms(layer)
    if score.needs == "seed":
        return _draw((norms["down_norm"].shape[0],), layer, seed, stream=0)
    if score.needs == "weights":
        return score.evaluate(LayerStatistics({}), norms)
    per_domain = (score.evaluate(statistics.layer(d, layer), norms) for d in statistics.domains)
    return sum_of(value / value.norm().clamp_min(EPSILON) for value in per_domain)


def neuron_scores(statistics: Statistics, layer: int, name: str, seed: int = 0) -> torch.Tensor:
    """Scores of one layer's neurons over all domains, float64 [experts, width].

    A domain that never reached an expert is skipped for it; an expert that none reached is
    ordered by the norms of its neurons.
    """
    score, norms = _usable(statistics, name), statistics.weight_norms(layer)
    if score.needs == "seed":
        return _draw(tuple(norms["down_norm"].shape), layer, seed, stream=1)
    magnitude = neuron_magnitude(LayerStatistics({}), norms)
    if score.needs == "weights":
        return score.evaluate(LayerStatistics({}), norms)
    if score.needs == "elimination":
        reached = tokens_routed(statistics, layer) > 0
        return torch.where(reached[:, None], joint_places(statistics, layer, name), magnitude)
    total, reached = torch.zeros_like(magnitude), torch.zeros(magnitude.shape[0], dtype=torch.bool)
    for domain in statistics.domains:
        stats = statistics.layer(domain, layer)
        value = score.evaluate(stats, norms)
        here = stats["tokens"] > 0
        total += here[:, None] * value / value.norm(dim=-1, keepdim=True).clamp_min(EPSILON)
        reached |= here
    return torch.where(reached[:, None], total, magnitude)


def ranking_scores(statistics: Statistics, layer: int, name: str, seed: int = 0) -> torch.Tensor:
    """Scores that compare neurons across experts and layers, float64 [experts, width].

    As `neuron_scores`, but a domain's score is divided by its tokens instead of being normalised
    inside each expert, which would make a neuron of an idle expert equal to one of a busy expert.
    """
    score, norms = _usable(statistics, name), statistics.weight_norms(layer)
    if score.needs in ("weights", "seed"):
        return neuron_scores(statistics, layer, name, seed)
    return sum_of(
        score.evaluate(statistics.layer(domain, layer), norms) / domain_tokens(statistics, domain)
        for domain in statistics.domains
    )


def joint_places(statistics: Statistics, layer: int, name: str) -> torch.Tensor:
    """Width to 1, best first, in the order of `elimination.eliminate`, float64 [experts, width]."""
    order = statistics.elimination(layer, name).order
    places = torch.arange(order.shape[1], 0, -1, dtype=torch.float64).expand(order.shape)
    return torch.empty_like(places).scatter_(1, order, places)


def tokens_routed(statistics: Statistics, layer: int) -> torch.Tensor:
    """Routed tokens of every expert over all domains, float64 [experts]."""
    return sum_of(statistics.layer(domain, layer)["tokens"] for domain in statistics.domains)


def domain_tokens(statistics: Statistics, domain: str) -> int:
    """Calibration tokens of a domain, at least 1."""
    return max(int(statistics.info["domains"][domain]["tokens"]), 1)


def sum_of(values: Iterable[torch.Tensor]) -> torch.Tensor:
    """The sum of at least one tensor, in the shape that all of them have."""
    return torch.stack(list(values)).sum(dim=0)


def _usable(statistics: Statistics, name: str) -> Score:
    score = neuron_score(name)
    score.check(statistics)
    return score


def _draw(shape: tuple[int, ...], layer: int, seed: int, stream: int) -> torch.Tensor:
    """Seeded uniform scores; ``stream`` keeps experts and neurons of a layer independent."""
    generator = torch.Generator().manual_seed((seed * 100003 + layer) * 2 + stream)
    return torch.rand(shape, generator=generator, dtype=torch.float64)
