"""The least loss that so many bits allow at all: what no choice of types and widths can beat.

A weight of variance s^2 whose error costs a per unit of its square is told in r bits with an error
of at least s^2 2^-2r, if it is Gaussian (Shannon); so its energy e = a s^2, what its absence costs,
leaves a loss of e 2^-2r. Of many weights the least total for a number of bits has one error level
for all whose energy is above it, and no bit for the others, which are cut ("reverse
water-filling", Cover and Thomas, Elements of Information Theory, theorem 10.3.3).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tenp_edge.calibration.statistics import INPUT_SUM
from tenp_edge.calibration.storage import Statistics
from tenp_edge.checkpoint.files import Checkpoint
from tenp_edge.scoring.neuron_scores import relative
from tenp_edge.scoring.saliency import domain_tokens, sum_of

_STEPS = 60
_TINY = 1e-30


def least_loss(energies: torch.Tensor, bits: float) -> float:
    """The least sum of losses of weights with ``energies`` [weights], told in ``bits`` in all.

    Any shape; the unit of the result is theirs. All of them where there is no bit.
    """
    values = energies.flatten().clamp_min(_TINY).log2()
    low, high = float(values.min()) - 2 * bits / len(values) - 1, float(values.max())
    for _ in range(_STEPS):
        level = (low + high) / 2
        spent = float((values - level).clamp_min(0).sum(dtype=torch.float64)) / 2
        low, high = (level, high) if spent > bits else (low, level)
    return float(values.clamp_max(high).exp2().sum(dtype=torch.float64))


def expert_energies(
    checkpoint: Checkpoint, statistics: Statistics
) -> Iterator[tuple[int, torch.Tensor]]:
    """What each weight of the routed experts costs when it is gone, layer by layer: (layer,
    float32 [experts, matrices, width, hidden]), in the unit of `losses.cut_losses`.

    A neuron's loss is spread over the weights of its row of gate, of up, and of its column of down:
    by column for gate and up (variance of the column times its mean squared input), by row for down
    (variance of the row). Each of the matrices has the whole loss: without any one of them
    the neuron is silent.
    """
    for layer in checkpoint.config.moe_layers:
        losses, inputs = _neuron_losses(statistics, layer), _inputs(statistics, layer)
        parts = []
        for expert, loss in enumerate(losses):
            weights = checkpoint.expert(layer, expert)
            columns = [_shares(w.float(), inputs[expert]) for w in weights.matrices[:-1]]
            rows = _shares(weights.down.float().T, torch.ones(weights.down.shape[0]))
            parts.append(torch.stack([loss[:, None] * share for share in (*columns, rows)]))
        yield layer, torch.stack(parts)


def _shares(matrix: torch.Tensor, squares: torch.Tensor) -> torch.Tensor:
    """How a row's energy lies over its columns, [columns]; the sum is 1. ``matrix`` [neurons,
    columns] is fed columns of mean ``squares``."""
    energy = matrix.square().mean(dim=0) * squares
    return energy / energy.sum().clamp_min(_TINY)


def _neuron_losses(statistics: Statistics, layer: int) -> torch.Tensor:
    """Predicted loss of cutting each neuron alone, float32 [experts, width]."""
    norms, domains = statistics.weight_norms(layer), statistics.domains
    total = sum_of(
        relative(statistics.layer(domain, layer), norms) / domain_tokens(statistics, domain)
        for domain in domains
    )
    return (total / len(domains)).float()


def _inputs(statistics: Statistics, layer: int) -> torch.Tensor:
    """Summed squares of each expert's inputs, float32 [experts, hidden]."""
    by_domain = (statistics.layer(domain, layer)[INPUT_SUM] for domain in statistics.domains)
    return sum_of(by_domain).float()


def least_expert_loss(checkpoint: Checkpoint, statistics: Statistics, nbytes: int) -> float:
    """The least predicted loss with all routed experts in ``nbytes`` bytes, whatever the types."""
    energies = [of_layer for _, of_layer in expert_energies(checkpoint, statistics)]
    return least_loss(torch.cat([one.flatten() for one in energies]), 8 * nbytes)
