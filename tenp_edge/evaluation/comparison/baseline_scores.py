"""Choices that need more than the statistics' sums: AIMER, MoNE and equal score coverage."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.compression_plan import Widths
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.evaluation.comparison.candidates import mean_activations
from tenp_edge.planning.budget import allocation
from tenp_edge.planning.scores.tables import Evidence
from tenp_edge.planning.space import Space
from tenp_edge.scoring.saliency import ranking_scores, sum_of, tokens_routed


def aimer_scores(checkpoint: Checkpoint, layer: int) -> torch.Tensor:
    """-mean|w| / rms(w) over an expert's matrices, [experts]: AIMER, arXiv 2603.18492.

    The flattest distribution of weights is cut first; no data.
    """
    scores = []
    for expert in range(checkpoint.config.num_experts):
        weights = checkpoint.expert(layer, expert)
        matrices = [w.float() for w in weights.matrices]
        count = sum(w.numel() for w in matrices)
        mean = sum(float(w.abs().sum()) for w in matrices) / count
        rms = (sum(float(w.square().sum()) for w in matrices) / count) ** 0.5
        scores.append(-mean / rms)
    return torch.tensor(scores, dtype=torch.float64)


def mone_scores(checkpoint: Checkpoint, statistics: Statistics, layer: int) -> torch.Tensor:
    """mean of ||y - mean y||^2 times mean of g over T_e, [experts]: MoNE, arXiv 2507.00390.

    mean y = W_down mean(m), because y is linear in m.
    """

    def total(name: str) -> torch.Tensor:
        return sum_of(statistics.layer(domain, layer)[name] for domain in statistics.domains)

    tokens = tokens_routed(statistics, layer).clamp_min(1)
    mean_m = mean_activations(statistics, layer)
    centres = torch.stack(
        [
            (checkpoint.expert(layer, expert).down.double() @ mean_m[expert]).square().sum()
            for expert in range(len(mean_m))
        ]
    )
    fluctuation = (total("output_norm_sq") / tokens - centres).clamp_min(0)
    return fluctuation * total("gate") / tokens


def best_experts(checkpoint: Checkpoint, space: Space, neurons: int, score: ScoreOf) -> Widths:
    """The best experts of every layer whole, as many as ``neurons`` pays for, the others 0 wide."""
    ranking = {
        layer: score(layer).argsort(descending=True, stable=True).tolist() for layer in space.layers
    }
    kept = neurons // (len(space.layers) * space.full)
    return allocation.drop(space, kept, ranking, checkpoint.config.n_group)


ScoreOf = Callable[[int], torch.Tensor]


def coverage_widths(evidence: Evidence, score: str, space: Space, neurons: int) -> Widths:
    """MoE-Slimming's budgets, arXiv 2606.18304: the same share of the score kept in every layer.

    The share is the largest whose neurons, each layer's best, are within ``neurons``; inside a
    layer they are given out in legal widths as for free widths.
    """
    curves = {}
    for layer in space.layers:
        values = ranking_scores(evidence.statistics, layer, score).clamp_min(0).flatten()
        ordered = values.sort(descending=True).values.cumsum(0)
        curves[layer] = ordered / ordered[-1].clamp_min(1e-30)

    def budgets(share: float) -> dict[int, int]:
        min_neurons = space.experts * space.legal_widths[0]
        return {
            layer: max(min_neurons, int(torch.searchsorted(curve, share)))
            for layer, curve in curves.items()
        }

    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        fits = sum(budgets(middle).values()) <= neurons
        low, high = (middle, high) if fits else (low, middle)
    widths: Widths = {}
    for layer, budget in budgets(low).items():
        gains = evidence.layers[layer].gains
        widths[layer] = tuple(allocation.free(space, budget, gains).tolist())
    return widths
